"""Part P of docs/RUNTIME-SEMANTICS.md: tool calls that are cancelled, killed, or die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import killable
import pytest

from callboard import Agent, RunContext, ToolContext, ToolCrashedError, tool
from callboard.runs.run_info import RunInfo
from callboard_protocol.event_base import Event
from callboard_protocol.records import StepCompleted

pytestmark = pytest.mark.anyio

PATIENCE = 30


def lives(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def numbers(path: Path) -> list[int]:
    return [int(one) for one in path.read_text().split()]


def children() -> set[int]:
    return set(numbers(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")))


async def come_about(condition: Callable[[], Any]) -> None:
    """As `until`, for what other processes do: leaves them the processor."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  (other processes set no events here)
            await asyncio.sleep(0.002)


def calls(name: str, **arguments: Any) -> Callable[[RunContext[Any]], Any]:
    async def pattern(ctx: RunContext[Any]) -> str:
        return str(await ctx.call_tool(name, **arguments))

    return pattern


async def watched(runtime: Any, agent: Any, run_id: str, begun: Callable[[], Any]) -> tuple[Any, list[Event], float]:
    """Cancel a run once it has begun: its result, its events, and how many seconds the cancellation took."""
    async with runtime.stream(agent, "x", run_id=run_id) as stream:
        await come_about(begun)
        began = time.monotonic()
        assert await runtime.cancel(run_id, reason="the user left") is True
        took = time.monotonic() - began
        events = [event async for event in stream]
        return await stream.result(), events, took


def cancelled(events: list[Event]) -> Any:
    (event,) = [event for event in events if event.name == "tool.cancelled"]
    return event


@pytest.mark.semantics("P2")
async def test_a_cancelled_tool_has_cleaned_up_before_its_deps_are_closed(place: Any) -> None:
    begun = threading.Event()

    @asynccontextmanager
    async def open_deps(info: RunInfo) -> AsyncIterator[str]:
        try:
            yield "the deps"
        finally:
            place.note("deps closed")

    @tool
    async def hang(ctx: ToolContext[str]) -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.02)
            place.note(f"cleaned up with {ctx.deps}")

    agent = Agent("worker", pattern=calls("hang"), tools=[hang], deps=open_deps)
    async with place.runtime(agent) as runtime:
        result, events, _ = await watched(runtime, agent, "r", begun.is_set)
        assert place.noted == ["cleaned up with the deps", "deps closed"]
        assert result.stop_reason == "cancelled"
        told = cancelled(events)
        assert (told.call_id, told.tool, told.reason) == ("r:0", "hang", "the user left")
        assert told.message == "hang was cancelled: the user left"
        assert told.duration >= 0.02
        assert [event.name for event in events].index("tool.cancelled") < [event.name for event in events].index(
            "run.cancelled"
        )


@pytest.mark.semantics("P3")
async def test_a_call_abandoned_in_its_thread_says_that_it_goes_on(place: Any) -> None:
    begun, released, ended = threading.Event(), threading.Event(), threading.Event()

    @tool(timeout=None, read_only=True)
    def block(ctx: ToolContext) -> None:
        begun.set()
        released.wait()
        place.note(f"cancelled: {ctx.cancelled}")
        ended.set()

    @tool(timeout=0.02, read_only=True)
    def block_briefly() -> None:
        released.wait()

    goes_on = "its thread cannot be stopped and was abandoned: it may still take effect"
    agent = Agent("worker", pattern=calls("block"), tools=[block])
    late = Agent("late", pattern=calls("block_briefly"), tools=[block_briefly])
    async with place.runtime(agent, late) as runtime:
        result, events, _ = await watched(runtime, agent, "r", begun.is_set)
        assert result.stop_reason == "cancelled"
        assert cancelled(events).message == f"block was cancelled: the user left; {goes_on}"
        assert place.noted == []
        failed = await runtime.run(late, "x")
        assert failed.error_details.code == "tool_timeout"
        assert goes_on in failed.error_details.message
        released.set()
        await come_about(ended.is_set)
        assert place.noted == ["cancelled: True"]


@pytest.mark.semantics("P4")
@pytest.mark.parametrize(
    ("name", "ended_by", "stop_reason"),
    [("held", "cancel", "cancelled"), ("held_briefly", "timeout", "failed"), ("held_acting", "timeout", "suspended")],
)
async def test_a_call_in_a_process_is_killed_with_all_it_has_started(
    place: Any, tmp_path: Path, name: str, ended_by: str, stop_reason: str
) -> None:
    note = tmp_path / "note"
    tools = [killable.held, killable.held_briefly, killable.held_acting]
    agent = Agent("worker", pattern=calls(name, path=str(note)), tools=tools)
    async with place.runtime(agent) as runtime:
        if ended_by == "cancel":
            result, events, took = await watched(runtime, agent, "r", note.exists)
            assert cancelled(events).message == "held was cancelled: the user left"
            assert took < 1
        else:
            result = await runtime.run(agent, "x", run_id="r")
        at_work = numbers(note)
        assert result.stop_reason == stop_reason
        assert not lives(at_work[0])
        await come_about(lambda: not lives(at_work[1]))
        if stop_reason == "failed":
            assert result.error_details.code == "tool_timeout"
        if stop_reason == "suspended":
            assert result.pending[0].reason == "in_doubt"
            assert result.pending[0].message.endswith("held_acting ran past its timeout of 0.5 s")


