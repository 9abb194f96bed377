"""SIGKILL during migration: the directory holds one whole file, and the next migration finishes it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from callboard_protocol.records import StepCompleted
from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store import Fence
from callboard_storage.upkeep.migrating import KEPT, STAGING

RECORDS = 50

MIGRATOR = """
import os, signal, sys
from callboard_storage.upkeep import migrate

def reached(point):
    if point == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

migrate(sys.argv[1], reached=reached)
"""


async def append(directory: Path, session_id: str, records: int) -> None:
    store = LmdbStore(directory, map_size=1 << 30)
    await store.open()
    loop = asyncio.get_running_loop()
    batch = store.batch(session_id)
    for ordinal in range(records):
        batch.append(
            ordinal, StepCompleted(run_id="run", ordinal=ordinal, at=1.0, step=str(ordinal), kind="tool", value="x")
        )
    written = loop.create_future()
    store.commit(batch, Fence(-1), loop, written.set_result)
    assert await written is None
    await store.close()


@pytest.mark.parametrize("point", ["begun", "copied", "compared", "kept", "swapped", "synced"])
def test_a_migration_killed_at_any_point_leaves_one_whole_file(
    tmp_path: Path, as_lmdb_1_0: Callable[[Path], Path], point: str
) -> None:
    asyncio.run(append(tmp_path / "data", "session", RECORDS))
    directory = as_lmdb_1_0(tmp_path / "data")
    before = (directory / "data.mdb").stat().st_ino
    done = subprocess.run([sys.executable, "-c", MIGRATOR, str(directory), point], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    is_old = (directory / "data.mdb").stat().st_ino == before
    assert is_old == (point not in {"swapped", "synced"})
    assert (directory / KEPT).exists() == (point in {"kept", "swapped", "synced"})
    assert upkeep.migrate(directory).is_migrated == is_old
    assert not (directory / STAGING).exists()
    assert not (directory / KEPT).exists()
    asyncio.run(append(directory, "later", 1))
    report = upkeep.verify(directory)
    assert report.is_sound
    assert report.rows["log"] == RECORDS + 1


@pytest.mark.parametrize("point", ["swapped", "synced"])
def test_a_directory_opens_at_once_where_a_migration_was_killed_behind_the_swap(
    tmp_path: Path, as_lmdb_1_0: Callable[[Path], Path], point: str
) -> None:
    asyncio.run(append(tmp_path / "data", "session", RECORDS))
    directory = as_lmdb_1_0(tmp_path / "data")
    subprocess.run([sys.executable, "-c", MIGRATOR, str(directory), point], timeout=60, check=False)
    asyncio.run(append(directory, "later", 1))
    assert upkeep.verify(directory).rows["log"] == RECORDS + 1
