"""Tool calls in flight: one timer for all their deadlines, and an answer for each, even for one that will not end."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, Literal

from callboard.clock import SYSTEM_CLOCK, Clock, Timer
from callboard.kernel.replies import LoopFuture
from callboard.tools.base import Tool
from callboard.tools.context import ToolContext
from callboard_protocol.errors import CallboardError, ToolFailedError, ToolTimeoutError
from callboard_protocol.tools import Unknown

logger = logging.getLogger("callboard.tools")

PATIENCE: Final = 5.0
"""Seconds a call that was told to end may take to do so, before it is answered for and left to itself."""

COARSENESS: Final = 0.01
"""Deadlines closer together than this, in seconds, share a timer."""


@dataclass(slots=True)
class ToolOutcome:
    """What came of one tool call.

    Attributes:
        value: what the tool returned, as it returned it; None where it failed.
        error: why it failed: a `ModelRetry`, a `ToolTimeoutError`, or another `ToolError`; None where it did not.
        duration: seconds it took, waiting for its turn and retries included.
        attempts: how often the tool was called; 0 where it was stopped before.
        cancelled: whether it was cancelled; once called, that leaves its effect unknown, as a timeout does.
    """

    value: Any
    error: CallboardError | None
    duration: float
    attempts: int = 1
    cancelled: bool = False


@dataclass(frozen=True)
class ReconcileFailed(Unknown):
    """`Unknown`, because the tool's `reconcile` raised, ran past the timeout or answered something else.

    Attributes:
        error: what went wrong.
    """

    error: CallboardError | None = None


class Flight:
    """One call between its dispatch and its answer.

    Attributes:
        reply: where its answer goes.
        due: when its time is up, in the clock's monotonic seconds.
        attempts: how often the tool was called so far.
        told_to_end: why, from the moment it is told until it has.
        reason: what a cancellation said.
        left_behind: what of it goes on after its end, in words.
        cancelled: whether a cancellation ended it.
        effect_unknown: whether its timeout, or the death of its process, hid what its last attempt did.
        verdict: the error that its last exception stands for.
    """

    __slots__ = (
        "arguments",
        "attempts",
        "began",
        "cancelled",
        "context",
        "due",
        "effect_unknown",
        "key",
        "left_behind",
        "reason",
        "reconciles",
        "reply",
        "task",
        "told_to_end",
        "tool",
        "verdict",
    )

    def __init__(
        self, tool: Tool[Any], arguments: dict[str, Any], context: ToolContext[Any], began: float, *, reconciles: bool
    ) -> None:
        self.tool = tool
        self.arguments = arguments
        self.context = context
        self.began = began
        self.reconciles = reconciles
        self.reply: LoopFuture[Any] = LoopFuture()
        self.due = math.inf
        self.attempts = 0
        self.told_to_end: Literal["timeout", "cancel"] | None = None
        self.cancelled = False
        self.effect_unknown = False
        self.reason = self.left_behind = ""
        self.verdict: CallboardError | None = None
        self.key: object
        self.task: asyncio.Task[None]

    def ended(self) -> CallboardError:
        """It was told to end and has: the error that says so. Notes that, and takes back that it was told."""
        tool = self.tool
        context: dict[str, Any] = {"tool": tool.name, "timeout": tool.timeout}
        tail = f"; {self.left_behind}" if self.left_behind else ""
        why, self.told_to_end = self.told_to_end, None
        self.due = math.inf
        if why == "timeout":
            self.effect_unknown = True
            return ToolTimeoutError(f"{tool.name} ran past its timeout of {tool.timeout:g} s{tail}", context=context)
        self.cancelled = True
        because = f": {self.reason}" if self.reason else ""
        return ToolFailedError(
            f"{tool.name} was cancelled{because}{tail}", context={**context, "cancelled": True, "reason": self.reason}
        )


class Flights:
    """The calls in flight.

    Args:
        loop: where they run.
        clock: what their deadlines go by.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock = SYSTEM_CLOCK) -> None:
        self._loop = loop
        self._clock = clock
        self._flights: dict[object, Flight] = {}
        self._left: set[asyncio.Task[None]] = set()
        self._timer: Timer | None = None
        self._wakes = math.inf

    def __len__(self) -> int:
        return len(self._flights)

    def get(self, call_id: str) -> Flight | None:
        """The call of that id, if it is in flight."""
        return self._flights.get(call_id)

    def launch(self, flight: Flight, making: Coroutine[Any, Any, None]) -> None:
        """Begin a call as a task of its own."""
        key: object = flight.context.call_id
        # The same call may be made again while an earlier attempt of it still ends.
        flight.key = flight if key in self._flights or not key else key
        self._flights[flight.key] = flight
        flight.task = self._loop.create_task(making)

    def land(self, flight: Flight, value: Any, error: CallboardError | None) -> None:
        """Answer for a call that has ended."""
        if self._flights.pop(flight.key, None) is None:
            return
        if not flight.reconciles:
            duration = self._clock.monotonic() - flight.began
            flight.reply.set(ToolOutcome(value, error, duration, flight.attempts, flight.cancelled))
        else:
            flight.reply.set(value if error is None else ReconcileFailed(error=error))

    # ---- deadlines

    def start_clock(self, flight: Flight) -> None:
        """The call has its tool's timeout from now on."""
        timeout = flight.tool.timeout_seconds
        if timeout is None:
            flight.due = math.inf
            return
        due = flight.due = self._clock.monotonic() + timeout
        if due < self._wakes:
            self._wake_at(due)

    def end(self, flight: Flight, why: Literal["timeout", "cancel"]) -> None:
        """Tell a call to end."""
        flight.told_to_end = why
        flight.context.cancelled = True
        flight.due = self._clock.monotonic() + PATIENCE
        if flight.due < self._wakes:
            self._wake_at(flight.due)
        flight.task.add_done_callback(lambda _: self._never_began(flight))
        flight.task.cancel()

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes = when
        self._timer = self._clock.call_later(when - self._clock.monotonic(), self._sweep)

    def _sweep(self) -> None:
        """End what is overdue, and sleep until the next one is."""
        self._timer = None
        self._wakes = math.inf
        now = self._clock.monotonic()
        next_due = math.inf
        for flight in list(self._flights.values()):
            if flight.due <= now:
                if flight.told_to_end is None:
                    self.end(flight, "timeout")
                else:
                    self._leave(flight)
                    continue
            next_due = min(next_due, flight.due)
        if next_due < self._wakes:
            self._wake_at(max(next_due, now + COARSENESS))

    def _leave(self, flight: Flight) -> None:
        self._left.add(flight.task)
        flight.task.add_done_callback(self._left.discard)
        flight.left_behind = "it does not heed that and was left to itself"
        logger.warning("tool %s resists cancellation: call %s is left", flight.tool.name, flight.context.call_id)
        self.land(flight, None, flight.ended())

    def _never_began(self, flight: Flight) -> None:
        """A task that is cancelled before its first turn never runs, so it cannot answer."""
        if flight.task.cancelled() and self._flights.get(flight.key) is flight and flight.told_to_end is not None:
            flight.attempts = 0
            self.land(flight, None, flight.ended())

    # ---- the end

    async def close(self) -> None:
        """Cancel what runs and wait for it, but not for ever."""
        if self._timer is not None:
            self._timer.cancel()
        # One that was told to end already is busy with that, and a second cancellation would cut it short.
        busy_ending = {flight.task for flight in self._flights.values() if flight.told_to_end is not None}
        tasks = {flight.task for flight in self._flights.values()} | self._left
        self._flights.clear()
        for task in tasks - busy_ending:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=PATIENCE)
            if stubborn:
                logger.error("%d tool calls resist cancellation and are left behind", len(stubborn))
