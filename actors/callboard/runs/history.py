"""A conversation as it grows: append-only inside, handed out as views that never change.

A view costs the same at message 10 and at message 10,000, so a step does not pay for the history it stands on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

from callboard_protocol.messages import Message, ToolCall


class MessageView(Sequence[Message]):
    """The first `length` messages of a conversation. Later ones do not show."""

    __slots__ = ("_length", "_messages")

    def __init__(self, messages: list[Message], length: int) -> None:
        self._messages = messages
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Message]:
        return islice(self._messages, self._length)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            if step > 0:
                return self._messages[start:stop:step]
            return [self._messages[place] for place in range(start, stop, step)]
        if index < 0:
            index += self._length
        if not 0 <= index < self._length:
            raise IndexError("message index out of range")
        return self._messages[index]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # compares like a list, so it hashes like one: not at all

    def __repr__(self) -> str:
        return f"<{self._length} messages>"


class Conversation:
    """Messages in order, well-formed for a provider: the answers to a turn's tool calls stand in the order of the
    calls, whatever order they came in.

    Args:
        messages: what it begins with.
    """

    __slots__ = ("_answers", "_base", "_messages", "_order")

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self._messages: list[Message] = []
        self._order: dict[str, int] = {}
        self._answers: list[int] = []
        self._base = 0
        for message in messages:
            self.add(message)

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: Message) -> None:
        """Append a message; the answer to a tool call takes its place among the answers of its turn."""
        if message.role == "tool" and message.tool_call_id in self._order:
            rank = self._order[message.tool_call_id]
            place = len(self._answers)
            while place and self._answers[place - 1] > rank:
                place -= 1
            self._answers.insert(place, rank)
            position = self._base + place
            if position < len(self._messages):
                # Views handed out earlier must not change, so the conversation moves to a list of its own.
                self._messages = self._messages.copy()
            self._messages.insert(position, message)
            return
        self._messages.append(message)
        if message.role == "assistant":
            self._order = {call.id: rank for rank, call in enumerate(message.tool_calls)}
            self._answers = []
            self._base = len(self._messages)

    def unanswered(self) -> Sequence[ToolCall]:
        """The calls of the last assistant turn that have no answer yet, in order."""
        if len(self._answers) >= len(self._order):
            return ()
        answered = set(self._answers)
        calls = self._messages[self._base - 1].tool_calls
        return [call for call in calls if self._order[call.id] not in answered]

    def view(self) -> MessageView:
        """What it holds now."""
        return MessageView(self._messages, len(self._messages))
