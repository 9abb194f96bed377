"""Processes with different agents on one directory: whose runs are whose, when one is killed, comes, or leaves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from callboard import Agent, RunContext, RunHandle, Runtime
from callboard_protocol.commands import RecoverRuns
from callboard_protocol.states import RunState
from callboard_storage.lmdb_store import LmdbStore

pytestmark = pytest.mark.anyio

PATIENCE = 30

PROCESS = """
import asyncio, sys
from callboard import Agent, RunContext, Runtime

path, kind = sys.argv[1:]

async def pattern(ctx: RunContext) -> str:
    if ctx.input_text == "delegate":
        return (await ctx.delegate("below", "go")).output
    await ctx.step("begin", begin)
    await ctx.step("hold", hold)
    return "by " + kind

async def begin() -> None:
    pass

async def hold() -> None:
    if kind == "the first":
        print("held", flush=True)
        await asyncio.Event().wait()

worker = Agent("worker", pattern=pattern)
below = Agent("below", pattern=pattern)

async def main():
    async with Runtime([worker, below], store=path) as runtime:
        if kind == "the first":
            await runtime.submit("worker", sys.stdin.readline().strip(), session_id="s", run_id="held")
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def process(path: Path, kind: str, asked: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that has the agent ``worker``; ``the first`` has a run of it in flight, which does not end."""
    script = [sys.executable, "-c", textwrap.dedent(PROCESS), str(path), kind]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdin is not None
            assert running.stdout is not None
            if asked:
                running.stdin.write(f"{asked}\n")
                running.stdin.flush()
            expected = {"up", "held"} if asked else {"up"}
            while expected:
                expected.remove(running.stdout.readline().strip())
            yield running
        finally:
            running.kill()


def stranger() -> Agent[None, str]:
    """Another agent than the one that the runs are of."""

    async def pattern(ctx: RunContext[Any]) -> str:
        return "by a stranger"

    return Agent("stranger", pattern=pattern)


def worker() -> Agent[None, str]:
    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.step("begin", _nothing)
        await ctx.step("hold", _nothing)
        return "by this one"

    return Agent("worker", pattern=pattern)


async def _nothing() -> None:
    return None


async def come_about(condition: Callable[[], Any]) -> None:
    """Wait for what other processes do, which set no events here."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def written(runtime: Runtime, state: RunState) -> None:
    """Wait until the table of runs says what a runtime has had written into it."""
    async with asyncio.timeout(PATIENCE):
        while (await runtime.runs.get("held")).state != state:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def noticed(runtime: Runtime) -> None:
    """Wait until a runtime knows that it is not alone."""
    await come_about(lambda: runtime._open.store.has_company)


def opened(path: Path, *agents: Agent[Any, Any], **options: Any) -> Runtime:
    return Runtime(agents, store=LmdbStore(path, map_size=1 << 30), **options)


@pytest.mark.semantics("S21")
@pytest.mark.parametrize("asked", ["hold it", "delegate"])
async def test_a_dead_processs_run_is_left_to_the_living_one_that_has_its_agent(tmp_path: Path, asked: str) -> None:
    with process(tmp_path, "the first", asked) as first, process(tmp_path, "the second") as second:
        async with opened(tmp_path, stranger()) as runtime:
            await noticed(runtime)
            watching = await runtime.subscribe(names=["run.parked"])
            waiting = asyncio.create_task(runtime.wait("held"))
            first.kill()
            assert (await asyncio.wait_for(waiting, PATIENCE)).output == "by the second"
            assert (runtime.stats().parked, runtime.stats().recovered, runtime.health().healthy) == (0, 0, True)
            states = {entry.run_id: entry.state for entry in await runtime.runs.list()}
            assert set(states.values()) == {RunState.COMPLETED}
            assert len(states) == (2 if asked == "delegate" else 1)
            watching.close()
            assert [event.name async for event in watching] == []
        assert second.poll() is None


async def test_what_a_process_parked_while_it_was_alone_goes_to_one_that_comes_with_the_agent(tmp_path: Path) -> None:
    with process(tmp_path, "the first", "hold it"):
        pass
    async with opened(tmp_path, stranger()) as runtime:
        assert runtime.stats().parked == 1
        await written(runtime, RunState.PARKED)
        waiting = asyncio.create_task(runtime.wait("held"))
        # Its session is the run's: whatever else is to be done there has its turn after it.
        behind: RunHandle[Any] = await runtime.submit("stranger", "go", session_id="s")
        with process(tmp_path, "the second"):
            assert (await asyncio.wait_for(waiting, PATIENCE)).output == "by the second"
            assert runtime.stats().parked == 0
            assert (await behind.result()).output == "by a stranger"
            ends = [(await runtime.runs.get(run_id)).ended_at or 0 for run_id in ("held", behind.run_id)]
            assert ends == sorted(ends)


async def test_what_nobody_has_the_agent_for_is_parked_by_whoever_is_alone_again(tmp_path: Path) -> None:
    with process(tmp_path, "the first", "hold it") as first:
        async with opened(tmp_path, stranger()) as runtime:
            async with opened(tmp_path, stranger()) as company:
                for one in (runtime, company):
                    await noticed(one)
                first.kill()
                first.wait()
                for one in (runtime, company):
                    await one._open.supervisor.ask(RecoverRuns(), timeout=None)  # what a look at who is there does
                assert [one.stats().parked for one in (runtime, company)] == [0, 0]
                assert (await runtime.runs.get("held")).state == RunState.RUNNING
            await come_about(lambda: runtime.stats().parked == 1)
            await written(runtime, RunState.PARKED)
            assert (await runtime.runs.get("held")).pending[0].message == "agent 'worker' is not registered"


async def test_registering_the_agent_takes_over_what_was_left_for_want_of_it(tmp_path: Path) -> None:
    with process(tmp_path, "the first", "hold it"):
        pass
    async with opened(tmp_path, stranger()) as company, opened(tmp_path, stranger()) as runtime:
        assert runtime.stats().parked == 0
        await come_about(lambda: company.stats().parked == 0)
        waiting = [asyncio.create_task(one.wait("held")) for one in (runtime, company)]
        runtime.agents.register(worker())
        async with asyncio.timeout(PATIENCE):
            assert [(await result).output for result in waiting] == ["by this one"] * 2
        assert runtime.stats().completed == 1


@pytest.mark.parametrize("by", ["one that had parked it", "one that came later"])
async def test_a_run_that_is_left_for_want_of_its_agent_can_be_cancelled_anywhere(tmp_path: Path, by: str) -> None:
    with process(tmp_path, "the first", "delegate"):
        pass
    async with opened(tmp_path, stranger()) as company, opened(tmp_path, stranger()) as runtime:
        await come_about(lambda: company.stats().parked == 0)
        one, other = (company, runtime) if by == "one that had parked it" else (runtime, company)
        assert await asyncio.wait_for(one.cancel("held"), PATIENCE) is True
        assert (await asyncio.wait_for(other.wait("held"), PATIENCE)).stop_reason == "cancelled"
        for entry in await runtime.runs.list():
            assert (await asyncio.wait_for(runtime.wait(entry.run_id), PATIENCE)).stop_reason == "cancelled"
