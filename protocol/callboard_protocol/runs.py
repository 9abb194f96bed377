"""What a caller asks for and gets: the request, its budget, what it used, and the result."""

from typing import Any, Generic, Literal, Self

from pydantic import Field, field_validator, model_validator
from typing_extensions import TypeVar

from callboard_protocol.base import Duration, Frozen, Given, JsonObject, check_identifier
from callboard_protocol.errors import RunFailedError
from callboard_protocol.messages import ContentPart, Message
from callboard_protocol.tools import Decision, PendingCall

OutputT_co = TypeVar("OutputT_co", default=str, covariant=True)

StopReason = Literal[
    "completed", "failed", "cancelled", "timeout", "max_steps", "budget_exhausted", "suspended", "interrupted"
]
OnBusy = Literal["queue", "reject", "interrupt"]
OnCrash = Literal["resume", "restart", "fail"]


class RunBudget(Given):
    """What a run may consume. None is no limit.

    Attributes:
        max_steps: model calls.
        max_duration: time spent running, in seconds or as a timedelta; what the run waits does not count.
        max_tool_calls: tool calls.
        max_total_tokens: tokens read and written.
        max_cost_usd: US dollars.
        max_validation_retries: how often an output that does not fit its type is sent back.
        max_resume_attempts: how many crashes in a row a run may be part of before it counts as their cause.
    """

    max_steps: int | None = Field(default=None, ge=0)
    max_duration: Duration | None = None
    max_tool_calls: int | None = Field(default=None, ge=0)
    max_total_tokens: int | None = Field(default=None, ge=0)
    max_cost_usd: float | None = Field(default=None, ge=0)
    max_validation_retries: int = Field(default=3, ge=0)
    max_resume_attempts: int = Field(default=3, ge=1)


class RunRequest(Given):
    """A run as it was asked for. All of it persists.

    Attributes:
        agent_id: which agent is to run.
        session_id: in which session.
        input_text: what the user said; `input_parts` instead where there is more than text.
        input_parts: text and other content.
        run_id: the caller's name for the run; submitting the same request twice under it runs once.
        parent_run_id: the run that delegated this one.
        metadata: the caller's own values, carried unchanged.
        context_hints: free hints to assemblers and patterns.
        approvals: decisions made in advance, by call id, tool name or ``"*"``.
        budget: limits for this run; the agent's own where None.
        account: a named account of `runtime.accounts` that this run draws on.
        durable: whether each step is on disk before the next one starts.
        on_busy: what to do while the session has another run.
        on_crash: what the next start does with the run if the process dies.
        resume_from_checkpoint: a checkpoint id of this session to rewind to first.
    """

    agent_id: str
    session_id: str
    run_id: str
    input_text: str = ""
    input_parts: tuple[ContentPart, ...] = Field(
        default=(), description="give a list of TextPart, DataPart or LinkPart"
    )
    parent_run_id: str | None = None
    metadata: JsonObject = {}
    context_hints: JsonObject = {}
    approvals: dict[str, Decision] = Field(
        default={}, description="give Allow(), Deny(reason), Happened(result) or NotHappened() by call id, tool or '*'"
    )
    budget: RunBudget | None = None
    account: str | None = None
    durable: bool = True
    on_busy: OnBusy = "queue"
    on_crash: OnCrash = "resume"
    resume_from_checkpoint: str | None = None

    @field_validator("agent_id", "session_id", "run_id", mode="before")
    @classmethod
    def _storable(cls, value: Any, info: Any) -> str:
        return check_identifier(value, str(info.field_name).replace("_", " "))

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if self.input_text and self.input_parts:
            raise ValueError("give input_text or input_parts, not both")
        return self

    def input_message(self) -> Message:
        """The input as the user's message of a transcript."""
        return Message.user(self.input_parts or self.input_text)


