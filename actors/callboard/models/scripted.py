"""`ScriptedModel`: a model that says what it is told to, for tests, examples and benchmarks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias, cast

from callboard.kernel.replies import fresh
from callboard.models.base import Model
from callboard_protocol.errors import ScriptExhaustedError, UsageError
from callboard_protocol.messages import Message, ToolCall, Usage
from callboard_protocol.model_calls import ModelDelta, ModelRequest, ModelResponse

ScriptItem: TypeAlias = str | ToolCall | Sequence[ToolCall] | ModelResponse[Any] | Exception
"""What the model says: a final text, tool calls, a whole response, or an exception to raise."""

Script: TypeAlias = Sequence[ScriptItem] | Callable[[ModelRequest], ScriptItem | Awaitable[ScriptItem]]

CHARACTERS_PER_TOKEN: Final = 4
"""A common estimate for English text: it makes token budgets testable, and is nobody's price."""

_ITEMS: Final = (str, ToolCall, list, tuple, ModelResponse, Exception)

RUNS_REMEMBERED: Final = 10_000
"""How many runs' places are kept; the place of an older one is found in its conversation again."""


class _Place:
    """Where one run stands in a list, and how long its conversation was."""

    __slots__ = ("calls", "characters", "counted", "last", "position")

    def __init__(self, position: int) -> None:
        self.position = position
        self.calls: dict[str, int] = {}
        self.counted = 0
        self.characters = 0
        self.last: Message | None = None


