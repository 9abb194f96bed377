"""The events of a run and its session: from the request to the result."""

from typing import Any, Literal

from pydantic import AwareDatetime, Field

from callboard_protocol.base import JsonObject
from callboard_protocol.event_base import Event, RecordedEvent, RunEvent
from callboard_protocol.runs import ErrorDetails, RunUsage, StopReason, nothing_used
from callboard_protocol.tools import PendingCall


class RunRequested(RunEvent, frozen=True):
    """A run was asked for and, if durable, is on disk: it will not be forgotten.

    Attributes:
        input_text: what the user said; empty where the input has other parts.
        parent_run_id: the run that delegated it.
        account: the named account it draws on.
        durable: whether its steps go to disk.
        metadata: the caller's own values.
    """

    name: Literal["run.requested"] = "run.requested"
    input_text: str = ""
    parent_run_id: str | None = None
    account: str | None = None
    durable: bool = True
    metadata: JsonObject = Field(default_factory=dict)


class RunQueued(RunEvent, frozen=True):
    """A run waits for its turn.

    Attributes:
        reason: `slot`: as many runs as allowed are running; `session`: another run holds the session; `wake`: what it
            waited for came; `recovery`: a restart found it; `resume`: someone resumed it; `unpark`: it can run again.
        position: how many runs wait before it.
    """

    name: Literal["run.queued"] = "run.queued"
    reason: Literal["slot", "session", "wake", "recovery", "resume", "unpark"]
    position: int | None = None


class RunValidated(RunEvent, frozen=True):
    """The request can run: its agent, deps and tools are there, and the tools' preflight checks passed.

    Attributes:
        agent_version: the agent's own version.
        model: the model's name.
        tools: the names of the tools it may call.
    """

    name: Literal["run.validated"] = "run.validated"
    agent_version: str = "1"
    model: str = ""
    tools: tuple[str, ...] = ()


class RunStarted(RecordedEvent, frozen=True):
    """The pattern begins, for the first time or, after a crash, afresh.

    Attributes:
        waited: seconds since it was requested.
    """

    name: Literal["run.started"] = "run.started"
    waited: float = 0.0


class RunCompleted(RecordedEvent, frozen=True):
    """The run has its output.

    Attributes:
        final_output: the output as plain data.
        usage: what the run consumed.
        duration: seconds it spent running.
    """

    name: Literal["run.completed"] = "run.completed"
    final_output: Any = None
    usage: RunUsage = nothing_used()
    duration: float = 0.0


class RunFailed(RecordedEvent, frozen=True):
    """The run ended without an output: it failed, a step took too long, or its budget is used up.

    Attributes:
        stop_reason: which of these.
        error: what went wrong; its context names the limit that ran out.
        usage: what the run consumed.
        duration: seconds it spent running.
    """

    name: Literal["run.failed"] = "run.failed"
    stop_reason: Literal["failed", "timeout", "max_steps", "budget_exhausted"] = "failed"
    error: ErrorDetails
    usage: RunUsage = nothing_used()
    duration: float = 0.0


class RunCancelled(RecordedEvent, frozen=True):
    """The run was cancelled.

    Attributes:
        reason: why, as the caller put it.
        usage: what the run consumed.
        duration: seconds it spent running.
    """

    name: Literal["run.cancelled"] = "run.cancelled"
    reason: str = ""
    usage: RunUsage = nothing_used()
    duration: float = 0.0


class RunSuspended(RecordedEvent, frozen=True):
    """The run waits, and holds no slot meanwhile: for what may outlast this process, such as a decision, or for room in
    the store, which no record can say; `sequence` is None then.

    Attributes:
        pending: the calls to decide, or that there is no room.
        wake_at: when it goes on by itself, in UTC; None where nothing but an answer wakes it.
    """

    name: Literal["run.suspended"] = "run.suspended"
    pending: tuple[PendingCall, ...] = ()
    wake_at: AwareDatetime | None = None


class RunParked(RunEvent, frozen=True):
    """The run cannot go on here: its agent is not registered, or its deps or output type cannot be had.

    Attributes:
        reason: what is missing.
        pending: the same, as the run's result shows it.
    """

    name: Literal["run.parked"] = "run.parked"
    reason: str
    pending: tuple[PendingCall, ...] = ()


class RunRecordSaved(RecordedEvent, frozen=True):
    """A record is on disk that no other event tells of.

    Attributes:
        kind: what it says: that a call is about to be made (``intent``), until when the run sleeps (``sleep``), what
            was reserved (``reservation``), that an outcome no longer counts (``voided``), what was sent (``signal``).
    """

    name: Literal["run.record_saved"] = "run.record_saved"
    kind: Literal["intent", "sleep", "reservation", "voided", "signal"]


