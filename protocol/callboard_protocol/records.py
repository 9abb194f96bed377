"""What a session's log holds: one model per kind of record.

The log is the one append-only truth of a session. A record is identified by (session id, sequence); both live in its
key, not in its body. What can be derived is not stored: a transcript is the fold of `transcript_of` over the log.

Bodies are written without their default values, so a field's default is part of its stored meaning: changing one needs
a new schema version.
"""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from callboard_protocol.base import Frozen, JsonObject
from callboard_protocol.messages import Message, render_for_model
from callboard_protocol.model_calls import ModelResponse
from callboard_protocol.runs import (
    ErrorDetails,
    ErrorSnapshot,
    RunArtifact,
    RunRequest,
    RunUsage,
    StopReason,
    nothing_used,
)
from callboard_protocol.tools import Decision, PendingCall, Question

StepKind = Literal[
    "generate",
    "tool",
    "step",
    "map",
    "sleep",
    "receive",
    "random",
    "artifact",
    "emit",
    "delegate",
    "inject",
    "writeback",
    "compaction",
    "validation",
    "patched",
]


class Record(Frozen):
    """What every record carries.

    Attributes:
        run_id: the run that wrote it.
        ordinal: its place among the run's records, from 0, without gaps; events show it as their `sequence`.
        at: when it was written, in unix seconds.
    """

    # Built on first use: importing Callboard should not pay for validators that the process may never need.
    model_config = ConfigDict(defer_build=True)

    run_id: str
    ordinal: int
    at: float


class AgentSnapshot(Frozen):
    """What an agent looked like when an attempt began: recorded for readers, never compared on replay.

    Attributes:
        version: the agent's own version.
        model: the model's name.
        instructions: the system prompt.
        tools: the names of its tools.
        pattern: the pattern's name.
    """

    version: str = "1"
    model: str = ""
    instructions: str = ""
    tools: tuple[str, ...] = ()
    pattern: str = ""


class RunBegan(Record):
    """A run's first record: what it was asked, and the snapshot every replay starts from. One that begins afresh after
    a crash has another, behind a `SessionRewound`; what it had recorded before counts no more.

    Attributes:
        request: the request as submitted.
        agent: the agent at the first attempt.
        state_sequence: where the session's state at the start is written; None where it had none.
        transcript_length: messages in the transcript before this run's input.
        messages: what it adds to the transcript: the input.
        nested: whether a run above holds the session, so that this one adds nothing to the transcript.
        attempt: which attempt of the run this is.
        strikes: as for `RunResumed`.
    """

    request: RunRequest
    agent: AgentSnapshot
    state_sequence: int | None = None
    transcript_length: int = 0
    messages: tuple[Message, ...] = ()
    nested: bool = False
    attempt: int = 1
    strikes: int = 0


class RunResumed(Record):
    """A further attempt of a run begins.

    Attributes:
        attempt: which one; the first resumption is 2.
        strikes: crashes in a row with a step in flight and no new record since the start before.
        agent: the agent now, which may be a newer one.
        in_flight: the step that was in flight when the attempt before ended, where one is known.
        running: seconds the run had spent running by then.
    """

    attempt: int
    strikes: int = 0
    agent: AgentSnapshot
    in_flight: str | None = None
    running: float = 0.0


class StepCompleted(Record):
    """A step's outcome, and all it changed.

    Attributes:
        step: its identity within the run: scope and ordinal, such as ``7`` or ``files.a/2.1``. The call id is
            ``{run_id}:{step}``.
        kind: what it did.
        name: of the tool, the model, the function, the channel.
        fit: digest of what the pattern passed explicitly; a replay that passes something else does not fit.
        value: the outcome, where it is plain data.
        response: the outcome of a model call.
        error: the outcome, where it is an error; what the pattern sees on every replay.
        error_is_output: the pattern sees the error's text as an ordinary result (a tool call of a model).
        tool_call_id: the provider's id of the call it answers, where the result goes into the transcript.
        in_transcript: whether it adds a message to the transcript.
        messages: what it adds to the transcript before that.
        state: the session's state after it, where it changed.
        state_changed: whether `state` is set.
        artifact: what `add_artifact` kept.
        clock: readings of `ctx.now()` since the record before, in unix seconds.
        duration: seconds from its start to its outcome.
        running: seconds the run has spent running, up to here.
        attempt: which attempt of the run made it.
    """

    step: str
    kind: StepKind
    name: str = ""
    fit: bytes = b""
    value: Any = None
    response: ModelResponse[Any] | None = None
    error: ErrorDetails | None = None
    error_is_output: bool = False
    tool_call_id: str | None = None
    in_transcript: bool = False
    messages: tuple[Message, ...] = ()
    state: Any = None
    state_changed: bool = False
    artifact: RunArtifact | None = None
    clock: tuple[float, ...] = ()
    duration: float = 0.0
    running: float = 0.0
    attempt: int = 1


