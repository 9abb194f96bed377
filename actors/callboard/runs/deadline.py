"""The end of a run's `max_duration`."""

from __future__ import annotations

from collections.abc import Callable

from callboard.clock import Clock, Timer


class Deadline:
    """A timer that stands still while its run waits.

    Args:
        clock: what it goes by.
        left: seconds the run may still spend running.
        passed: called once it has spent them.
    """

    __slots__ = ("_clock", "_left", "_passed", "_since", "_timer")

    def __init__(self, clock: Clock, left: float, passed: Callable[[], object]) -> None:
        self._clock = clock
        self._left = left
        self._passed = passed
        self._since = 0.0
        self._timer: Timer | None = None
        self.go_on()

    def pause(self) -> None:
        """The run waits from now on."""
        if self._timer is not None:
            self._left -= self._clock.monotonic() - self._since
            self.cancel()

    def go_on(self) -> None:
        """The run is at work from now on."""
        if self._timer is None:
            self._since = self._clock.monotonic()
            self._timer = self._clock.call_later(max(0.0, self._left), self._passed)

    def cancel(self) -> None:
        """The run has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
