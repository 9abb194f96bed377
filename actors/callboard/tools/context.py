"""What a tool is told about the call it serves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeAlias

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

DepsT = TypeVar("DepsT", default=None)

Publish: TypeAlias = Callable[[str, dict[str, Any]], object]
"""Takes a live event of the call: its name (``tool.progress``, ``tool.delta``) and the fields the tool knows."""


class ToolContext(Generic[DepsT]):
    """One call of a tool, as the tool sees it: the first parameter of a tool that asks for it.

    Args:
        deps: what the agent's `deps` gave; None where it has none.
        run_id: the run that makes the call.
        session_id: its session.
        agent_id: its agent.
        call_id: the call; the same at every attempt, before and after a crash, unless its run then begins afresh.
        attempt: which attempt this is, from 1; retries and recoveries count on.
        state: the session's state.
        publish: takes the call's live events; None where nobody does.

    Attributes:
        deps: what the agent's `deps` gave.
        run_id: the run that makes the call.
        session_id: its session.
        agent_id: its agent.
        call_id: the call.
        attempt: which attempt this is, from 1.
        state: the session's state; what the tool changes, or assigns, becomes part of the step.
        cancelled: whether the call was cancelled or ran past its timeout. A tool in a thread cannot be stopped: it
            should look here from time to time and end by itself.
    """

    __slots__ = (
        "_loop",
        "_publish",
        "agent_id",
        "attempt",
        "call_id",
        "cancelled",
        "deps",
        "run_id",
        "session_id",
        "state",
    )

    def __init__(
        self,
        deps: DepsT = None,  # type: ignore[assignment]  # the type variable's own default
        run_id: str = "",
        session_id: str = "",
        agent_id: str = "",
        call_id: str = "",
        attempt: int = 1,
        *,
        state: Any = None,
        publish: Publish | None = None,
    ) -> None:
        self.deps = deps
        self.run_id = run_id
        self.session_id = session_id
        self.agent_id = agent_id
        self.call_id = call_id
        self.attempt = attempt
        self.state = state
        self.cancelled = False
        self._publish = publish
        self._loop: AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<ToolContext of {self.call_id or 'no call'}, attempt {self.attempt}>"

    @property
    def idempotency_key(self) -> str:
        """What to send to a service that accepts one: the call's id, so that every attempt sends the same."""
        return self.call_id

    async def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the call is, as a live event; costs nothing where nobody watches.

        Args:
            done: how much is done, in a unit of the tool's own.
            total: how much there is to do, in the same unit; None where that is not known.
            note: what it is doing.
        """
        self.report(done, total, note)

    def report(self, done: float, total: float | None = None, note: str = "") -> None:
        """`progress` for a tool that is not ``async``. From any thread."""
        self.announce("tool.progress", {"done": done, "total": total, "note": note})

    def announce(self, name: str, fields: dict[str, Any]) -> None:
        """Hand a live event of this call to whoever watches. From the thread the call runs in.

        Args:
            name: ``tool.progress`` or ``tool.delta``.
            fields: what the tool knows of it; the run adds which call it is.
        """
        publish = self._publish
        if publish is None:
            return
        if self._loop is None:
            publish(name, fields)
        else:
            with contextlib.suppress(RuntimeError):  # an abandoned call may outlive its loop
                self._loop.call_soon_threadsafe(publish, name, fields)

    def move_to_thread(self, loop: AbstractEventLoop | None) -> None:
        """Called by the executor: from here on the tool runs beside this loop, or on it where None."""
        self._loop = loop
