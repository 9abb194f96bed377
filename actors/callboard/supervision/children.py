"""Runs that other runs wait for: begun within the run that waits, taken over with it, stopped with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from callboard.runs.entries import ended_early, moved, refuse_other, request_digest, result_of, write_entry
from callboard.runs.results import read_result
from callboard.runs.ticket import RunTicket
from callboard.runs.tree_spending import children_of
from callboard.supervision.correspondence import Correspondence
from callboard.supervision.incoming_letters import IncomingLetters
from callboard.supervision.neighbours import Neighbours
from callboard.supervision.returning import ReturningRuns
from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.commands import CancelRun, DelegateRun, StopDelegated
from callboard_protocol.errors import DelegationDepthError, RunCancelledError, RunOvertakenError
from callboard_protocol.runs import RunRequest
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import FINAL, RunInput, RunState
from callboard_protocol.trusted import trusted


class Children:
    """The delegated runs among the supervisor's.

    A child keeps no place in the queue. It begins within the run that waits for it, before anything that has not begun,
    and no limit of the queue refuses it: so what has begun comes to its end, however few slots there are. It is started
    by its parent alone, at whichever attempt; until that has asked for it, it lies in the table and does nothing.

    Args:
        in_hand: the supervisor's runs.
        queue: those that wait for a slot.
        returning: those between two attempts.
        letters: what has come for them.
        correspondence: where the calls that they ask about expire.
        neighbours: other processes, who may have had them.
        cancel: stops a run for good; answered once it has stopped.
    """

    def __init__(
        self,
        in_hand: RunsInHand,
        queue: RunQueue,
        *,
        returning: ReturningRuns,
        letters: IncomingLetters,
        correspondence: Correspondence,
        neighbours: Neighbours,
        cancel: Callable[[CancelRun], Awaitable[bool]],
    ) -> None:
        self._in_hand = in_hand
        self._store = in_hand.store
        self._tickets = in_hand.tickets
        self._admission = in_hand.admission
        self._clock = in_hand.clock
        self._max_depth = in_hand.limits.max_delegation_depth
        self._publish = in_hand.publish
        self._queue = queue
        self._returning = returning
        self._letters = letters
        self._correspondence = correspondence
        self._neighbours = neighbours
        self._cancel = cancel
        self._ending: set[asyncio.Task[bool]] = set()

    # ---- beginning

    async def delegate(self, message: DelegateRun) -> RunTicket | None:
        """The child's ticket: begun, carried on, or ended in an earlier attempt of its parent. None where its
        parent is no longer this supervisor's, or the runtime is closing.

        Raises:
            RunConflictError: its id is known with another request.
            DelegationDepthError: too many runs wait for each other.
        """
        request: RunRequest = message.request
        if self._in_hand.is_closing and request.durable:
            return None
        parent = self._tickets.get(message.parent_id)
        if parent is None or parent.task is None:
            return None
        if parent.depth >= self._max_depth:
            raise DelegationDepthError(
                f"run {parent.run_id} delegates to agent {request.agent_id!r}, and {parent.depth} runs wait for it "
                f"already (max_delegation_depth={self._max_depth})"
            )
        ticket = self._tickets.get(request.run_id)
        if ticket is None:
            stored = await self._store.read_run(request.run_id) if request.durable else None
            if stored is not None:
                refuse_other(request, stored)
            ticket = RunTicket(self._new_entry(request, parent) if stored is None else stored, message.agent)
            if ticket.entry.state in FINAL:
                ticket.finish(await read_result(self._store, ticket.entry, message.agent))
                return ticket
            self._tickets[request.run_id] = ticket
            if stored is None:
                self._announce(parent, ticket, is_shared=message.shared is not None)
        else:
            refuse_other(request, ticket.entry)
        if message.agent is not None:
            ticket.agent, ticket.model = message.agent, message.model
        ticket.deps = message.deps
        ticket.shared = message.shared
        self._attach(ticket, parent)
        parent.awaits.add(ticket.run_id)
        self._returning.clear(parent.run_id)
        self._queue.leave_slot_to_child(parent)
        if ticket.entry.state == RunState.SUSPENDED:
            await self._letters.look(ticket)  # it may have been decided while nobody waited for it
        elif ticket.task is None:
            self._begin(ticket)
        return ticket

    def _new_entry(self, request: RunRequest, parent: RunTicket) -> RunEntry:
        return trusted(
            RunEntry,
            request=request,
            request_digest=request_digest(request),
            state=RunState.QUEUED,
            order=parent.entry.order,
            submitted_at=self._clock.time(),
        )

    def _announce(self, parent: RunTicket, child: RunTicket, *, is_shared: bool) -> None:
        request = child.request
        told = {
            "call_id": child.run_id,
            "child_agent_id": request.agent_id,
            "child_session_id": child.session_id,
            "session": "shared" if is_shared else "isolated",
            "input_text": request.input_text,
        }
        self._publish(parent, "agent.delegated", told)
        asked = {name: getattr(request, name) for name in _ASKED}
        self._publish(child, "run.requested", asked)

    def _begin(self, ticket: RunTicket) -> None:
        entry = ticket.entry
        if entry.state == RunState.RUNNING:
            entry = moved(entry, RunInput.INTERRUPT, crashed=True)
        if entry.state == RunState.INTERRUPTED:
            entry = moved(entry, RunInput.REQUEUE, pending=())
        elif entry.state == RunState.PARKED:
            entry = moved(entry, RunInput.UNPARK, pending=())
        ticket.begin_again(entry)
        # The run that waits for it has been taken in; its own first record need not be waited for.
        ticket.accept()
        if ticket.agent is None:
            self._returning.park_for_agent(ticket)
        else:
            self._queue.put_child_first(ticket)

    def _attach(self, ticket: RunTicket, parent: RunTicket) -> None:
        ticket.parent = parent
        parent.children[ticket.run_id] = ticket

    # ---- recovery

    def keep(self, ticket: RunTicket) -> bool:
        """Put a delegated run that an earlier process left at its parent's, which starts it; False where this process
        does not know the parent. Parents come before their children.
        """
        parent = self._tickets.get(ticket.request.parent_run_id or "")
        if parent is not None and not parent.is_elsewhere:
            self._keep(ticket, parent)
        return parent is not None

    async def take_over(self, ticket: RunTicket) -> None:
        """A delegated run that an earlier process left. Its parent starts it, if this process has that; one whose
        parent has ended is cancelled.
        """
        if self.keep(ticket):
            return
        parent_id = ticket.request.parent_run_id or ""
        above = await self._store.read_run(parent_id)
        if above is not None and above.state not in FINAL:
            await self._store.release_unfinished([ticket.run_id])  # another process carries it on
            return
        reason = f"run {parent_id}, which delegated it, has ended"
        if above is not None and above.session_id == ticket.session_id:
            # Who holds that session now, if anyone, knows nothing of it.
            error = RunCancelledError(f"run {ticket.run_id} was cancelled: {reason}")
            ended = ended_early(ticket.entry, "cancelled", error, self._clock.time())
            with contextlib.suppress(RunOvertakenError):
                await write_entry(self._store, ended, seen=ticket.entry)
            return
        self._tickets[ticket.run_id] = ticket
        ticket.accept()
        ending = asyncio.get_running_loop().create_task(self._end(ticket.run_id, reason))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, run_id: str, reason: str) -> bool:
        return await self._cancel(CancelRun(run_id=run_id, reason=reason))

    def _keep(self, ticket: RunTicket, parent: RunTicket) -> None:
        self._tickets[ticket.run_id] = ticket
        self._neighbours.forget(ticket.run_id)
        ticket.is_elsewhere = False
        self._attach(ticket, parent)
        ticket.accept()
        ticket.has_mail = ticket.is_recovered = True
        if ticket.entry.state == RunState.SUSPENDED:
            if not ticket.is_nested:
                self._admission.hold(ticket.run_id, ticket.session_id)
            ticket.finish(result_of(ticket.entry))
            self._correspondence.await_expiry(ticket)

    # ---- stopping

    async def stop(self, message: StopDelegated) -> None:
        """Stop children, and wait until they have stopped."""
        parent = self._tickets.get(message.parent_id)
        if parent is None:
            return
        if message.looks_them_up:
            await self._keep_all_below(parent)
        wanted = [message.child_id] if message.child_id is not None else [*parent.children]
        children = [child for run_id in wanted if (child := parent.children.get(run_id)) is not None]
        for child in children:
            parent.awaits.discard(child.run_id)
        if message.leaves:
            await self._leave(children)
            return
        await asyncio.gather(
            *(self._cancel(CancelRun(run_id=child.run_id, reason=message.reason, by=message.by)) for child in children)
        )

    async def _keep_all_below(self, parent: RunTicket) -> None:
        """Bring the unfinished runs below one into hand. Who took only that one over does not have them."""
        async for entry in children_of(self._store, parent.run_id):
            if entry.state in FINAL:
                continue
            child = self._tickets.get(entry.run_id)
            if child is None or child.is_elsewhere:
                child = child or self._in_hand.ticket_of(entry)
                child.entry = entry
                self._keep(child, parent)
            await self._keep_all_below(child)

    async def _leave(self, children: list[RunTicket]) -> None:
        """Bring children to their last completed step. They stay in the table, for their parent's next attempt."""
        at_work = [child.task for child in children if child.task is not None]
        for child in children:
            if child.task is not None:
                child.interrupt()
            elif child.entry.state == RunState.QUEUED:
                self._admission.withdraw(child.run_id, child.session_id)
                self._admission.release(child.run_id, child.session_id)
        if at_work:
            await asyncio.wait(at_work)


_ASKED = ("input_text", "parent_run_id", "account", "durable", "metadata")
"""Fields of a request that its first event tells."""
