"""Where a session stands: its head, its checkpoints, the runs it had.

A head is the fold of its log: `SessionHead.after` is that fold, so a head that lags can always be brought up to date
from the records behind it.
"""

import re
from typing import Any

from pydantic import Field

from callboard_protocol.base import Frozen
from callboard_protocol.errors import UsageError
from callboard_protocol.records import (
    LogRecord,
    RunBegan,
    RunEnded,
    RunResumed,
    SessionRewound,
    StepCompleted,
)
from callboard_protocol.runs import (
    ErrorDetails,
    RunArtifact,
    RunBudget,
    RunRequest,
    RunUsage,
    StopReason,
    nothing_used,
)
from callboard_protocol.states import RunState
from callboard_protocol.tools import PendingCall
from callboard_protocol.trusted import trusted


class SessionHead(Frozen):
    """Where a session stands after a sequence of its log.

    Attributes:
        session_id: the session.
        next_sequence: the sequence its next record gets.
        transcript_length: messages in its transcript.
        artifact_count: artifacts made in it, without those made behind a point it went back to.
        state_sequence: the record that holds its state; None where it has none.
        usage: what its finished runs consumed, together; going back to a checkpoint takes what followed out.
        run_count: runs that began in it, whatever became of them.
        active_run: the run that holds it; None when it is free.
        last_run: the run that began last.
        fence: the fencing token of its lock; 0 while nobody has it.
        created_at: unix seconds of its first run.
        updated_at: unix seconds of its last record.
    """

    session_id: str
    next_sequence: int = 0
    transcript_length: int = 0
    artifact_count: int = 0
    state_sequence: int | None = None
    usage: RunUsage = Field(default_factory=nothing_used)
    run_count: int = 0
    active_run: str | None = None
    last_run: str | None = None
    fence: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0

    def after(self, sequence: int, record: LogRecord) -> "SessionHead":
        """The head once `record` has been appended at `sequence`.

        Raises:
            UsageError: `sequence` is not the one that follows.
        """
        fold = HeadFold(self)
        fold.add(sequence, record)
        return fold.head()


class HeadFold:
    """A head that is being brought forward, one record at a time.

    Args:
        head: where it begins.
    """

    __slots__ = (
        "_base",
        "active_run",
        "artifact_count",
        "created_at",
        "last_run",
        "next_sequence",
        "run_count",
        "state_sequence",
        "transcript_length",
        "updated_at",
        "usage",
    )

    def __init__(self, head: SessionHead) -> None:
        self._base = head
        self.next_sequence = head.next_sequence
        self.transcript_length = head.transcript_length
        self.artifact_count = head.artifact_count
        self.state_sequence = head.state_sequence
        self.usage = head.usage
        self.run_count = head.run_count
        self.active_run = head.active_run
        self.last_run = head.last_run
        self.created_at = head.created_at
        self.updated_at = head.updated_at

    def add(self, sequence: int, record: LogRecord) -> None:
        """Take the record at `sequence` in.

        Raises:
            UsageError: `sequence` is not the one that follows.
        """
        if sequence != self.next_sequence:
            raise UsageError(
                f"session {self._base.session_id!r} stands at sequence {self.next_sequence}, the record is {sequence}"
            )
        self.next_sequence = sequence + 1
        self.updated_at = record.at
        if isinstance(record, StepCompleted):
            self.transcript_length += record.in_transcript + len(record.messages)
            if record.state_changed:
                self.state_sequence = sequence
            if record.artifact is not None:
                self.artifact_count += 1
            return
        self.created_at = self.created_at or record.at
        if isinstance(record, RunBegan):
            self.run_count += record.attempt == 1
            self.transcript_length += len(record.messages)
            if not record.nested:
                self.active_run = self.last_run = record.run_id
        elif isinstance(record, RunResumed):
            # Of a run that had ended; one below another run, whose session it shares, leaves that one the session.
            self.active_run = self.active_run or record.run_id
        elif isinstance(record, RunEnded):
            self.transcript_length += len(record.messages)
            self.usage = add_usage(self.usage, record.usage)
            if record.run_id == self.active_run:
                self.active_run = None
        elif isinstance(record, SessionRewound):
            self.transcript_length = record.transcript_length + len(record.messages)
            self.state_sequence = record.state_sequence
            self.artifact_count = record.artifact_count
            self.usage = record.usage
            self.active_run = None

    def head(self) -> SessionHead:
        """Where the session stands now."""
        return trusted(
            SessionHead,
            session_id=self._base.session_id,
            fence=self._base.fence,
            next_sequence=self.next_sequence,
            transcript_length=self.transcript_length,
            artifact_count=self.artifact_count,
            state_sequence=self.state_sequence,
            usage=self.usage,
            run_count=self.run_count,
            active_run=self.active_run,
            last_run=self.last_run,
            created_at=self.created_at,
            updated_at=self.updated_at,
        )


