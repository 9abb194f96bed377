"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import math
import threading
from bisect import bisect_right, insort_right
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from callboard.clock import Timer
from callboard_protocol.base import as_seconds
from callboard_protocol.errors import UsageError

START: Final = datetime(2030, 1, 1, tzinfo=UTC)
"""When a fake clock begins, where nobody says."""

_PATIENCE: Final = 10.0
"""Real seconds that `FakeClock.until_sleeping` waits, where nobody says."""


_ROUNDING: Final = 1e-6
"""Seconds. What is due so soon is due now: unix seconds in a float are no finer, so a wait computed from them is off by
as much.
"""


class _Due:
    """A callback and when it is due."""

    __slots__ = ("_arguments", "_callback", "_loop", "is_cancelled", "is_sleep", "when")

    def __init__(
        self, when: float, callback: Callable[..., object], arguments: tuple[Any, ...], *, is_sleep: bool
    ) -> None:
        self.when = when
        self.is_sleep = is_sleep
        self.is_cancelled = False
        self._callback = callback
        self._arguments = arguments
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """Call it no more."""
        self.is_cancelled = True

    def fall_due(self) -> None:
        """Have its loop call it, unless that is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        if not self.is_cancelled:
            self._callback(*self._arguments)


class FakeClock:
    """A clock for tests: ``Runtime(..., clock=clock)``. It stands still until `advance`, and then everything that is
    due by then happens, in the order in which it was due: sleeps end, deadlines strike, idle sessions are parked.

    It may be advanced from any thread, and serve several runtimes.

    Args:
        start: the time of day it begins at; with a time zone.

    Raises:
        UsageError: `start` has no time zone.
    """

    def __init__(self, start: datetime = START) -> None:
        if start.tzinfo is None:
            raise UsageError(f"start={start!r} has no time zone", hint="datetime(2030, 1, 1, tzinfo=UTC)")
        self._start = start.timestamp()
        self._passed = 0.0
        self._due: list[_Due] = []
        self._lock = threading.Lock()

    def time(self) -> float:
        """The time of day in unix seconds."""
        return self._start + self._passed

    def monotonic(self) -> float:
        """Seconds it has been advanced by."""
        return self._passed

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Have the running loop call back once the clock has been advanced so far; see `Clock.call_later`."""
        return self._arm(delay, callback, args, is_sleep=False)

    async def sleep(self, delay: float) -> None:
        """Return once the clock has been advanced so far."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._arm(delay, _wake, (woken,), is_sleep=True)
        try:
            await woken
        finally:
            timer.cancel()

    def advance(self, duration: float | timedelta) -> None:
        """Let time pass. What became due happens in the next turn of its loop, and sees the new time.

        Args:
            duration: seconds or a timedelta.

        Raises:
            UsageError: it is negative.
        """
        seconds = as_seconds(duration)
        with self._lock:
            self._passed += seconds
            later = bisect_right(self._due, self._passed + _ROUNDING, key=_when)
            due, self._due = self._due[:later], self._due[later:]
        for one in due:
            one.fall_due()

    @property
    def sleepers(self) -> int:
        """How many wait for the clock in a sleep or a pause; deadlines do not count."""
        return sum(one.is_sleep for one in self._waiting())

    @property
    def next_due(self) -> float | None:
        """Seconds until the next thing is due; None where nothing is."""
        waiting = self._waiting()
        return waiting[0].when - self._passed if waiting else None

    async def until_sleeping(self, sleepers: int = 1, *, patience: float = _PATIENCE) -> None:
        """Wait, in real time, until so many wait for the clock: then it is time to `advance`.

        Args:
            sleepers: how many, at least.
            patience: real seconds to wait at most.

        Raises:
            TimeoutError: they did not come to it in that time.
        """
        try:
            async with asyncio.timeout(patience):
                while self.sleepers < sleepers:  # noqa: ASYNC110  (whoever sleeps may be on another thread's loop)
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise TimeoutError(
                f"within {patience:g} s, {self.sleepers} of {sleepers} came to sleep on the fake clock"
            ) from None

    def __repr__(self) -> str:
        return f"<FakeClock {datetime.fromtimestamp(self.time(), UTC).isoformat()}, {self.sleepers} asleep>"

    def _arm(
        self, delay: float, callback: Callable[..., object], arguments: tuple[Any, ...], *, is_sleep: bool
    ) -> _Due:
        if math.isnan(delay):
            raise UsageError("a delay that is no number never ends", hint="give seconds")
        with self._lock:
            one = _Due(self._passed + max(0.0, delay), callback, arguments, is_sleep=is_sleep)
            if delay > _ROUNDING:
                insort_right(self._due, one, key=_when)
        if delay <= _ROUNDING:
            one.fall_due()
        return one

    def _waiting(self) -> list[_Due]:
        with self._lock:
            self._due = [one for one in self._due if not one.is_cancelled]
            return self._due


def _when(one: _Due) -> float:
    return one.when


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
