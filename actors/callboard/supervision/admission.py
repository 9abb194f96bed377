"""Who runs next: slots for the process, one run at a time for a session, in arrival order. Pure bookkeeping."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Final

ELSEWHERE: Final = "\0elsewhere"
"""Holds a session that another process has; no run's id begins with NUL."""


class _Line:
    """One session's runs: the one that holds it, and those that wait for it."""

    __slots__ = ("holder", "waiting")

    def __init__(self) -> None:
        self.holder: str | None = None
        self.waiting: deque[tuple[int, str]] = deque()


class Admission:
    """Queues of run ids.

    Args:
        slots: how many runs may be at work at a time.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._lines: dict[str, _Line] = {}
        self._first_in_line: list[tuple[int, str, str]] = []
        self._returning: deque[str] = deque()

        self.queued = 0

    @property
    def free_slots(self) -> int:
        """Slots nobody holds."""
        return self._free

    def queued_in(self, session_id: str) -> int:
        """Runs that wait for a session."""
        line = self._lines.get(session_id)
        return 0 if line is None else len(line.waiting)

    def holder_of(self, session_id: str) -> str | None:
        """The run that holds a session."""
        line = self._lines.get(session_id)
        return None if line is None else line.holder

    def first_waiting(self, session_id: str) -> tuple[int, str] | None:
        """The order and the id of the run that waits first for a session."""
        line = self._lines.get(session_id)
        return line.waiting[0] if line is not None and line.waiting else None

    def enqueue(self, order: int, run_id: str, session_id: str) -> None:
        """A run arrives. Runs of one session, and of the process, go in the order of `order`."""
        line = self._lines.setdefault(session_id, _Line())
        line.waiting.append((order, run_id))
        self.queued += 1
        if line.holder is None and len(line.waiting) == 1:
            heapq.heappush(self._first_in_line, (order, run_id, session_id))

    def withdraw(self, run_id: str, session_id: str) -> bool:
        """A waiting run leaves; False if it does not wait in its session's line."""
        self.forget_return(run_id)
        line = self._lines.get(session_id)
        if line is None:
            return False
        for place, (_, waiting) in enumerate(line.waiting):
            if waiting == run_id:
                del line.waiting[place]
                self.queued -= 1
                if place == 0 and line.holder is None:
                    self._advance(line, session_id)
                return True
        return False

    def admit(self, *, begins: bool = True) -> str | None:
        """The run that may go to work now, if any; it holds a slot, and its session, from now on.

        One that returns to its slot goes first, then the oldest whose session is free.

        Args:
            begins: whether a run may begin; otherwise only one that returns is named.
        """
        if self._free <= 0:
            return None
        if self._returning:
            self._free -= 1
            return self._returning.popleft()
        while begins and self._first_in_line:
            order, run_id, session_id = heapq.heappop(self._first_in_line)
            line = self._lines.get(session_id)
            if line is None or line.holder is not None or not line.waiting or line.waiting[0] != (order, run_id):
                # It was first in its line once: it was withdrawn since, or holds its session without a slot.
                continue
            line.waiting.popleft()
            line.holder = run_id
            self._free -= 1
            self.queued -= 1
            return run_id
        return None

    def hold(self, run_id: str, session_id: str) -> None:
        """A run holds its session without a slot: one that waits for more than its turn, or is only to be ended."""
        line = self._lines.setdefault(session_id, _Line())
        place = next((place for place, (_, waiting) in enumerate(line.waiting) if waiting == run_id), None)
        if place is not None:
            del line.waiting[place]
            self.queued -= 1
        line.holder = run_id

    def requeue(self, order: int, run_id: str, session_id: str) -> None:
        """A run that has begun in its session waits for a slot, before all others of its session."""
        self._lines.setdefault(session_id, _Line()).holder = None
        self.put_first(order, run_id, session_id)

    def put_first(self, order: int, run_id: str, session_id: str) -> None:
        """A run waits before all others of its session."""
        line = self._lines.setdefault(session_id, _Line())
        line.waiting.appendleft((order, run_id))
        self.queued += 1
        if line.holder is None:
            heapq.heappush(self._first_in_line, (order, run_id, session_id))

    def stand_back(self, order: int, run_id: str, session_id: str) -> None:
        """A run at work finds its session in another process's hands: it waits, before all others of its session, until
        `release(ELSEWHERE, session_id)`.
        """
        line = self._lines[session_id]
        line.holder = ELSEWHERE
        line.waiting.appendleft((order, run_id))
        self.queued += 1

    def leave_slot(self) -> None:
        """A run at work waits for something: its slot is free, its session is not."""
        self._free += 1

    def ask_back(self, run_id: str) -> None:
        """A run that left its slot wants one again, or one that such a run waits for wants to begin; `admit` names it
        when it has one.
        """
        self._returning.append(run_id)

    def forget_return(self, run_id: str) -> bool:
        """A run that wants its slot again has been stopped; False if it did not wait for one."""
        try:
            self._returning.remove(run_id)
        except ValueError:
            return False
        return True

    def release(self, run_id: str, session_id: str) -> None:
        """A run lets go of its session."""
        line = self._lines.get(session_id)
        if line is not None and line.holder == run_id:
            line.holder = None
            self._advance(line, session_id)

    def _advance(self, line: _Line, session_id: str) -> None:
        if line.waiting:
            order, run_id = line.waiting[0]
            heapq.heappush(self._first_in_line, (order, run_id, session_id))
        elif line.holder is None:
            del self._lines[session_id]
