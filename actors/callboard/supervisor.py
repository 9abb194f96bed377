"""RunSupervisor: takes runs in, serialises sessions, keeps budgets and deadlines, stops and recovers runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from types import TracebackType
from typing import Any, Final

from callboard.account_keeping import AccountKeeping
from callboard.active_sessions import ActiveSessions
from callboard.admission import ELSEWHERE, Admission
from callboard.agents import Agent
from callboard.attempt import RunAttempt
from callboard.budgets import Budgets
from callboard.checkpoints import fold_at
from callboard.children import Children
from callboard.correspondence import Correspondence
from callboard.deadline import Deadline
from callboard.directory import Directory
from callboard.entries import (
    ended_early,
    interrupted,
    moved,
    refuse_other,
    request_digest,
    result_of,
    write_entry,
)
from callboard.kernel import Actor, handles
from callboard.limits import RuntimeLimits, RuntimeStats
from callboard.making_way import MakingWay
from callboard.neighbours import Neighbours
from callboard.results import read_result
from callboard.resuming import refuse_unless_resumable, resumed_with
from callboard.returning import ReturningRuns
from callboard.room import room_in
from callboard.stops import SessionElsewhere, StopRun, cancelled
from callboard.ticket import RunTicket
from callboard_protocol.amounts import Amount, Answer, Limits
from callboard_protocol.base import as_seconds
from callboard_protocol.commands import (
    AdoptAgent,
    CancelRun,
    CheckpointSession,
    ClearStruckRun,
    CloseAccount,
    DecideCall,
    DelegateRun,
    DrainRuns,
    DropAgent,
    FindTicket,
    FollowRun,
    LeaveSlot,
    OpenAccount,
    OpenRunAccount,
    ReadAccount,
    RecoverRuns,
    RegainSlot,
    ReleaseSession,
    ReserveBudget,
    ResumeRun,
    ResumeStruckRun,
    SaveCheckpoint,
    SendSignal,
    SettleBudget,
    StopDelegated,
    SubmitRun,
    UseSessionAlone,
)
from callboard_protocol.errors import (
    BudgetExhaustedError,
    DamagedRecordError,
    RunEndedError,
    RuntimeBusyError,
    RuntimeClosingError,
    SessionHeldByAncestorError,
    StoreFullError,
    UnknownRunError,
)
from callboard_protocol.named_accounts import Account
from callboard_protocol.runs import RunBudget, RunRequest, RunResult
from callboard_protocol.sessions import RunEntry, SessionCheckpoint
from callboard_protocol.states import FINAL, RunInput, RunState
from callboard_protocol.trusted import trusted

SupervisorCommand = (
    SubmitRun
    | DelegateRun
    | StopDelegated
    | FindTicket
    | FollowRun
    | RecoverRuns
    | CancelRun
    | DecideCall
    | SendSignal
    | AdoptAgent
    | DropAgent
    | OpenRunAccount
    | OpenAccount
    | ReadAccount
    | CloseAccount
    | ReserveBudget
    | SettleBudget
    | LeaveSlot
    | RegainSlot
    | ResumeRun
    | ResumeStruckRun
    | ClearStruckRun
    | CheckpointSession
    | ReleaseSession
    | UseSessionAlone
    | DrainRuns
)


logger = logging.getLogger(__name__)

PATIENCE: Final = 5.0
"""Seconds a run that is stopped may take to end, before the runtime closes without it."""

_NO_RUN = "\0"
"""Holds a session that no run may have for a moment; no run's id can be this."""


