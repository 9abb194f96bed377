"""SIGKILL at any instant: what was acknowledged is there, and nothing is half there."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from callboard_storage.lmdb_store import LmdbStore

SESSIONS = 8

COMMITTER = """
import asyncio, os, sys
from callboard_protocol.records import StepCompleted
from callboard_protocol.sessions import MemoryEntry
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence

async def work(store, session_id):
    loop = asyncio.get_running_loop()
    head = await store.read_head(session_id)
    first = 0 if head is None else head.next_sequence
    while True:
        batch = store.batch(session_id)
        for sequence in (first, first + 1, first + 2):
            record = StepCompleted(
                run_id="run", ordinal=sequence, at=1.0, step=str(sequence), kind="tool", value="x" * (sequence % 900)
            )
            batch.append(sequence, record)
        batch.put_memory(MemoryEntry(name="last", value=first + 2))
        answer = loop.create_future()
        store.commit(batch, Fence(first - 1), loop, answer.set_result)
        assert await answer is None
        os.write(1, f"{session_id} {first + 2}\\n".encode())
        first += 3

async def main():
    store = LmdbStore(sys.argv[1], map_size=1 << 30)
    await store.open()
    await asyncio.gather(*(work(store, f"s{number}") for number in range(int(sys.argv[2]))))

asyncio.run(main())
"""


def run_and_kill(directory: Path, lines: int) -> dict[str, int]:
    """Let a process commit, kill it after so many acknowledgements, and return the last one of each session."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMITTER, str(directory), str(SESSIONS)], stdout=subprocess.PIPE, text=True
    )
    acknowledged: dict[str, int] = {}
    with process:
        assert process.stdout is not None
        for number, line in enumerate(process.stdout):
            session_id, sequence = line.split()
            acknowledged[session_id] = int(sequence)
            if number == lines:
                process.send_signal(signal.SIGKILL)  # and go on reading what it said until it died
    assert process.returncode == -signal.SIGKILL
    return acknowledged


async def check(directory: Path, acknowledged: dict[str, int]) -> None:
    store = LmdbStore(directory, map_size=1 << 30)
    await store.open()
    try:
        for session_id, last in acknowledged.items():
            log = await store.read_log(session_id)
            assert [stored.sequence for stored in log] == list(range(len(log)))
            assert [stored.record.ordinal for stored in log] == list(range(len(log)))
            assert len(log) > last
            assert len(log) % 3 == 0  # batches are whole
            (memory,) = await store.read_memory(session_id)
            assert memory.value == len(log) - 1
            head = await store.read_head(session_id)
            assert head is not None
            assert head.next_sequence == len(log)
    finally:
        await store.close()


@pytest.mark.timeout(300)
def test_what_was_acknowledged_survives_a_kill_at_any_instant(tmp_path):
    instants = random.Random(20240229)  # noqa: S311 - any spread will do
    seen: dict[str, int] = {}
    for _ in range(10):
        acknowledged = run_and_kill(tmp_path / "data", instants.randrange(1, 200))
        assert all(acknowledged[session_id] >= seen.get(session_id, 0) for session_id in acknowledged)
        seen |= acknowledged
        asyncio.run(check(tmp_path / "data", seen))
    assert len(seen) == SESSIONS
