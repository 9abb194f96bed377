"""Runs that take their session over from the one that has it (`on_busy="interrupt"`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from callboard.runs.ticket import RunTicket
from callboard.supervision.admission import ELSEWHERE
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.commands import CancelRun
from callboard_protocol.errors import CallboardError

logger = logging.getLogger(__name__)


class MakingWay:
    """Puts such a run first in its session's line, and has whichever run is in its way stopped.

    Args:
        in_hand: the supervisor's runs.
        cancel: stops a run, wherever it is carried.
    """

    def __init__(self, in_hand: RunsInHand, cancel: Callable[[CancelRun], Awaitable[bool]]) -> None:
        self._store = in_hand.store
        self._tickets = in_hand.tickets
        self._admission = in_hand.admission
        self._cancel = cancel
        self._stopping: set[asyncio.Task[None]] = set()

    def put_first(self, ticket: RunTicket) -> None:
        """Queue a run before all others of its session."""
        session_id = ticket.session_id
        holder = self._admission.holder_of(session_id)
        first = self._admission.first_waiting(session_id)
        if first is not None:
            order, run_id = first
            # Its place is kept by what is on disk, also for the next start.
            ticket.entry = ticket.entry.model_copy(update={"order": min(ticket.entry.order, order - 1)})
            if holder is None and self._tickets[run_id].entry.began_sequence is not None:
                self._admission.hold(run_id, session_id)
                holder = run_id
        self._admission.put_first(ticket.entry.order, ticket.run_id, session_id)
        if holder == ELSEWHERE:
            self.clear(ticket)
        elif holder in self._tickets:
            self._stop_soon(ticket, holder)

    def clear(self, ticket: RunTicket) -> None:
        """Another process has the session: have the run stopped there that is active in it."""
        self._stop_soon(ticket, None)

    def _stop_soon(self, ticket: RunTicket, run_id: str | None) -> None:
        ticket.is_interrupting = False
        task = asyncio.get_running_loop().create_task(self._stop(ticket, run_id))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _stop(self, ticket: RunTicket, run_id: str | None) -> None:
        try:
            if run_id is None:
                head = await self._store.read_head(ticket.session_id)
                run_id = None if head is None else head.active_run
            if run_id is not None:
                reason = f"run {ticket.run_id} took over its session (on_busy='interrupt')"
                await self._cancel(CancelRun(run_id=run_id, by=ticket.run_id, reason=reason))
        except CallboardError as error:
            # It waits behind the other one, as it would have without interrupting it.
            logger.warning("run %s waits: run %s could not be stopped: %s", ticket.run_id, run_id, error)
