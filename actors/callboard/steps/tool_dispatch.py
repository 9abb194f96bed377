"""A tool call in the executor's hands: what it is given, how it is called off, what its outcome tells."""

from __future__ import annotations

import asyncio
from typing import Any

from callboard.live.live_run import LiveRun
from callboard.tool import Tool
from callboard.tools.context import ToolContext
from callboard.tools.flights import ToolOutcome
from callboard_protocol.commands import CancelCall
from callboard_protocol.errors import ActorError, ToolCrashedError, ToolTimeoutError


def context_of(run: LiveRun, step: str, tool: str, attempt: int) -> ToolContext[Any]:
    """What a tool is told of a call.

    Args:
        run: the run that makes it.
        step: its step.
        tool: the tool's name.
        attempt: which attempt of the call this is.
    """
    call_id = f"{run.run_id}:{step}"

    def publish(event: str, fields: dict[str, Any]) -> None:
        if run.is_watched:
            run.publish((event, None, {"step": step, "call_id": call_id, "tool": tool, **fields}))

    return ToolContext(
        deps=run.deps,
        run_id=run.run_id,
        session_id=run.session_id,
        agent_id=run.agent.id,
        call_id=call_id,
        attempt=attempt,
        state=run.state.value,
        publish=publish,
    )


def take_state(run: LiveRun, context: ToolContext[Any], before: Any) -> None:
    """Put in place what a call assigned to the session's state.

    Args:
        run: the run that made the call.
        context: the call's.
        before: the state it was given.
    """
    if context.state is not before:
        # A call beside this one may have put a new state in place; only this one's own goes there.
        run.state.value = context.state


async def call_off(run: LiveRun, tool: Tool[Any], call_id: str) -> ToolOutcome | None:
    """Stop a call in flight, and wait for its end: what it uses is closed after that.

    Returns:
        What came of it; None where nobody waits for that: the runtime closes, or the executor has failed.
    """
    ticket = run.ticket
    reason = ticket.reason or ("its step was cancelled" if ticket.stop is None else "the run was stopped")
    order = CancelCall(call_id=call_id, reason=reason)
    try:
        executor = run.directory.executor
        if tool.interrupt == "finish" and not ticket.may_wait:
            executor.tell(order)
            return None
        waiting = asyncio.create_task(executor.ask(order, timeout=None))
        ticket.last_waits.add(waiting)
        waiting.add_done_callback(ticket.last_waits.discard)
        outcome: ToolOutcome | None = await waiting
    except (asyncio.CancelledError, ActorError):
        return None
    if outcome is not None and outcome.error is not None and outcome.cancelled:
        told = {"call_id": call_id, "tool": tool.name, "reason": reason, "message": outcome.error.message}
        run.publish(("tool.cancelled", None, {**told, "duration": outcome.duration}))
    return outcome


def hidden_by(run: LiveRun, tool: Tool[Any], outcome: ToolOutcome) -> str | None:
    """What left a call in doubt; None where its outcome is known, or it may simply be made again."""
    if not run.request.durable or tool.specification.may_be_repeated:
        return None
    if isinstance(outcome.error, ToolTimeoutError):
        return "timeout"
    return "crash" if isinstance(outcome.error, ToolCrashedError) else None
