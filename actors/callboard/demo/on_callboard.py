"""The same audit on Callboard: an agent, its tools, and one `submit` per module."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from callboard import (
    Agent,
    Happened,
    Message,
    ModelRequest,
    NotHappened,
    RunBudget,
    Runtime,
    RuntimeLimits,
    ScriptedModel,
    ToolCall,
    ToolContext,
    Unknown,
    tool,
)
from callboard.demo.auditor import Call, Desk, Json, Seen, decide, module_of
from callboard.demo.publishing import ask_for_leave, publisher
from callboard.demo.reference import call_tool, receipt
from callboard.demo.tracker_client import TrackerClient


class AuditDesk(Desk):
    """The tools' dependencies: the desk both loops share, and the tracker's search for `reconcile`."""

    def __init__(self, root: Path, tracker: TrackerClient) -> None:
        super().__init__(root, tracker)
        self.tracker = tracker


@tool(read_only=True)
async def read_module(ctx: ToolContext[AuditDesk], module: str) -> Json:
    """How large a module is, what it is by digest, and how it begins."""
    return await call_tool(ctx.deps, Call("read_module", {"module": module}))


@tool(read_only=True)
async def parse_module(ctx: ToolContext[AuditDesk], module: str) -> Json:
    """Whether a module parses, and what it is made of."""
    return await call_tool(ctx.deps, Call("parse_module", {"module": module}))


@tool(read_only=True)
async def measure_module(ctx: ToolContext[AuditDesk], module: str) -> Json:
    """A module's longest functions and how much it branches."""
    return await call_tool(ctx.deps, Call("measure_module", {"module": module}))


@tool(read_only=True)
async def find_risky_calls(ctx: ToolContext[AuditDesk], module: str, family: str) -> Json:
    """The places of one family of rules that are worth a second look, the worst first."""
    return await call_tool(ctx.deps, Call("find_risky_calls", {"module": module, "family": family}))


@tool(read_only=True)
async def show_lines(ctx: ToolContext[AuditDesk], module: str, line: int) -> Json:
    """A line and the one before it: where a comment would explain it."""
    return await call_tool(ctx.deps, Call("show_lines", {"module": module, "line": line}))


@tool(on_in_doubt="tell")
async def file_finding(
    ctx: ToolContext[AuditDesk], *, module: str, rule: str, line: int, severity: str, message: str
) -> Json:
    """File one finding with the tracker, for people to act on."""
    return await ctx.deps.file_finding(module, rule, line, severity, message)


@file_finding.reconcile
async def _was_it_filed(
    ctx: ToolContext[AuditDesk], *, module: str, rule: str, line: int, severity: str, message: str
) -> Happened[Json] | NotHappened | Unknown:
    """Asked when a crash left the call between its intent and its outcome."""
    try:
        entry = await ctx.deps.tracker.look_up(module, line, rule)
    except ConnectionError:
        return Unknown()
    return Happened(receipt(entry["number"])) if entry["filed"] else NotHappened()


def auditor(desk: AuditDesk, tracker: TrackerClient, resume_attempts: int) -> Agent[AuditDesk, str]:
    """The auditor agent.

    Args:
        desk: what its tools work with.
        tracker: where its model pays for each call.
        resume_attempts: how many crashes in one step's middle a run survives.
    """

    async def answer(request: ModelRequest) -> str | list[ToolCall]:
        turn = 1 + sum(1 for message in request.messages if message.role == "assistant")
        module = next(module_of(message.text) for message in request.messages if message.role == "user")
        reply = decide(module, what_was_seen(request.messages))
        await tracker.pay(module, turn, final=isinstance(reply, str))
        if isinstance(reply, str):
            return reply
        return [ToolCall(name=call.tool, arguments=call.arguments, id=f"{turn}.{n}") for n, call in enumerate(reply)]

    return Agent(
        "auditor",
        model=ScriptedModel(answer),
        instructions="Audit one Python module. File what a maintainer should look at.",
        tools=[read_module, parse_module, measure_module, find_risky_calls, show_lines, file_finding],
        deps=desk,
        budget=RunBudget(max_steps=64, max_resume_attempts=resume_attempts),
    )


def what_was_seen(messages: Sequence[Message]) -> list[Seen]:
    """The tool calls of a transcript, each with its result."""
    results = {message.tool_call_id: message.text for message in messages if message.role == "tool"}
    calls = [call for message in messages if message.role == "assistant" for call in message.tool_calls]
    return [Seen(call.name, call.arguments, _as_json(results.get(call.id, ""))) for call in calls]


def _as_json(text: str) -> Json:
    """A tool's result; what Callboard says in its place (a call in doubt, an error) is no JSON object."""
    try:
        result = json.loads(text)
    except ValueError:
        return {"error": text}
    return result if isinstance(result, dict) else {"error": text}


def session_of(module: str) -> str:
    """A session id for a module: its path, or a digest of a path that no id can be."""
    fits = len(module.encode()) <= 160 and module.isprintable()
    return module if fits else hashlib.blake2b(module.encode(), digest_size=16).hexdigest()


async def run_batch(
    data: Path, tasks: dict[str, str], desk: AuditDesk, tracker: TrackerClient, concurrency: int
) -> dict[str, str]:
    """Carry every session to its answer, so many at a time. The report of it all waits for leave to be published.

    A restart submits everything again: a run id that is known is not run twice, and what was unfinished has already
    been taken up by the time its handle is back.

    Raises:
        RunFailedError: a run did not complete.
        NotAskedError: the report does not wait for leave.
    """
    agent = auditor(desk, tracker, resume_attempts=100)
    limits = RuntimeLimits(max_concurrent_runs=concurrency, max_queued_runs=2 * len(tasks))
    agents: list[Agent[Any, str]] = [agent, publisher(tracker, len(tasks))]
    async with Runtime(agents, store=data / "store", limits=limits) as runtime:
        await ask_for_leave(runtime)
        handles = await asyncio.gather(
            *(
                runtime.submit(agent, task, session_id=session_of(module), run_id=f"audit-{session_of(module)}")
                for module, task in tasks.items()
            )
        )
        results = [await handle.result() for handle in handles]
    return {module: result.output for module, result in zip(tasks, results, strict=True)}