class SessionCheckpoint(Frozen):
    """A point of a session that can be returned to.

    There is one for each completed step of each run, one for its beginning (step 0), and those that callers named. The
    last of a run covers its end.

    Attributes:
        checkpoint_id: ``{run_id}:step:{n}``, n being `step_index`, or the caller's own name.
        session_id: the session.
        run_id: the run that was active, or the last one.
        step_index: completed steps of that run.
        log_position: the sequence of the last record it covers; -1 for an empty session.
        state: the session's state, inlined.
        transcript_length: messages in the transcript.
        artifact_count: artifacts made so far.
        usage: what the session had consumed, the run in progress included.
        created_at: unix seconds.
    """

    checkpoint_id: str
    session_id: str
    run_id: str | None = None
    step_index: int = 0
    log_position: int = -1
    state: Any = None
    transcript_length: int = 0
    artifact_count: int = 0
    usage: RunUsage = Field(default_factory=nothing_used)
    created_at: float = 0.0


_STEP_CHECKPOINT = re.compile(r"(?P<run_id>.+):step:(?P<step>0|[1-9][0-9]{0,17})", re.DOTALL)


def step_checkpoint_id(run_id: str, step_index: int) -> str:
    """The id of the checkpoint that a run's n-th completed step leaves; that of its beginning for 0."""
    return f"{run_id}:step:{step_index}"


def step_of_checkpoint(checkpoint_id: str) -> tuple[str, int] | None:
    """The run and the number of completed steps that a checkpoint's id names; None where it is a caller's name."""
    found = _STEP_CHECKPOINT.fullmatch(checkpoint_id)
    return None if found is None else (found["run_id"], int(found["step"]))


class SessionArtifact(Frozen):
    """An artifact and where it came from.

    Attributes:
        session_id: the session.
        run_id: the run that made it.
        sequence: its place in the session's log.
        artifact: what was made.
        created_at: unix seconds.
    """

    session_id: str
    run_id: str
    sequence: int
    artifact: RunArtifact
    created_at: float


class RunEntry(Frozen):
    """A run in the table of runs: what was asked, where it stands, where its records begin.

    Attributes:
        request: the request as submitted.
        request_digest: by which a second submission is recognised.
        state: where the run stands.
        order: admission order: unix nanoseconds, made unique within a process.
        began_sequence: its first record; None until it has begun. For a run within the session of the one that
            delegated it, a record that its own do not lie before.
        attempts: how often it was started.
        strikes: crashes in a row it may have caused.
        stop_reason: why it ended.
        pending: what it waits for.
        problem: why it ended, where its log does not say; why it is tried again, where it waits for that.
        submitted_at: unix seconds.
        ended_at: unix seconds.
        crashed: whether its process died in the middle of it, and no attempt has begun since.
        retries: how often it was tried again in a row, after errors that can pass.
        budget: what a later `resume` put in the place of its limits.
        spent: once it has ended, what it and all runs below it spent: model calls, tool calls, tokens, billionths of a
            US dollar.
        charged: what of that its last end charged to the account it draws on; the rest was charged by earlier ends.
    """

    request: RunRequest
    request_digest: bytes
    state: RunState
    order: int
    began_sequence: int | None = None
    attempts: int = 0
    strikes: int = 0
    stop_reason: StopReason | None = None
    pending: tuple[PendingCall, ...] = ()
    problem: ErrorDetails | None = None
    submitted_at: float = 0.0
    ended_at: float | None = None
    crashed: bool = False
    retries: int = 0
    budget: RunBudget | None = None
    spent: tuple[int, int, int, int] = (0, 0, 0, 0)
    charged: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.request.run_id

    @property
    def session_id(self) -> str:
        """Its session."""
        return self.request.session_id


class MemoryEntry(Frozen):
    """What a session's memory holds under one name.

    Attributes:
        name: the memory's own name for it.
        value: plain data.
        updated_at: unix seconds.
    """

    name: str
    value: Any = None
    updated_at: float = 0.0


def add_usage(first: RunUsage, second: RunUsage) -> RunUsage:
    """Two runs' usage together; latencies cannot be added, so the later run's stand."""
    breakdown = dict(first.cost_breakdown)
    for model, cost in second.cost_breakdown.items():
        breakdown[model] = breakdown.get(model, 0.0) + cost
    return trusted(
        RunUsage,
        llm_calls=first.llm_calls + second.llm_calls,
        tool_calls=first.tool_calls + second.tool_calls,
        input_tokens=first.input_tokens + second.input_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        input_tokens_cached=first.input_tokens_cached + second.input_tokens_cached,
        input_tokens_cache_creation=first.input_tokens_cache_creation + second.input_tokens_cache_creation,
        cost_usd=first.cost_usd + second.cost_usd,
        cost_breakdown=breakdown,
        ttft=second.ttft,
        llm_latency_p50=second.llm_latency_p50,
        llm_latency_p95=second.llm_latency_p95,
        llm_retry_count=first.llm_retry_count + second.llm_retry_count,
    )
