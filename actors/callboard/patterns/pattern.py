"""What a pattern is, and how an agent's choice becomes one."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from callboard.patterns.react import react
from callboard_protocol.errors import AgentDefinitionError

PatternFunction = Callable[[Any], Awaitable[Any]]

_BUILT_IN: dict[str, PatternFunction] = {"react": react}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern and its name.

    Attributes:
        name: how records and events call it.
        run: takes a `RunContext`, returns the run's output.
    """

    name: str
    run: PatternFunction


def resolve_pattern(pattern: str | PatternFunction, agent_id: str) -> Pattern:
    """The pattern an agent asks for.

    Raises:
        AgentDefinitionError: there is no pattern of that name, or it is not an async function.
    """
    if isinstance(pattern, str):
        if pattern not in _BUILT_IN:
            near = difflib.get_close_matches(pattern, _BUILT_IN, n=1)
            raise AgentDefinitionError(
                f"agent {agent_id!r}: there is no pattern {pattern!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(_BUILT_IN)}, or an async function",
            )
        return Pattern(pattern, _BUILT_IN[pattern])
    if not inspect.iscoroutinefunction(pattern):
        raise AgentDefinitionError(
            f"agent {agent_id!r}: the pattern {pattern!r} is not an async function", hint="async def pattern(ctx): ..."
        )
    return Pattern(pattern.__name__, pattern)
