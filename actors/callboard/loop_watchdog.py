"""Notices when something keeps the event loop from turning, and says what: the stack is taken while it stands still."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import Final

from callboard.live.live_run import LiveRun
from callboard.run import RunContext
from callboard.tools.flights import Flight

logger = logging.getLogger(__name__)

BEATS_PER_LIMIT: Final = 4
"""How often the loop shows a sign of life within the time it may stand still; so often too does the watchdog look."""

LEAST_SHARE_OF_WORK: Final = 0.1
"""Of the time in which neither the loop nor the watchdog moved, how much the process must have been at work if somebody
in it held both up."""

SECONDS_REMEMBERED: Final = 60.0
"""How long a block shows in the runtime's health after it has ended."""

_FRAMES_SHOWN: Final = 40
_WAITS_FOR_WORK: Final = frozenset({"selectors", "asyncio.base_events", "asyncio.runners", "uvloop"})
"""Modules whose code is innermost in the loop's thread while the loop has nothing to do."""


@dataclass(frozen=True, slots=True)
class LoopBlock:
    """A time when the event loop did not turn, and what kept it.

    Attributes:
        at: when it began, in unix seconds.
        duration: seconds; what it has been so far where it has not ended.
        stack: where the loop's thread was, the innermost frame last.
        culprit: the innermost line of it, as ``file:line in function``.
        run_id: the run whose code that was; None where it was no run's, or it is not known.
        session_id: that run's session.
        agent_id: that run's agent.
        step: the step of the run.
        tool: the tool that was called in it.
        ended: whether the loop turns again.
    """

    at: float
    duration: float
    stack: str
    culprit: str
    run_id: str | None = None
    session_id: str | None = None
    agent_id: str | None = None
    step: str | None = None
    tool: str | None = None
    ended: bool = False

    def __str__(self) -> str:
        who = "" if self.tool is None else f" by tool {self.tool!r}"
        whose = "" if self.run_id is None else f" (run {self.run_id!r})"
        is_or_was = "was" if self.ended else "is"
        return f"the event loop {is_or_was} blocked for {self.duration:.1f} s{who}{whose}, at {self.culprit}"


class LoopWatchdog:
    """Watches one loop from a thread of its own. The loop writes down a few times a second that it is alive, and
    nothing else is asked of it.

    Args:
        loop: the loop; make the watchdog on it.
        limit: seconds the loop may stand still. What takes less is never reported, what takes a quarter more always is.
        told: called on the loop with each block, once it has ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: float, *, told: Callable[[LoopBlock], object]) -> None:
        self._loop = loop
        self._limit = limit
        self._interval = limit / BEATS_PER_LIMIT
        self._told = told
        self._thread_of_loop = threading.get_ident()
        self._block: LoopBlock | None = None
        self._beat = time.monotonic()
        self._timer = loop.call_later(self._interval, self._show_life)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="callboard-watchdog", daemon=True)
        self._thread.start()

    def recent(self) -> LoopBlock | None:
        """The latest block, if it lasts or ended within the last minute. From any thread."""
        block = self._block
        if block is None or block.ended:
            is_old = block is not None and block.at + block.duration < time.time() - SECONDS_REMEMBERED
            return None if is_old else block
        return replace(block, duration=time.time() - block.at)

    def close(self) -> None:
        """Watch no more; the thread has ended when this returns."""
        self._timer.cancel()
        self._closed.set()
        self._thread.join()

    # ---- on the loop

    def _show_life(self) -> None:
        now = time.monotonic()
        block = self._block
        if block is not None and not block.ended:
            self._block = block = replace(block, duration=now - self._beat, ended=True)
            self._told(block)
        self._beat = now
        self._timer = self._loop.call_later(self._interval, self._show_life)

    # ---- on the watchdog's thread

    def _watch(self) -> None:
        looked, worked = time.monotonic(), time.process_time()
        while not self._closed.wait(self._interval):
            since, looked = time.monotonic() - looked, time.monotonic()
            busy, worked = time.process_time() - worked, time.process_time()
            if since > self._limit and busy < since * LEAST_SHARE_OF_WORK:
                # This thread stood still as well, and nothing in the process worked: it was stopped as a whole.
                self._beat = looked
                continue
            beat = self._beat
            silent = time.monotonic() - beat
            block = self._block
            if silent < self._limit + self._interval or (block is not None and not block.ended):
                continue
            frame = sys._current_frames().get(self._thread_of_loop)
            # A loop that waits for work is not blocked: the whole process was stopped, or gets no processor.
            if frame is None or frame.f_globals.get("__name__") in _WAITS_FOR_WORK or self._beat != beat:
                continue
            block = _examined(frame, silent)
            # Kept first: if the loop wakes right now, it ends this very block.
            self._block = block
            logger.warning("%s\n%s", block, block.stack)


def _examined(frame: FrameType, silent: float) -> LoopBlock:
    summary = traceback.extract_stack(frame, limit=_FRAMES_SHOWN)
    last = summary[-1]
    block = LoopBlock(
        at=time.time() - silent,
        duration=silent,
        stack="".join(summary.format()),
        culprit=f"{last.filename}:{last.lineno} in {last.name}",
    )
    return _with_owner(block, frame)


def _with_owner(block: LoopBlock, innermost: FrameType) -> LoopBlock:
    """Say whose code blocks: Callboard's own frames below the user's hold the call or the run."""
    frame: FrameType | None = innermost
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("callboard."):
            held = frame.f_locals
            for value in list(held.values()):
                if isinstance(value, Flight):
                    return _by_tool(block, value)
                run = value._run if isinstance(value, RunContext) else value
                if isinstance(run, LiveRun):
                    return _by_run(block, run, held.get("step"))
        frame = frame.f_back
    return block


def _by_tool(block: LoopBlock, flight: Flight) -> LoopBlock:
    call = flight.context
    return replace(
        block,
        run_id=call.run_id,
        session_id=call.session_id,
        agent_id=call.agent_id,
        step=call.call_id.removeprefix(f"{call.run_id}:"),
        tool=flight.tool.name,
    )


def _by_run(block: LoopBlock, run: LiveRun, step: object) -> LoopBlock:
    return replace(
        block,
        run_id=run.run_id,
        session_id=run.session_id,
        agent_id=run.agent.id,
        step=step if isinstance(step, str) else None,
    )
