"""What blocks the event loop is named while it does, and told once the loop turns again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from callboard import Agent, RunContext, Runtime, RuntimeLimits, ScriptedModel, ToolCall, UsageError, tool
from callboard.loop_watchdog import LoopBlock, LoopWatchdog

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
LIMIT = 0.08
WATCHING = RuntimeLimits(loop_blocked_after=LIMIT)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def block_the_loop(until: Callable[[], bool]) -> None:
    """What nobody should do on a loop: wait without letting it turn."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def work_a_little() -> None:
    time.sleep(LIMIT / 10)


def in_an_async_tool(until: Callable[[], bool]) -> Agent[Any, Any]:
    @tool
    async def chew() -> str:
        """Block."""
        block_the_loop(until)
        return "chewed"

    return Agent("worker", model=ScriptedModel([ToolCall(name="chew", arguments={}), "done"]), tools=[chew])


def in_a_tool_with_hooks(until: Callable[[], bool]) -> Agent[Any, Any]:
    @tool(max_concurrency=1)
    async def chew() -> str:
        """Block."""
        block_the_loop(until)
        return "chewed"

    return Agent("worker", model=ScriptedModel([ToolCall(name="chew", arguments={}), "done"]), tools=[chew])


def in_a_step(until: Callable[[], bool]) -> Agent[Any, Any]:
    async def chew() -> None:
        block_the_loop(until)

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.step("chew", chew)
        return "done"

    return Agent("worker", pattern=pattern)


def in_a_pattern(until: Callable[[], bool]) -> Agent[Any, Any]:
    async def pattern(ctx: RunContext[Any]) -> str:
        block_the_loop(until)
        return "done"

    return Agent("worker", pattern=pattern)


def in_a_branch(until: Callable[[], bool]) -> Agent[Any, Any]:
    async def one(ctx: RunContext[Any], item: int) -> None:
        block_the_loop(until)

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.map(one, {"a": 1})
        return "done"

    return Agent("worker", pattern=pattern)


@pytest.mark.semantics("E15")
@pytest.mark.parametrize(
    ("place", "step", "tool_name"),
    [
        (in_an_async_tool, "1.0", "chew"),
        (in_a_tool_with_hooks, "1.0", "chew"),
        (in_a_step, "0", None),
        (in_a_pattern, None, None),
        (in_a_branch, None, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_what_blocks_the_loop_is_named_with_its_stack_its_run_and_its_tool(
    place: Any, step: str | None, tool_name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[LoopBlock] = []

    def noticed() -> bool:
        # On the loop's own thread, which is the one that is blocked: health answers from any.
        block = runtime.health().loop_block
        if block is not None:
            seen.append(block)
        return block is not None

    agent = place(noticed)
    async with Runtime([agent], limits=WATCHING) as runtime:
        told = await runtime.subscribe(names=["runtime.loop_blocked"])
        with caplog.at_level(logging.WARNING, "callboard.loop_watchdog"):
            result = await runtime.run(agent, "go", run_id="r", session_id="s")
        assert result.stop_reason == "completed"
        event: Any = await asyncio.wait_for(anext(aiter(told)), PATIENCE)
        after = runtime.health()
    during = seen[0]
    assert not during.ended
    assert during.duration >= LIMIT
    assert "block_the_loop" in during.stack
    assert (during.run_id, during.session_id, during.agent_id) == ("r", "s", "worker")
    assert (during.step, during.tool) == (step, tool_name)
    assert (event.run_id, event.session_id, event.agent_id, event.step, event.tool) == (
        "r",
        "s",
        "worker",
        step,
        tool_name,
    )
    assert event.duration >= during.duration
    assert event.stack == during.stack
    assert __file__ in event.culprit
    assert after.loop_block is not None
    assert after.loop_block.ended
    assert after.status == "degraded"
    assert "was blocked for" in repr(after)
    # It was logged while it lasted, by the thread that noticed.
    [record] = [record for record in caplog.records if "is blocked" in record.message]
    assert record.threadName == "callboard-watchdog"


async def test_a_run_sees_its_own_blocks_in_its_stream_and_no_others() -> None:
    told = asyncio.Event()

    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.input_text == "block":
            block_the_loop(lambda: runtime.health().loop_block is not None)
        await told.wait()
        return "done"

    agent = Agent("worker", pattern=pattern)
    async with Runtime([agent], limits=WATCHING) as runtime:
        everything = await runtime.subscribe(names=["runtime.loop_blocked"])
        async with runtime.stream(agent, "wait", run_id="q") as beside:
            async with runtime.stream(agent, "block", run_id="r") as stream:
                await asyncio.wait_for(anext(aiter(everything)), PATIENCE)
                told.set()
                own = [event.name async for event in stream]
            others = [event.name async for event in beside]
    assert own.count("runtime.loop_blocked") == 1
    assert "runtime.loop_blocked" not in others


@pytest.mark.parametrize("limits", [RuntimeLimits(loop_blocked_after=None), WATCHING], ids=["off", "on"])
async def test_a_loop_that_is_busy_in_small_pieces_is_not_blocked(limits: RuntimeLimits) -> None:
    async with Runtime(limits=limits) as runtime:
        names = {thread.name for thread in threading.enumerate()}
        assert ("callboard-watchdog" in names) == (limits is WATCHING)
        end = time.monotonic() + 4 * LIMIT
        while time.monotonic() < end:
            work_a_little()
            await asyncio.sleep(0)
        assert runtime.health().loop_block is None
    assert "callboard-watchdog" not in {thread.name for thread in threading.enumerate()}


async def test_a_second_block_is_told_too() -> None:
    blocks: list[LoopBlock] = []
    watchdog = LoopWatchdog(asyncio.get_running_loop(), LIMIT, told=blocks.append)
    try:
        for number in (1, 2):
            seen = watchdog.recent()
            block_the_loop(lambda seen=seen: watchdog.recent() is not seen and not watchdog.recent().ended)  # type: ignore[misc]
            async with asyncio.timeout(PATIENCE):
                while len(blocks) < number:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
    finally:
        watchdog.close()
    assert len(blocks) == 2
    assert blocks[0].run_id is None


STOPPED = """
import asyncio, sys
from callboard import Runtime, RuntimeLimits

async def main():
    async with Runtime(limits=RuntimeLimits(loop_blocked_after=0.08)) as runtime:
        print("open", flush=True)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, sys.stdin.readline)
        await asyncio.sleep(0.3)
        print(runtime.health().status, flush=True)

asyncio.run(main())
"""


def test_a_process_that_was_stopped_did_not_block_its_loop() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "open\n"
            for _ in range(3):
                os.kill(process.pid, signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
                time.sleep(0.3)  # what is tested is time passing while it is stopped
                os.kill(process.pid, signal.SIGCONT)
                os.waitid(os.P_PID, process.pid, os.WCONTINUED)
                time.sleep(0.05)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "healthy\n"
        finally:
            process.kill()


@pytest.mark.parametrize("bad", [0, 0.001, -1, "long", float("nan")])
def test_a_limit_that_makes_no_sense_is_refused(bad: Any) -> None:
    with pytest.raises(UsageError, match="loop_blocked_after"):
        RuntimeLimits(loop_blocked_after=bad)
