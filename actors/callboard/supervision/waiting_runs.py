"""Runs between two of their attempts: those that cannot go on here yet, and those that must not go on side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from callboard.clock import Clock, Timer
from callboard.runs.ticket import RunTicket
from callboard.sessions.room import next_delay

FIRST_PAUSE_PARKED: Final = 1.0
LONGEST_PAUSE_PARKED: Final = 60.0
"""Seconds after which a parked run looks again whether it can have what it needs."""

FIRST_PAUSE_FAILED: Final = 0.25
LONGEST_PAUSE_FAILED: Final = 30.0
"""Seconds after which a run is tried again that failed over an error that can pass."""


class GrowingPauses:
    """Wakes runs after pauses, each longer than the run's one before.

    Args:
        first: seconds of a run's first pause.
        longest: seconds that its pauses grow to.
        over: called with a run whose pause is over.
        clock: what the pauses go by.
    """

    def __init__(self, first: float, longest: float, over: Callable[[RunTicket], None], clock: Clock) -> None:
        self._first = first
        self._longest = longest
        self._over = over
        self._clock = clock
        self._lengths: dict[str, float] = {}
        self._timers: dict[str, Timer] = {}

    def has_paused(self, run_id: str) -> bool:
        """Whether a run has paused before, and has not been forgotten."""
        return run_id in self._lengths

    def begin(self, ticket: RunTicket) -> None:
        """The run pauses from now on."""
        length = self._lengths.get(ticket.run_id)
        length = self._first if length is None else next_delay(length, self._longest)
        self._lengths[ticket.run_id] = length
        self._timers[ticket.run_id] = self._clock.call_later(length, self._end, ticket)

    def cut_short(self, run_id: str) -> None:
        """The run goes on, or never will."""
        timer = self._timers.pop(run_id, None)
        if timer is not None:
            timer.cancel()

    def forget(self, run_id: str) -> None:
        """The next pause of the run, should there be one, is its first."""
        self.cut_short(run_id)
        self._lengths.pop(run_id, None)

    def close(self) -> None:
        """Wake nobody any more."""
        for run_id in list(self._timers):
            self.cut_short(run_id)

    def _end(self, ticket: RunTicket) -> None:
        del self._timers[ticket.run_id]
        self._over(ticket)


class StruckRuns:
    """Runs that were in flight at a crash and had got no further. One of them may have caused it, so they go on one at
    a time, each until it has something new on disk: if the process dies again, it is known who was at work.
    """

    def __init__(self) -> None:
        self._at_work: str | None = None
        self._waiting: deque[RunTicket] = deque()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def may_go_on(self, ticket: RunTicket) -> bool:
        """Whether the run may go on now; it waits otherwise."""
        if self._at_work is None:
            self._at_work = ticket.run_id
        if self._at_work == ticket.run_id:
            return True
        self._waiting.append(ticket)
        return False

    def clear(self, run_id: str) -> RunTicket | None:
        """A run has got further, or has stopped: the one whose turn it is, if there is another."""
        if run_id != self._at_work:
            return None
        self._at_work = None
        if not self._waiting:
            return None
        following = self._waiting.popleft()
        self._at_work = following.run_id
        return following

    def withdraw(self, ticket: RunTicket) -> None:
        """A run that may wait does so no more."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
