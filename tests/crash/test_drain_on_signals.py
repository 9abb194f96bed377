"""A process that is told to end: what its runs come to, what its exit code is, and whose handlers are whose."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from callboard import Agent, RunContext, Runtime, RuntimeClosedError, SyncRuntime, UsageError, drain_on_signals
from callboard_storage.lmdb_store import LmdbStore

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
RUNS = 12
STEPS = 6
WORKER = r'''
import asyncio, os, signal, sys, time
from callboard import Agent, RunContext, Runtime, RuntimeClosedError, SyncRuntime, drain_on_signals, tool
from callboard_storage.lmdb_store import LmdbStore

data, notes, kind = sys.argv[1:4]
RUNS, STEPS = map(int, sys.argv[4:])

def note(text):
    descriptor = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)

@tool
async def act(n: int, run_id: str) -> str:
    """Act: undeclared, so that what is cut short is in doubt."""
    await asyncio.sleep(0.02)
    note(f"{run_id} {n}")
    return f"acted {n}"

async def pattern(ctx: RunContext) -> str:
    if kind == "stubborn":
        note("stubborn")
        time.sleep(60)
    for n in range(STEPS):
        await ctx.call_tool("act", n=n, run_id=ctx.run_id)
    return "done"

agent = Agent("worker", pattern=pattern, tools=[act])
store = LmdbStore(data, map_size=1 << 30)

async def main():
    async with Runtime([agent], store=store, drain_timeout=20) as runtime, drain_on_signals(runtime) as drain:
        try:
            handles = [
                await runtime.submit(agent, "go", run_id=f"r{n}", session_id=f"s{n % 8}") for n in range(RUNS)
            ]
            results = [await handle.result() for handle in handles]
            note("results " + " ".join(sorted({result.stop_reason for result in results})))
            if kind == "forever":
                await asyncio.Event().wait()
            if kind == "submits":
                await runtime.submit(agent, "one more")
        finally:
            note("left the block")
    note(f"received {drain.received.name if drain.received else None}")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

def blocking():
    with SyncRuntime([agent], store=store, drain_timeout=20) as runtime:
        for n in range(RUNS):
            runtime.submit(agent, "go", run_id=f"r{n}", session_id=f"s{n % 8}")
        runtime.wait(f"r{RUNS - 1}")

blocking() if kind.startswith("blocking") else asyncio.run(main())
'''


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Place:
    def __init__(self, path: Path) -> None:
        self.data = path / "data"
        self._notes = path / "notes"

    @property
    def noted(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    @contextmanager
    def worker(self, kind: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [sys.executable, "-c", WORKER, str(self.data), str(self._notes), kind, str(RUNS), str(STEPS)],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def wait_for(self, process: subprocess.Popen[str], lines: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(self.noted) < lines:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.semantics("R20")
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("once", signal.SIGTERM),
        ("forever", signal.SIGTERM),
        ("forever", signal.SIGINT),
        ("submits", signal.SIGTERM),
        ("blocking", signal.SIGINT),
    ],
)
def test_a_signal_ends_the_process_between_steps_and_the_next_one_carries_all_on(
    place: Place, kind: str, number: signal.Signals
) -> None:
    with place.worker(kind) as process:
        place.wait_for(process, RUNS)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
        if kind == "blocking":
            assert "KeyboardInterrupt" in errors
            assert process.returncode == -signal.SIGINT
        else:
            assert (process.returncode, errors) == (0, "")
            assert place.noted[-1] == f"received {number.name}"
            assert "left the block" in place.noted
    acts = Counter(line for line in place.noted if line.startswith("r") and line[1].isdigit())
    assert sum(acts.values()) < RUNS * STEPS, "it came to its end before the signal"
    with place.worker("once") as process:
        _, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (0, "")
    assert "results completed" in place.noted
    acts = Counter(line for line in place.noted if line.startswith("r") and line[1].isdigit())
    assert acts == {f"r{run} {n}": 1 for run in range(RUNS) for n in range(STEPS)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once_even_if_its_loop_is_blocked(
    place: Place, number: signal.Signals
) -> None:
    with place.worker("stubborn") as process:
        place.wait_for(process, 1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)  # two signals that come together may be one
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(PATIENCE) == -number


async def test_an_earlier_handler_is_called_as_well_ends_the_program_itself_and_is_restored(tmp_path: Path) -> None:
    heard: list[int] = []

    def server(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    begun = asyncio.Event()

    async def pattern(ctx: RunContext[Any]) -> str:
        begun.set()
        await ctx.sleep(3600)
        return "never"

    agent = Agent("worker", pattern=pattern)
    earlier = signal.signal(signal.SIGTERM, server)
    try:
        async with Runtime([agent], store=LmdbStore(tmp_path / "data", map_size=1 << 30)) as runtime:
            async with drain_on_signals(runtime, [signal.SIGTERM]) as drain:
                # As a request to a web server that waits for its run.
                waiting = asyncio.ensure_future(runtime.run(agent, "go"))
                await asyncio.wait_for(begun.wait(), PATIENCE)
                signal.raise_signal(signal.SIGTERM)
                assert (await asyncio.wait_for(waiting, PATIENCE)).stop_reason == "interrupted"
                await runtime.aclose()
                await asyncio.sleep(0)
                signal.raise_signal(signal.SIGTERM)
                assert drain.received is signal.SIGTERM
            assert heard == [signal.SIGTERM, signal.SIGTERM]
            assert signal.getsignal(signal.SIGTERM) is server
    finally:
        signal.signal(signal.SIGTERM, earlier)


async def test_without_a_signal_the_block_is_like_any_other() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with Runtime() as runtime:
        drain = drain_on_signals(runtime)

        async def raise_inside() -> None:
            async with drain:
                assert signal.getsignal(signal.SIGTERM) != before[0]
                raise RuntimeClosedError("of my own")

        with pytest.raises(RuntimeClosedError, match="of my own"):
            await raise_inside()
        assert drain.received is None
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        assert runtime.stats().running == 0


async def test_misuse_is_refused_at_the_door() -> None:
    async with Runtime() as runtime:
        for bad in (["TERM"], [0], [9999], 15):
            with pytest.raises(UsageError, match="are not signals"):
                drain_on_signals(runtime, bad)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="got a SyncRuntime, which is no Runtime"):
            drain_on_signals(SyncRuntime())  # type: ignore[arg-type]
        async with drain_on_signals(runtime) as drain:
            with pytest.raises(UsageError, match="open already"):
                await drain.__aenter__()
        with pytest.raises(UsageError, match="no process hears of SIGKILL"):
            drain_on_signals(runtime, [signal.SIGTERM, signal.SIGKILL])

    async def elsewhere() -> None:
        async with Runtime() as another, drain_on_signals(another):
            pass

    with pytest.raises(UsageError, match="main thread only"):
        await asyncio.to_thread(asyncio.run, elsewhere())
