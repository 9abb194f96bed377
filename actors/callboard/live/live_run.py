"""What one attempt of a run has in its hands while it lives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from callboard.agents import Agent
from callboard.directory import Directory
from callboard.events.record_events import events_of
from callboard.kernel import Ref
from callboard.live.awaited_children import AwaitedChildren
from callboard.live.journal import RunJournal
from callboard.live.session_state import SessionState
from callboard.live.storage_hold import StorageHold
from callboard.models.base import Model
from callboard.runs.boundary import StepBoundary
from callboard.runs.budgets import Claim, used_up
from callboard.runs.mail import RunMail
from callboard.runs.stops import StopRun
from callboard.runs.ticket import RunTicket
from callboard.session import SessionActor
from callboard_protocol.amounts import NO_LIMITS, ZERO, Amount, Granted, Refused, total
from callboard_protocol.commands import ClearStruckRun, ReserveBudget, SettleBudget
from callboard_protocol.errors import AgentDefinitionError, UsageError
from callboard_protocol.event_base import RawEvent
from callboard_protocol.failures import restore
from callboard_protocol.letters import PostedSignal
from callboard_protocol.messages import Message
from callboard_protocol.meter import RunMeter
from callboard_protocol.records import IntentRecorded, LogRecord, SleepBegan, StepCompleted
from callboard_protocol.runs import RunArtifact
from callboard_protocol.sessions import MemoryEntry
from callboard_protocol.trusted import trusted

IDEMPOTENCY_WARNING = "run.durable_idempotency_warning"


class LiveRun:
    """One attempt's belongings: its journal, its meter, its state, and the actors it talks to.

    Args:
        ticket: the run.
        agent: who runs.
        journal: the run's records.
        session: the actor that owns its session's log.
        directory: where the actors are.
        state: the session's state.
        running_before: seconds earlier attempts spent running.

    Attributes:
        limits: what was left of its budget, and of those above it, when this attempt began.
    """

    def __init__(
        self,
        ticket: RunTicket,
        agent: Agent[Any, Any],
        journal: RunJournal,
        session: Ref[SessionActor],
        directory: Directory,
        state: SessionState,
        running_before: float,
    ) -> None:
        request = self.request = ticket.request
        self.run_id = request.run_id
        self.session_id = request.session_id
        self.agent = agent
        self.ticket = ticket
        self._model = ticket.model
        self.journal = journal
        self.directory = directory
        self.clock = directory.clock
        self.state = state
        self.meter = RunMeter()
        journal.tell = self._landed
        self.hold = journal.hold = StorageHold(self, session)
        self.boundary = ticket.boundary = StepBoundary(ticket.interrupt)
        self.awaited = AwaitedChildren(self)
        self.deps: Any = None
        self.instructions = agent.instructions
        self.attempt = journal.attempt + 1
        self.is_struck = False
        self.clocks = _clocks(journal)
        self.warned_of = {_subject(IDEMPOTENCY_WARNING, {"tool": one.tool}) for one in journal.intents.values()}
        self.artifacts: list[RunArtifact] = []
        self.budget = ticket.limits(agent)
        # What begins afresh has no step of before to run again.
        self._is_after_crash = ticket.entry.crashed and journal.began is not None
        self._replayed: int | None = len(journal.completed) if journal.attempt else None
        self.limits = NO_LIMITS
        self._running_before = running_before
        self._started = self.clock.monotonic()
        self._paused = 0.0
        self._pauses = 0
        self._pause_began = 0.0

    @property
    def mail(self) -> RunMail:
        """What was said to the run from outside."""
        return self.ticket.mail

    @property
    def model_name(self) -> str:
        """Whom the run asks, by name; empty where the agent has no model."""
        return "" if self._model is None else self._model.name

    @property
    def model(self) -> Model:
        """Whom the run asks.

        Raises:
            AgentDefinitionError: the agent was made without a model.
        """
        if self._model is None:
            raise AgentDefinitionError(f"agent {self.agent.id!r} has no model", hint="Agent(..., model=...)")
        return self._model

    # ---- time

    def running(self) -> float:
        """Seconds this run has spent running, all attempts together; what it has waited does not count."""
        now = self.clock.monotonic()
        paused = self._paused + (now - self._pause_began if self._pauses else 0.0)
        return self._running_before + now - self._started - paused

    def pause(self) -> None:
        """A branch of the run waits, and can be left to a later start meanwhile. Pair with `unpause`; time that several
        branches wait counts once.
        """
        if not self._pauses:
            self._pause_began = self.clock.monotonic()
            self.ticket.pause(True)
        self._pauses += 1
        self.boundary.rest(acting=False)

    def unpause(self) -> None:
        """It goes on."""
        self._pauses -= 1
        self.boundary.go_on(acting=False)
        if not self._pauses:
            self._paused += self.clock.monotonic() - self._pause_began
            self.ticket.pause(False)

    def heed_stop(self) -> None:
        """Let nothing more begin in a run that is being stopped, also where its pattern swallowed the cancellation.

        Raises:
            StopRun: it is being stopped.
            UsageError: it has stopped: somebody kept its context.
        """
        if self.ticket.stop is None:
            return
        if self.ticket.task is None:
            raise UsageError(
                f"run {self.run_id} has stopped, and its context does nothing any more",
                hint="await whatever a pattern starts before it returns",
            )
        raise self.ticket.stop

    async def be_ready(self) -> None:
        """Let nothing begin whose outcome the store has no room for: wait until it has. Nor does anything begin in a
        run that is about to be left to a later start.

        Raises:
            StopRun: the run is being stopped.
        """
        self.heed_stop()
        if not self.directory.store.has_room:
            self.boundary.rest(acting=True)
            try:
                await self.hold.wait_for_room()
            finally:
                self.boundary.go_on(acting=True)
        if self.boundary.is_closed:
            await self.boundary.stay()

    # ---- records

    async def land(
        self, record: StepCompleted, *, memory: Sequence[MemoryEntry] = (), taken: PostedSignal | None = None
    ) -> StepCompleted:
        """Append a step's outcome.

        Returns:
            What was appended: `record`, or the one that says why it cannot be stored.

        Raises:
            FencedError: the session moved on without this run.
            StoreError: the store refused.
        """
        landed = await self.journal.complete(record, memory=memory, taken=taken)
        if landed is not record and record.state_changed:
            self.state.owe()
        return landed

    async def complete(self, record: StepCompleted, *, memory: Sequence[MemoryEntry] = ()) -> None:
        """Append a step's outcome.

        Raises:
            UnpersistableValueError: the outcome cannot be stored; its error was appended instead.
            FencedError: the session moved on without this run.
            StoreError: the store refused.
        """
        landed = await self.land(record, memory=memory)
        if landed is not record and landed.error is not None:
            raise restore(landed.error)

    def _landed(self, record: LogRecord) -> None:
        """Count a record that is on disk, and publish its events."""
        self.meter.count(record)
        if self._replayed is not None and isinstance(record, StepCompleted | SleepBegan):
            self._got_further(record, self._replayed)
        if self.is_watched:
            self.directory.publish(events_of(record, self.session_id, self.agent.id, self.journal.steps))
            if isinstance(record, StepCompleted) and record.response is not None:
                self.publish(("usage.updated", None, {"usage": self.meter.usage()}))

    def _got_further(self, record: StepCompleted | SleepBegan, replayed: int) -> None:
        """A resumed run has something new on disk: what earlier attempts had recorded is behind it."""
        if self.is_struck:
            self.is_struck = False
            self.directory.supervisor.tell(ClearStruckRun(run_id=self.run_id))
        if isinstance(record, StepCompleted) and record.error is not None:
            return
        self._replayed = None
        took = self.clock.monotonic() - self._started
        self.publish(
            ("run.resume_succeeded", None, {"attempt": self.attempt, "replayed_steps": replayed, "duration": took})
        )

    def instructed(self, history: Sequence[Message]) -> Sequence[Message]:
        """A history with the run's instructions in front, unless it brings its own."""
        if not self.instructions or (len(history) and history[0].role == "system"):
            return history
        return [Message.system(self.instructions), *history]

    def warn_once(self, event: str, **fields: str) -> None:
        """Publish a warning, the first time in this run that these fields come up."""
        subject = _subject(event, fields)
        if subject not in self.warned_of:
            self.warned_of.add(subject)
            self.publish((event, None, fields))

    def tell_restart(self, step: str) -> None:
        """Publish that a step runs again, if it is one of the first after a crash: it may have begun before that."""
        if self._is_after_crash and self._replayed is not None:
            told = {"call_id": f"{self.run_id}:{step}", "step": step, "attempt": self.attempt}
            self.publish(("step.restarted", None, told))

    # ---- budget

    def spent(self) -> Amount:
        """What the run has spent so far, over all its lives, with everything below it."""
        ticket = self.ticket
        return total([self.meter.spent(), ticket.spent_before, *ticket.spent_below.values()])

    @property
    def limits_tokens(self) -> bool:
        """Whether it matters how much a model reads and writes."""
        return self.limits.tokens is not None or self.limits.cost_nano_usd is not None

    async def spend(self, amount: Amount) -> None:
        """Take out of the budget what a piece of work costs for certain. Nothing is left to settle.

        Raises:
            StopRun: the budget has no room for it.
        """
        await self.reserve(amount, is_spent=True)

    async def reserve(
        self,
        amount: Amount,
        *,
        can_cap_tokens: bool = False,
        output: Amount | None = None,
        is_spent: bool = False,
    ) -> Granted:
        """Take `amount` out of the budget before it is used; `settle` it when the true figure is known. Waits for room
        in the store first: what is about to happen will have to be written.

        Raises:
            StopRun: the budget has no room for it.
        """
        await self.be_ready()
        if self.limits == NO_LIMITS:
            return Granted(amount)
        claim = Claim()
        message = trusted(
            ReserveBudget,
            run_id=self.run_id,
            amount=amount,
            can_cap_tokens=can_cap_tokens,
            output=output,
            is_spent=is_spent,
            claim=claim,
        )
        try:
            answer = await self._granted(message)
        except asyncio.CancelledError:
            claim.is_withdrawn = True
            if claim.granted is not None and not is_spent:
                self.settle(claim.granted.amount, ZERO)
            raise
        if isinstance(answer, Refused):
            raise StopRun(answer.stop_reason, used_up(self.run_id, answer))
        granted: Granted = answer
        return granted

    async def _granted(self, message: ReserveBudget) -> Granted | Refused:
        """The answer to a reservation; while it waits, nothing of it is in flight."""
        self.boundary.rest(acting=True)
        try:
            answer: Granted | Refused = await self.directory.supervisor.ask(message, timeout=None)
        finally:
            self.boundary.go_on(acting=True)
        if self.boundary.is_closed and isinstance(answer, Granted):
            await self.boundary.stay()
        return answer

    def settle(self, reserved: Amount, true: Amount) -> None:
        """Put the true figure in the place of what was reserved."""
        if self.limits != NO_LIMITS:
            self.directory.supervisor.tell(SettleBudget(run_id=self.run_id, reserved=reserved, true=true))

    # ---- events

    def publish(self, *events: tuple[str, int | None, dict[str, Any]]) -> None:
        """Publish events of this run.

        Args:
            events: name, sequence (None for live-only ones) and fields of each.
        """
        if not self.is_watched:
            return
        now = self.clock.time()
        raw: Sequence[RawEvent] = [
            (name, self.run_id, self.session_id, self.agent.id, now, sequence, fields)
            for name, sequence, fields in events
        ]
        self.directory.publish(raw)

    @property
    def is_watched(self) -> bool:
        """Whether somebody takes this run's live events, so that deltas are worth making."""
        return self.directory.watchers.watched(self.run_id)


def _clocks(journal: RunJournal) -> dict[str, tuple[float, ...]]:
    """Clock readings of earlier attempts, by the step they were taken before."""
    clocks: dict[str, tuple[float, ...]] = {}
    carriers: list[StepCompleted | IntentRecorded | SleepBegan] = [
        *journal.completed.values(),
        *journal.intents.values(),
        *journal.sleeps.values(),
    ]
    for record in carriers:
        if record.clock:
            tail = record.step.rfind("/") + 1
            step = record.step[:tail] + record.step[tail:].partition("@")[0].partition(".")[0]
            # Readings before a branch are written when it is made, and once more with the step that follows them.
            clocks[step] = record.clock
    return clocks


def _subject(event: str, fields: Mapping[str, str]) -> str:
    return f"{event} {dict(fields)}"