class IntentRecorded(Record):
    """A call that may not be repeated freely is about to be made.

    Attributes:
        step: its identity within the run.
        tool: the tool's name.
        arguments: what it is called with, validated.
        arguments_digest: their digest.
        tool_call_id: the provider's id of the call.
        attempt: which attempt of the call: a repeat after `retry` or `NotHappened` has its own intent.
        clock: readings of `ctx.now()` since the record before, in unix seconds.
    """

    step: str
    tool: str
    arguments: JsonObject = {}
    arguments_digest: bytes = b""
    tool_call_id: str | None = None
    attempt: int = 1
    clock: tuple[float, ...] = ()


class ReservationRecorded(Record):
    """What a dispatched call may cost at worst, so that a crash cannot make it free.

    Attributes:
        step: the call.
        tokens: reserved tokens.
        cost_usd: reserved US dollars.
    """

    step: str
    tokens: int = 0
    cost_usd: float = 0.0


class OutcomeVoided(Record):
    """The outcome of a step no longer counts: the run was resumed after a retryable failure.

    Attributes:
        step: whose outcome.
        reason: why.
    """

    step: str
    reason: str = ""


class RunSuspended(Record):
    """The run waits for someone.

    Attributes:
        pending: for what.
    """

    pending: tuple[PendingCall, ...] = ()


class DecisionMade(Record):
    """Somebody decided a pending call.

    Attributes:
        step: the call.
        tool: the tool's name.
        decision: what was decided.
        reason: what was asked about it.
        attempt: which attempt of the call that was about.
        arguments_digest: the arguments that were shown.
        by: who decided.
        note: why.
    """

    step: str
    tool: str = ""
    decision: Decision
    reason: Question = "approval"
    attempt: int = 1
    arguments_digest: bytes = b""
    by: str = ""
    note: str = ""


class SignalReceived(Record):
    """A value sent to a run from outside.

    Attributes:
        channel: its channel; order holds per channel.
        value: the value.
    """

    channel: str
    value: Any = None


class SleepBegan(Record):
    """A durable sleep.

    Attributes:
        step: its identity within the run.
        wake_at: when it ends, in unix seconds.
        clock: readings of `ctx.now()` since the record before, in unix seconds.
    """

    step: str
    wake_at: float
    clock: tuple[float, ...] = ()


class SessionRewound(Record):
    """What follows stands on an earlier point of the log: the records between no longer count, though they stay.

    The log of a fork begins with the records of the session it was forked from; this marker follows them.

    Attributes:
        checkpoint_id: the checkpoint asked for; empty where a run goes back within itself, to be resumed after its end
            or to begin afresh.
        to_sequence: the log position it stands for.
        transcript_length: messages of the transcript that still count.
        state_sequence: where the state then is written.
        artifact_count: artifacts that still count.
        usage: what the session had consumed by then, the run in progress included.
        messages: what it adds to the transcript: answers for calls that were open then.
        forked_from: the session that the records before it were copied from; None where they are the session's own.
    """

    checkpoint_id: str
    to_sequence: int
    transcript_length: int
    state_sequence: int | None = None
    artifact_count: int = 0
    usage: RunUsage = Field(default_factory=nothing_used)
    messages: tuple[Message, ...] = ()
    forked_from: str | None = None


class TranscriptCompacted(Record):
    """Models see a shorter history from here on; the transcript itself keeps everything.

    Attributes:
        assembler: what compacted it.
        replaced: how many messages, from the start, the summary stands for.
        summary: what stands for them.
    """

    assembler: str = ""
    replaced: int
    summary: tuple[Message, ...] = ()


class RunEnded(Record):
    """A run's last record.

    Attributes:
        stop_reason: why it ended.
        output: the final output as plain data.
        usage: what it consumed.
        error_details: what went wrong.
        error_snapshot: what the run looked like then.
        messages: what it adds to the transcript: answers for calls left open, and the final answer if it is not there.
        running: seconds it spent running.
        cancelled_by: who asked, where it was cancelled.
        reason: why they asked.
    """

    stop_reason: StopReason
    output: Any = None
    usage: RunUsage = Field(default_factory=nothing_used)
    error_details: ErrorDetails | None = None
    error_snapshot: ErrorSnapshot | None = None
    messages: tuple[Message, ...] = ()
    running: float = 0.0
    cancelled_by: str = ""
    reason: str = ""


LogRecord = (
    RunBegan
    | RunResumed
    | StepCompleted
    | IntentRecorded
    | ReservationRecorded
    | OutcomeVoided
    | RunSuspended
    | DecisionMade
    | SignalReceived
    | SleepBegan
    | SessionRewound
    | TranscriptCompacted
    | RunEnded
)


def call_id_of(record: StepCompleted | IntentRecorded) -> str:
    """The call id: run and step, the same at every attempt."""
    return f"{record.run_id}:{record.step}"


def transcript_of(record: LogRecord) -> tuple[Message, ...]:
    """The messages a record adds to its session's transcript, in order."""
    if isinstance(record, StepCompleted):
        if not record.in_transcript:
            return record.messages
        return (*record.messages, _message_of(record))
    if isinstance(record, RunBegan | RunEnded | SessionRewound):
        return record.messages
    return ()


def _message_of(step: StepCompleted) -> Message:
    if step.response is not None:
        return step.response.as_message()
    content = step.error.message if step.error is not None else render_for_model(step.value)
    return Message(role="tool", content=content, tool_call_id=step.tool_call_id or step.step, name=step.name)
