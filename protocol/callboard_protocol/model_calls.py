"""What travels between a run and a model: the request, the response, the settings."""

from collections.abc import Sequence
from typing import Any, Generic, Literal, cast

from pydantic import ConfigDict
from typing_extensions import TypeVar

from callboard_protocol.base import Duration, Frozen, JsonObject
from callboard_protocol.commands import Live
from callboard_protocol.messages import NOTHING_CONSUMED, Message, ToolCall, Usage
from callboard_protocol.trusted import trusted

ResponseOutputT = TypeVar("ResponseOutputT", default=str)

FinishReason = Literal["stop", "tool_calls", "length", "content_filter", "error"]


class ModelSettings(Frozen):
    """How a model is to answer; None leaves the provider's default.

    Attributes:
        max_tokens: the most tokens it may write.
        temperature: the sampling temperature.
        top_p: nucleus sampling.
        timeout: seconds or a timedelta for one attempt.
        extra: settings only one provider knows.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    timeout: Duration | None = None
    extra: JsonObject = {}


class ToolSchema(Frozen):
    """A tool as a model sees it.

    Attributes:
        name: what the model calls it by.
        description: what it does, for the model.
        parameters: a JSON schema of an object.
    """

    name: str
    description: str = ""
    parameters: JsonObject = {}


class ModelRequest(Frozen):
    """One call of a model. The history is passed by reference: treat it as read-only.

    Attributes:
        messages: the whole history, instructions first.
        tools: what the model may call.
        settings: how it is to answer.
        output_schema: a JSON schema for the final answer, where it must be structured.
        agent_id: the agent that asks.
        session_id: the session it works for.
        run_id: the run it works for.
        call_id: the step's identity; stable across attempts, so it can serve as an idempotency key.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    messages: Live[Sequence[Message]]
    tools: Live[Sequence[ToolSchema]] = ()
    settings: Live[ModelSettings] = ModelSettings.model_construct()
    output_schema: Live[JsonObject | None] = None
    agent_id: str = ""
    session_id: str = ""
    run_id: str = ""
    call_id: str = ""


class ModelResponse(Frozen, Generic[ResponseOutputT]):
    """What a model answered.

    Attributes:
        text: the text of the answer; may be empty beside tool calls.
        tool_calls: what it asks for, in order.
        usage: what the call consumed.
        finish_reason: why the model stopped.
        model: the model that answered, as the provider names it.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage = NOTHING_CONSUMED
    finish_reason: FinishReason = "stop"
    model: str = ""

    def __class_getitem__(cls, output: Any) -> type:
        """The class itself: no field is of the type that `output` has."""
        return cls

    @property
    def output(self) -> ResponseOutputT:
        """What the step asked for: the text, or a value of the type it named."""
        return cast("ResponseOutputT", self.text)

    def as_message(self) -> Message:
        """The answer as the assistant's message of a transcript."""
        return trusted(Message, role="assistant", content=self.text, tool_calls=self.tool_calls)


class ValidatedResponse(ModelResponse[ResponseOutputT]):
    """A response whose text fitted the type a step asked for.

    Attributes:
        validated: the text as that type. Never stored: it is validated again from the text.
    """

    validated: Live[Any] = None

    @property
    def output(self) -> ResponseOutputT:
        """The value of the type the step named."""
        return cast("ResponseOutputT", self.validated)


class ModelDelta(Frozen):
    """A piece of a streamed answer.

    Attributes:
        text: text that follows what came before.
        response: the whole answer; set on the last piece only.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    text: str = ""
    response: Live[ModelResponse[Any] | None] = None
