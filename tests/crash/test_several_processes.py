"""Several processes on one data directory: whose sessions and runs are whose, also when one is killed or stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from callboard import Agent, RunContext, Runtime, RuntimeBusyError
from callboard.models import ScriptedModel
from callboard_storage.lmdb_store import LmdbStore

pytestmark = pytest.mark.anyio

OTHER = """
import asyncio, sys
from callboard import Agent, RunContext, Runtime

async def pattern(ctx: RunContext) -> str:
    await ctx.step("begin", begin)
    await ctx.step("hold", hold)
    return "by the other"

async def begin() -> None:
    pass

async def hold() -> None:
    print("held", flush=True)
    line = await asyncio.to_thread(sys.stdin.readline)
    print("went on", flush=True)

async def main():
    async with Runtime([Agent("worker", pattern=pattern)], store=sys.argv[1]) as runtime:
        result = await runtime.run("worker", "hold it", session_id="s", run_id="held")
        print(result.stop_reason, getattr(result.error_details, "code", ""), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def another_process(script: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a script on a data directory, until the test has ended."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


@contextmanager
def another_process_holds(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a run at work in session ``s``; a line on its standard input lets that go on."""
    with another_process(OTHER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def worker(noted: list[str]) -> Agent[None, str]:
    async def pattern(ctx: RunContext[Any]) -> str:
        noted.append(ctx.run_id)
        await ctx.step("begin", _nothing)
        await ctx.step("hold", _nothing)
        return f"by this one: {ctx.run_id}"

    return Agent("worker", pattern=pattern, model=ScriptedModel([]))


async def _nothing() -> None:
    return None


async def test_a_run_waits_until_another_process_has_given_its_session_back(tmp_path: Path) -> None:
    noted: list[str] = []
    with another_process_holds(tmp_path) as other:
        async with Runtime([worker(noted)], store=tmp_path) as runtime:
            handle = await runtime.submit("worker", "mine", session_id="s", run_id="mine")
            assert (await runtime.run("worker", "beside", session_id="t", run_id="beside")).stop_reason == "completed"
            assert runtime.stats().queued == 1
            waiting = asyncio.create_task(runtime.wait("held"))
            assert other.stdin is not None
            other.stdin.write("go on\n")
            other.stdin.flush()
            assert (await handle.result()).output == "by this one: mine"
            assert (await waiting).output == "by the other"
            entries = {entry.run_id: entry.began_sequence for entry in await runtime.runs.list()}
            assert entries["held"] < entries["mine"]
    assert noted == ["beside", "mine"]


async def test_a_busy_session_of_another_process_can_be_refused_instead(tmp_path: Path) -> None:
    with another_process_holds(tmp_path):
        async with Runtime([worker([])], store=tmp_path) as runtime:
            with pytest.raises(RuntimeBusyError, match="in another process"):
                await runtime.submit("worker", "mine", session_id="s", on_busy="reject")


async def test_the_runs_of_a_killed_process_are_taken_over_unasked_and_before_those_that_waited(
    tmp_path: Path,
) -> None:
    noted: list[str] = []
    with another_process_holds(tmp_path) as other:
        async with Runtime([worker(noted)], store=tmp_path) as runtime:
            handle = await runtime.submit("worker", "mine", session_id="s", run_id="mine")
            other.send_signal(signal.SIGKILL)
            other.wait()
            assert (await handle.result()).stop_reason == "completed"
            assert (await runtime.wait("held")).output == "by this one: held"
            assert [step.step for step in await runtime.runs.steps("held")] == ["0", "1"]
    assert noted == ["held", "mine"]


async def test_a_run_can_be_waited_for_as_soon_as_the_process_that_carried_it_is_gone(tmp_path: Path) -> None:
    with another_process_holds(tmp_path) as other:
        async with Runtime([worker([])], store=tmp_path) as runtime:
            other.send_signal(signal.SIGKILL)
            other.wait()
            # Its death has not been noticed yet.
            assert (await runtime.wait("held")).output == "by this one: held"


async def test_the_same_run_submitted_in_two_processes_runs_once(tmp_path: Path) -> None:
    noted: list[str] = []
    with another_process_holds(tmp_path) as other:
        async with Runtime([worker(noted)], store=tmp_path) as runtime:
            handle = await runtime.submit("worker", "hold it", session_id="s", run_id="held")
            assert other.stdin is not None
            other.stdin.write("go on\n")
            other.stdin.flush()
            assert (await handle.result()).output == "by the other"
    assert not noted


async def test_a_zombie_that_wakes_is_refused_and_says_so(tmp_path: Path) -> None:
    """A stopped process is alive, and keeps its sessions. One whose owner file was cleared away by force does not."""
    noted: list[str] = []
    with another_process_holds(tmp_path) as other:
        other.send_signal(signal.SIGSTOP)
        await asyncio.to_thread(os.waitid, os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
        async with Runtime([worker(noted)], store=tmp_path) as runtime:
            assert await runtime.runs.get("held")
            handle = await runtime.submit("worker", "mine", session_id="s", run_id="mine")
            assert runtime.stats().queued == 1
        shutil.rmtree(tmp_path / "alive")
        async with Runtime([worker(noted)], store=tmp_path) as runtime:
            assert (await runtime.wait("held")).output == "by this one: held"
            assert (await runtime.wait(handle.run_id)).stop_reason == "completed"
            steps = await runtime.runs.steps("held")
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write("go on\n")
            other.stdin.flush()
            other.send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(other.stdout.readline) == "went on\n"
            assert await asyncio.to_thread(other.stdout.readline) == "failed fenced\n"
            assert await runtime.runs.steps("held") == steps
    assert noted == ["held", "mine"]


async def test_a_run_submitted_to_two_processes_at_the_same_moment_runs_once(tmp_path: Path) -> None:
    noted: list[str] = []
    one = Runtime([worker(noted)], store=LmdbStore(tmp_path, map_size=1 << 30))
    other = Runtime([worker(noted)], store=LmdbStore(tmp_path, map_size=1 << 30))
    async with one, other, asyncio.timeout(60):
        for number in range(30):
            first, second = (one, other) if number % 2 else (other, one)
            both = [runtime.submit("worker", "go", run_id=f"r{number}") for runtime in (first, second)]
            results = [await handle.result() for handle in await asyncio.gather(*both)]
            assert [result.output for result in results] == [f"by this one: r{number}"] * 2
            assert (await one.runs.get(f"r{number}")).state == "completed"
    assert noted == [f"r{number}" for number in range(30)]


@pytest.mark.parametrize("kind", ["at once", "one after the other"])
async def test_the_same_runs_submitted_to_two_processes_at_the_same_moment_run_once(tmp_path: Path, kind: str) -> None:
    noted: list[str] = []

    def carrier(name: str) -> Agent[None, str]:
        async def pattern(ctx: RunContext[Any]) -> str:
            noted.append(ctx.run_id)
            await ctx.step("begin", _nothing)
            await ctx.step("hold", _nothing)
            return f"{ctx.run_id} by {name}"

        return Agent("worker", pattern=pattern)

    def submitted(runtime: Runtime, number: int) -> Any:
        return runtime.submit("worker", "go", run_id=f"r{number}", session_id=f"s{number % 3}")

    one = Runtime([carrier("one")], store=LmdbStore(tmp_path, map_size=1 << 30))
    other = Runtime([carrier("other")], store=LmdbStore(tmp_path, map_size=1 << 30))
    async with one, other, asyncio.timeout(60):
        handles = []
        for number in range(60):
            both = [submitted(one, number), submitted(other, number)]
            handles.append(await asyncio.gather(*(both if number % 2 else reversed(both))))
            if kind == "one after the other":
                await handles[-1][0].result()
        results = [[(await handle.result()).output for handle in pair] for pair in handles]
        assert [pair[0] for pair in results] == [pair[1] for pair in results]
        assert {entry.state.value for entry in await one.runs.list()} == {"completed"}
    assert sorted(noted) == sorted(f"r{number}" for number in range(60))


SUBMITS_THE_SAME = """
import asyncio, sys
from callboard import Agent, RunContext, Runtime, RuntimeLimits

async def pattern(ctx: RunContext) -> str:
    await ctx.step("first", nothing)
    await ctx.step("second", nothing)
    return "by the other"

async def nothing() -> None:
    pass

async def submitted(runtime, number):
    handle = await runtime.submit("worker", "go", run_id=f"r{number}", session_id=f"s{number % 5}")
    if number % 3 == 0:
        await runtime.cancel(f"r{number}")
    return (await handle.result()).stop_reason

async def main():
    limits = RuntimeLimits(max_concurrent_runs=2)
    async with Runtime([Agent("worker", pattern=pattern)], store=sys.argv[1], limits=limits) as runtime:
        results = []
        while line := await asyncio.to_thread(sys.stdin.readline):
            results.append(asyncio.create_task(submitted(runtime, int(line))))
            print("submitting", flush=True)
        print(*await asyncio.gather(*results), flush=True)

asyncio.run(main())
"""


async def test_runs_submitted_and_cancelled_in_two_processes_at_once_end_as_their_records_say(tmp_path: Path) -> None:
    noted: list[str] = []
    with another_process(SUBMITS_THE_SAME, tmp_path) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        async with Runtime([worker(noted)], store=tmp_path) as runtime, asyncio.timeout(60):

            async def submitted(number: int) -> str:
                handle = await runtime.submit("worker", "go", run_id=f"r{number}", session_id=f"s{number % 5}")
                if number % 4 == 0:
                    await runtime.cancel(f"r{number}")
                return (await handle.result()).stop_reason

            results = []
            for number in range(60):
                other.stdin.write(f"{number}\n")
                other.stdin.flush()
                await asyncio.to_thread(other.stdout.readline)
                results.append(asyncio.create_task(submitted(number)))
            here = await asyncio.gather(*results)
            other.stdin.close()
            there = (await asyncio.to_thread(other.stdout.readline)).split()
            assert here == there
            for entry in await runtime.runs.list():
                assert entry.stop_reason == here[int(entry.run_id[1:])]
                # One that was stopped before it began has no record, and all others end with what their entry says.
                records = await runtime.runs.steps(entry.run_id) if entry.began_sequence is not None else []
                assert entry.stop_reason == "cancelled" or len(records) == 2
            assert {"completed", "cancelled"} == set(here)
