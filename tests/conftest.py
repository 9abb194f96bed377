"""What tests in several rooms need: bytecode that is compiled once, and a data directory as the other engine would have
made it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import hypothesis
import lmdb
import pytest
from warm_processes import Nursery

MAP_SIZE = 1 << 30
LMDB_1_0 = 1

# Hundreds of tests start processes that import Callboard. Where the environment keeps bytecode from being written, each
# of them would compile it anew, which takes a third of its start.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) is not None:
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(tempfile.gettempdir()) / f"callboard-bytecode-{os.getuid()}"))

# How long an example takes says how busy the machine is, and nothing else.
hypothesis.settings.register_profile("callboard", deadline=None)
hypothesis.settings.load_profile("callboard")


def _as_lmdb_1_0(directory: Path) -> Path:
    """The same rows in a new directory beside it, in a file that LMDB 1.0 made."""
    other = directory.with_name(f"{directory.name}-of-lmdb-1.0")
    other.mkdir()
    ours = lmdb.Environment(str(directory), map_size=MAP_SIZE, max_dbs=64)
    theirs = lmdb.Environment(str(other), map_size=MAP_SIZE, max_dbs=64, lib_version=LMDB_1_0)
    with ours.begin() as transaction:
        names = [bytes(name) for name, _ in transaction.cursor()]
    for name in names:
        source, target = ours.open_db(name), theirs.open_db(name)
        with ours.begin(db=source) as reading, theirs.begin(write=True, db=target) as writing:
            for key, value in reading.cursor():
                writing.put(key, value)
            if name == b"meta":
                engine = ".".join(str(part) for part in lmdb.version(lib_version=LMDB_1_0))
                writing.put(b"engine", engine.encode())
    ours.close()
    theirs.close()
    return other


@pytest.fixture(scope="session")
def as_lmdb_1_0() -> Callable[[Path], Path]:
    return _as_lmdb_1_0


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with closing(Nursery()) as nursery:
        yield nursery
