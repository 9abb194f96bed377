"""SyncRuntime: the same runtime for code without an event loop. A thread of its own holds the loop."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack, overload

from callboard.access import Agents, Runs, Sessions
from callboard.accounts import Accounts
from callboard.agents import Agent
from callboard.clock import Clock
from callboard.health import RuntimeHealth
from callboard.limits import RuntimeLimits, RuntimeStats
from callboard.requests import RunOptions
from callboard.run_handle import RunHandle
from callboard.runtime import Runtime
from callboard_protocol.errors import ForkedError, RuntimeClosedError, UsageError, WouldDeadlockError
from callboard_protocol.event_base import Event
from callboard_protocol.messages import ContentPart
from callboard_protocol.runs import OutputT_co, RunBudget, RunRequest, RunResult
from callboard_protocol.tools import Decision
from callboard_storage.store import Store

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

D = TypeVar("D")
T = TypeVar("T")
_END = object()


class SyncRunHandle(Generic[OutputT_co]):
    """A run that was taken in.

    Attributes:
        run_id: the run.
    """

    def __init__(self, handle: RunHandle[OutputT_co], call: Callable[..., Any]) -> None:
        self.run_id = handle.run_id
        self._handle = handle
        self._call = call

    def result(self) -> RunResult[OutputT_co]:
        """Wait until the run has stopped."""
        result: RunResult[OutputT_co] = self._call(self._handle.result)
        return result

    def cancel(self, reason: str = "") -> None:
        """Stop the run; returns once it has stopped."""
        self._call(self._handle.cancel, reason)

    def events(self, *, after: str | None = None) -> Iterator[Event]:
        """The run's events; see `Runtime.events`."""
        return _each(self._call, lambda: self._handle.events(after=after))


class SyncNamespace:
    """`runtime.sessions` or `runtime.runs`, blocking: the same methods with the same arguments."""

    def __init__(self, kind: type[Any], target: Callable[[], Any], call: Callable[..., Any]) -> None:
        self._kind = kind
        self._target = target
        self._call = call

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._kind, name)

        def blocking(*args: Any, **kwargs: Any) -> Any:
            async def call() -> Any:
                return await method(self._target(), *args, **kwargs)

            return self._call(call)

        return blocking


def _each(call: Callable[..., Any], begin: Callable[[], AsyncIterator[Event]]) -> Iterator[Event]:
    """The events, each awaited on the runtime's loop; nothing of them is left there when the reader stops."""

    async def open_there() -> AsyncIterator[Event]:
        return begin()

    events = call(open_there)
    try:
        while (event := call(anext, events, _END)) is not _END:
            yield event
    finally:
        with contextlib.suppress(RuntimeClosedError):
            call(events.aclose)


def _not_open() -> RuntimeClosedError:
    return RuntimeClosedError("the runtime is not open", hint="use it inside `with SyncRuntime(...)`")


