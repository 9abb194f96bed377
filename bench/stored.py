"""How many bytes a system keeps on disk, read from outside the process that writes them.

Run as ``python -m bench.stored DIRECTORY``, because LMDB forbids opening one environment twice in a process. Knows the
two formats the systems here use: an LMDB environment and an SQLite database.
"""

import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lmdb

MAP_SIZE = 1 << 40


@dataclass(frozen=True)
class Stored:
    """Bytes on disk, counted two ways."""

    content: int
    """Keys and values only: exact to the byte, so a few steps apart can be told."""
    compacted: int
    """Size of a compacted copy of the file: pages included, free space not."""


def probe(directory: Path) -> Stored:
    """Count what ``directory`` holds, in a process of its own."""
    command = [sys.executable, "-m", "bench.stored", str(directory)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    return Stored(**json.loads(done.stdout))


def count(directory: Path) -> Stored:
    """Count what ``directory`` holds.

    Raises:
        FileNotFoundError: no database of a known kind is in it.
    """
    for path in sorted(directory.rglob("*.mdb")):
        if path.name != "lock.mdb":
            return _count_lmdb(path)
    for path in sorted(directory.rglob("*.sqlite")):
        return _count_sqlite(path)
    raise FileNotFoundError("no LMDB or SQLite database found")


def _count_lmdb(data_file: Path) -> Stored:
    with (
        tempfile.TemporaryDirectory(dir=data_file.parent.parent) as copy,
        closing(lmdb.open(str(data_file.parent), readonly=True, max_dbs=256, map_size=MAP_SIZE)) as environment,
    ):
        content = sum(len(key) + len(value) for key, value in _lmdb_entries(environment))
        environment.copy(copy, compact=True)
        return Stored(content, (Path(copy) / "data.mdb").stat().st_size)


def _lmdb_entries(environment: Any) -> Iterator[tuple[bytes, bytes]]:
    with environment.begin(buffers=False) as transaction:
        names = list(transaction.cursor().iternext(keys=True, values=False))
    databases = [environment.open_db(name, create=False) for name in names]
    with environment.begin(buffers=False) as transaction:
        for database in databases:
            yield from transaction.cursor(database).iternext(keys=True, values=True)


def _count_sqlite(data_file: Path) -> Stored:
    with (
        tempfile.TemporaryDirectory(dir=data_file.parent) as copy,
        closing(sqlite3.connect(data_file, timeout=30)) as database,
    ):
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        content = sum(_table_bytes(database, table) for table in tables)
        compacted = Path(copy) / "copy.sqlite"
        database.execute("VACUUM INTO ?", (str(compacted),))
        return Stored(content, compacted.stat().st_size)


def _table_bytes(database: sqlite3.Connection, table: str) -> int:
    columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
    lengths = " + ".join(f'COALESCE(LENGTH(CAST("{column}" AS BLOB)), 0)' for column in columns)
    (total,) = database.execute(f'SELECT COALESCE(SUM({lengths}), 0) FROM "{table}"').fetchone()
    return int(total)


if __name__ == "__main__":
    print(json.dumps(asdict(count(Path(sys.argv[1])))))
