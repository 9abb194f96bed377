"""Runs that are submitted: refused, known already, or taken in."""

from __future__ import annotations

import asyncio

from callboard.runs.entries import refuse_other, request_digest
from callboard.runs.ticket import RunTicket
from callboard.sessions.checkpoints import fold_at
from callboard.supervision.account_keeping import AccountKeeping
from callboard.supervision.making_way import MakingWay
from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_in_hand import RunsInHand
from callboard.supervision.taking_over import TakingOver
from callboard_protocol.commands import SubmitRun
from callboard_protocol.errors import RunOvertakenError, RuntimeBusyError, StoreFullError
from callboard_protocol.runs import RunRequest
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import RunState
from callboard_protocol.trusted import trusted


class TakingIn:
    """Takes each run in once, and no more of them than the limits and the store allow.

    Args:
        in_hand: the supervisor's runs.
        queue: those that wait for a slot.
        accounts: the named accounts that a request may name.
        taking_over: brings a run into hand that the store knows already.
        making_way: clears the session of a run that interrupts another.
    """

    def __init__(
        self,
        in_hand: RunsInHand,
        queue: RunQueue,
        *,
        accounts: AccountKeeping,
        taking_over: TakingOver,
        making_way: MakingWay,
    ) -> None:
        self._in_hand = in_hand
        self._store = in_hand.store
        self._tickets = in_hand.tickets
        self._admission = in_hand.admission
        self._limits = in_hand.limits
        self._queue = queue
        self._accounts = accounts
        self._taking_over = taking_over
        self._making_way = making_way

    async def submit(self, message: SubmitRun) -> RunTicket:
        """The ticket of a run that has been taken in, now or before.

        Raises:
            RunConflictError: its id is known with another request.
            SessionHeldByAncestorError: it would wait for the very run that waits for it.
            RuntimeBusyError: too many runs wait, or its session has another and it was not to wait.
            RuntimeClosingError: the runtime is closing.
            UnknownAccountError: the account it names is not open.
            UnknownCheckpointError: the checkpoint it names is not there.
            StoreFullError: the store has no room for new work.
        """
        request: RunRequest = message.request
        self._in_hand.refuse_when_closing()
        self._in_hand.refuse_to_wait_for_itself(message.awaited_by, request.session_id)
        known = self._tickets.get(request.run_id)
        if known is not None:
            refuse_other(request, known.entry)
            await asyncio.shield(known.accepted)
            return known
        digest = request_digest(request)
        self._refuse_when_full(request)
        ticket = RunTicket(self._new_entry(request, digest), message.agent, message.model, message.deps)
        ticket.is_interrupting = request.on_busy == "interrupt"
        self._tickets[request.run_id] = ticket
        self._in_hand.being_taken_in += 1
        try:
            if not message.is_new:
                stored = await self._store.read_run(request.run_id)
                if stored is not None:
                    await self._taking_over.submitted_before(ticket, stored)
                    return ticket
            await self._refuse_unless_possible(request)
            await self._take_in(ticket)
        except BaseException as problem:
            if ticket.task is None:
                self._forget(ticket, problem)
            raise
        finally:
            self._in_hand.being_taken_in -= 1
            self._in_hand.look_whether_drained()
        return ticket

    def _new_entry(self, request: RunRequest, digest: bytes) -> RunEntry:
        return trusted(
            RunEntry,
            request=request,
            request_digest=digest,
            state=RunState.QUEUED,
            order=self._in_hand.next_order(),
            submitted_at=self._in_hand.clock.time(),
        )

    async def _take_in(self, ticket: RunTicket) -> None:
        """Give a new run its place; returns once it is on disk, or need not be."""
        request = ticket.request
        if ticket.accepted.done():
            return  # somebody has cancelled it meanwhile, or found it in another process
        if request.on_busy == "interrupt":
            self._making_way.put_first(ticket)
        else:
            self._queue.enqueue(ticket)
        self._queue.admit()
        if ticket.task is None and request.durable:
            try:
                await self._queue.write_down(ticket)
            except RunOvertakenError:
                await self._taking_over.leave_to_whoever_has(ticket)
                return
        elif not request.durable:
            ticket.accept()
        await asyncio.shield(ticket.accepted)
        self._in_hand.publish(
            ticket,
            "run.requested",
            {
                "input_text": request.input_text,
                "parent_run_id": request.parent_run_id,
                "account": request.account,
                "durable": request.durable,
                "metadata": request.metadata,
            },
        )

    def _forget(self, ticket: RunTicket, problem: BaseException) -> None:
        self._tickets.pop(ticket.run_id, None)
        self._admission.withdraw(ticket.run_id, ticket.session_id)
        ticket.accept(problem)

    # ---- refusals

    def _refuse_when_full(self, request: RunRequest) -> None:
        limits, admission = self._limits, self._admission
        queued = admission.queued_in(request.session_id)
        busy = admission.holder_of(request.session_id) is not None or queued
        if request.on_busy == "reject" and busy:
            raise RuntimeBusyError(
                f"session {request.session_id!r} has another run", hint="use on_busy='queue', or wait for that run"
            )
        if admission.free_slots > 0 and not busy:
            return
        if admission.queued >= limits.max_queued_runs:
            raise RuntimeBusyError(f"{admission.queued} runs are waiting (max_queued_runs={limits.max_queued_runs})")
        if queued >= limits.max_queued_per_session and request.on_busy != "interrupt":
            raise RuntimeBusyError(
                f"{queued} runs are waiting for session {request.session_id!r} "
                f"(max_queued_per_session={limits.max_queued_per_session})"
            )

    async def _refuse_unless_possible(self, request: RunRequest) -> None:
        """Let a run pass that has what it names, and room."""
        if request.account is not None:
            await self._accounts.check(request.account)
        if request.resume_from_checkpoint is not None:
            # Whatever comes of the session until its turn comes, its log keeps what the checkpoint stands for.
            await fold_at(self._store, request.session_id, request.resume_from_checkpoint)
        if not self._store.has_room and not await self._store.find_room():
            raise StoreFullError(f"run {request.run_id!r} was not taken in: the store has no room for new work")
        self._in_hand.refuse_when_closing()