class RunCheckpointSaved(RecordedEvent, frozen=True):
    """A checkpoint can be returned to.

    Attributes:
        checkpoint_id: ``{run_id}:step:{n}``, or the caller's own name.
        step_index: completed steps of the run.
    """

    name: Literal["run.checkpoint_saved"] = "run.checkpoint_saved"
    checkpoint_id: str
    step_index: int


class RunCheckpointFailed(RunEvent, frozen=True):
    """A checkpoint could not be written; the run goes on as the store allows.

    Attributes:
        checkpoint_id: ``{run_id}:step:{n}``, or the caller's own name.
        error: why.
    """

    name: Literal["run.checkpoint_failed"] = "run.checkpoint_failed"
    checkpoint_id: str
    error: ErrorDetails


class RunResumeAttempted(RecordedEvent, frozen=True):
    """A further attempt of the run begins.

    Attributes:
        attempt: which one; the first resumption is 2.
        strikes: crashes in a row that the run may have caused.
        in_flight: the step in flight when the attempt before ended, where one is known.
    """

    name: Literal["run.resume_attempted"] = "run.resume_attempted"
    attempt: int
    strikes: int = 0
    in_flight: str | None = None


class RunResumeSucceeded(RunEvent, frozen=True):
    """The run goes on: every recorded step was replayed, or what the store had no room for is on disk.

    Attributes:
        attempt: which attempt of the run.
        replayed_steps: how many steps were taken from their records.
        duration: seconds the replay took, or the wait.
    """

    name: Literal["run.resume_succeeded"] = "run.resume_succeeded"
    attempt: int
    replayed_steps: int = 0
    duration: float = 0.0


class RunResumeExhausted(RunEvent, frozen=True):
    """The run was resumed as often as its budget allows, and fails: it was in flight at too many crashes in a row, so
    that it is their likely cause, or an error that could pass did not.

    Attributes:
        strikes: crashes in a row that it was in flight at.
        retries: how often in a row it was tried again.
        in_flight: the step in flight at the last crash, where one is known.
    """

    name: Literal["run.resume_exhausted"] = "run.resume_exhausted"
    strikes: int = 0
    retries: int = 0
    in_flight: str | None = None


class RunDurableIdempotencyWarning(RunEvent, frozen=True):
    """A durable run calls a tool that declares neither `read_only` nor `idempotent`. Told once per run and tool.

    Attributes:
        tool: the tool's name.
        message: what a crash in mid-call would mean, and what to declare.
    """

    name: Literal["run.durable_idempotency_warning"] = "run.durable_idempotency_warning"
    tool: str
    message: str = ""


class SessionAcquired(Event, frozen=True):
    """This process holds the session's lock.

    Attributes:
        fence: the lock's fencing token.
        waited: seconds it took.
    """

    name: Literal["session.acquired"] = "session.acquired"
    session_id: str
    fence: int
    waited: float = 0.0


class SessionReleased(Event, frozen=True):
    """The session's lock is free again.

    Attributes:
        fence: the fencing token it was held under.
        held: seconds it was held.
    """

    name: Literal["session.released"] = "session.released"
    session_id: str
    fence: int
    held: float = 0.0


class SessionRewound(RecordedEvent, frozen=True):
    """The run goes back to an earlier point of its session: what followed there no longer counts.

    Attributes:
        checkpoint_id: the checkpoint; empty where the run goes back within itself, to be resumed or to begin afresh.
        log_position: the position in the session's log that it stands for.
        transcript_length: messages of the transcript that still count.
    """

    name: Literal["session.rewound"] = "session.rewound"
    checkpoint_id: str
    log_position: int
    transcript_length: int


class SessionRunStarted(RunEvent, frozen=True):
    """The session is this run's until it completes.

    Attributes:
        run_count: runs that began in the session, this one included.
        transcript_length: messages in the transcript before the run's input.
    """

    name: Literal["session.run.started"] = "session.run.started"
    run_count: int
    transcript_length: int = 0


class SessionRunCompleted(RunEvent, frozen=True):
    """The session is free for its next run, however this one ended.

    Attributes:
        stop_reason: how it ended.
        transcript_length: messages in the transcript now.
        queued: runs that wait for the session.
    """

    name: Literal["session.run.completed"] = "session.run.completed"
    stop_reason: StopReason
    transcript_length: int = 0
    queued: int = 0
