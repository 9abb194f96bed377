"""Processes that share an account are killed at instants nobody chose, and never pass its limit together."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

from callboard import Account, RunEntry, Runtime
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.upkeep import verify

WORKER = Path(__file__).with_name("account_worker.py")
PROCESSES = 2
KILLS = 4
LIMIT = 40_000
PER_CALL = 100
PATIENCE = 60.0


def started(data: Path, calls: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(data), str(calls), *words], stderr=subprocess.PIPE, text=True
    )


def counted(calls: Path) -> int:
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def wait_for_calls(calls: Path, more_than: int, workers: list[subprocess.Popen[str]]) -> None:
    """Until more calls have been made than that, or nobody makes any more."""
    deadline = time.monotonic() + PATIENCE
    while counted(calls) <= more_than and any(worker.poll() is None for worker in workers):
        assert time.monotonic() < deadline, counted(calls)
        time.sleep(0.002)


def finish(worker: subprocess.Popen[str]) -> None:
    _, error = worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 0, error


async def read(data: Path) -> tuple[Account, list[RunEntry]]:
    async with Runtime(store=LmdbStore(data, map_size=1 << 30), recover=False) as runtime:
        return await runtime.accounts.get("team"), [*await runtime.runs.list()]


def test_no_kill_lets_processes_pass_the_limit_of_an_account_together(tmp_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311  (chance, no secret)
    data, calls = tmp_path / "data", tmp_path / "calls"
    workers = [started(data, calls) for _ in range(PROCESSES)]
    for _ in range(KILLS):
        wait_for_calls(calls, counted(calls) + chance.randint(1, 20), workers)
        victim = chance.randrange(PROCESSES)
        workers[victim].kill()
        workers[victim].communicate()
        workers[victim] = started(data, calls)
    for worker in workers:
        finish(worker)
    finish(started(data, calls, "ends"))
    account, entries = asyncio.run(read(data))
    assert counted(calls) * PER_CALL <= account.spent.tokens <= LIMIT
    assert {entry.state.value for entry in entries} == {"completed", "exhausted"}
    assert sum(entry.spent[2] for entry in entries) == account.spent.tokens
    assert account.reserved.tokens == 0
    # Whoever was turned away last found less than a call could cost.
    assert account.left.tokens < 512
    assert verify(data).is_sound
