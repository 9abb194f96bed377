"""Where the runtime's time comes from: the machine, unless a test brings a clock of its own.

What a run can notice goes by this clock: its deadlines, sleeps and pauses, `ctx.now`, the times in its records and
events, and how long a session may idle. What serves the machine does not: the timeouts of messages between actors, the
disk, other processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic as machine_monotonic
from time import time as machine_time
from typing import Any, Final, Protocol, runtime_checkable


class Timer(Protocol):
    """A callback that is due later."""

    def cancel(self) -> None:
        """Call it no more."""
        ...


@runtime_checkable
class Clock(Protocol):
    """Tells the time and wakes at it."""

    def time(self) -> float:
        """The time of day in unix seconds."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Have the running loop call back.

        Args:
            delay: seconds from now.
            callback: what is called.
            *args: with what.
        """
        ...

    async def sleep(self, delay: float) -> None:
        """Return after so many seconds."""
        ...


class SystemClock:
    """The machine's own."""

    __slots__ = ()

    time = staticmethod(machine_time)
    monotonic = staticmethod(machine_monotonic)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Have the running loop call back; see `Clock.call_later`."""
        return asyncio.get_running_loop().call_later(delay, callback, *args)

    async def sleep(self, delay: float) -> None:
        """Return after so many seconds."""
        await asyncio.sleep(delay)


SYSTEM_CLOCK: Final = SystemClock()
"""One serves all."""
