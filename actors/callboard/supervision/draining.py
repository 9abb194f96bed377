"""What becomes of the runs in hand when their supervisor closes, fails or stops."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from callboard.runs.entries import interrupted
from callboard.supervision.correspondence import Correspondence
from callboard.supervision.neighbours import Neighbours
from callboard.supervision.returning import ReturningRuns
from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.states import RunState

logger = logging.getLogger(__name__)

PATIENCE: Final = 5.0
"""Seconds a run that is stopped may take to end, before the runtime closes without it."""


class Draining:
    """Has every run left to a later start, none of them in the middle of a step if that can be helped.

    Args:
        in_hand: the supervisor's runs.
        queue: those that wait for a slot.
        returning: those between two attempts.
        correspondence: where the calls that they ask about expire.
        neighbours: the other processes.
    """

    def __init__(
        self,
        in_hand: RunsInHand,
        queue: RunQueue,
        *,
        returning: ReturningRuns,
        correspondence: Correspondence,
        neighbours: Neighbours,
    ) -> None:
        self._in_hand = in_hand
        self._queue = queue
        self._returning = returning
        self._correspondence = correspondence
        self._neighbours = neighbours

    async def drain(self, within: float) -> int:
        """Admit nothing more, and have every run left between two steps; how many are left to a later start.

        Args:
            within: seconds after which what still runs is stopped.
        """
        loop = asyncio.get_running_loop()
        if self._in_hand.drained is None:
            self._in_hand.drained = loop.create_future()
            self._close_down()
        timer = loop.call_later(within, self._interrupt_all)
        _, resisting = await asyncio.wait([self._in_hand.drained], timeout=within + PATIENCE)
        timer.cancel()
        if resisting and not self._in_hand.drained.done():
            self._in_hand.drained.set_result(None)
            names = ", ".join(task.get_name() for task in self._in_hand.directory.attempts)
            logger.error("left behind, as they have not ended %g s after they were stopped: %s", PATIENCE, names)
        return self._in_hand.left_over

    def interrupt(self) -> None:
        """Stop every attempt now: the supervisor that follows reads from the store what is to be carried on."""
        self._wait_no_more()
        self._interrupt_all()
        for ticket in list(self._in_hand.tickets.values()):
            if ticket.task is None:
                ticket.finish(interrupted(ticket.entry))

    def answer_all(self) -> None:
        """Answer whoever still waits for a run: it is the next start's."""
        for ticket in list(self._in_hand.tickets.values()):
            ticket.finish(interrupted(ticket.entry))

    def _close_down(self) -> None:
        self._in_hand.sessions.close()
        self._wait_no_more()
        for ticket in list(self._in_hand.tickets.values()):
            if ticket.task is not None:
                ticket.leave()
                continue
            # Nobody in this process hears of it again; on disk it keeps its place in the queue.
            goes_on = ticket.entry.state in {RunState.QUEUED, RunState.INTERRUPTED} and not ticket.is_elsewhere
            self._in_hand.left_over += goes_on and ticket.request.durable
            ticket.finish(interrupted(ticket.entry))
        self._in_hand.look_whether_drained()

    def _wait_no_more(self) -> None:
        self._correspondence.close()
        self._neighbours.close()
        self._queue.close()
        self._returning.close()

    def _interrupt_all(self) -> None:
        for ticket in list(self._in_hand.tickets.values()):
            ticket.interrupt()