class RunUsage(Frozen):
    """What a run has consumed so far, over all its attempts.

    Attributes:
        llm_calls: completed model calls.
        tool_calls: completed tool calls.
        input_tokens: tokens read.
        output_tokens: tokens written.
        input_tokens_cached: of those read, from the provider's cache.
        input_tokens_cache_creation: of those read, written to the provider's cache.
        cost_usd: US dollars, as far as prices are known.
        cost_breakdown: US dollars by model.
        ttft: seconds until the first token of the first streamed answer; None where nothing was streamed.
        llm_latency_p50: median seconds of a model call; None before the first.
        llm_latency_p95: 95th percentile of the same.
        llm_retry_count: model calls tried again after a provider's error.
    """

    llm_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_cached: int = 0
    input_tokens_cache_creation: int = 0
    cost_usd: float = 0.0
    cost_breakdown: dict[str, float] = {}
    ttft: float | None = None
    llm_latency_p50: float | None = None
    llm_latency_p95: float | None = None
    llm_retry_count: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens read and written."""
        return self.input_tokens + self.output_tokens


_NOTHING_USED = RunUsage.model_construct()


def nothing_used() -> RunUsage:
    """The usage of a run that has not used anything: a default that pydantic does not copy for each model it is in."""
    return _NOTHING_USED


class RunArtifact(Given):
    """Something a run made, kept with its session.

    Attributes:
        name: what it is called; a later one of the same name stands beside the earlier.
        kind: what it is, such as ``"report"`` or a media type.
        payload: plain data or bytes.
        metadata: the maker's own values.
    """

    name: str
    kind: str = "data"
    payload: Any = None
    metadata: JsonObject = {}


class ErrorDetails(Frozen):
    """An error as data.

    Attributes:
        code: stable, for programs; an exception of no `CallboardError` class has its type's name.
        message: one sentence.
        hint: what to do next.
        docs_url: where more is written.
        retryable: whether the same thing can succeed later.
        context: plain values.
        cause: what led to it, to a depth of three.
    """

    code: str
    message: str
    hint: str = ""
    docs_url: str | None = None
    retryable: bool = False
    context: JsonObject = {}
    cause: "ErrorDetails | None" = None


class ErrorSnapshot(Frozen):
    """What a failed run looked like when it failed; secrets are redacted by key name.

    Attributes:
        type: the exception's type.
        message: its text.
        traceback: formatted, the innermost frames last.
        tool_calls: the run's tool calls in order, as ``name(call_id)``.
        last_messages: the end of the transcript.
        usage: what it had consumed.
        state: the session's state.
        at: when, in unix seconds.
    """

    type: str
    message: str
    traceback: str = ""
    tool_calls: tuple[str, ...] = ()
    last_messages: tuple[Message, ...] = ()
    usage: RunUsage = Field(default_factory=nothing_used)
    state: Any = None
    at: float = 0.0


class DelegatedOutcome(Frozen):
    """How a delegated run ended, as the run that waited for it has recorded it.

    Attributes:
        session_id: its session.
        stop_reason: why it stopped.
        output: its output as plain data; None unless it completed.
        usage: what it consumed itself.
        artifacts: what it made.
        error_details: what went wrong, where something did.
        spent: what it and all runs below it spent: model calls, tool calls, tokens, billionths of a US dollar.
    """

    session_id: str
    stop_reason: StopReason
    output: Any = None
    usage: RunUsage = Field(default_factory=nothing_used)
    artifacts: tuple[RunArtifact, ...] = ()
    error_details: ErrorDetails | None = None
    spent: tuple[int, int, int, int] = (0, 0, 0, 0)


class RunResult(Frozen, Generic[OutputT_co]):
    """How a run ended, or why it waits.

    Attributes:
        run_id: the run.
        session_id: its session.
        agent_id: its agent.
        final_output: the output, typed by the agent; None unless the run completed.
        stop_reason: why it stopped.
        usage: what it consumed.
        artifacts: what it made, in order.
        error_details: what went wrong, where something did.
        error_snapshot: what the run looked like then.
        pending: the calls it waits for, or why it is parked.
        metadata: the request's.
    """

    run_id: str
    session_id: str
    agent_id: str
    stop_reason: StopReason
    final_output: Any = None
    usage: RunUsage = Field(default_factory=nothing_used)
    artifacts: tuple[RunArtifact, ...] = ()
    error_details: ErrorDetails | None = None
    error_snapshot: ErrorSnapshot | None = None
    pending: tuple[PendingCall, ...] = ()
    metadata: JsonObject = {}

    @property
    def output(self) -> OutputT_co:
        """The output of a completed run.

        Raises:
            RunFailedError: the run did not complete; the error names why.
        """
        if self.stop_reason != "completed":
            details = self.error_details
            why = f": {details.message}" if details else ""
            raise RunFailedError(
                f"run {self.run_id} of agent {self.agent_id} ended as {self.stop_reason!r}{why}",
                hint=details.hint if details and details.hint else None,
                context={"run_id": self.run_id, "stop_reason": self.stop_reason},
                retryable=details.retryable if details else False,
            )
        output: OutputT_co = self.final_output
        return output
