"""The events of tool calls: one call, batches, background jobs."""

from typing import Any, Literal

from pydantic import Field

from callboard_protocol.base import JsonObject
from callboard_protocol.event_base import LiveEvent, RecordedEvent, RunEvent
from callboard_protocol.runs import ErrorDetails
from callboard_protocol.tools import OnInDoubt


class ToolPreflight(RunEvent, frozen=True):
    """A tool was asked, before the run begins, whether it can be used.

    Attributes:
        tool: the tool's name.
        ok: its answer.
        message: why not.
        cached: whether the answer is an earlier one.
        duration: seconds it took.
    """

    name: Literal["tool.preflight"] = "tool.preflight"
    tool: str
    ok: bool
    message: str = ""
    cached: bool = False
    duration: float = 0.0


class ToolCalled(LiveEvent, frozen=True):
    """A tool is being called.

    Attributes:
        call_id: the call, and its idempotency key.
        tool: the tool's name.
        arguments: what it is called with, validated.
    """

    name: Literal["tool.called"] = "tool.called"
    call_id: str
    tool: str
    arguments: JsonObject = Field(default_factory=dict)


class ToolDelta(LiveEvent, frozen=True):
    """A streaming tool yielded a piece of its result.

    Attributes:
        call_id: the call.
        tool: the tool's name.
        chunk: the piece.
    """

    name: Literal["tool.delta"] = "tool.delta"
    call_id: str
    tool: str
    chunk: Any = None


class ToolProgress(LiveEvent, frozen=True):
    """A tool says how far it is.

    Attributes:
        call_id: the call.
        tool: the tool's name.
        done: how much is done, in the tool's own unit.
        total: how much there is to do, in the same unit; None where that is not known.
        note: what it is doing.
    """

    name: Literal["tool.progress"] = "tool.progress"
    call_id: str
    tool: str
    done: float
    total: float | None = None
    note: str = ""


class ToolSucceeded(RecordedEvent, frozen=True):
    """A tool returned.

    Attributes:
        call_id: the call.
        tool: the tool's name.
        result: what it returned, as plain data.
        duration: seconds it took, its retries included.
        attempts: how often it was tried.
    """

    name: Literal["tool.succeeded"] = "tool.succeeded"
    call_id: str
    tool: str
    result: Any = None
    duration: float = 0.0
    attempts: int = 1


class ToolFailed(RecordedEvent, frozen=True):
    """A tool call has an error for its outcome; the run goes on as its pattern decides.

    Attributes:
        call_id: the call.
        tool: the tool's name.
        error: what went wrong: code, message, hint, and whether trying again can help.
        duration: seconds it took, its retries included.
        attempts: how often it was tried.
    """

    name: Literal["tool.failed"] = "tool.failed"
    call_id: str
    tool: str
    error: ErrorDetails
    duration: float = 0.0
    attempts: int = 1


class ToolRetryRequested(RecordedEvent, frozen=True):
    """A tool, or the check of its arguments, sends the model its mistake: it should call again with better arguments.

    Attributes:
        call_id: the call.
        tool: the tool's name.
        message: what the model is told.
    """

    name: Literal["tool.retry_requested"] = "tool.retry_requested"
    call_id: str
    tool: str
    message: str


class ToolApprovalNeeded(RecordedEvent, frozen=True):
    """A call waits until someone allows or denies it.

    Attributes:
        call_id: the call to decide.
        tool: the tool's name.
        arguments: what it would be called with.
        arguments_digest: what the decision is bound to.
        message: why approval is needed, where the tool says.
    """

    name: Literal["tool.approval_needed"] = "tool.approval_needed"
    call_id: str
    tool: str
    arguments: JsonObject = Field(default_factory=dict)
    arguments_digest: str = ""
    message: str = ""


class ToolDecided(RecordedEvent, frozen=True):
    """Someone decided a call that waited for approval or was in doubt. The decision stands.

    Attributes:
        call_id: the call.
        tool: the tool's name.
        decision: what was decided.
        by: who decided.
        note: why.
    """

    name: Literal["tool.decided"] = "tool.decided"
    call_id: str
    tool: str
    decision: Literal["allow", "deny", "happened", "not_happened"]
    by: str = ""
    note: str = ""


class ToolInDoubt(RunEvent, frozen=True):
    """A call began and nobody knows whether it took effect.

    Attributes:
        call_id: the call.
        tool: the tool's name.
        arguments: what it was called with.
        arguments_digest: what a decision about it is bound to.
        cause: what came between the call and its outcome.
        on_in_doubt: what happens now: ask someone, tell the model, call again, or fail.
    """

    name: Literal["tool.in_doubt"] = "tool.in_doubt"
    call_id: str
    tool: str
    arguments: JsonObject = Field(default_factory=dict)
    arguments_digest: str = ""
    cause: Literal["crash", "timeout", "cancel"]
    on_in_doubt: OnInDoubt = "ask"


class ToolCancelled(RunEvent, frozen=True):
    """A call was cancelled while it ran.

    Attributes:
        call_id: the call.
        tool: the tool's name.
        reason: why.
        message: how it ended, and what of it goes on, if anything does.
        duration: seconds it had run.
    """

    name: Literal["tool.cancelled"] = "tool.cancelled"
    call_id: str
    tool: str
    reason: str = ""
    message: str = ""
    duration: float = 0.0


class ToolBatchStarted(RunEvent, frozen=True):
    """Several calls begin together.

    Attributes:
        call_id: the step they are items of.
        tools: the tools' names, in the order of the items.
    """

    name: Literal["tool.batch.started"] = "tool.batch.started"
    call_id: str
    tools: tuple[str, ...]


class ToolBatchCompleted(RunEvent, frozen=True):
    """Every call of a batch has its outcome.

    Attributes:
        call_id: the step they are items of.
        succeeded: how many returned.
        failed: how many did not.
        duration: seconds from the first to the last.
    """

    name: Literal["tool.batch.completed"] = "tool.batch.completed"
    call_id: str
    succeeded: int
    failed: int = 0
    duration: float = 0.0


class ToolBackgroundSubmitted(RunEvent, frozen=True):
    """A job goes on beside the run.

    Attributes:
        call_id: the step that submitted it; the job's id.
        tool: the tool's name.
    """

    name: Literal["tool.background.submitted"] = "tool.background.submitted"
    call_id: str
    tool: str


class ToolBackgroundPolled(RunEvent, frozen=True):
    """A job was asked how far it is.

    Attributes:
        call_id: the step that submitted it.
        tool: the tool's name.
        status: its answer.
        polls: how often it was asked, this time included.
    """

    name: Literal["tool.background.polled"] = "tool.background.polled"
    call_id: str
    tool: str
    status: Literal["submitted", "running", "succeeded", "failed", "cancelled"]
    polls: int = 1


class ToolBackgroundCompleted(RunEvent, frozen=True):
    """A job has ended.

    Attributes:
        call_id: the step that submitted it.
        tool: the tool's name.
        status: how it ended.
        result: what it returned, as plain data.
        error: what went wrong, where it failed.
        duration: seconds since it was submitted.
    """

    name: Literal["tool.background.completed"] = "tool.background.completed"
    call_id: str
    tool: str
    status: Literal["succeeded", "failed", "cancelled"]
    result: Any = None
    error: ErrorDetails | None = None
    duration: float = 0.0
