"""The steps that call tools: one by the pattern's own will, or the calls a model asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from callboard.live.live_run import LiveRun
from callboard.live.scopes import Scope
from callboard.runs.stops import StopRun
from callboard.steps.plain_steps import first_failure
from callboard.steps.tool_call import awaited_decision, perform_call
from callboard_protocol.base import check_name
from callboard_protocol.errors import (
    CallboardError,
    UnpersistableValueError,
)
from callboard_protocol.failures import restore
from callboard_protocol.messages import Message, ToolCall, render_for_model
from callboard_protocol.records import StepCompleted
from callboard_protocol.tools import PendingCall
from callboard_protocol.trusted import trusted


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of one call that a model asked for.

    Attributes:
        call: what was asked.
        value: what the tool returned, in its annotated type; None where it failed.
        error: why it failed; the model has been told.
        content: the text the model reads.
    """

    call: ToolCall
    value: Any
    error: CallboardError | None
    content: str


async def call_one(run: LiveRun, scope: Scope, name: str, arguments: dict[str, Any]) -> Any:
    """Call a tool because the pattern says so; its result goes to the pattern, not into the transcript.

    Raises:
        ToolError: the call failed; recorded, so a replay raises it too.
        UnpersistableValueError: what the tool returned cannot be stored.
    """
    check_name(name, "name of the tool")
    step = scope.begin(f"tool {name!r}")
    try:
        record = await perform_call(run, scope, step, name, arguments, None)
        if record.error is not None:
            raise restore(record.error)
        return _loaded(run, record)
    finally:
        scope.end()


async def call_many(run: LiveRun, scope: Scope, calls: Sequence[ToolCall]) -> list[ToolResult]:
    """Make the calls a model asked for: safe ones side by side, the rest in turn; results in the order of the calls.

    A call that fails answers the model with what went wrong.

    Raises:
        UnpersistableValueError: what a tool returned cannot be stored.
    """
    step = scope.begin("tool calls")
    try:
        if len(calls) == 1:
            records = [await _answer(run, scope, f"{step}.0", calls[0])]
        else:
            records = await _batch(run, scope, step, calls)
        results: list[ToolResult] = []
        unstorable: UnpersistableValueError | None = None
        for call, record in zip(calls, records, strict=True):
            content = render_for_model(record.value) if record.error is None else record.error.message
            message = trusted(Message, role="tool", content=content, tool_call_id=call.id, name=call.name)
            scope.conversation.add(message)
            error = None if record.error is None else restore(record.error)
            if isinstance(error, UnpersistableValueError):
                unstorable = unstorable or error
            value = None if error is not None else _loaded(run, record)
            results.append(ToolResult(call, value, error, content))
        if unstorable is not None:
            raise unstorable
        return results
    finally:
        scope.end()


def _loaded(run: LiveRun, record: StepCompleted) -> Any:
    """What a tool returned, in its annotated type; as plain data where the agent has the tool no more."""
    tool = run.agent.tools.get(record.name)
    return record.value if tool is None else tool.load_result(record.value)


async def _batch(run: LiveRun, scope: Scope, step: str, calls: Sequence[ToolCall]) -> list[StepCompleted]:
    began = run.clock.monotonic()
    call_id = f"{run.run_id}:{step}"
    run.publish(("tool.batch.started", None, {"call_id": call_id, "tools": tuple(call.name for call in calls)}))
    side_by_side: dict[int, asyncio.Task[StepCompleted]] = {}
    records: dict[int, StepCompleted] = {}
    try:
        for rank, call in enumerate(calls):
            tool = run.agent.tools.get(call.name)
            if tool is None or tool.concurrency_safe:
                side_by_side[rank] = asyncio.create_task(_answer(run, scope, f"{step}.{rank}", call))
        in_turn = [rank for rank in range(len(calls)) if rank not in side_by_side]
        asked = await _take_turns(run, scope, step, calls, in_turn, records)
        await first_failure(list(side_by_side.values()), asked)
        records |= {rank: task.result() for rank, task in side_by_side.items()}
    finally:
        for task in side_by_side.values():
            task.cancel()
        await asyncio.gather(*side_by_side.values(), return_exceptions=True)
    failed = sum(record.error is not None for record in records.values())
    run.publish(
        (
            "tool.batch.completed",
            None,
            {
                "call_id": call_id,
                "succeeded": len(calls) - failed,
                "failed": failed,
                "duration": run.clock.monotonic() - began,
            },
        )
    )
    return [records[rank] for rank in range(len(calls))]


async def _take_turns(
    run: LiveRun,
    scope: Scope,
    step: str,
    calls: Sequence[ToolCall],
    ranks: Sequence[int],
    records: dict[int, StepCompleted],
) -> list[PendingCall]:
    """Make calls one after the other, up to one that waits for a decision; what the rest of them wait for is asked
    together with that.
    """
    asked: list[PendingCall] = []
    for rank in ranks:
        call, place = calls[rank], f"{step}.{rank}"
        if asked:
            pending = awaited_decision(run, place, call)
            asked += () if pending is None else (pending,)
            continue
        try:
            records[rank] = await _answer(run, scope, place, call)
        except StopRun as stop:
            if stop.stop_reason != "suspended":
                raise
            asked += stop.pending
    return asked


async def _answer(run: LiveRun, scope: Scope, step: str, call: ToolCall) -> StepCompleted:
    return await perform_call(run, scope, step, call.name, call.arguments, call.id)
