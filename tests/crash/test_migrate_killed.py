"""SIGKILL during migration: the directory holds one whole file, and the next migration finishes it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from callboard_protocol.errors import StoreError, StoreInUseError
from callboard_protocol.records import StepCompleted
from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence
from callboard_storage.upkeep.migrating import KEPT, STAGING

RECORDS = 50
LARGE = 6
"""Records of 2 MB: more than one transaction of a migration takes, so that it is killed between two."""

MIGRATOR = """
import os, signal, sys
from callboard_storage.upkeep import migrate

def reached(point):
    if point == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

migrate(sys.argv[1], reached=reached, progress=lambda done, total: reached("writing"))
"""

ILL_FATED = """
import os, signal, sys

if "rewrite" in sys.orig_argv:
    from callboard_storage.upkeep.rewriting import Rewriting

    begin = Rewriting.__init__

    def begin_and_die_halfway(self, *arguments, **named):
        begin(self, *arguments, **named | {"progress": lambda done: os.kill(os.getpid(), signal.SIGKILL)})

    Rewriting.__init__ = begin_and_die_halfway
"""


async def append(directory: Path, session_id: str, records: int, large: int = 0) -> None:
    store = LmdbStore(directory, map_size=1 << 30)
    await store.open()
    loop = asyncio.get_running_loop()
    batch = store.batch(session_id)
    for ordinal in range(records):
        batch.append(
            ordinal,
            StepCompleted(
                run_id="run",
                ordinal=ordinal,
                at=1.0,
                step=str(ordinal),
                kind="tool",
                value="x" * (2_000_000 if ordinal < large else 1),
            ),
        )
    written = loop.create_future()
    store.commit(batch, Fence(-1), loop, written.set_result)
    assert await written is None
    await store.close()


def migrated(directory: Path) -> upkeep.MigrateReport:
    """Migrate once the child of one that was killed has noticed, which keeps its turn at the directory until then."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return upkeep.migrate(directory)
        except StoreInUseError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, as_lmdb_1_0: Callable[[Path], Path]) -> Path:
    """A directory as LMDB 1.0 made it."""
    path = tmp_path_factory.mktemp("other_engine") / "data"
    asyncio.run(append(path, "session", RECORDS, LARGE))
    return as_lmdb_1_0(path)


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(original, tmp_path / "data"))


@pytest.mark.parametrize("point", ["begun", "writing", "copied", "compared", "kept", "swapped", "synced"])
def test_a_migration_killed_at_any_point_leaves_one_whole_file(directory: Path, point: str) -> None:
    before = (directory / "data.mdb").stat().st_ino
    done = subprocess.run([sys.executable, "-c", MIGRATOR, str(directory), point], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    is_old = (directory / "data.mdb").stat().st_ino == before
    assert is_old == (point not in {"swapped", "synced"})
    assert (directory / KEPT).exists() == (point in {"kept", "swapped", "synced"})
    assert migrated(directory).is_migrated == is_old
    assert not (directory / STAGING).exists()
    assert not (directory / KEPT).exists()
    asyncio.run(append(directory, "later", 1))
    report = upkeep.verify(directory)
    assert report.is_sound
    assert report.rows["log"] == RECORDS + 1


def test_a_directory_opens_at_once_where_a_migration_was_killed_behind_the_swap(directory: Path) -> None:
    subprocess.run([sys.executable, "-c", MIGRATOR, str(directory), "swapped"], timeout=60, check=False)
    asyncio.run(append(directory, "later", 1))
    assert upkeep.verify(directory).rows["log"] == RECORDS + 1


def test_a_migration_whose_child_is_killed_keeps_the_old_file(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (directory / "data.mdb").read_bytes()
    (tmp_path / "ill_fated").mkdir()
    (tmp_path / "ill_fated" / "sitecustomize.py").write_text(ILL_FATED)
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path / "ill_fated")  # a child finds what its parent does
        with pytest.raises(StoreError, match="the reader was ended by SIGKILL"):
            upkeep.migrate(directory)
    assert (directory / "data.mdb").read_bytes() == content
    assert not (directory / STAGING).exists()
    assert upkeep.migrate(directory).rows > RECORDS
