"""What is on disk of one run: recalled on replay, and added to step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from callboard import fault_points
from callboard.kernel import Ref
from callboard.live.storage_hold import StorageHold
from callboard.session import SessionActor
from callboard_protocol.base import shortened
from callboard_protocol.commands import AppendRecords, AppendUnawaited, SettleAppends
from callboard_protocol.errors import NonDeterministicRunError, UnpersistableValueError
from callboard_protocol.failures import describe
from callboard_protocol.letters import Letter
from callboard_protocol.records import (
    DecisionMade,
    IntentRecorded,
    LogRecord,
    OutcomeVoided,
    RunBegan,
    RunResumed,
    SleepBegan,
    StepCompleted,
    StepKind,
)
from callboard_protocol.runs import RunArtifact
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint
from callboard_protocol.tools import Question
from callboard_protocol.trusted import trusted
from callboard_storage.store_values import StoredRecord

_NOT_THE_PATTERNS = frozenset({"map", "inject", "writeback", "validation", "compaction"})
"""Kinds of records that a pattern does not come by as it asks for its steps."""

_NOT_ON_DISK = "other arguments, which are on disk as a digest only"
_LENGTH_SHOWN = 300
"""Characters of arguments that do not fit which their error shows."""


class Unfit:
    """Stands in a record for a session state that cannot be stored.

    Args:
        problem: why.
    """

    def __init__(self, problem: UnpersistableValueError) -> None:
        self.problem = problem


class RunJournal:
    """One run's records: those an earlier attempt wrote, and the way to add more.

    Args:
        run_id: the run.
        session: the actor that owns the session's log.
        own: the run's records so far.
        durable: whether each append is on disk before it returns; otherwise all wait for `close`.

    Attributes:
        tell: called with each record once it is on disk, in order, whatever else befalls whoever appended it.
        hold: how the run waits where the store has no room.
        got_further: whether a step has succeeded since the run was opened.
    """

    def __init__(self, run_id: str, session: Ref[SessionActor], own: Sequence[StoredRecord], *, durable: bool) -> None:
        self.run_id = run_id
        self._session = session
        self._durable = durable
        self._held_back: list[LogRecord] = []
        self.tell: Callable[[LogRecord], object] = _nobody
        self.hold: StorageHold | None = None
        self.last_start: RunBegan | RunResumed | None = None
        self.next_ordinal = 0
        self.got_further = False
        self._progressed = False
        self._furthest = 0
        self.steps = 0
        self.begin_afresh()
        for stored in own:
            self._recall(stored.record)
        self.got_further = False

    def begin_afresh(self) -> None:
        """Leave what the run has recorded behind: it counts for its attempts and strikes, and its ordinals go on."""
        self._furthest = max(self._furthest, self.steps)
        self._asleep: SleepBegan | None = None
        self.began: RunBegan | None = None
        self.completed: dict[str, StepCompleted] = {}
        self.intents: dict[str, IntentRecorded] = {}
        self._made_again: set[str] = set()
        self._ahead: set[str] = set()
        self._patches: dict[str, bool] = {}
        self.sleeps: dict[str, SleepBegan] = {}
        self.decisions: dict[tuple[str, Question, int], DecisionMade] = {}
        self.steps = 0
        self.tool_calls: list[str] = []
        self.open_calls: dict[str, str] = {}
        self.last_answer: str | None = None
        self.artifacts: list[RunArtifact] = []

    def _recall(self, record: LogRecord) -> None:
        self.next_ordinal = max(self.next_ordinal, record.ordinal + 1)
        if isinstance(record, StepCompleted):
            self._follow(record)
            self.completed[record.step] = record
            self._progressed = True
            self._asleep = None
            if record.kind == "patched":
                self._patches[record.name] = True
            elif record.kind not in _NOT_THE_PATTERNS:
                self._ahead.add(record.step)
        elif isinstance(record, RunBegan | RunResumed):
            if isinstance(record, RunBegan):
                self.begin_afresh()
                self.began = record
            self.last_start = record
            self._progressed = False
        elif isinstance(record, IntentRecorded):
            self.intend(record)
            self._ahead.add(record.step)
            self._asleep = None
        elif isinstance(record, DecisionMade):
            self.decisions[record.step, record.reason, record.attempt] = record
            self._progressed = True
        elif isinstance(record, SleepBegan):
            self.sleeps[record.step] = record
            self._ahead.add(record.step)
            # Beside a branch that waits, another one may be at work.
            self._asleep = None if "/" in record.step else record
            self._progressed = True
        elif isinstance(record, OutcomeVoided):
            self.void(record.step)

    def _landed(self, records: Sequence[LogRecord]) -> None:
        for record in records:
            self._follow(record)
            self.tell(record)
        if fault_points.armed is not None:
            fault_points.reach_recorded(records)

    def _follow(self, record: LogRecord) -> None:
        """Follow what the transcript on disk needs to stay well-formed, whatever the pattern has seen of it."""
        if not isinstance(record, StepCompleted):
            return
        self.steps += 1
        if record.error is None:
            self.got_further = True
        if record.kind == "tool":
            self.tool_calls.append(f"{record.name}({record.run_id}:{record.step})")
        elif record.artifact is not None:
            self.artifacts.append(record.artifact)
        if not record.in_transcript:
            return
        if record.response is None:
            self.open_calls.pop(record.tool_call_id or "", None)
        else:
            self.open_calls = {call.id: call.name for call in record.response.tool_calls}
            self.last_answer = None if record.response.tool_calls else record.response.text

    @property
    def attempt(self) -> int:
        """Which attempt of the run this is; 0 before its first record."""
        return 0 if self.last_start is None else self.last_start.attempt

    def void(self, step: str) -> None:
        """Forget an outcome: the step is made again."""
        voided = self.completed.pop(step, None)
        self._made_again.add(step)
        if voided is not None and voided.in_transcript and voided.response is None:
            self.open_calls[voided.tool_call_id or ""] = voided.name

    def intend(self, intent: IntentRecorded) -> None:
        """A call is about to be made."""
        self.intents[intent.step] = intent
        self._made_again.discard(intent.step)

    def is_in_doubt(self, step: str) -> bool:
        """Whether a call was begun whose outcome nobody knows; an outcome that was voided was known."""
        return step in self.intents and step not in self.completed and step not in self._made_again

    def strikes(self, *, crashed: bool) -> int:
        """Crashes in a row at which the run had a step in flight and nothing new on disk since the start before.

        Args:
            crashed: whether the last attempt ended by one.
        """
        start = self.last_start
        # What a run that begins afresh does once more does not bring it further than it was.
        if start is None or (self._progressed and (self.steps > self._furthest or not self._furthest)):
            return 0
        # A run that was started while it waited, and waited on, has done nothing that could end a process.
        slept = self._asleep is not None and self._asleep.wake_at > start.at
        return start.strikes + (crashed and not slept)

    def in_flight(self) -> str | None:
        """A step whose intent is on disk and whose outcome is not."""
        return next(filter(self.is_in_doubt, self.intents), None)

    def recorded(self, step: str, kind: StepKind, name: str, fit: bytes, asked: object = None) -> StepCompleted | None:
        """The outcome of a step from an earlier attempt, if it has one.

        Args:
            step: its identity.
            kind: what it does.
            name: of the tool, the function, the channel.
            fit: digest of what the pattern passes.
            asked: what the pattern passes, for the error.

        Raises:
            NonDeterministicRunError: there is one, of something else.
        """
        self._ahead.discard(step)
        record = self.completed.get(step)
        if record is None:
            return None
        if record.kind != kind or record.name != name or record.fit != fit:
            raise self._misfit(record, kind, name, asked)
        return record

    def _misfit(self, record: StepCompleted, kind: StepKind, name: str, asked: object) -> NonDeterministicRunError:
        passed = self._passed(record)
        if isinstance(asked, tuple) and kind == "generate":
            asked = [message.text for message in asked]
        if passed is None and (record.kind, record.name) == (kind, name):
            passed = _NOT_ON_DISK
        return NonDeterministicRunError(
            f"run {self.run_id}, step {record.step}: recorded is {_shown(record.kind, record.name, passed)}, "
            f"the pattern now asks for {_shown(kind, name, asked)}",
            context={
                "step": record.step,
                "recorded": [record.kind, record.name],
                "asked": [kind, name],
                "recorded_arguments": None if passed is None else shortened(passed, _LENGTH_SHOWN),
                "asked_arguments": None if asked is None else shortened(asked, _LENGTH_SHOWN),
            },
        )

    def _passed(self, record: StepCompleted) -> object:
        """What the pattern passed to a recorded step, as far as the log has it."""
        if record.kind == "generate":
            return [message.text for message in record.messages]
        if record.kind == "artifact":
            return None if record.artifact is None else record.artifact.payload
        if record.kind == "emit":
            return record.value
        intent = self.intents.get(record.step)
        if intent is not None:
            return intent.arguments
        if record.tool_call_id is None:
            return None
        turns = (turn.response for turn in self.completed.values() if turn.response is not None)
        calls = (call for response in turns for call in response.tool_calls)
        return next((call.arguments for call in calls if call.id == record.tool_call_id), None)

    def sleep(self, step: str) -> SleepBegan | None:
        """How an earlier attempt began to wait at a step, if it did."""
        self._ahead.discard(step)
        return self.sleeps.get(step)

    def is_patched(self, name: str) -> bool | None:
        """Whether the run has met changed code as it is now; None where it meets it for the first time, at work."""
        if name not in self._patches and not self._ahead:
            return None
        # What is ahead was recorded by code that did not ask.
        return self._patches.setdefault(name, False)

    def patch(self, name: str) -> None:
        """The run has met changed code for the first time, at work."""
        self._patches[name] = True

    async def complete(
        self, record: StepCompleted, *, memory: Sequence[MemoryEntry] = (), taken: Letter | None = None
    ) -> StepCompleted:
        """Append a step's outcome; it is completed once this returns.

        A value that cannot be stored becomes the step's error under the same ordinal, so that the run's records stay
        gapless and a replay meets the same error.

        Returns:
            What was appended: `record`, or the one that says why it cannot be stored.

        Raises:
            FencedError: the session moved on without this run.
            StoreError: the store refused.
        """
        if fault_points.armed is not None:
            fault_points.reach("step.outcome_received", f"{self.run_id}:{record.step}")
        try:
            await self.append(record, memory=memory, taken=taken)
        except UnpersistableValueError as unstorable:
            problem = record.state.problem if isinstance(record.state, Unfit) else unstorable
            what = f"{record.kind} {record.name!r}" if record.name else record.kind
            problem.message = f"{what} (step {record.step} of run {record.run_id}) cannot be stored: {problem.message}"
            failed = StepCompleted(
                run_id=record.run_id,
                ordinal=record.ordinal,
                at=record.at,
                step=record.step,
                kind=record.kind,
                name=record.name,
                fit=record.fit,
                error=describe(problem),
                tool_call_id=record.tool_call_id,
                in_transcript=record.in_transcript and record.response is None,
                clock=record.clock,
                attempt=record.attempt,
                duration=record.duration,
                running=record.running,
            )
            await self.append(failed, taken=taken)
            return failed
        return record

    def owe(self, record: StepCompleted) -> None:
        """Have the next append bring this record along: nothing that stands on it can come to disk before it."""
        self._held_back.append(record)
        if not self._durable:
            self._landed((record,))

    def append_unawaited(self, record: LogRecord) -> None:
        """Append a record without waiting for it; what is appended next is on disk behind it, or neither is."""
        held_back, self._held_back = self._held_back, []
        self._session.tell(trusted(AppendUnawaited, records=(*held_back, record), hold=self.hold, landed=self._landed))

    async def append(
        self,
        *records: LogRecord,
        run: RunEntry | None = None,
        seen: RunEntry | None = None,
        memory: Sequence[MemoryEntry] = (),
        checkpoint: SessionCheckpoint | None = None,
        taken: Letter | None = None,
        may_wait: bool = True,
    ) -> None:
        """Append records in one transaction. A cancellation ends this call only once the store has answered: whatever
        is decided next stands on what is on disk. Where the store has no room, the run waits here.

        Args:
            records: in order.
            run: the run's entry, where it changed.
            seen: how the run stood before, where these records are its first here.
            memory: entries of the session's memory that changed.
            checkpoint: a checkpoint to keep.
            taken: a letter to the run that these records take in.
            may_wait: whether the run waits for room; otherwise the store's refusal is raised.

        Raises:
            UnpersistableValueError: a value cannot be stored; nothing was appended.
            FencedError: the session moved on without this run.
            StoreFullError: there is no room, and the run may not wait for it or was stopped waiting.
            StoreError: the store refused.
        """
        if not self._durable and run is None:
            self._held_back.extend(records)
            self._landed(records)
            return
        held_back, self._held_back = self._held_back, []
        together = (*held_back, *records) if held_back else records
        hold = self.hold
        request = trusted(
            AppendRecords,
            records=together,
            run=run,
            seen=seen,
            memory=memory,
            checkpoint=checkpoint,
            taken=taken,
            hold=hold if may_wait else None,
        )
        try:
            await self._session.ask(request, timeout=None)
        except asyncio.CancelledError:
            await self._session.ask(SettleAppends(), timeout=None)
            self._landed(together if self._durable else records)
            raise
        except UnpersistableValueError:
            self._held_back = [*held_back, *self._held_back]
            raise
        self._landed(together if self._durable else records)
        if hold is not None and hold.is_suspended:
            await hold.go_on()

    def claim_ordinal(self) -> int:
        """The ordinal of the record that is about to be appended."""
        ordinal = self.next_ordinal
        self.next_ordinal = ordinal + 1
        return ordinal


def _nobody(record: LogRecord) -> None:
    """Who is told before anyone asks to be."""


def _shown(kind: str, name: str, passed: object) -> str:
    what = f"{kind} {name!r}" if name else kind
    if passed is None:
        return what
    return f"{what} with {passed if passed is _NOT_ON_DISK else shortened(passed, _LENGTH_SHOWN)}"