class RunSupervisor(Actor[SupervisorCommand]):
    """One per runtime. Everything that must hold across runs is decided here, one message at a time.

    Args:
        directory: where the other actors are.
        agents: the registered agents, by id; shared with the runtime, which changes it.
        limits: how much to take on.
    """

    mailbox_limit = 1_000_000

    def __init__(self, directory: Directory, agents: dict[str, Agent[Any, Any]], limits: RuntimeLimits) -> None:
        super().__init__()
        self._directory = directory
        self._store = directory.store
        self._agents = agents
        self._limits = limits
        self._admission = Admission(limits.max_concurrent_runs)
        self._sessions = ActiveSessions(directory.system, directory.store, limits, directory.clock)
        self._budgets = Budgets()
        self._waiting_for_slot: dict[str, asyncio.Future[None]] = {}
        self._tickets: dict[str, RunTicket] = {}
        self._accounts = AccountKeeping(directory.store, self._tickets, self._budgets)
        self._last_order = 0
        self._running = 0
        self._being_taken_in = 0
        self._completed = 0
        self._stopped = 0
        self._recovered = 0
        self._draining: asyncio.Future[None] | None = None
        self._left_over = 0
        self._neighbours = Neighbours(
            directory.store,
            freed=self._session_freed,
            stopped=self._stopped_elsewhere,
            someone_died=self._take_over_all,
            letters_came=self._letters_came,
        )
        self._stopping: set[asyncio.Task[bool]] = set()
        self._ending_early: dict[str, asyncio.Task[None]] = {}
        self._correspondence = Correspondence(self._store, self._tickets, self._letter_came, directory.clock)
        self._children = Children(
            directory.store,
            self._tickets,
            self._admission,
            directory.clock,
            limits.max_delegation_depth,
            admit=self._admit,
            leave_slot=self._leave_slot_to_child,
            look_at_mail=self._look_at_mail,
            await_expiry=self._correspondence.await_expiry,
            cancel=self.cancel,
            publish=self._publish,
        )
        self._looking_for_room: asyncio.Task[None] | None = None
        self._returning = ReturningRuns(
            self._store,
            self._tickets,
            agents,
            self._admission,
            clock=directory.clock,
            admit=self._admit,
            put_back=self._children.put_back,
            publish=self._publish,
        )
        self._making_way = MakingWay(self._store, self._tickets, self._admission, self.cancel)
        directory.describe = self._describe

    # ---- taking runs in

    @handles(concurrent=True)
    async def submit(self, message: SubmitRun) -> RunTicket:
        """Takes a run in once; the same request again gets the same ticket."""
        request: RunRequest = message.request
        self._refuse_when_closing()
        self._refuse_to_wait_for_itself(message.awaited_by, request.session_id)
        known = self._tickets.get(request.run_id)
        if known is not None:
            refuse_other(request, known.entry)
            await asyncio.shield(known.accepted)
            return known
        digest = request_digest(request)
        self._refuse_when_full(request)
        entry = trusted(
            RunEntry,
            request=request,
            request_digest=digest,
            state=RunState.QUEUED,
            order=self._next_order(),
            submitted_at=self._directory.clock.time(),
        )
        ticket = RunTicket(entry, message.agent, message.model, message.deps)
        ticket.is_interrupting = request.on_busy == "interrupt"
        self._tickets[request.run_id] = ticket
        self._being_taken_in += 1
        try:
            if not message.is_new:
                stored = await self._store.read_run(request.run_id)
                if stored is not None:
                    return await self._submitted_before(ticket, stored)
            if request.account is not None:
                await self._accounts.check(request.account)
            if request.resume_from_checkpoint is not None:
                # Whatever comes of the session until its turn comes, its log keeps what the checkpoint stands for.
                await fold_at(self._store, request.session_id, request.resume_from_checkpoint)
            await self._refuse_without_room(request)
            self._refuse_when_closing()
            if request.on_busy == "interrupt":
                self._making_way.put_first(ticket)
                self._admit()
            else:
                self._enqueue(ticket)
            if ticket.task is None and request.durable:
                await self._write_down(ticket)
            elif not request.durable:
                ticket.accept()
            await asyncio.shield(ticket.accepted)
            self._publish(
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
        except BaseException as problem:
            if ticket.task is None:
                self._forget(ticket, problem)
            raise
        finally:
            self._being_taken_in -= 1
            self._look_whether_drained()
        return ticket

    async def _write_down(self, ticket: RunTicket, reason: str = "") -> None:
        """Write a run that waits: nothing of it is on disk until its turn comes."""
        try:
            if ticket.request.durable:
                await write_entry(self._store, ticket.entry)
        except StoreFullError:
            if ticket.task is None:
                raise
            return  # it began meanwhile, and is taken in or refused by its own first record
        ticket.accept()
        why = reason or ("slot" if self._admission.free_slots <= 0 else "session")
        self._publish(ticket, "run.queued", {"reason": why})

    async def _submitted_before(self, ticket: RunTicket, stored: RunEntry) -> RunTicket:
        """The ticket of a run that the store knows already."""
        refuse_other(ticket.request, stored)
        ticket.entry = stored
        if stored.state in FINAL:
            ticket.finish(await read_result(self._store, stored, ticket.agent))
            del self._tickets[ticket.run_id]
        else:
            await self._take_over_or_follow(ticket)
        return ticket

    async def _take_over_or_follow(self, ticket: RunTicket) -> None:
        """Carry on with an unfinished run, or watch it if another living process has it; a child is with its parent."""
        parent_id = ticket.request.parent_run_id
        if parent_id is not None:
            above = self._tickets.get(parent_id) or await self._found(parent_id)
            if above is None or not above.is_elsewhere:
                await self._children.take_over(ticket)
            else:
                self._watch_elsewhere(ticket)
        elif await self._store.claim_unfinished(ticket.run_id):
            if self._tickets.get(ticket.run_id, ticket) is not ticket:
                return  # somebody else of this process was quicker
            self._take_over(ticket)
            await self._look_at_mail(ticket)
            self._admit()
        else:
            self._watch_elsewhere(ticket)

    def _watch_elsewhere(self, ticket: RunTicket) -> None:
        self._tickets[ticket.run_id] = ticket
        ticket.is_elsewhere = True
        ticket.accept()
        self._neighbours.follow(ticket)

    def _refuse_when_closing(self) -> None:
        if self._draining is not None:
            raise RuntimeClosingError

    def _refuse_to_wait_for_itself(self, run_id: str, session_id: str) -> None:
        """A run must not wait for a session that it holds, or that a run holds which waits for it."""
        holder = self._admission.holder_of(session_id) if run_id else None
        ticket = self._tickets.get(run_id)
        while ticket is not None and holder is not None:
            if ticket.run_id == holder:
                raise SessionHeldByAncestorError(
                    f"run {holder!r} holds session {session_id!r}, and would wait for itself",
                    hint="give the other run a session of its own, or `submit` it and do not wait for it",
                )
            ticket = ticket.parent

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

    async def _refuse_without_room(self, request: RunRequest) -> None:
        if not self._store.has_room and not await self._store.find_room():
            raise StoreFullError(f"run {request.run_id!r} was not taken in: the store has no room for new work")

    def _next_order(self) -> int:
        self._last_order = max(self._last_order + 1, time.time_ns())
        return self._last_order

    def _forget(self, ticket: RunTicket, problem: BaseException) -> None:
        self._tickets.pop(ticket.run_id, None)
        self._admission.withdraw(ticket.run_id, ticket.session_id)
        ticket.accept(problem)

    @handles
    def find(self, message: FindTicket) -> RunTicket | None:
        """Answers with the run's ticket, if it is in hand."""
        return self._tickets.get(message.run_id)

    @handles(concurrent=True)
    async def follow(self, message: FollowRun) -> RunTicket | None:
        """Answers with the ticket of an unfinished run, whoever has it.

        Raises:
            SessionHeldByAncestorError: the run that would wait for it has its session.
        """
        run_id = message.run_id
        if run_id not in self._tickets and not await self._store.carried_elsewhere(run_id):
            entry = await self._store.read_run(run_id)
            if entry is not None and entry.state not in FINAL:
                await self._neighbours.take_over_now()
        if run_id not in self._tickets and await self._store.carried_elsewhere(run_id):
            entry = await self._store.read_run(run_id)
            if entry is not None and run_id not in self._tickets:
                self._watch_elsewhere(self._ticket_of(entry))
        ticket = self._tickets.get(run_id)
        if ticket is not None and not ticket.result.done():
            self._refuse_to_wait_for_itself(message.awaited_by, ticket.session_id)
        return ticket

    # ---- runs that runs wait for

    @handles(concurrent=True)
    async def delegate(self, message: DelegateRun) -> RunTicket | None:
        """Begins a run within the one that waits for it, or carries it on; None while the runtime is closing."""
        is_left = self._draining is not None and message.request.durable
        return None if is_left else await self._children.delegate(message)

    @handles(concurrent=True)
    async def stop_delegated(self, message: StopDelegated) -> None:
        """Stops what a run has delegated; answered once it has stopped."""
        await self._children.stop(message)

    def _leave_slot_to_child(self, ticket: RunTicket) -> None:
        self._returning.clear(ticket.run_id)
        back = self._waiting_for_slot.pop(ticket.run_id, None)
        if back is not None:
            # A branch of it wants the slot back, which the child may need: it goes on without.
            self._admission.forget_return(ticket.run_id)
            back.set_result(None)
        self._give_slot_away(ticket)

    # ---- recovery

    @handles(concurrent=True)
    async def recover(self, message: RecoverRuns) -> int:
        """Takes over what earlier processes left unfinished, now and whenever another one dies; the runs themselves go
        on in the background.
        """
        # A supervisor that failed before this one has stopped them, and they may still be writing that down.
        await asyncio.gather(*self._directory.attempts, return_exceptions=True)
        await self._neighbours.call_the_roll(recovers=message.takes_over)
        return await self._take_over_all() if message.takes_over else 0

    async def _take_over_all(self) -> int:
        taken = 0
        for entry in sorted(await self._store.claim_unfinished(), key=_recovery_order):
            ticket = self._tickets.get(entry.run_id)
            if ticket is None:
                ticket = self._ticket_of(entry)
            elif not ticket.is_elsewhere:
                continue
            ticket.entry = entry
            if entry.request.parent_run_id is None:
                self._take_over(ticket)
            else:
                await self._children.take_over(ticket)
            taken += 1
        self._recovered += taken
        await self._wake_decided()
        self._admit()
        return taken

    def _ticket_of(self, entry: RunEntry) -> RunTicket:
        agent = self._agents.get(entry.request.agent_id)
        return RunTicket(entry, agent, None if agent is None else agent.model)

    def _take_over(self, ticket: RunTicket) -> None:
        """Put an unfinished run of the store where it belongs: in the queue, on its session, or aside."""
        state = ticket.entry.state
        self._tickets[ticket.run_id] = ticket
        self._neighbours.forget(ticket.run_id)
        ticket.is_elsewhere = False
        ticket.has_mail = True
        self._last_order = max(self._last_order, ticket.entry.order)
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
        if ticket.agent is None:
            self._returning.park_for_agent(ticket)
            return
        if ticket.entry.state == RunState.PARKED:
            ticket.entry = moved(ticket.entry, RunInput.UNPARK, pending=())
        if self._admission.holder_of(ticket.session_id) == ELSEWHERE and ticket.entry.began_sequence is not None:
            # Its own runs have waited for the very run that is taken over now.
            self._admission.requeue(ticket.entry.order, ticket.run_id, ticket.session_id)
        else:
            self._enqueue(ticket, admit=False)

    def _park_unreadable(self, ticket: RunTicket, error: DamagedRecordError, result: RunResult[Any]) -> RunResult[Any]:
        """Keep a run at hand whose session cannot be read. It holds nothing: later runs of the session fare alike."""
        if ticket.entry.state == RunState.INTERRUPTED:
            ticket.entry = moved(ticket.entry, RunInput.REQUEUE)
        self._tickets[ticket.run_id] = ticket
        self._returning.park(ticket, error.message)
        return result.model_copy(update={"pending": ticket.entry.pending})

    @handles
    def adopt(self, message: AdoptAgent) -> None:
        """Lets runs go on that were parked for want of this agent, or of what it brings."""
        self._returning.adopt(message.agent)

    @handles(concurrent=True)
    async def resume(self, message: ResumeRun) -> RunTicket:
        """Lets a run go on that has ended, that is parked, or that nobody carries on."""
        self._refuse_when_closing()
        run_id = message.run_id
        entry = None if run_id in self._tickets else await self._store.read_run(run_id)
        ticket = self._tickets.get(run_id)
        if ticket is None:
            if entry is None:
                raise UnknownRunError(f"there is no run {run_id!r}", context={"run_id": run_id})
            return await self._resume_stored(entry, message.budget)
        if not ticket.is_elsewhere and ticket.task is None and ticket.entry.state != RunState.QUEUED:
            self._returning.resume(ticket, message.budget)
        return ticket

    async def _resume_stored(self, entry: RunEntry, budget: RunBudget | None) -> RunTicket:
        """Take up a run that nobody in this process has."""
        refuse_unless_resumable(entry)
        ticket = self._ticket_of(entry)
        self._returning.agent_of(ticket)
        if entry.state in FINAL:
            return await self._returning.resume_ended(ticket, budget)
        ticket.entry = resumed_with(entry, budget)
        await self._take_over_or_follow(ticket)
        return self._tickets.get(entry.run_id, ticket)

    @handles
    def resume_struck(self, message: ResumeStruckRun) -> bool:
        """Lets one run at a time go on that could have caused a crash."""
        return self._returning.may_go_on(message.run_id)

    @handles
    def clear_struck(self, message: ClearStruckRun) -> None:
        """Lets the next one go on."""
        self._returning.clear(message.run_id)

    @handles
    def drop(self, message: DropAgent) -> None:
        """Nothing to do: runs in flight keep their agent, and the registry turns new ones away."""

    # ---- putting runs to work

    def _enqueue(self, ticket: RunTicket, *, admit: bool = True) -> None:
        self._admission.enqueue(ticket.entry.order, ticket.run_id, ticket.session_id)
        if admit:
            self._admit()

    def _admit(self) -> None:
        has_room = self._store.has_room
        while (run_id := self._admission.admit(begins=has_room and self._draining is None)) is not None:
            back = self._waiting_for_slot.pop(run_id, None)
            ticket = self._tickets[run_id]
            ticket.has_slot = True
            if back is not None:
                back.set_result(None)
                continue
            if self._draining is not None and ticket.request.durable:
                self._give_slot_away(ticket)  # a child that has not begun: its parent's next attempt comes to it
                continue
            self._put_to_work(ticket)
        if not has_room and self._admission.queued and self._draining is None and self._looking_for_room is None:
            self._looking_for_room = asyncio.get_running_loop().create_task(self._admit_when_there_is_room())

    async def _admit_when_there_is_room(self) -> None:
        """What waits in the queue begins once there is room for what comes of it."""
        await room_in(self._store)
        self._looking_for_room = None
        self._admit()

    def _put_to_work(self, ticket: RunTicket) -> None:
        self._running += 1
        ticket.is_at_work = False
        ticket.boundary = None
        ticket.task = asyncio.get_running_loop().create_task(self._attempt(ticket), name=f"run {ticket.run_id}")
        self._directory.attempts.add(ticket.task)
        ticket.task.add_done_callback(self._directory.attempts.discard)

    async def _attempt(self, ticket: RunTicket) -> None:
        ticket.is_at_work = True
        # A parked run has no agent, and needs none to be ended.
        agent = ticket.agent or Agent(ticket.request.agent_id)
        active = self._sessions.enter(ticket.session_id)
        try:
            keeps = None if ticket.is_nested else agent.memory
            memory = None if keeps is None else self._sessions.memory_of(ticket.session_id, keeps)
            result = await RunAttempt(ticket, agent, active.session, memory, self._directory).perform()
        except SessionElsewhere:
            await self._stand_back(ticket)
            return
        except BaseException as error:
            self._let_go(ticket)
            ticket.fail(error)
            self._admit()
            if not isinstance(error, Exception):
                raise
            return
        if result is None:
            self._let_go(ticket, keeps_session=ticket.entry.began_sequence is not None)
            self._left_over += self._draining is not None
            self._returning.keep(ticket)
            self._admit()
            return
        counted = self._let_go(ticket, keeps_session=ticket.entry.state == RunState.SUSPENDED)
        self._accounts.ended(ticket, counted)
        self._returning.forget(ticket)
        if ticket.unreadable is not None and self._draining is None:
            result = self._park_unreadable(ticket, ticket.unreadable, result)
        elif result.stop_reason == "completed":
            self._completed += 1
        elif result.stop_reason != "suspended":
            self._stopped += 1
        if result.stop_reason == "interrupted":
            is_written = ticket.entry.began_sequence is not None or ticket.unreadable is not None
            ticket.accept(None if is_written else RuntimeClosingError())
            self._left_over += ticket.request.durable and ticket.accepted.exception() is None
        self._publish(
            ticket,
            "session.run.completed",
            {"stop_reason": result.stop_reason, "queued": self._admission.queued_in(ticket.session_id)},
        )
        # Somebody may have decided while other calls of the run were still being made.
        if not self._wake_if_decided(ticket):
            ticket.finish(result)
            self._correspondence.await_expiry(ticket)
        if ticket.parent is not None and ticket.entry.state == RunState.INTERRUPTED and self._draining is None:
            self._tickets[ticket.run_id] = ticket  # for its parent's next attempt
        self._admit()

    async def _stand_back(self, ticket: RunTicket) -> None:
        """Another process has the run's session: it waits for that without a slot, and begins again."""
        refused = ticket.request.on_busy == "reject" and not ticket.accepted.done()
        if self._draining is not None or refused:
            self._let_go(ticket)
            ticket.accept(RuntimeBusyError(f"session {ticket.session_id!r} has a run in another process"))
            ticket.finish(interrupted(ticket.entry))
            self._admit()
            return
        self._let_go(ticket, keeps_session=True)
        if ticket.is_interrupting:
            self._making_way.clear(ticket)
        self._admission.stand_back(ticket.entry.order, ticket.run_id, ticket.session_id)
        self._neighbours.wait_for(ticket.session_id)
        self._admit()
        if not ticket.accepted.done():
            await self._write_down(ticket, "session")

    def _session_freed(self, session_id: str) -> None:
        self._admission.release(ELSEWHERE, session_id)
        self._admit()

    async def _stopped_elsewhere(self, ticket: RunTicket, entry: RunEntry) -> None:
        ticket.entry = entry
        self._tickets.pop(ticket.run_id, None)
        ticket.finish(await read_result(self._store, entry, ticket.agent) if entry.state in FINAL else result_of(entry))

    def _let_go(self, ticket: RunTicket, *, keeps_session: bool = False) -> Amount | None:
        """What a run held goes back, whatever became of it; what its account had counted, if that was open."""
        self._running -= 1
        if ticket.deadline is not None:
            ticket.deadline.cancel()
            ticket.deadline = None
        self._sessions.leave(ticket.session_id)
        counted = self._budgets.close(ticket.run_id)
        self._returning.clear(ticket.run_id)
        if ticket.has_slot:
            ticket.has_slot = False
            self._admission.leave_slot()
        elif self._waiting_for_slot.pop(ticket.run_id, None) is not None:
            self._admission.forget_return(ticket.run_id)
        ticket.task = None
        if not keeps_session:
            self._admission.release(ticket.run_id, ticket.session_id)
            self._tickets.pop(ticket.run_id, None)
        self._look_whether_drained()
        return counted

    @handles
    def leave_slot(self, message: LeaveSlot) -> None:
        """Gives the slot of a run that waits to another."""
        self._returning.clear(message.run_id)
        ticket = self._tickets.get(message.run_id)
        if ticket is not None:
            self._give_slot_away(ticket)

    def _give_slot_away(self, ticket: RunTicket) -> None:
        if ticket.has_slot:
            ticket.has_slot = False
            self._admission.leave_slot()
            self._admit()

    @handles
    def regain_slot(self, message: RegainSlot) -> asyncio.Future[None] | None:
        """Answers once the run has a slot again; several branches of it may have waited, and share one. While one of
        them waits for a child it has none, for the child may need it: the others go on without.
        """
        ticket = self._tickets.get(message.run_id)
        if ticket is None or ticket.has_slot or ticket.awaits:
            return None
        waiting = self._waiting_for_slot.get(message.run_id)
        if waiting is None:
            waiting = self._waiting_for_slot[message.run_id] = asyncio.get_running_loop().create_future()
            self._admission.ask_back(message.run_id)
            self._admit()
        return waiting

    # ---- budgets

    @handles
    def open_account(self, message: OpenRunAccount) -> Limits | asyncio.Future[Limits]:
        """Opens the run's account with what it had spent, and arms its deadline."""
        ticket = self._tickets[message.run_id]
        if ticket.request.account is not None:
            return asyncio.ensure_future(self._open_below_named_account(ticket, message))
        above = None if ticket.parent is None else ticket.parent.run_id
        return self._open_account(ticket, message, above, counted_above=above is not None)

    async def _open_below_named_account(self, ticket: RunTicket, message: OpenRunAccount) -> Limits:
        above, was_counted = await self._accounts.begin(ticket.run_id, ticket.request.account or "")
        return self._open_account(ticket, message, above, counted_above=was_counted)

    def _open_account(
        self, ticket: RunTicket, message: OpenRunAccount, above: str | None, *, counted_above: bool
    ) -> Limits:
        assert ticket.agent is not None
        budget = ticket.limits(ticket.agent)
        left = self._budgets.open(message.run_id, Limits.of(budget), message.spent, above, counted_above=counted_above)
        if budget.max_duration is not None:
            time_left = max(0.0, as_seconds(budget.max_duration) - message.running)
            ticket.deadline = Deadline(self._directory.clock, time_left, partial(self._out_of_time, ticket))
        return left

    @handles(concurrent=True)
    async def keep_account(self, message: OpenAccount) -> Account:
        """Gives a named account a budget."""
        return await self._accounts.keep(message.name, message.budget, opens=message.opens)

    @handles(concurrent=True)
    async def look_at_account(self, message: ReadAccount) -> Account:
        """Answers how a named account stands."""
        return await self._accounts.look(message.name)

    @handles(concurrent=True)
    async def close_account(self, message: CloseAccount) -> Account:
        """Forgets a named account."""
        return await self._accounts.close(message.name)

    @handles
    def reserve(self, message: ReserveBudget) -> Answer | asyncio.Future[Answer]:
        """Reserves, or answers once reservations beside it have settled."""
        return self._budgets.reserve(message)

    @handles
    def settle(self, message: SettleBudget) -> None:
        """Puts the true figure in the place of a reservation."""
        self._budgets.settle(message)

    def _out_of_time(self, ticket: RunTicket) -> None:
        error = BudgetExhaustedError(f"run {ticket.run_id} ran out of time (max_duration)", limit="max_duration")
        ticket.stop_with(StopRun("budget_exhausted", error))

    # ---- what is said to runs from outside

    @handles(concurrent=True)
    async def decide(self, message: DecideCall) -> None:
        """Keeps a decision about a pending call, and lets its run go on, here or wherever it is carried."""
        await self._correspondence.decide(message.call_id, message.decision, message.by, message.note)

    @handles(concurrent=True)
    async def send(self, message: SendSignal) -> None:
        """Keeps a value that is sent to a run, and hands it over, here or wherever it is carried."""
        await self._correspondence.send(message.run_id, message.channel, message.value)

    async def _letter_came(self, run_id: str) -> None:
        """A letter was posted here; if nobody carries its run, this process does from now on."""
        ticket = self._tickets.get(run_id) or await self._found(run_id)
        if ticket is not None and not ticket.is_elsewhere:
            await self._look_at_mail(ticket)

    async def _letters_came(self, run_ids: frozenset[str] | None) -> None:
        """Letters were posted by somebody on the directory; for any run where `run_ids` is None."""
        own = [ticket for ticket in self._tickets.values() if not ticket.is_elsewhere]
        for ticket in own if run_ids is None else [one for one in own if one.run_id in run_ids]:
            await self._look_at_mail(ticket)

    async def _look_at_mail(self, ticket: RunTicket) -> None:
        if ticket.task is None and ticket.entry.state == RunState.QUEUED:
            ticket.has_mail = True  # it is read when its turn comes
            return
        await self._correspondence.collect(ticket)
        self._wake_if_decided(ticket)
        wanted = ticket.mail.cancellation
        if wanted is not None and ticket.stop is None and ticket.entry.state not in FINAL:
            stopping = asyncio.get_running_loop().create_task(
                self.cancel(CancelRun(run_id=ticket.run_id, by=wanted.by, reason=wanted.reason))
            )
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)

    async def _wake_decided(self) -> None:
        """Let go on what was decided while nobody carried it."""
        for ticket in list(self._tickets.values()):
            if ticket.entry.state == RunState.SUSPENDED and ticket.task is None and not ticket.is_elsewhere:
                await self._look_at_mail(ticket)

    def _wake_if_decided(self, ticket: RunTicket) -> bool:
        """Put a suspended run back to work as soon as one of the calls it waits for has been decided."""
        if ticket.task is not None or ticket.entry.state != RunState.SUSPENDED or self._draining is not None:
            return False
        undecided = self._correspondence.undecided(ticket)
        if len(undecided) == len(ticket.entry.pending):
            return False
        if ticket.parent is not None and ticket.run_id not in ticket.parent.awaits:
            return False  # its parent's next attempt comes to it
        self._correspondence.forget_expiry(ticket.run_id)
        ticket.begin_again(moved(ticket.entry, RunInput.REQUEUE, pending=undecided))
        if ticket.parent is not None:
            self._children.put_first(ticket)
        else:
            self._admission.requeue(ticket.entry.order, ticket.run_id, ticket.session_id)
            self._admit()
        return True

    async def _found(self, run_id: str) -> RunTicket | None:
        """The ticket of an unfinished run that is not in hand: taken over if nobody alive has it, else followed."""
        entry = await self._store.read_run(run_id)
        if entry is None or entry.state in FINAL:
            return None
        ticket = self._tickets.get(run_id)
        if ticket is None:
            ticket = self._ticket_of(entry)
            await self._take_over_or_follow(ticket)
        return ticket

    # ---- stopping runs

    @handles(concurrent=True)
    async def cancel(self, message: CancelRun) -> bool:
        """Stops a run where it is; answered once it has stopped."""
        ticket = self._tickets.get(message.run_id) or await self._found(message.run_id)
        if ticket is None:
            return False
        if ticket.is_elsewhere:
            with contextlib.suppress(RunEndedError):
                await self._correspondence.ask_to_stop(ticket.entry, message.by, message.reason)
            await asyncio.wait([ticket.result])
            return _was_cancelled(ticket)
        stop = cancelled(ticket.run_id, message.by, message.reason)
        self._returning.forget(ticket)
        if ticket.task is not None:
            if ticket.stop is not None and ticket.is_held and not ticket.result.done():
                return False  # it has come to its end, which waits to be written
            ticket.stop_with(stop, by=message.by, reason=message.reason)
            await asyncio.wait([ticket.result])
            if ticket.entry.state != RunState.SUSPENDED or ticket.task is not None:
                return _was_cancelled(ticket)
        if ticket.entry.began_sequence is not None and ticket.unreadable is None:
            # What it left open in its transcript is closed by an attempt that only ends it.
            if ticket.is_nested and ticket.parent is not None and ticket.parent.task is None:
                raise RuntimeBusyError(
                    f"run {ticket.run_id!r} is part of a session that its parent holds, which is not at work",
                    hint=f"cancel run {ticket.parent.run_id!r}, and this one is cancelled with it",
                )
            if ticket.result.done():
                ticket.result = asyncio.get_running_loop().create_future()
            ticket.stop, ticket.stopped_by, ticket.reason = stop, message.by, message.reason
            self._admission.withdraw(ticket.run_id, ticket.session_id)
            if not ticket.is_nested:
                self._admission.hold(ticket.run_id, ticket.session_id)
            self._put_to_work(ticket)
            await asyncio.wait([ticket.result])
            return _was_cancelled(ticket)
        ending = self._ending_early.get(ticket.run_id)
        if ending is None:
            ending = asyncio.get_running_loop().create_task(self._end_early(ticket, stop, message.reason))
            self._ending_early[ticket.run_id] = ending
            ending.add_done_callback(lambda _: self._ending_early.pop(ticket.run_id))
        await asyncio.wait([ending])
        ending.result()
        return True

    async def _end_early(self, ticket: RunTicket, stop: StopRun, reason: str) -> None:
        """Cancel a run that has left nothing to be closed.

        Raises:
            StoreFullError: it could not be written; the run waits as before.
        """
        was_queued = self._admission.withdraw(ticket.run_id, ticket.session_id)
        entry = ended_early(ticket.entry, "cancelled", stop.error, self._directory.clock.time())
        if ticket.request.durable:
            try:
                await write_entry(self._store, entry)
            except StoreFullError:
                if was_queued:
                    self._enqueue(ticket)  # as it was: nothing says that it was cancelled
                raise
        ticket.entry = entry
        self._admission.release(ticket.run_id, ticket.session_id)
        self._tickets.pop(ticket.run_id, None)
        self._stopped += 1
        self._publish(ticket, "run.cancelled", {"reason": reason})
        ticket.finish(result_of(ticket.entry))
        self._admit()

    @handles(concurrent=True)
    async def drain(self, message: DrainRuns) -> int:
        """Admits nothing more, and has every run left between two steps; stops what still runs when the time is up."""
        loop = asyncio.get_running_loop()
        if self._draining is None:
            self._draining = loop.create_future()
            self._close_down()
        timer = loop.call_later(message.within, self._interrupt_all)
        _, resisting = await asyncio.wait([self._draining], timeout=message.within + PATIENCE)
        timer.cancel()
        if resisting and not self._draining.done():
            self._draining.set_result(None)
            names = ", ".join(task.get_name() for task in self._directory.attempts)
            logger.error("left behind, as they have not ended %g s after they were stopped: %s", PATIENCE, names)
        return self._left_over

    def _close_down(self) -> None:
        self._sessions.close()
        self._correspondence.close()
        self._neighbours.close()
        self._look_no_more()
        self._returning.close()
        for ticket in list(self._tickets.values()):
            if ticket.task is not None:
                ticket.leave()
                continue
            # Nobody in this process hears of it again; on disk it keeps its place in the queue.
            goes_on = ticket.entry.state in {RunState.QUEUED, RunState.INTERRUPTED} and not ticket.is_elsewhere
            self._left_over += goes_on and ticket.request.durable
            ticket.finish(interrupted(ticket.entry))
        self._look_whether_drained()

    def _look_whether_drained(self) -> None:
        is_busy = self._running or self._being_taken_in
        if self._draining is not None and not is_busy and not self._draining.done():
            self._draining.set_result(None)

    def on_stop(self) -> None:
        """Answers whoever still waits for a run: it is the next start's."""
        for ticket in list(self._tickets.values()):
            ticket.finish(interrupted(ticket.entry))

    def _look_no_more(self) -> None:
        if self._looking_for_room is not None:
            self._looking_for_room.cancel()

    def _interrupt_all(self) -> None:
        for ticket in list(self._tickets.values()):
            ticket.interrupt()

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops every attempt: the supervisor that follows reads from the store what is to be carried on."""
        self._neighbours.close()
        self._correspondence.close()
        self._look_no_more()
        self._returning.close()
        self._interrupt_all()
        for ticket in list(self._tickets.values()):
            if ticket.task is None:
                ticket.finish(interrupted(ticket.entry))

    # ---- sessions and figures

    @handles(concurrent=True)
    async def checkpoint(self, message: CheckpointSession) -> SessionCheckpoint:
        """Has the session keep a checkpoint, waking it if need be."""
        active = self._sessions.enter(message.session_id)
        try:
            checkpoint: SessionCheckpoint = await active.session.ask(SaveCheckpoint(name=message.name), timeout=None)
            return checkpoint
        finally:
            self._sessions.leave(message.session_id)

    @handles
    def release(self, message: ReleaseSession) -> bool:
        """Parks an idle session now."""
        return self._sessions.park(message.session_id)

    @handles(concurrent=True)
    async def use_alone(self, message: UseSessionAlone) -> Any:
        """Holds a session that no run has, as a run would, while something else is done with it.

        Raises:
            RuntimeBusyError: a run uses it or waits for it.
        """
        session_id = message.session_id
        is_held = self._admission.holder_of(session_id) is not None
        has_run = is_held or any(ticket.session_id == session_id for ticket in self._tickets.values())
        if has_run or not self._sessions.park(session_id):
            raise RuntimeBusyError(f"session {session_id!r} has a run", hint="cancel it, or wait until it has ended")
        self._admission.hold(_NO_RUN, session_id)
        try:
            return await message.work()
        finally:
            self._admission.release(_NO_RUN, session_id)
            self._admit()

    def _describe(self) -> RuntimeStats:
        states = [ticket.entry.state for ticket in self._tickets.values() if not ticket.is_elsewhere]
        held = len(self._directory.held)
        return RuntimeStats(
            running=self._running - held,
            queued=self._admission.queued + self._returning.waiting_for_their_turn,
            suspended=states.count(RunState.SUSPENDED) + held,
            parked=states.count(RunState.PARKED),
            active_sessions=len(self._sessions),
            free_slots=self._admission.free_slots,
            completed=self._completed,
            stopped=self._stopped,
            recovered=self._recovered,
            quarantined=len(self._store.quarantined()),
        )

    def _publish(self, ticket: RunTicket, name: str, fields: dict[str, Any]) -> None:
        if not self._directory.watchers.watched(ticket.run_id):
            return
        raw = (
            name,
            ticket.run_id,
            ticket.session_id,
            ticket.request.agent_id,
            self._directory.clock.time(),
            None,
            fields,
        )
        self._directory.publish([raw])


def _was_cancelled(ticket: RunTicket) -> bool:
    return ticket.result.exception() is None and ticket.result.result().stop_reason == "cancelled"


def _recovery_order(entry: RunEntry) -> tuple[int, bool]:
    """Parents before their children, whose ids begin with theirs. A session is that run's which has begun in it, also
    where an older one waits for its agent.
    """
    depth = 0 if entry.request.parent_run_id is None else len(entry.run_id)
    return depth, entry.began_sequence is None
