"""A process that is stopped inside a write keeps every other process on the directory waiting: health says which."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from callboard import Agent, Runtime, ScriptedModel
from callboard_storage import write_turn
from callboard_storage.lmdb_store import LmdbStore

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
MAP_SIZE = 1 << 30

OTHER = """
import asyncio, signal, sys, threading
from callboard_storage.lmdb_store import LmdbStore

def stop_inside(transaction):
    print("inside", flush=True)
    {how}

async def main():
    store = LmdbStore(sys.argv[1], map_size=1 << 30)
    await store.open()
    await store._operate("", stop_inside)
    await store.close()
    print("done", flush=True)

asyncio.run(main())
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def another_process_writes(path: Path, how: str) -> subprocess.Popen[str]:
    """A process that says ``inside`` once it has the write transaction, and stays there."""
    return subprocess.Popen(
        [sys.executable, "-c", OTHER.replace("{how}", how), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  (another process brings it about)
            await asyncio.sleep(0.005)


@pytest.mark.semantics("E16")
@pytest.mark.parametrize(
    ("how", "stopped"),
    [("signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)", True), ("sys.stdin.readline()", False)],
    ids=["stopped", "slow"],
)
async def test_health_says_which_process_holds_up_all_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, stopped: bool
) -> None:
    monkeypatch.setattr(write_turn, "SECONDS_UNTIL_STALLED", 0.1)
    agent = Agent("echo", model=ScriptedModel(lambda request: "done"))
    async with Runtime([agent], store=LmdbStore(tmp_path / "data", map_size=MAP_SIZE)) as runtime:
        with another_process_writes(tmp_path / "data", how) as other:
            try:
                assert other.stdout is not None
                assert other.stdin is not None
                assert await asyncio.to_thread(other.stdout.readline) == "inside\n"
                if stopped:
                    await asyncio.to_thread(os.waitid, os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
                assert runtime.health().status == "healthy"
                running = asyncio.ensure_future(runtime.run(agent, "go"))
                await until(lambda: runtime.health().stall is not None)
                health = runtime.health()
                assert health.stall is not None
                assert (health.stall.cause, health.stall.pids, health.stall.stopped) == (
                    "process",
                    (other.pid,),
                    stopped,
                )
                assert health.status == "degraded"
                assert f"process {other.pid} {'was stopped' if stopped else 'is'} inside a write" in repr(health)
                assert not running.done()
                other.send_signal(signal.SIGCONT)
                other.stdin.write("\n")
                other.stdin.flush()
                assert (await asyncio.wait_for(running, PATIENCE)).output == "done"
                assert runtime.health().stall is None
                assert await asyncio.to_thread(other.stdout.readline) == "done\n"
            finally:
                other.kill()


async def test_a_write_of_ones_own_that_does_not_end_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_turn, "SECONDS_UNTIL_STALLED", 0.1)
    store = LmdbStore(tmp_path / "data", map_size=MAP_SIZE)
    async with Runtime(store=store) as runtime:
        loop = asyncio.get_running_loop()
        may_end: asyncio.Future[None] = loop.create_future()

        def work(transaction: object) -> None:
            asyncio.run_coroutine_threadsafe(_waited_for(may_end), loop).result(PATIENCE)

        writing = asyncio.ensure_future(store._operate("", work))
        await until(lambda: runtime.health().stall is not None)
        stall = runtime.health().stall
        assert stall is not None
        assert (stall.cause, stall.pids) == ("own_write", ())
        assert "the disk does not answer" in str(stall)
        may_end.set_result(None)
        await writing
        assert runtime.health().status == "healthy"


async def _waited_for(future: asyncio.Future[None]) -> None:
    await future
