"""What a conversation is made of: messages, content parts, tool calls, token usage."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field
from pydantic_core import to_json

from callboard_protocol.base import Frozen, JsonObject

Role = Literal["system", "user", "assistant", "tool"]


class TextPart(Frozen):
    """A piece of text."""

    type: Literal["text"] = "text"
    text: str


class DataPart(Frozen):
    """Bytes of some media type: an image, audio, a document.

    Attributes:
        media_type: an IANA media type, such as ``image/png``.
        data: the bytes themselves.
        name: a file name, where one is known.
    """

    type: Literal["data"] = "data"
    media_type: str
    data: bytes
    name: str | None = None


class LinkPart(Frozen):
    """Content that the model provider fetches by itself."""

    type: Literal["link"] = "link"
    url: str
    media_type: str | None = None


ContentPart = Annotated[TextPart | DataPart | LinkPart, Field(discriminator="type")]


class ToolCall(Frozen):
    """What a model asks for: one tool, by name, with arguments.

    Attributes:
        name: the tool's name.
        arguments: what the model passed, before any validation.
        id: the provider's id for this call; generated within the response where it gave none.
    """

    name: str
    arguments: JsonObject = {}
    id: str = ""


class Message(Frozen):
    """One message of a transcript.

    Attributes:
        role: who speaks.
        content: text, or parts where there is more than text.
        tool_calls: what an assistant message asks for, in order.
        tool_call_id: for a tool message: the `ToolCall.id` it answers.
        name: for a tool message: the tool's name.
    """

    role: Role
    content: str | tuple[ContentPart, ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """The text of the content, parts joined; empty where there is none."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @classmethod
    def user(cls, content: str | tuple[ContentPart, ...]) -> Self:
        """A message from the user."""
        return cls(role="user", content=content)

    @classmethod
    def system(cls, content: str) -> Self:
        """Instructions."""
        return cls(role="system", content=content)

    @classmethod
    def assistant(cls, content: str, tool_calls: tuple[ToolCall, ...] = ()) -> Self:
        """A turn of the model."""
        return cls(role="assistant", content=content, tool_calls=tool_calls)

    @classmethod
    def tool(cls, content: str, *, tool_call_id: str, name: str) -> Self:
        """A tool's answer."""
        return cls(role="tool", content=content, tool_call_id=tool_call_id, name=name)


class Usage(Frozen):
    """What one model call consumed, as the provider counted it.

    Attributes:
        input_tokens: tokens read, cached ones included.
        output_tokens: tokens written.
        input_tokens_cached: of those read, how many came from the provider's cache.
        input_tokens_cache_creation: of those read, how many were written to the provider's cache.
        cost_usd: the price in US dollars; None where no price is known.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_cached: int = 0
    input_tokens_cache_creation: int = 0
    cost_usd: float | None = None

    @property
    def total_tokens(self) -> int:
        """Tokens read and written."""
        return self.input_tokens + self.output_tokens


NOTHING_CONSUMED: Final = Usage.model_construct()
"""A default that is made without building its model's validator, which a process may never need."""


def render_for_model(value: Any) -> str:
    """A tool's plain result as the text a model reads: strings as they are, everything else as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    return to_json(value, fallback=str, bytes_mode="base64").decode()