class SyncRuntime:
    """`Runtime` for threads: open it with ``with``, call it from any thread but an event loop's own.

    However the block is left, by its end, an exception or Ctrl-C, the runtime closes as `Runtime.aclose` says, and
    calls that wait in other threads get their answers. Interrupted while it closes, it stops the runs where they are,
    and closes all the same.

    Args:
        agents: as for `Runtime`.
        store: as for `Runtime`.
        limits: as for `Runtime`.
        recover: as for `Runtime`.
        drain_timeout: as for `Runtime`.
    """

    def __init__(
        self,
        agents: Sequence[Agent[Any, Any]] = (),
        *,
        store: str | os.PathLike[str] | Store | None = None,
        limits: RuntimeLimits | None = None,
        recover: bool = True,
        drain_timeout: float | timedelta = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self._runtime = Runtime(
            agents, store=store, limits=limits, recover=recover, drain_timeout=drain_timeout, clock=clock
        )
        self._opening: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None
        self._ending = threading.Lock()
        self._thread = 0
        self._process = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the thread and open the runtime in it; raises what `Runtime.start` raises.

        Raises:
            UsageError: it is open already.
        """
        if self._portal is not None:
            raise UsageError("the runtime is open already", hint="open one SyncRuntime once; any thread may use it")
        # Whoever has an event loop needs none of it, and importing Callboard should not cost them this.
        from anyio.from_thread import start_blocking_portal  # noqa: PLC0415

        opening = start_blocking_portal("asyncio")
        self._portal = opening.__enter__()
        self._opening = opening
        self._process = os.getpid()
        self._thread = self._portal.call(threading.get_ident)
        try:
            self._call(self._runtime.start)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """Close the runtime as `Runtime.aclose` does, and end its thread. Closing twice is harmless: a second thread
        that calls this waits until it is closed.

        Raises:
            WouldDeadlockError: called on that thread; it stays open.
            ForkedError: it was opened by the parent of this process, and is still the parent's.
        """
        if self._portal is None:
            return
        self._require_place()
        with self._ending:
            if self._opening is None:
                return
            try:
                self._close()
            finally:
                self._end()

    def _close(self) -> None:
        try:
            self._call(self._runtime.aclose)
        except KeyboardInterrupt:
            # That ends the patience, not the closing: what is left must not outlive the loop.
            self._call(lambda: self._runtime.aclose(drain_timeout=0))
            raise

    def _end(self) -> None:
        opening, portal = self._opening, self._portal
        self._opening = self._portal = None
        if opening is not None and portal is not None:
            # Whatever still runs there is cancelled: an `aclose` that its caller was interrupted in hurries then.
            with contextlib.suppress(RuntimeError):  # another thread that was about to call has found it stopped
                portal.call(portal.stop, True)
            opening.__exit__(None, None, None)

    def _call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        portal = self._portal
        if portal is None:
            raise _not_open()
        self._require_place()
        try:
            answer: T = portal.call(function, *args)
        except RuntimeError:
            if self._portal is portal:
                raise
            raise _not_open() from None  # another thread has closed it meanwhile
        return answer

    def _require_place(self) -> None:
        if os.getpid() != self._process:
            raise ForkedError(f"the runtime lives in process {self._process}, and this is a fork of it")
        if threading.get_ident() == self._thread:
            raise WouldDeadlockError(
                "a blocking call on the thread that would have to answer it",
                hint="inside an async tool or pattern use what its context offers, or `await` an async Runtime",
            )

    @overload
    def run(
        self,
        agent: Agent[D, T],
        input: str | Sequence[ContentPart],
        *,
        deps: D | None = None,
        **options: Unpack[RunOptions],
    ) -> RunResult[T]: ...
    @overload
    def run(
        self, agent: str, input: str | Sequence[ContentPart], *, deps: Any = None, **options: Unpack[RunOptions]
    ) -> RunResult[Any]: ...
    @overload
    def run(self, agent: RunRequest, *, deps: Any = None) -> RunResult[Any]: ...
    def run(self, agent: Any, input: Any = None, *, deps: Any = None, **options: Any) -> RunResult[Any]:  # noqa: A002
        """As `Runtime.run`, blocking."""
        return self._call(lambda: self._runtime.run(agent, input, deps=deps, **options))

    @overload
    def submit(
        self,
        agent: Agent[D, T],
        input: str | Sequence[ContentPart],
        *,
        deps: D | None = None,
        **options: Unpack[RunOptions],
    ) -> SyncRunHandle[T]: ...
    @overload
    def submit(
        self, agent: str, input: str | Sequence[ContentPart], *, deps: Any = None, **options: Unpack[RunOptions]
    ) -> SyncRunHandle[Any]: ...
    @overload
    def submit(self, agent: RunRequest, *, deps: Any = None) -> SyncRunHandle[Any]: ...
    def submit(self, agent: Any, input: Any = None, *, deps: Any = None, **options: Any) -> SyncRunHandle[Any]:  # noqa: A002
        """As `Runtime.submit`, blocking."""
        handle: RunHandle[Any] = self._call(lambda: self._runtime.submit(agent, input, deps=deps, **options))
        return SyncRunHandle(handle, self._call)

    def wait(self, run_id: str) -> RunResult[Any]:
        """As `Runtime.wait`, blocking."""
        return self._call(self._runtime.wait, run_id)

    def resume(self, run_id: str, *, budget: RunBudget | None = None) -> SyncRunHandle[Any]:
        """As `Runtime.resume`, blocking."""
        handle: RunHandle[Any] = self._call(lambda: self._runtime.resume(run_id, budget=budget))
        return SyncRunHandle(handle, self._call)

    def cancel(self, run_id: str, *, reason: str = "", by: str = "") -> bool:
        """As `Runtime.cancel`, blocking."""
        return self._call(lambda: self._runtime.cancel(run_id, reason=reason, by=by))

    def decide(self, call_id: str, decision: Decision, *, by: str, note: str = "") -> None:
        """As `Runtime.decide`, blocking."""
        self._call(lambda: self._runtime.decide(call_id, decision, by=by, note=note))

    def send(self, run_id: str, channel: str, value: Any) -> None:
        """As `Runtime.send`, blocking."""
        self._call(self._runtime.send, run_id, channel, value)

    def events(self, run_id: str, *, after: str | None = None) -> Iterator[Event]:
        """As `Runtime.events`, blocking."""
        return _each(self._call, lambda: self._runtime.events(run_id, after=after))

    @property
    def agents(self) -> Agents:
        """The registered agents."""
        return self._runtime.agents

    @property
    def sessions(self) -> SyncNamespace:
        """`Runtime.sessions`, blocking."""
        return SyncNamespace(Sessions, lambda: self._runtime.sessions, self._call)

    @property
    def runs(self) -> SyncNamespace:
        """`Runtime.runs`, blocking."""
        return SyncNamespace(Runs, lambda: self._runtime.runs, self._call)

    @property
    def accounts(self) -> SyncNamespace:
        """`Runtime.accounts`, blocking."""
        return SyncNamespace(Accounts, lambda: self._runtime.accounts, self._call)

    def stats(self) -> RuntimeStats:
        """As `Runtime.stats`."""
        return self._runtime.stats()

    def health(self) -> RuntimeHealth:
        """As `Runtime.health`, also while the runtime's loop is blocked."""
        return self._runtime.health()
