"""What has come for the runs of this process: looked at, handed over, and what it wakes or stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from callboard.runs.entries import moved
from callboard.runs.mail import RunMail
from callboard.runs.ticket import RunTicket
from callboard.supervision.correspondence import Correspondence
from callboard.supervision.returning import ReturningRuns
from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.commands import CancelRun
from callboard_protocol.letters import Letter
from callboard_protocol.states import FINAL, RunInput, RunState
from callboard_protocol.tools import PendingCall


class IncomingLetters:
    """Reads letters, and has suspended runs go on that have been decided.

    Args:
        in_hand: the supervisor's runs.
        queue: those that wait for a slot.
        returning: those between two attempts.
        correspondence: where the calls that runs ask about expire.
        cancel: stops a run for good; answered once it has stopped.
    """

    def __init__(
        self,
        in_hand: RunsInHand,
        queue: RunQueue,
        returning: ReturningRuns,
        correspondence: Correspondence,
        cancel: Callable[[CancelRun], Awaitable[bool]],
    ) -> None:
        self._in_hand = in_hand
        self._queue = queue
        self._returning = returning
        self._correspondence = correspondence
        self._cancel = cancel
        self._stopping: set[asyncio.Task[bool]] = set()

    async def look_for(self, run_ids: frozenset[str] | None) -> None:
        """Look at what was posted by somebody on the directory; for any run where `run_ids` is None."""
        own = [ticket for ticket in self._in_hand.tickets.values() if not ticket.is_elsewhere]
        for ticket in own if run_ids is None else [one for one in own if one.run_id in run_ids]:
            await self.look(ticket)

    async def look(self, ticket: RunTicket) -> None:
        """Hand over what has come for a run of this process, and have it go on or stop as that says."""
        waits_its_turn = ticket.task is None and ticket.entry.state == RunState.QUEUED
        if waits_its_turn:
            ticket.has_mail = True  # its attempt takes in what else there is
        letters: Sequence[Letter] = ()
        if ticket.request.durable:
            letters = await self._in_hand.store.read_letters(ticket.session_id, ticket.run_id)
        if waits_its_turn:
            wanted = RunMail(letters).cancellation
        else:
            ticket.mail.take_in(letters)
            self.wake_if_decided(ticket)
            wanted = ticket.mail.cancellation
        is_stopping = ticket.task is not None and ticket.stop is not None
        if wanted is not None and not is_stopping and ticket.entry.state not in FINAL:
            self.cancel_soon(ticket.run_id, wanted.by, wanted.reason)

    def cancel_soon(self, run_id: str, by: str, reason: str) -> None:
        """Stop a run for good, wherever it is, as somebody has asked for; nobody waits for that here."""
        stopping = asyncio.ensure_future(self._cancel(CancelRun(run_id=run_id, by=by, reason=reason)))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)

    async def wake_decided(self) -> None:
        """Let go on what was decided while nobody carried it."""
        for ticket in list(self._in_hand.tickets.values()):
            if ticket.entry.state == RunState.SUSPENDED and ticket.task is None and not ticket.is_elsewhere:
                await self.look(ticket)

    def wake_if_decided(self, ticket: RunTicket) -> bool:
        """Put a suspended run back to work as soon as one of the calls it waits for has been decided."""
        if ticket.task is not None or ticket.entry.state != RunState.SUSPENDED or self._in_hand.is_closing:
            return False
        undecided = _undecided(ticket)
        if len(undecided) == len(ticket.entry.pending):
            return False
        if ticket.parent is not None and ticket.run_id not in ticket.parent.awaits:
            return False  # its parent's next attempt comes to it
        self._correspondence.forget_expiry(ticket.run_id)
        ticket.begin_again(moved(ticket.entry, RunInput.REQUEUE, pending=undecided))
        if not self._in_hand.find_agent(ticket):
            self._returning.park_for_agent(ticket)
            return True
        if ticket.parent is not None:
            self._queue.put_child_first(ticket)
        else:
            self._queue.requeue(ticket)
            self._queue.admit()
        return True


def _undecided(ticket: RunTicket) -> tuple[PendingCall, ...]:
    """Of the calls that a suspended run waits for, those that nobody has decided."""
    return tuple(call for call in ticket.entry.pending if not ticket.mail.decides(call))
