"""Runs that come back: from where they were parked, from a pause, from behind a crash, from their end."""

from __future__ import annotations

from typing import Any

from callboard.agents import Agent
from callboard.runs.entries import interrupted, moved, parked, post_entry, write_entry
from callboard.runs.resuming import AS_IF_NOT_ENDED, refuse_if_moved_on, refuse_unless_resumable, resumed_with
from callboard.runs.ticket import RunTicket
from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_in_hand import RunsInHand
from callboard.supervision.waiting_runs import (
    FIRST_PAUSE_FAILED,
    FIRST_PAUSE_PARKED,
    LONGEST_PAUSE_FAILED,
    LONGEST_PAUSE_PARKED,
    GrowingPauses,
    StruckRuns,
)
from callboard_protocol.errors import UnknownAgentError
from callboard_protocol.runs import RunBudget
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import RunInput, RunState


class ReturningRuns:
    """Keeps runs between two of their attempts, and puts them back into the queue.

    Args:
        in_hand: the supervisor's runs.
        queue: those that wait for a slot.
    """

    def __init__(self, in_hand: RunsInHand, queue: RunQueue) -> None:
        self._store = in_hand.store
        self._tickets = in_hand.tickets
        self._agents = in_hand.agents
        self._admission = in_hand.admission
        self._publish = in_hand.publish
        self._queue = queue
        self._parked = GrowingPauses(FIRST_PAUSE_PARKED, LONGEST_PAUSE_PARKED, self._return, in_hand.clock)
        self._failed = GrowingPauses(FIRST_PAUSE_FAILED, LONGEST_PAUSE_FAILED, self._return, in_hand.clock)
        self._struck = StruckRuns()
        self._is_closed = False

    @property
    def waiting_for_their_turn(self) -> int:
        """How many wait because they could have caused a crash."""
        return len(self._struck)

    def forget(self, ticket: RunTicket) -> None:
        """The run does not come back, or does so by another way."""
        self._parked.forget(ticket.run_id)
        self._failed.forget(ticket.run_id)
        self._struck.withdraw(ticket)

    def close(self) -> None:
        """Put none back any more."""
        self._is_closed = True
        self._parked.close()
        self._failed.close()

    # ---- parked, and between two attempts

    def park(self, ticket: RunTicket, reason: str) -> None:
        """Keep a run that cannot go on for want of something."""
        ticket.entry = parked(ticket.entry, reason)
        ticket.tell_whether_it_waits()
        self._tell_parked(ticket)

    def park_for_agent(self, ticket: RunTicket) -> None:
        """Keep a run whose agent is not registered; the store is told too."""
        if ticket.entry.began_sequence is not None and not ticket.is_nested:
            self._admission.hold(ticket.run_id, ticket.session_id)
        before = ticket.entry
        self.park(ticket, f"agent {ticket.request.agent_id!r} is not registered")
        if ticket.entry != before:
            post_entry(self._store, ticket.entry, seen=before)

    def adopt(self, agent: Agent[Any, Any]) -> None:
        """Let runs go on that were parked for want of this agent, or of what it brings."""
        for ticket in list(self._tickets.values()):
            is_parked = ticket.entry.state == RunState.PARKED and not ticket.is_elsewhere and ticket.unreadable is None
            if is_parked and ticket.task is None and ticket.request.agent_id == agent.id:
                self._return_with(ticket, agent)

    def keep(self, ticket: RunTicket) -> None:
        """An attempt has ended, and the run has not: it comes back after a pause, or in its turn."""
        self._tickets[ticket.run_id] = ticket
        ticket.tell_whether_it_waits()
        if self._is_closed:
            ticket.finish(interrupted(ticket.entry))
            return
        if ticket.entry.state == RunState.QUEUED:
            return  # it is its turn that it waits for
        if ticket.entry.state != RunState.PARKED:
            if ticket.entry.retries == 1:
                self._failed.forget(ticket.run_id)
            self._failed.begin(ticket)
            return
        registered = self._agents.get(ticket.request.agent_id)
        if registered is not None and registered is not ticket.agent:
            # It was registered while the attempt was still being given up.
            self._return_with(ticket, registered)
            return
        if not self._parked.has_paused(ticket.run_id):
            self._tell_parked(ticket)
        self._parked.begin(ticket)

    # ---- after a crash

    def may_go_on(self, run_id: str) -> bool:
        """Whether a run that could have caused a crash may go on now; it comes back in its turn otherwise."""
        return self._struck.may_go_on(self._tickets[run_id])

    def clear(self, run_id: str) -> None:
        """A run has got further, waits or has stopped: if it could have caused a crash, the next one may go on."""
        following = self._struck.clear(run_id)
        if following is not None and not self._is_closed:
            self._return(following)

    # ---- resumed

    def resume(self, ticket: RunTicket, budget: RunBudget | None) -> None:
        """Let a run in hand that is not at work go on now.

        Raises:
            RunNotResumableError: it waits for a decision.
            UnknownAgentError: its agent is not registered.
        """
        refuse_unless_resumable(ticket.entry)
        agent = self.agent_of(ticket)
        ticket.entry = resumed_with(ticket.entry, budget)
        self.forget(ticket)
        if ticket.unreadable is not None:
            ticket.unreadable = None
            ticket.begin_again(ticket.entry)
        self._return_with(ticket, agent)

    async def resume_ended(self, ticket: RunTicket, budget: RunBudget | None) -> RunTicket:
        """Put a run back into the queue that has ended; on disk once this returns.

        Raises:
            RunNotResumableError: its session has moved on, or is about to.
            RunOvertakenError: another process has resumed it at the same moment.
            StoreFullError: the store has no room for more work.
        """
        entry: RunEntry = ticket.entry
        head = await self._store.read_head(entry.session_id)
        line = self._admission.holder_of(entry.session_id) or self._admission.first_waiting(entry.session_id)
        known = self._tickets.get(entry.run_id)
        if known is not None:
            return known
        refuse_if_moved_on(entry, head, is_in_use=line is not None)
        ticket.entry = resumed_with(moved(entry, RunInput.RESUME, **AS_IF_NOT_ENDED), budget)
        ticket.is_recovered = ticket.has_mail = True
        self._tickets[entry.run_id] = ticket
        if entry.began_sequence is not None:
            self._admission.hold(entry.run_id, entry.session_id)
        try:
            await write_entry(self._store, ticket.entry, seen=entry)
        except BaseException as problem:
            del self._tickets[entry.run_id]
            self._admission.release(entry.run_id, entry.session_id)
            ticket.accept(problem)
            raise
        ticket.accept()
        self._publish(ticket, "run.queued", {"reason": "resume"})
        self._return(ticket)
        return ticket

    def agent_of(self, ticket: RunTicket) -> Agent[Any, Any]:
        """Who is to carry a run on.

        Raises:
            UnknownAgentError: its agent is not registered.
        """
        agent = self._agents.get(ticket.request.agent_id) or ticket.agent
        if agent is None:
            raise UnknownAgentError(
                f"the agent {ticket.request.agent_id!r} of run {ticket.run_id!r} is not registered",
                context={"registered": [*self._agents]},
            )
        return agent

    # ---- back into the queue

    def _return_with(self, ticket: RunTicket, agent: Agent[Any, Any]) -> None:
        ticket.agent, ticket.model = agent, agent.model
        self._parked.forget(ticket.run_id)
        self._return(ticket)

    def _return(self, ticket: RunTicket) -> None:
        state = ticket.entry.state
        if state != RunState.QUEUED:
            event = RunInput.UNPARK if state == RunState.PARKED else RunInput.REQUEUE
            ticket.entry = moved(ticket.entry, event, pending=())
            ticket.tell_whether_it_waits()
        if ticket.parent is not None:
            if ticket.run_id in ticket.parent.awaits:  # otherwise its parent's next attempt comes to it
                self._queue.put_child_first(ticket)
            return
        holder = self._admission.holder_of(ticket.session_id)
        if ticket.entry.began_sequence is None or holder not in {None, ticket.run_id}:
            self._queue.enqueue(ticket)
        else:
            self._queue.requeue(ticket)
        self._queue.admit()

    def _tell_parked(self, ticket: RunTicket) -> None:
        pending = ticket.entry.pending
        self._publish(ticket, "run.parked", {"reason": pending[0].message, "pending": pending})
