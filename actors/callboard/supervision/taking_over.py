"""Unfinished runs of the store: taken over where nobody alive has them, followed where another process does."""

from __future__ import annotations

import asyncio

from callboard.runs.entries import moved, refuse_other, result_of
from callboard.runs.results import read_result
from callboard.runs.resuming import refuse_unless_resumable, resumed_with
from callboard.runs.ticket import RunTicket
from callboard.supervision.admission import ELSEWHERE
from callboard.supervision.agentless_runs import AgentlessRuns
from callboard.supervision.children import Children
from callboard.supervision.correspondence import Correspondence
from callboard.supervision.incoming_letters import IncomingLetters
from callboard.supervision.neighbours import Neighbours
from callboard.supervision.returning import ReturningRuns
from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.errors import RunOvertakenError, UnknownRunError
from callboard_protocol.runs import RunBudget
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import FINAL, RunInput, RunState


class TakingOver:
    """Brings runs into hand that earlier processes, or others on the directory, have left or carry.

    Args:
        in_hand: the supervisor's runs.
        queue: those that wait for a slot.
        returning: those between two attempts.
        children: those that others wait for.
        letters: what has come for them.
        correspondence: where the calls that they ask about expire.
        neighbours: the other processes.
    """

    def __init__(
        self,
        in_hand: RunsInHand,
        queue: RunQueue,
        *,
        returning: ReturningRuns,
        children: Children,
        letters: IncomingLetters,
        correspondence: Correspondence,
        neighbours: Neighbours,
    ) -> None:
        self._in_hand = in_hand
        self._store = in_hand.store
        self._tickets = in_hand.tickets
        self._admission = in_hand.admission
        self._queue = queue
        self._returning = returning
        self._children = children
        self._letters = letters
        self._correspondence = correspondence
        self._neighbours = neighbours
        self._agentless = AgentlessRuns(in_hand)

    # ---- all of them

    async def recover(self, *, takes_over: bool) -> int:
        """Take over what earlier processes left unfinished, now and whenever another one dies; how many that are now.

        Args:
            takes_over: whether any are, or others are only watched.
        """
        # A supervisor that failed before this one has stopped them, and they may still be writing that down.
        await asyncio.gather(*self._in_hand.directory.attempts, return_exceptions=True)
        await self._store.others_died()  # who else is there decides what is taken over
        await self._neighbours.call_the_roll(recovers=takes_over)
        return await self.take_over_all() if takes_over else 0

    async def take_over_all(self) -> int:
        """Take over whatever nobody alive has and is for this process; how many those are."""
        taken = 0
        orphans: list[RunTicket] = []
        for entry in sorted(await self._agentless.claim(), key=_recovery_order):
            ticket = self._tickets.get(entry.run_id)
            if ticket is None:
                ticket = self._in_hand.ticket_of(entry)
            elif not ticket.is_elsewhere:
                continue
            ticket.entry = entry
            if entry.request.parent_run_id is None:
                self._take_over(ticket)
            elif not self._children.keep(ticket):
                orphans.append(ticket)
            taken += 1
        # Whatever waits comes last: what a run at work does meanwhile to those below it is not in the entries read.
        for ticket in orphans:
            await self._children.take_over(ticket)
        self._in_hand.recovered += taken
        await self._letters.wake_decided()
        self._queue.admit()
        return taken

    async def leave_agentless(self) -> None:
        """Others have come, who may have the agents that runs are parked for here: they are followed from now on."""
        for ticket in await self._agentless.give_up():
            self._returning.forget(ticket)
            self._correspondence.forget_expiry(ticket.run_id)
            self._admission.release(ticket.run_id, ticket.session_id)
            self._watch_elsewhere(ticket)
        self._queue.admit()

    def agent_came(self) -> None:
        """An agent is registered: what was left to others for want of it can be taken over."""
        self._neighbours.take_over_soon()

    # ---- one that somebody asks for

    async def found(self, run_id: str) -> RunTicket | None:
        """The ticket of a run that has not ended: in hand, else taken over if nobody alive has it, else followed."""
        ticket = self._tickets.get(run_id)
        if ticket is not None and not await self._is_left_alone(ticket):
            return ticket
        entry = await self._store.read_run(run_id)
        if entry is None or entry.state in FINAL:
            return ticket
        known = self._tickets.get(run_id)
        if known is not ticket:
            return known
        if ticket is None:
            ticket = self._in_hand.ticket_of(entry)
        ticket.entry = entry
        await self.take_over_or_follow(ticket)
        return self._tickets.get(run_id, ticket)

    async def _is_left_alone(self, ticket: RunTicket) -> bool:
        """Whether a run that is followed is nobody's: those that are there have no agent for it."""
        return ticket.is_elsewhere and not await self._store.carried_elsewhere(ticket.run_id)

    async def letter_came(self, run_id: str) -> None:
        """A letter was posted here; if nobody carries its run, this process does from now on, if it has its agent, and
        those of the runs that wait for it. Otherwise it leaves the run to one that has.
        """
        above: str | None = run_id
        while above is not None and not self._in_hand.carries(above):
            entry = await self._store.read_run(above)
            if entry is None or entry.request.agent_id not in self._in_hand.agents:
                return
            above = entry.request.parent_run_id
        ticket = await self.found(run_id)
        if ticket is not None and not ticket.is_elsewhere:
            await self._letters.look(ticket)

    async def submitted_before(self, ticket: RunTicket, stored: RunEntry) -> None:
        """Take up a run of this process that the store knows already.

        Args:
            ticket: the run.
            stored: its entry.

        Raises:
            RunConflictError: that has another request.
        """
        refuse_other(ticket.request, stored)
        ticket.entry = stored
        if stored.state in FINAL:
            ticket.finish(await read_result(self._store, stored, ticket.agent))
            del self._tickets[ticket.run_id]
        else:
            await self.take_over_or_follow(ticket)

    async def leave_to_whoever_has(self, ticket: RunTicket) -> None:
        """Somebody else has taken in, begun or ended a run that waited here: take it up as the store has it.

        Raises:
            RunConflictError: that has another request.
            UnknownRunError: it has been deleted.
        """
        if ticket.is_elsewhere or ticket.result.done():
            return  # its attempt has found out by itself
        self._admission.withdraw(ticket.run_id, ticket.session_id)
        self._admission.release(ticket.run_id, ticket.session_id)
        self._tickets[ticket.run_id] = ticket  # from now on whoever asks for the run finds this one
        try:
            stored = await self._store.read_run(ticket.run_id)
            await self.submitted_before(ticket, _known(ticket.run_id, stored))
        except BaseException as problem:
            self._tickets.pop(ticket.run_id, None)
            ticket.fail(problem)
            raise
        finally:
            self._queue.admit()

    async def follow(self, run_id: str, awaited_by: str) -> RunTicket | None:
        """The ticket of an unfinished run, whoever has it.

        Args:
            run_id: the run.
            awaited_by: the run that is about to wait for it; empty where it is none.

        Raises:
            SessionHeldByAncestorError: the run that would wait for it has its session.
        """
        if run_id not in self._tickets and not await self._store.carried_elsewhere(run_id):
            entry = await self._store.read_run(run_id)
            if entry is not None and entry.state not in FINAL:
                await self._neighbours.take_over_now()
        if run_id not in self._tickets and (
            self._neighbours.may_take_over or await self._store.carried_elsewhere(run_id)
        ):
            entry = await self._store.read_run(run_id)
            if entry is not None and entry.state not in FINAL and run_id not in self._tickets:
                self._watch_elsewhere(self._in_hand.ticket_of(entry))
        ticket = self._tickets.get(run_id)
        if ticket is not None and not ticket.result.done():
            self._in_hand.refuse_to_wait_for_itself(awaited_by, ticket.session_id)
        return ticket

    async def resume(self, run_id: str, budget: RunBudget | None) -> RunTicket:
        """Let a run go on that has ended, that is parked, or that nobody carries on.

        Raises:
            RuntimeClosingError: the runtime is closing.
            UnknownRunError: there is no such run.
            RunNotResumableError: it cannot be resumed as it is.
            UnknownAgentError: its agent is not registered.
        """
        self._in_hand.refuse_when_closing()
        entry = None if run_id in self._tickets else await self._store.read_run(run_id)
        ticket = self._tickets.get(run_id)
        if ticket is None:
            return await self._resume_stored(_known(run_id, entry), budget)
        if not ticket.is_elsewhere and ticket.task is None and ticket.entry.state != RunState.QUEUED:
            self._returning.resume(ticket, budget)
        return ticket

    async def _resume_stored(self, entry: RunEntry, budget: RunBudget | None) -> RunTicket:
        """Take up a run that nobody in this process has."""
        refuse_unless_resumable(entry)
        ticket = self._in_hand.ticket_of(entry)
        self._returning.agent_of(ticket)
        if entry.state in FINAL:
            try:
                return await self._returning.resume_ended(ticket, budget)
            except RunOvertakenError:
                return await self.resume(entry.run_id, budget)  # it has moved since, and may be followed now
        ticket.entry = resumed_with(entry, budget)
        await self.take_over_or_follow(ticket)
        return self._tickets.get(entry.run_id, ticket)

    # ---- to the place where it belongs

    async def take_over_or_follow(self, ticket: RunTicket) -> None:
        """Carry on with an unfinished run, or watch it if another living process has it; a child is with its parent."""
        parent_id = ticket.request.parent_run_id
        if parent_id is not None:
            above = await self.found(parent_id)
            if above is None or not above.is_elsewhere:
                await self._children.take_over(ticket)
            else:
                self._watch_elsewhere(ticket)
            return
        is_claimed = bool(await self._store.claim_unfinished([ticket.run_id]))
        if self._tickets.get(ticket.run_id, ticket) is not ticket:
            return  # somebody else of this process was quicker
        if is_claimed:
            self._take_over(ticket)
            await self._letters.look(ticket)
            self._queue.admit()
        else:
            self._watch_elsewhere(ticket)

    def _watch_elsewhere(self, ticket: RunTicket) -> None:
        if self._tickets.setdefault(ticket.run_id, ticket) is not ticket:
            return  # who asked for the run meanwhile waits for another ticket of it
        ticket.is_elsewhere = True
        ticket.accept()
        self._neighbours.follow(ticket)

    def _take_over(self, ticket: RunTicket) -> None:
        """Put an unfinished run of the store where it belongs: in the queue, on its session, or aside."""
        state = ticket.entry.state
        self._tickets[ticket.run_id] = ticket
        self._neighbours.forget(ticket.run_id)
        ticket.is_elsewhere = False
        ticket.has_mail = True
        self._in_hand.note_order(ticket.entry.order)
        ticket.accept()
        if state == RunState.SUSPENDED:
            self._admission.hold(ticket.run_id, ticket.session_id)
            ticket.finish(result_of(ticket.entry))
            self._correspondence.await_expiry(ticket)
            return
        ticket.is_recovered = True
        if state == RunState.RUNNING:
            ticket.entry = moved(ticket.entry, RunInput.INTERRUPT, crashed=True)
        if ticket.entry.state == RunState.INTERRUPTED:
            ticket.entry = moved(ticket.entry, RunInput.REQUEUE, pending=())
        if not self._in_hand.find_agent(ticket):
            self._returning.park_for_agent(ticket)
            return
        if ticket.entry.state == RunState.PARKED:
            ticket.entry = moved(ticket.entry, RunInput.UNPARK, pending=())
        if self._admission.holder_of(ticket.session_id) == ELSEWHERE and ticket.entry.began_sequence is not None:
            # Its own runs have waited for the very run that is taken over now.
            self._queue.requeue(ticket)
        else:
            self._queue.enqueue(ticket)


def _recovery_order(entry: RunEntry) -> tuple[int, bool]:
    """Parents before their children, whose ids begin with theirs. A session is that run's which has begun in it, also
    where an older one waits for its agent.
    """
    depth = 0 if entry.request.parent_run_id is None else len(entry.run_id)
    return depth, entry.began_sequence is None


def _known(run_id: str, entry: RunEntry | None) -> RunEntry:
    if entry is None:
        raise UnknownRunError(f"there is no run {run_id!r}", context={"run_id": run_id})
    return entry
