"""RunSupervisor: takes runs in, serialises sessions, keeps budgets and deadlines, stops and recovers runs."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from callboard.agents import Agent
from callboard.directory import Directory
from callboard.kernel import Actor, handles
from callboard.limits import RuntimeLimits, RuntimeStats
from callboard.runs.ticket import RunTicket
from callboard.supervision.account_keeping import AccountKeeping
from callboard.supervision.account_opening import AccountOpening
from callboard.supervision.cancelling import Cancelling
from callboard.supervision.children import Children
from callboard.supervision.correspondence import Correspondence
from callboard.supervision.draining import Draining
from callboard.supervision.incoming_letters import IncomingLetters
from callboard.supervision.making_way import MakingWay
from callboard.supervision.neighbours import Neighbours
from callboard.supervision.returning import ReturningRuns
from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_at_work import RunsAtWork
from callboard.supervision.runs_in_hand import RunsInHand
from callboard.supervision.session_visits import SessionVisits
from callboard.supervision.taking_in import TakingIn
from callboard.supervision.taking_over import TakingOver
from callboard_protocol.amounts import Answer, Limits
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
    SendSignal,
    SettleBudget,
    StopDelegated,
    SubmitRun,
    UseSessionAlone,
)
from callboard_protocol.named_accounts import Account
from callboard_protocol.sessions import SessionCheckpoint

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


class RunSupervisor(Actor[SupervisorCommand]):
    """One per runtime. Everything that must hold across runs is decided here, one message at a time.

    The deciding is done in rooms that share the runs in hand; this is where they are put together, and where each
    message finds its room.

    Args:
        directory: where the other actors are.
        agents: the registered agents, by id; shared with the runtime, which changes it.
        limits: how much to take on.
    """

    mailbox_limit = 1_000_000

    def __init__(self, directory: Directory, agents: dict[str, Agent[Any, Any]], limits: RuntimeLimits) -> None:
        super().__init__()
        self._in_hand = in_hand = RunsInHand(directory, agents, limits)
        self._budgets = in_hand.budgets
        self._queue = queue = RunQueue(in_hand, self._attempt)
        self._accounts = accounts = AccountKeeping(in_hand)
        self._account_opening = AccountOpening(in_hand)
        self._returning = returning = ReturningRuns(in_hand, queue)
        self._correspondence = correspondence = Correspondence(in_hand, self._letter_came)
        letters = IncomingLetters(in_hand, queue, returning, correspondence, self.cancel)
        neighbours = Neighbours(in_hand, queue, letters, self._someone_died, self._someone_came)
        self._children = Children(
            in_hand,
            queue,
            returning=returning,
            letters=letters,
            correspondence=correspondence,
            neighbours=neighbours,
            cancel=self.cancel,
        )
        self._taking_over = TakingOver(
            in_hand,
            queue,
            returning=returning,
            children=self._children,
            letters=letters,
            correspondence=correspondence,
            neighbours=neighbours,
        )
        making_way = MakingWay(in_hand, self.cancel)
        self._taking_in = TakingIn(
            in_hand, queue, accounts=accounts, taking_over=self._taking_over, making_way=making_way
        )
        self._at_work = RunsAtWork(
            in_hand,
            queue,
            taking_over=self._taking_over,
            returning=returning,
            letters=letters,
            correspondence=correspondence,
            making_way=making_way,
            neighbours=neighbours,
        )
        self._cancelling = Cancelling(
            in_hand, queue, returning=returning, taking_over=self._taking_over, correspondence=correspondence
        )
        self._draining = Draining(
            in_hand, queue, returning=returning, correspondence=correspondence, neighbours=neighbours
        )
        self._visits = SessionVisits(in_hand, queue)
        directory.describe = self._describe

    # ---- what rooms need of those that are built after them

    async def _attempt(self, ticket: RunTicket) -> None:
        await self._at_work.attempt(ticket)

    async def _letter_came(self, run_id: str) -> None:
        await self._taking_over.letter_came(run_id)

    async def _someone_died(self) -> None:
        await self._taking_over.take_over_all()

    async def _someone_came(self) -> None:
        await self._taking_over.leave_agentless()

    # ---- taking runs in

    @handles(concurrent=True)
    async def submit(self, message: SubmitRun) -> RunTicket:
        """Takes a run in once; the same request again gets the same ticket."""
        return await self._taking_in.submit(message)

    @handles
    def find(self, message: FindTicket) -> RunTicket | None:
        """Answers with the run's ticket, if it is in hand."""
        return self._in_hand.tickets.get(message.run_id)

    @handles(concurrent=True)
    async def follow(self, message: FollowRun) -> RunTicket | None:
        """Answers with the ticket of an unfinished run, whoever has it.

        Raises:
            SessionHeldByAncestorError: the run that would wait for it has its session.
        """
        return await self._taking_over.follow(message.run_id, message.awaited_by)

    # ---- runs that runs wait for

    @handles(concurrent=True)
    async def delegate(self, message: DelegateRun) -> RunTicket | None:
        """Begins a run within the one that waits for it, or carries it on; None while the runtime is closing."""
        return await self._children.delegate(message)

    @handles(concurrent=True)
    async def stop_delegated(self, message: StopDelegated) -> None:
        """Stops what a run has delegated; answered once it has stopped."""
        await self._children.stop(message)

    # ---- recovery

    @handles(concurrent=True)
    async def recover(self, message: RecoverRuns) -> int:
        """Takes over what earlier processes left unfinished, now and whenever another one dies; the runs themselves go
        on in the background.
        """
        return await self._taking_over.recover(takes_over=message.takes_over)

    @handles
    def adopt(self, message: AdoptAgent) -> None:
        """Lets runs go on that were parked for want of this agent, or of what it brings, here or left to others."""
        self._returning.adopt(message.agent)
        self._taking_over.agent_came()

    @handles
    def drop(self, message: DropAgent) -> None:
        """Nothing to do: runs in flight keep their agent, and the registry turns new ones away."""

    @handles(concurrent=True)
    async def resume(self, message: ResumeRun) -> RunTicket:
        """Lets a run go on that has ended, that is parked, or that nobody carries on."""
        return await self._taking_over.resume(message.run_id, message.budget)

    @handles
    def resume_struck(self, message: ResumeStruckRun) -> bool:
        """Lets one run at a time go on that could have caused a crash."""
        return self._returning.may_go_on(message.run_id)

    @handles
    def clear_struck(self, message: ClearStruckRun) -> None:
        """Lets the next one go on."""
        self._returning.clear(message.run_id)

    # ---- slots

    @handles
    def leave_slot(self, message: LeaveSlot) -> None:
        """Gives the slot of a run that waits to another."""
        self._returning.clear(message.run_id)
        ticket = self._in_hand.tickets.get(message.run_id)
        if ticket is not None:
            self._queue.leave_slot(ticket)

    @handles
    def regain_slot(self, message: RegainSlot) -> asyncio.Future[None] | None:
        """Answers once the run has a slot again, or need not have one."""
        ticket = self._in_hand.tickets.get(message.run_id)
        return None if ticket is None else self._queue.regain_slot(ticket)

    # ---- budgets

    @handles
    def open_account(self, message: OpenRunAccount) -> Limits | asyncio.Future[Limits]:
        """Opens the run's account with what it had spent, and arms its deadline."""
        return self._account_opening.open(message)

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

    # ---- what is said to runs from outside

    @handles(concurrent=True)
    async def decide(self, message: DecideCall) -> None:
        """Keeps a decision about a pending call, and lets its run go on, here or wherever it is carried."""
        await self._correspondence.decide(message.call_id, message.decision, message.by, message.note)

    @handles(concurrent=True)
    async def send(self, message: SendSignal) -> None:
        """Keeps a value that is sent to a run, and hands it over, here or wherever it is carried."""
        await self._correspondence.send(message.run_id, message.channel, message.value)

    # ---- stopping

    @handles(concurrent=True)
    async def cancel(self, message: CancelRun) -> bool:
        """Stops a run where it is; answered once it has stopped."""
        return await self._cancelling.cancel(message)

    @handles(concurrent=True)
    async def drain(self, message: DrainRuns) -> int:
        """Admits nothing more, and has every run left between two steps; stops what still runs when the time is up."""
        return await self._draining.drain(message.within)

    def on_stop(self) -> None:
        """Answers whoever still waits for a run: it is the next start's."""
        self._draining.answer_all()
        self._in_hand.draws.close()

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops every attempt: the supervisor that follows reads from the store what is to be carried on."""
        self._draining.interrupt()

    # ---- sessions and figures

    @handles(concurrent=True)
    async def checkpoint(self, message: CheckpointSession) -> SessionCheckpoint:
        """Has the session keep a checkpoint, waking it if need be."""
        return await self._visits.save_checkpoint(message.session_id, message.name)

    @handles
    def release(self, message: ReleaseSession) -> bool:
        """Parks an idle session now."""
        return self._in_hand.sessions.park(message.session_id)

    @handles(concurrent=True)
    async def use_alone(self, message: UseSessionAlone) -> Any:
        """Holds a session that no run has, as a run would, while something else is done with it.

        Raises:
            RuntimeBusyError: a run uses it or waits for it.
        """
        return await self._visits.use_alone(message.session_id, message.work)

    def _describe(self) -> RuntimeStats:
        return self._in_hand.describe(waiting_for_their_turn=self._returning.waiting_for_their_turn)
