"""Assemblers: how much of a conversation the model is shown."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from callboard_protocol.errors import AgentDefinitionError, UsageError
from callboard_protocol.messages import Message


@runtime_checkable
class ContextAssembler(Protocol):
    """Chooses what a model sees. What it returns is never written back: the transcript keeps everything."""

    def assemble(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages to send, given all there are. Treat the argument as read-only."""
        ...


class FullContext:
    """Everything. Costs the same at any length: the history is passed on as it is."""

    def assemble(self, messages: Sequence[Message]) -> Sequence[Message]:
        """All messages."""
        return messages


class SlidingWindow:
    """The last messages only; a window never begins with the answer to a call it does not show.

    Args:
        size: how many messages, at most; more only where the answers to one turn's calls are more by themselves.

    Raises:
        UsageError: `size` is under 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise UsageError(f"a window of {size} messages shows nothing", hint="give at least 1")
        self.size = size

    def assemble(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The instructions, then the last `size` messages."""
        instructions = list(messages[:1]) if len(messages) and messages[0].role == "system" else []
        start = max(len(instructions), len(messages) - self.size)
        while start < len(messages) and messages[start].role == "tool":
            start += 1
        if start == len(messages):
            # Nothing but answers: without the turn that asked for them the model would see nothing at all.
            while start > len(instructions) and messages[start - 1].role == "tool":
                start -= 1
            start = max(len(instructions), start - 1)
        return [*instructions, *messages[start:]]


_BUILT_IN = {"full": FullContext}


def resolve_assembler(context: str | ContextAssembler, agent_id: str) -> ContextAssembler:
    """The assembler an agent asks for.

    Raises:
        AgentDefinitionError: there is none of that name.
    """
    if isinstance(context, ContextAssembler):
        return context
    if not isinstance(context, str):
        raise AgentDefinitionError(
            f"agent {agent_id!r}: context={context!r:.60} is no assembler",
            hint=f"one of: {', '.join(_BUILT_IN)}, or an object with `assemble`, such as SlidingWindow(20)",
        )
    if context not in _BUILT_IN:
        near = difflib.get_close_matches(context, _BUILT_IN, n=1)
        raise AgentDefinitionError(
            f"agent {agent_id!r}: there is no context {context!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(_BUILT_IN)}, or an assembler",
        )
    return _BUILT_IN[context]()
