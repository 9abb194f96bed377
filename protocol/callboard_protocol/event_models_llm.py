"""The events of model calls and of the pattern that makes them."""

from typing import Literal

from callboard_protocol.event_base import LiveEvent, RecordedEvent, RunEvent
from callboard_protocol.messages import NOTHING_CONSUMED, ToolCall, Usage
from callboard_protocol.model_calls import FinishReason
from callboard_protocol.runs import ErrorDetails


class LlmCalled(LiveEvent, frozen=True):
    """A model is being called.

    Attributes:
        call_id: the step that calls it.
        model: the model's name.
        message_count: messages it is given.
        tool_count: tools it may call.
        max_tokens: the most tokens it may write, after the budget's cap; None is the provider's default.
        streaming: whether deltas will follow.
    """

    name: Literal["llm.called"] = "llm.called"
    call_id: str
    model: str
    message_count: int = 0
    tool_count: int = 0
    max_tokens: int | None = None
    streaming: bool = False


class LlmDelta(LiveEvent, frozen=True):
    """A model wrote a piece of its answer. `offset` is where its text begins, in characters.

    Attributes:
        call_id: the step that called it.
        model: the model's name.
        text: the piece.
    """

    name: Literal["llm.delta"] = "llm.delta"
    call_id: str
    model: str
    text: str


class LlmPartial(LiveEvent, frozen=True):
    """What a model had written when a subscriber came: the deltas it missed, in one. `offset` is 0.

    Attributes:
        call_id: the step that called it.
        model: the model's name.
        text: the text so far; the next delta begins at its end.
    """

    name: Literal["llm.partial"] = "llm.partial"
    call_id: str
    model: str
    text: str


class LlmSucceeded(RecordedEvent, frozen=True):
    """A model answered.

    Attributes:
        call_id: the step that called it.
        model: the model that answered, as the provider names it.
        text: the text of the answer.
        tool_calls: the calls it asks for, in order.
        usage: tokens and price of this call.
        finish_reason: why it stopped.
        duration: seconds it took, its retries included.
        ttft: seconds until the first token; None where nothing was streamed.
        attempts: how often the provider was asked.
    """

    name: Literal["llm.succeeded"] = "llm.succeeded"
    call_id: str
    model: str
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = NOTHING_CONSUMED
    finish_reason: FinishReason = "stop"
    duration: float = 0.0
    ttft: float | None = None
    attempts: int = 1


class LlmFailed(RecordedEvent, frozen=True):
    """A model call has an error for its outcome, after every retry.

    Attributes:
        call_id: the step that called it.
        model: the model's name.
        error: what went wrong: code, message, hint, and whether trying again can help.
        duration: seconds it took, its retries included.
        attempts: how often the provider was asked.
    """

    name: Literal["llm.failed"] = "llm.failed"
    call_id: str
    model: str
    error: ErrorDetails
    duration: float = 0.0
    attempts: int = 1


class PatternStepStarted(RunEvent, frozen=True):
    """The pattern begins a round of its own: one thought, one plan item, one revision.

    Attributes:
        pattern: the pattern's name.
        index: which round, from 0.
        title: what it is about.
    """

    name: Literal["pattern.step_started"] = "pattern.step_started"
    pattern: str
    index: int
    title: str = ""


class PatternStepFinished(RunEvent, frozen=True):
    """The pattern's round is over.

    Attributes:
        pattern: the pattern's name.
        index: which round, from 0.
        ok: whether it came to what it was for.
        duration: seconds it took.
    """

    name: Literal["pattern.step_finished"] = "pattern.step_finished"
    pattern: str
    index: int
    ok: bool = True
    duration: float = 0.0


class PatternPhase(RunEvent, frozen=True):
    """The pattern turned to something else.

    Attributes:
        pattern: the pattern's name.
        phase: what it turned to, such as ``plan``, ``act`` or ``reflect``.
    """

    name: Literal["pattern.phase"] = "pattern.phase"
    pattern: str
    phase: str


class PatternPlanCreated(RunEvent, frozen=True):
    """The pattern has a plan.

    Attributes:
        pattern: the pattern's name.
        steps: the plan, in order.
        revision: 0 for the first plan, one more each time it is made anew.
    """

    name: Literal["pattern.plan_created"] = "pattern.plan_created"
    pattern: str
    steps: tuple[str, ...]
    revision: int = 0
