"""SIGKILL during compaction: the directory holds one whole file, the old or the new, and opens."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from callboard_protocol.records import StepCompleted
from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence
from callboard_storage.upkeep.compacting import STAGING

RECORDS = 60

COMPACTOR = """
import os, signal, sys
from callboard_storage.upkeep import compact

def reached(point):
    if point == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

compact(sys.argv[1], reached=reached)
"""

COPIER = """
import os, signal, sys
from callboard_storage.upkeep import compact

compact(sys.argv[1], progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
"""


async def append(directory: Path, session_id: str, records: int, size: int) -> None:
    store = LmdbStore(directory, map_size=1 << 30)
    await store.open()
    loop = asyncio.get_running_loop()
    batch = store.batch(session_id)
    for ordinal in range(records):
        batch.append(
            ordinal,
            StepCompleted(run_id="run", ordinal=ordinal, at=1.0, step=str(ordinal), kind="tool", value="x" * size),
        )
    written = loop.create_future()
    store.commit(batch, Fence(-1), loop, written.set_result)
    assert await written is None
    await store.delete_session("gone")
    await store.close()


def check(directory: Path) -> None:
    """All of it is there, can be verified, written to and compacted."""
    report = upkeep.verify(directory)
    assert report.is_sound
    assert report.rows["log"] == RECORDS
    asyncio.run(append(directory, "later", 1, 10))
    upkeep.compact(directory)
    assert upkeep.verify(directory).rows["log"] == RECORDS + 1
    assert not (directory / STAGING).exists()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with records that stay, and room left by some that went."""
    path = tmp_path_factory.mktemp("swollen") / "data"
    asyncio.run(append(path, "session", RECORDS, 200_000))
    asyncio.run(append(path, "gone", 20, 200_000))
    return path


@pytest.fixture
def swollen(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(original, tmp_path / "data"))


def killed(script: str, *arguments: object) -> bool:
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], timeout=60, check=False)
    return done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("point", ["begun", "copied", "compared", "swapped", "synced"])
def test_a_compaction_killed_at_any_point_leaves_one_whole_file(swollen, point):
    before = (swollen / "data.mdb").stat().st_ino
    assert killed(COMPACTOR, swollen, point)
    is_old = (swollen / "data.mdb").stat().st_ino == before
    assert is_old == (point in {"begun", "copied", "compared"})
    check(swollen)


def test_a_compaction_killed_while_its_child_copies_leaves_the_old_file(swollen):
    before = (swollen / "data.mdb").stat().st_ino
    assert killed(COPIER, swollen)
    assert (swollen / "data.mdb").stat().st_ino == before
    wait_until_nobody_reads(swollen)
    check(swollen)


def wait_until_nobody_reads(directory: Path) -> None:
    """The orphaned child holds the directory until it notices that nobody listens."""
    waiting = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)"
    subprocess.run([sys.executable, "-c", waiting, str(directory)], check=True, timeout=60)