class ScriptedModel(Model):
    """Plays a script.

    A list is played in order, by each run from its start. The place belongs to the run, not to the model: runs beside
    each other do not disturb one another. One call, asked again (its outcome was lost in a crash, or was not kept),
    gets the same item again, except that an exception is raised once and the next attempt gets the item after it, so
    ``[ModelError("busy", retryable=True), "done"]`` is a call that succeeds at its second attempt.

    A run that another process began is taken up where its conversation stands: as many answers have been given as
    there are assistant messages after its input, the last user message. Exceptions before that place have been raised.
    Where a conversation does not show that (a pattern that asks with histories of its own, or user messages in the
    middle of a run, as after an answer that did not validate), use a function of the request instead.

    Args:
        script: a list of items, or a function from the request to one, which may be async. An item is a `str` (a final
            text), a `ToolCall` or a list of them, a `ModelResponse`, or an exception to raise.
        name: the model's name.
        usage: what each answer consumes; otherwise an estimate, a token per four characters.
        stream_chunk: characters per piece of a streamed text.

    Raises:
        UsageError: the script holds something else.
    """

    is_offline = True

    def __init__(
        self, script: Script, *, name: str = "scripted", usage: Usage | None = None, stream_chunk: int = 16
    ) -> None:
        if stream_chunk < 1:
            raise UsageError(f"stream_chunk={stream_chunk} gives empty pieces", hint="at least 1 character")
        if isinstance(script, str):
            raise UsageError("a script is a list of items, not a text", hint=f"ScriptedModel([{script[:40]!r}])")
        self.name = name
        self._items: tuple[ScriptItem, ...] | None = None
        self._function: Callable[[ModelRequest], Any] | None = None
        if callable(script):
            self._function = script
        else:
            self._items = tuple(script)
            for item in self._items:
                _checked(item)
        self._usage = usage
        self._stream_chunk = stream_chunk
        self._places: dict[str, _Place] = {}

    async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
        """The script's next item for this run.

        Raises:
            ScriptExhaustedError: the list has no further item.
            Exception: the item is one.
        """
        if self._function is None:
            item = self._next(request, self._place(request))
        else:
            item = self._function(request)
            if not isinstance(item, _ITEMS) and inspect.isawaitable(item):
                item = await item
        return self._response(item, request)

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelDelta]:
        """`generate`, its text in pieces, each in a turn of the loop of its own."""
        response = await self.generate(request)
        text, size = response.text, self._stream_chunk
        for start in range(0, len(text), size):
            yield ModelDelta(text=text[start : start + size])
            await asyncio.sleep(0)
        yield ModelDelta(response=response)

    # ---- the place in a list

    def _place(self, request: ModelRequest) -> _Place:
        place = self._places.pop(request.run_id, None)
        if place is None:
            place = _Place(0 if self._items is None or not request.run_id else self._resumed_at(request.messages))
            if len(self._places) >= RUNS_REMEMBERED:
                del self._places[next(iter(self._places))]
        self._places[request.run_id] = place
        return place

    def _resumed_at(self, messages: Sequence[Message]) -> int:
        answers = 0
        for index in range(len(messages) - 1, -1, -1):
            role = messages[index].role
            if role == "user":
                break
            answers += role == "assistant"
        position = 0
        for item in cast("tuple[ScriptItem, ...]", self._items):
            if answers == 0:
                break
            position += 1
            answers -= not isinstance(item, Exception)
        return position + answers

    def _next(self, request: ModelRequest, place: _Place) -> ScriptItem:
        items = cast("tuple[ScriptItem, ...]", self._items)
        position = place.calls.get(request.call_id) if request.call_id else None
        if position is None:
            position = place.position
        if position >= len(items):
            who = f"run {request.run_id!r}" if request.run_id else "a request"
            raise ScriptExhaustedError(
                f"{who} asked {self.name!r} for item {position + 1} of a script of {len(items)}",
                context={"run_id": request.run_id, "items": len(items)},
            )
        item = items[position]
        if isinstance(item, Exception):
            place.calls.pop(request.call_id, None)
        else:
            place.calls[request.call_id] = position
        place.position = max(place.position, position + 1)
        return item

    # ---- the answer

    def _response(self, item: Any, request: ModelRequest) -> ModelResponse[Any]:
        text = ""
        calls: tuple[ToolCall, ...] = ()
        if isinstance(item, ToolCall):
            calls = self._identified((item,), request)
        elif isinstance(item, str):
            text = item
        elif isinstance(item, Exception):
            raise fresh(item)
        elif isinstance(item, ModelResponse):
            if all(call.id for call in item.tool_calls) and item.model:
                return item
            calls = self._identified(item.tool_calls, request)
            return item.model_copy(update={"tool_calls": calls, "model": item.model or self.name})
        else:
            _checked(item)
            calls = self._identified(tuple(item), request)
        return ModelResponse(
            text=text,
            tool_calls=calls,
            usage=self._usage or _estimate(request.messages, text, calls, self._place(request)),
            finish_reason="tool_calls" if calls else "stop",
            model=self.name,
        )

    def _identified(self, calls: tuple[ToolCall, ...], request: ModelRequest) -> tuple[ToolCall, ...]:
        """The calls, each with an id: the same one whenever the same step asks again."""
        for call in calls:
            if not call.id:
                break
        else:
            return calls
        prefix = request.call_id or f"call.{sum(message.role == 'assistant' for message in request.messages)}"
        return tuple(
            call if call.id else ToolCall(name=call.name, arguments=call.arguments, id=f"{prefix}.{rank}")
            for rank, call in enumerate(calls)
        )


def _checked(item: object) -> None:
    if isinstance(item, str | ToolCall | ModelResponse | Exception):
        return
    if isinstance(item, Sequence) and item and all(isinstance(call, ToolCall) for call in item):
        return
    raise UsageError(
        f"a script cannot say {item!r}", hint="a str, a ToolCall, a list of them, a ModelResponse or an exception"
    )


def _estimate(messages: Sequence[Message], text: str, calls: tuple[ToolCall, ...], place: _Place) -> Usage:
    """A token per four characters, rounded up; the history is counted once, however often it is asked about."""
    counted, total = place.counted, len(messages)
    if counted > total or (counted and messages[counted - 1] is not place.last):
        counted = place.characters = 0
    for index in range(counted, total):
        message = messages[index]
        place.characters += len(message.text) + _length(message.tool_calls)
    place.counted = total
    place.last = messages[-1] if total else None
    written = len(text) + _length(calls)
    return Usage(
        input_tokens=-(-place.characters // CHARACTERS_PER_TOKEN), output_tokens=-(-written // CHARACTERS_PER_TOKEN)
    )


def _length(calls: tuple[ToolCall, ...]) -> int:
    return sum(len(call.name) + len(str(call.arguments)) for call in calls)
