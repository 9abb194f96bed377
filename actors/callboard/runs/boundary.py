"""Where a run can be left without cutting anything short: between its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class StepBoundary:
    """Counts the steps of one attempt that act: that call a model or a tool, or run a function of the pattern's.

    Once it is closed no branch of the run begins to act: each waits here. When all of them wait or sleep, nothing is in
    flight, and the attempt is stopped. A pattern that is between two steps goes on: it comes here, or to its end.

    Args:
        leave: stops the attempt where it is.

    Attributes:
        is_closed: whether the run is to be left.
    """

    __slots__ = ("_acting", "_leave", "_sleeping", "_waiting", "is_closed")

    def __init__(self, leave: Callable[[], object]) -> None:
        self._leave = leave
        self._acting = 0
        self._waiting = 0
        self._sleeping = 0
        self.is_closed = False

    def begin(self) -> None:
        """A step that acts has begun; pair with `end`."""
        self._acting += 1

    def end(self) -> None:
        """It has ended, and its outcome is on disk if it has one."""
        self._acting -= 1
        if self.is_closed:
            self._look()

    def rest(self, *, acting: bool) -> None:
        """A branch does nothing but wait, from now on; pair with `go_on`.

        Args:
            acting: whether that is within a step that has begun to act, but has done nothing yet.
        """
        self._waiting += acting
        self._sleeping += not acting
        if self.is_closed:
            self._look()

    def go_on(self, *, acting: bool) -> None:
        """It waits no more."""
        self._waiting -= acting
        self._sleeping -= not acting

    def close(self) -> None:
        """Leave the run as soon as nothing of it is in flight."""
        self.is_closed = True
        self._look()

    async def stay(self) -> None:
        """Wait for the attempt to be stopped."""
        self.rest(acting=True)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.go_on(acting=True)

    def _look(self) -> None:
        if self._acting == self._waiting and (self._waiting or self._sleeping):
            self._leave()
