"""The children that an attempt waits for, and what they mean for its time and for where it can be left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from callboard.runs.ticket import RunTicket
from callboard_protocol.runs import RunResult

if TYPE_CHECKING:
    from callboard.live.live_run import LiveRun


class AwaitedChildren:
    """What the branches of one attempt have delegated and wait for.

    While a child is at work, so is the run: where it is to be left, that is between two steps of the child. While the
    child only waits, so does the run. Its time stands still while that of all these children does: as long as one of
    them works, it goes on.

    Args:
        run: who waits.
    """

    __slots__ = ("_count", "_pauses", "_run", "_standing_still")

    def __init__(self, run: LiveRun) -> None:
        self._run = run
        self._count = 0
        self._standing_still = 0
        self._pauses = False

    async def until_ended(self, ticket: RunTicket) -> RunResult[Any]:
        """Wait until a child has ended for good; one that is suspended or parked is waited for as well."""
        rested = stood_still = False

        def child_waits(rests: bool, stands_still: bool) -> None:
            nonlocal rested, stood_still
            if rests != rested:
                rested = rests
                boundary = self._run.boundary
                (boundary.rest if rests else boundary.go_on)(acting=True)
            self._standing_still += stands_still - stood_still
            stood_still = stands_still
            self._look()

        self._count += 1
        ticket.tell_parent(child_waits)
        try:
            return await asyncio.shield(ticket.ended)
        finally:
            ticket.tell_parent(None)
            self._count -= 1
            child_waits(rests=False, stands_still=False)

    def _look(self) -> None:
        pauses = 0 < self._count == self._standing_still
        if pauses != self._pauses:
            self._pauses = pauses
            (self._run.pause if pauses else self._run.unpause)()
