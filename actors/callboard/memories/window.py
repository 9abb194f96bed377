"""A window memory: the last few exchanges of a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from callboard.memory import Exchange
from callboard_protocol.errors import UsageError
from callboard_protocol.messages import Message

_ENTRY = "window"


class WindowMemory:
    """Remembers the last exchanges (a run's input and its answer) and recalls them in the system prompt.

    Use it with a context that does not show the whole transcript, such as `SlidingWindow`.

    Args:
        size: how many exchanges.
        on_error: whether a run goes on when its memory fails.

    Raises:
        UsageError: `size` is under 1.
    """

    def __init__(self, size: int = 8, *, on_error: Literal["continue", "fail"] = "continue") -> None:
        if size < 1:
            raise UsageError(f"a window of {size} exchanges remembers nothing", hint="give at least 1")
        self.size = size
        self.on_error: Literal["continue", "fail"] = on_error

    async def inject(self, held: Mapping[str, Any], message: Message) -> Sequence[str]:
        """The exchanges kept, oldest first, as one text; none before the first."""
        exchanges = held.get(_ENTRY, [])
        if not exchanges:
            return ()
        lines = [f"- They said: {asked}\n  You answered: {answered}" for asked, answered in exchanges]
        return ("Earlier in this session:\n" + "\n".join(lines),)

    async def writeback(self, held: Mapping[str, Any], exchange: Exchange) -> Mapping[str, Any]:
        """The window with this exchange at its end."""
        kept = [*held.get(_ENTRY, []), [exchange.asked, exchange.answered]]
        return {_ENTRY: kept[-self.size :]}
