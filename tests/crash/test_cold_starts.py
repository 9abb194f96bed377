"""Eight processes start at once on a directory that is not there yet."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from callboard import Runtime
from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore

PROCESSES = 8
STARTS = 20

OPEN_A_STORE = """
import asyncio, sys
from callboard_protocol.records import StepCompleted
from callboard_storage.committing import commit
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence

async def start(directory, name):
    store = LmdbStore(directory)
    await store.open()
    batch = store.batch(name)
    batch.append(0, StepCompleted(run_id=name, ordinal=0, at=1.0, step="0", kind="tool"))
    await commit(store, batch, Fence(-1, store.lease(), takes=True, gives=True))
    await store.close()
"""

RUN_AN_AGENT = """
import asyncio, sys
from callboard import Agent, RunContext, Runtime

async def pattern(ctx: RunContext) -> str:
    return await ctx.step("greet", greet)

async def greet() -> str:
    return "hello from " + sys.argv[1]

async def start(directory, name):
    async with Runtime([Agent("greeter", pattern=pattern)], store=directory) as runtime:
        result = await runtime.run("greeter", "greet", session_id=name, run_id="run-" + name)
        assert result.output == "hello from " + name
"""

WHEN_TOLD = """
print("ready", flush=True)
for line in sys.stdin:
    asyncio.run(start(line.strip(), sys.argv[1]))
    print("started", flush=True)
"""


class Starters:
    """Processes that have imported all they need and wait for their cue."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self._processes = processes
        self._hear("ready")

    def start(self, directory: Path) -> None:
        """Have all of them open a directory, work in it and close it, at the same time."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{directory}\n")
            process.stdin.flush()
        self._hear("started")

    def _hear(self, word: str) -> None:
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != f"{word}\n":
                assert process.stderr is not None
                pytest.fail(process.stderr.read())


@pytest.fixture
def starters() -> Iterator[Callable[[str], Starters]]:
    with ExitStack() as started:

        def start(script: str) -> Starters:
            command = [sys.executable, "-c", script + WHEN_TOLD]
            piped: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            processes = [subprocess.Popen([*command, f"p{n}"], text=True, **piped) for n in range(PROCESSES)]
            for process in processes:
                started.enter_context(process)
                started.callback(process.kill)
            return Starters(processes)

        yield start


def test_eight_processes_that_open_a_new_directory_at_once_all_get_in(starters: Any, tmp_path: Path) -> None:
    at_once = starters(OPEN_A_STORE)
    for number in range(STARTS):
        directory = tmp_path / f"data-{number}"
        at_once.start(directory)
        assert asyncio.run(_sessions(directory)) == [f"p{n}" for n in range(PROCESSES)]
    assert upkeep.verify(directory).is_sound


def test_eight_runtimes_that_start_on_a_new_directory_at_once_all_run_an_agent(starters: Any, tmp_path: Path) -> None:
    starters(RUN_AN_AGENT).start(tmp_path / "data")
    assert asyncio.run(_runs(tmp_path / "data")) == {f"run-p{n}": "completed" for n in range(PROCESSES)}
    assert upkeep.verify(tmp_path / "data").is_sound


async def _sessions(directory: Path) -> list[str]:
    store = LmdbStore(directory)
    await store.open()
    try:
        return [session_id for n in range(PROCESSES) if await store.read_log(session_id := f"p{n}")]
    finally:
        await store.close()


async def _runs(directory: Path) -> dict[str, str]:
    async with Runtime(store=directory, recover=False) as runtime:
        return {entry.run_id: entry.state.value for entry in await runtime.runs.list()}
