"""ReAct: ask the model, make the calls it asks for, until it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callboard.run import RunContext


async def react(ctx: RunContext[Any]) -> Any:
    """Reason and act in turn (Yao et al., 2022): the pattern of an agent that says no other.

    Args:
        ctx: the run.

    Returns:
        The text of the first answer that asks for no tool.
    """
    while True:
        response = await ctx.generate()
        if not response.tool_calls:
            return response.text
        await ctx.call_tools(response.tool_calls)