@pytest.mark.semantics("P5")
async def test_a_worker_that_dies_is_an_error_and_leaves_a_call_that_acts_in_doubt(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        for how in ("die", "killed"):
            with pytest.raises(ToolCrashedError, match="exit code 7" if how == "die" else "SIGKILL"):
                await ctx.call_tool("fail", how=how)
        assert (await ctx.call_tool("whose"))[1] == os.getpid()
        return str(await ctx.call_tool("die_acting"))

    agent = Agent("worker", pattern=pattern, tools=[killable.fail, killable.whose, killable.die_acting])
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", run_id="r", session_id="s")
        assert (result.stop_reason, result.pending[0].reason) == ("suspended", "in_doubt")
        assert "it ended itself with exit code 7" in result.pending[0].message
        assert runtime.health().status == "healthy"
    codes = [record.error and record.error.code for record in await place.log("s") if isinstance(record, StepCompleted)]
    assert codes == ["tool_crashed", "tool_crashed", None]


@pytest.mark.semantics("P6")
async def test_a_call_that_is_to_finish_is_waited_for_and_recorded(place: Any, tmp_path: Path) -> None:
    begun, go_on, seen = threading.Event(), asyncio.Event(), asyncio.Event()

    @tool(interrupt="finish")
    async def pay(ctx: ToolContext) -> str:
        begun.set()
        while not ctx.cancelled:  # noqa: ASYNC110  (this is how a tool is told)
            await asyncio.sleep(0)
        seen.set()
        await go_on.wait()
        place.note("paid")
        return "paid"

    agent = Agent("worker", pattern=calls("pay"), tools=[pay])
    paths = {"begun": str(tmp_path / "begun"), "go_on": str(tmp_path / "go_on")}
    apart = Agent("apart", pattern=calls("finish", **paths), tools=[killable.finish])
    async with place.runtime(agent, apart, drain_timeout=0.05) as runtime:
        handle = await runtime.submit(agent, "x", run_id="r", session_id="s")
        await come_about(begun.is_set)
        cancelling = asyncio.ensure_future(runtime.cancel("r"))
        await seen.wait()
        assert not cancelling.done()
        go_on.set()
        assert await cancelling is True
        assert (await handle.result()).stop_reason == "cancelled"
        assert [step.value for step in await runtime.runs.steps("r")] == ["paid"]

        handle = await runtime.submit(apart, "x", run_id="q")
        await come_about((tmp_path / "begun").exists)
        cancelling = asyncio.ensure_future(runtime.cancel("q"))
        (tmp_path / "go_on").touch()
        assert await cancelling is True
        assert [step.value for step in await runtime.runs.steps("q")] == ["finished"]

        # Closing waits for such a call as long as it waits for any.
        begun.clear()
        seen.clear()
        go_on.clear()
        await runtime.submit(agent, "x", run_id="closed")
        await come_about(begun.is_set)
        cancelling = asyncio.ensure_future(runtime.cancel("closed"))
        await seen.wait()
    assert place.noted == ["paid"]
    await asyncio.gather(cancelling, return_exceptions=True)


RUNTIME = """
import asyncio, sys
import killable
from callboard import Agent, Runtime

async def pattern(ctx):
    return str(await ctx.call_tool("held", path=sys.argv[1]))

async def main():
    async with Runtime([Agent("worker", pattern=pattern, tools=[killable.held])]) as runtime:
        await runtime.run("worker", "x")

asyncio.run(main())
"""


@pytest.mark.semantics("P7")
@pytest.mark.parametrize("end", ["closed", "killed"])
async def test_no_worker_outlives_its_runtime(place: Any, tmp_path: Path, end: str) -> None:
    note = tmp_path / "note"
    if end == "closed":
        before = children()
        agent = Agent("worker", pattern=calls("held", path=str(note)), tools=[killable.held])
        async with place.runtime(agent) as runtime:
            await runtime.submit(agent, "x")
            await come_about(note.exists)
        assert children() == before
    else:
        importable = Path(killable.__file__).parent
        with subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", RUNTIME, str(note)], env={**os.environ, "PYTHONPATH": str(importable)}
        ) as process:
            await come_about(note.exists)
            process.send_signal(signal.SIGKILL)
    at_work = numbers(note)
    await come_about(lambda: not any(map(lives, at_work)))
