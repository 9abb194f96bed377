"""Large values and SIGKILL: half of one is never seen, what was told is kept is whole, what is left over is found."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from hashlib import blake2b
from pathlib import Path

import pytest

from callboard import Runtime
from callboard_storage import chunks, upkeep
from callboard_storage.lmdb_store import LmdbStore

ARCHIVIST = Path(__file__).with_name("archivist.py")
MAP_SIZE = 1 << 34
LONG = 10
"""Records after which a session goes, and with it what was left over."""

COMMITTER = """
import asyncio, random, sys
from callboard_protocol.records import StepCompleted
from callboard_protocol.sessions import MemoryEntry
from callboard_storage.committing import commit
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence

async def main():
    store = LmdbStore(sys.argv[1], map_size=1 << 34)
    await store.open()
    number = len(await store.read_log("session"))
    while True:
        batch = store.batch("session")
        value = f"{number} " * random.randrange(40_000, 700_000)
        batch.append(number, StepCompleted(run_id="run", ordinal=number, at=1.0, step="s", kind="tool", value=value))
        batch.put_memory(MemoryEntry(name="last", value=value))
        print(f"sending {number}", flush=True)
        await commit(store, batch, Fence(number - 1))
        print(f"kept {number}", flush=True)
        number += 1

asyncio.run(main())
"""


def kill_in_mid_upload(directory: Path, chance: random.Random) -> int:
    """Let a process commit large values and kill it within a few milliseconds of one; how many values were kept."""
    kept = 0
    with subprocess.Popen([sys.executable, "-c", COMMITTER, directory], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        sendings = chance.randint(1, 4)
        for line in process.stdout:
            word, number = line.split()
            if word == "kept":
                kept = int(number) + 1
                continue
            sendings -= 1
            if sendings == 0:
                time.sleep(chance.uniform(0, 0.02))
                process.kill()
    assert process.returncode == -signal.SIGKILL
    return kept


async def check(directory: Path, kept: int) -> tuple[int, int]:
    """That every value is whole; how many there are, and how many chunks are no value's. Long sessions are deleted."""
    store = LmdbStore(directory, map_size=MAP_SIZE)
    await store.open()
    try:
        log = await store.read_log("session")
        assert len(log) >= kept
        for number, stored in enumerate(log):
            assert stored.record.value == f"{number} " * stored.record.value.count(" ")
        if log:
            (entry,) = await store.read_memory("session")
            assert entry.value == log[-1].record.value
        left = len(store._opened().environment.read(chunks.unreferenced))
        if len(log) < LONG:
            return len(log), left
        await store.delete_session("session")
        assert (await store.figures()).bytes_used < 1_000_000, "its chunks went with it"
        return 0, 0
    finally:
        await store.close()


def kill_again_and_again(directory: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  (chance, no secret)
    values = left = cut_off = struck = 0
    while struck < kills or (not cut_off and struck < 10 * kills):
        struck += 1
        before = left
        values, left = asyncio.run(check(directory, kill_in_mid_upload(directory, chance)))
        cut_off += left > before
    assert cut_off, "no kill struck between the first chunk and the row"
    report = upkeep.verify(directory)
    assert report.is_sound
    assert report.unreferenced_chunks == left
    assert upkeep.compact(directory).chunks_removed == left
    assert asyncio.run(check(directory, values)) == (values, 0)


def test_no_half_of_a_large_value_is_ever_seen_and_what_is_left_of_one_is_swept(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "data", 8, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_half_of_a_large_value_is_seen_after_hundreds_of_kills(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "data", 300, seed=2)


# ---- a run that is full of them


def test_a_run_with_four_values_of_ten_megabytes_goes_on_in_the_next_process(tmp_path: Path) -> None:
    command = [sys.executable, ARCHIVIST, tmp_path / "data"]
    with subprocess.Popen([*command, "hold"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    finished = subprocess.run([*command, "finish"], capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    seen = json.loads(finished.stdout.splitlines()[-1])
    expected = [_filled_with(word) for word in ("model answer ", "tool result ", "session state ", "an artifact ")]
    assert seen["values"] == [_digest(value) for value in expected]
    assert seen["state"] == _digest(expected[2])
    assert seen["done"] == [], "neither the model nor the tool is asked again"
    asyncio.run(_see_the_session(tmp_path / "data", expected))
    assert upkeep.verify(tmp_path / "data").is_sound


def _filled_with(word: str) -> str:
    return word * (10_000_000 // len(word) + 1)


def _digest(value: str) -> str:
    return blake2b(value.encode(), digest_size=8).hexdigest()


async def _see_the_session(directory: Path, expected: list[str]) -> None:
    async with Runtime(store=directory, recover=False) as runtime:
        texts = [message.text for message in await runtime.sessions.transcript("s")]
        assert expected[0] in texts
        (artifact,) = await runtime.sessions.artifacts("s")
        assert artifact.artifact.payload == expected[3]
