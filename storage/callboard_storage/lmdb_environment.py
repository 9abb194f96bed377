"""The LMDB environment, and the only file that imports lmdb.

The settings that keep an acknowledged commit are not parameters: `sync` and `metasync` stay on, `writemap` and
`map_async` off, `lock` on. lock.mdb is made at its full size before LMDB opens it, because LMDB maps it sparse and a
full disk would then end the process with SIGBUS; afterwards nothing of ours ever opens it, because closing any
descriptor of it drops every lock the process holds on it (fcntl(2)).
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import lmdb

from callboard_protocol._version import __version__
from callboard_protocol.errors import (
    DamagedRecordError,
    StoreClosedError,
    StoreError,
    StoreFullError,
    StoreOpenError,
    StoreVersionError,
)
from callboard_storage import data_file, doors, keys
from callboard_storage.batch import TABLES, Table
from callboard_storage.reading import Rows, Snapshot
from callboard_storage.room import DEFAULT_FREE_BYTES, Space

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

FORMAT_VERSION: Final = 1
"""What the tables mean. A newer one is refused; an older one is opened and brought up to date."""

ENGINE: Final = 0
"""LMDB's major version: 0.9. The data formats of 0.9 and 1.0 cannot read each other."""

DATA_FORMAT: Final = 1
_ENGINES: Final = {DATA_FORMAT: ENGINE, 3: 1}
"""The engines that can be had, by the data format each reads and writes."""

_MOST_TABLES: Final = 64
"""More than any release has: what a newer one added must not keep an older one from opening a directory."""

LARGEST_MAP: Final = 1 << 40
SMALLEST_MAP: Final = 1 << 36
MAX_READERS: Final = 2048

ARRIVALS_KEPT: Final = 1024
"""How many announced letters somebody may have missed and still know which they were."""

_LAST_TOKEN = b"token"
_LAST_ARRIVAL = b"arrival"
_LOCK_FILE_BYTES = 4096 + MAX_READERS * 64
"""A header, and a slot per reader."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ROOM_FOR_ONE_COMMIT = 16 * 1024 * 1024
"""More than a group of batches takes up. With less than that left, a write that was cut short was so for want of room:
LMDB reports it as an input/output error, as it does a failing disk."""


def translated(error: lmdb.Error, doing: str, left: float = math.inf) -> StoreError:
    """An error of the engine as one of ours.

    Args:
        error: the engine's.
        doing: what failed, in words.
        left: bytes the data file could still grow by.
    """
    full = isinstance(error, lmdb.MapFullError | lmdb.TxnFullError) or _code(error) in _FULL
    if full or (_code(error) == errno.EIO and left < _ROOM_FOR_ONE_COMMIT):
        return StoreFullError(f"{doing} failed, there is no room: {error}")
    return StoreError(f"{doing} failed: {error}", hint="see runtime.health(); check the disk")


def engine_version(engine: int) -> str:
    """The full version of one of the engines there are."""
    return ".".join(str(part) for part in lmdb.version(lib_version=engine))


def _code(error: lmdb.Error) -> int:
    """The engine's number for an error; only errors the engine itself raised have one."""
    return getattr(error, "code", 0)


class LongRead(Exception):
    """A read that was to be short has met a large payload."""


class ReadTransaction:
    """A `Snapshot` over one read transaction. Values are copied out, so none outlives it.

    Args:
        transaction: the transaction.
        databases: the tables, by name.
        is_short: whether to raise `LongRead` instead of reading chunks.
    """

    __slots__ = ("_databases", "_is_short", "_transaction")

    def __init__(self, transaction: lmdb.Transaction[bytes], databases: dict[str, Any], is_short: bool = False) -> None:
        self._transaction = transaction
        self._databases = databases
        self._is_short = is_short

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value under a key."""
        return self._transaction.get(key, db=self._databases[table])

    def chunk(self, key: bytes) -> bytes | None:
        """A chunk of a large payload.

        Raises:
            LongRead: this is a short read.
        """
        if self._is_short:
            raise LongRead
        chunks = self._databases.get("blobs")
        return None if chunks is None else self._transaction.get(key, db=chunks)

    def rows(self, table: Table, after: bytes | None = None, limit: int | None = None) -> Rows:
        """Rows of a table whose keys follow `after`."""
        return self._range(table, b"" if after is None else after + b"\0", None, limit)

    def session_rows(self, table: Table, prefix: bytes) -> Rows:
        """Rows of a table that belong to one session."""
        return self._range(table, prefix, keys.after_prefix(prefix), None)

    def last_sequence(self, prefix: bytes) -> int:
        """The sequence a session's log ends at; -1 where it is empty."""
        return _last_sequence(self._transaction, self._databases["log"], prefix)

    def log_rows(self, prefix: bytes, start: int, stop: int) -> Rows:
        """A session's log records with `start` <= sequence < `stop`."""
        if stop <= start:
            return []
        return self._range("log", prefix + keys.pack_sequence(start), prefix + keys.pack_sequence(stop), None)

    def arrivals(self, after: int | None) -> tuple[int, Rows]:
        """The number of the last letter that was announced, and what was announced after another one."""
        number = int.from_bytes(self._transaction.get(_LAST_ARRIVAL, b"", db=self._databases["meta"]), "big")
        if after is None or after >= number:
            return number, []
        return number, self._range("arrivals", keys.pack_sequence(after + 1), None, None)

    def newest_release(self) -> str:
        """The newest release that has opened the directory; empty where that is not known."""
        return self._transaction.get(b"release", b"", db=self._databases["meta"]).decode("ascii", "replace")

    def each(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Every row of a table, one at a time. Damage may show as rows that are missing, repeated or out of order."""
        with self._transaction.cursor(self._databases[table]) as cursor:
            yield from cursor

    def each_of(self, table: str, wanted: Callable[[bytes], bool]) -> Iterator[tuple[bytes, bytes]]:
        """As `each`, for the rows of those sessions whose prefix is wanted: the others are jumped over.

        A key without a prefix stands for itself. Ends where damage would lead round in circles.
        """
        before = b""
        with self._transaction.cursor(self._databases[table]) as cursor:
            found = cursor.first()
            while found and cursor.key() > before:
                before = cursor.key()
                prefix = before[: before.find(b"\0") + 1] or before
                if not wanted(prefix):
                    found = cursor.set_range(keys.after_prefix(prefix) if prefix != before else prefix + b"\0")
                    continue
                found = False
                for row in cursor.iternext():
                    if not row[0].startswith(prefix):
                        found = True
                        break
                    yield row

    def count_keys(self, table: str) -> int:
        """Rows of a table that can be reached one from the next, in order."""
        before, count = b"", 0
        with self._transaction.cursor(self._databases[table]) as cursor:
            for key in cursor.iternext(values=False):
                if key <= before:
                    break
                before = key
                count += 1
        return count

    def entries(self, table: str) -> int:
        """Rows of a table."""
        return self._transaction.stat(self._databases[table])["entries"]

    def count_sessions(self) -> int:
        """Sessions whose log holds anything: one jump per session."""
        count = 0
        behind = b""
        with self._transaction.cursor(self._databases["log"]) as cursor:
            found = cursor.first()
            while found:
                key = cursor.key()
                if key < behind or b"\0" not in key:
                    raise _out_of_order("log", key)
                count += 1
                behind = keys.after_prefix(key[: key.index(b"\0") + 1])
                found = cursor.set_range(behind)
        return count

    def bytes_used(self) -> int:
        """Bytes of the pages that hold live rows."""
        return _bytes_used(self._transaction, self._databases)

    def _range(self, table: str, first: bytes, behind: bytes | None, limit: int | None) -> Rows:
        found: list[tuple[bytes, bytes]] = []
        if limit is not None and limit <= 0:
            return found
        with self._transaction.cursor(self._databases[table]) as cursor:
            if not (cursor.set_range(first) if first else cursor.first()):
                return found
            before = b""
            for row in cursor.iternext():
                key = row[0]
                if key <= before or key < first:
                    raise _out_of_order(table, key)
                if behind is not None and key >= behind:
                    break
                before = key
                found.append(row)
                if limit is not None and len(found) >= limit:
                    break
        return found


class WriteTransaction:
    """The one write transaction. It belongs to the thread that began it."""

    __slots__ = ("_databases", "_transaction", "id")

    def __init__(self, transaction: lmdb.Transaction[bytes], databases: dict[str, Any]) -> None:
        self._transaction = transaction
        self._databases = databases
        self.id: int = transaction.id()

    def last_sequence(self, prefix: bytes, table: str = "log") -> int:
        """The number at the end of the last key of a table that begins so; -1 where there is none."""
        return _last_sequence(self._transaction, self._databases[table], prefix, table)

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value under a key."""
        return self._transaction.get(key, db=self._databases[table])

    def frame_at(self, key: bytes) -> bytes | None:
        """The frame under a log key."""
        return self._transaction.get(key, db=self._databases["log"])

    def next_token(self) -> int:
        """A fencing token no lock of this directory has had before."""
        return self._next(_LAST_TOKEN)

    def announce(self, run_ids: Iterable[str]) -> None:
        """Let everyone on the directory see that letters for these runs have arrived; who looks too late is told that
        there were many.
        """
        for run_id in run_ids:
            number = self._next(_LAST_ARRIVAL)
            self.write("arrivals", [(keys.pack_sequence(number), keys.run_key(run_id))])
            if number > ARRIVALS_KEPT:
                self.delete("arrivals", keys.pack_sequence(number - ARRIVALS_KEPT))

    def _next(self, counter: bytes) -> int:
        meta = self._databases["meta"]
        number = int.from_bytes(self._transaction.get(counter, b"", db=meta), "big") + 1
        self._transaction.put(counter, keys.pack_sequence(number), db=meta)
        return number

    def write(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Put rows, replacing what their keys held."""
        with self._transaction.cursor(self._databases[table]) as cursor:
            cursor.putmulti(rows)

    def delete(self, table: str, key: bytes) -> bool:
        """Remove a row; whether there was one."""
        return self._transaction.delete(key, db=self._databases[table])

    def delete_prefix(self, table: str, prefix: bytes, limit: int | None = None) -> int:
        """Remove the rows whose keys begin so, at most `limit`; returns how many that were."""
        count = 0
        with self._transaction.cursor(self._databases[table]) as cursor:
            cursor.set_range(prefix)
            while count != limit and cursor.key().startswith(prefix):
                cursor.delete()
                count += 1
        return count

    def snapshot(self) -> ReadTransaction:
        """Reads that see what this transaction has written so far."""
        return ReadTransaction(self._transaction, self._databases)

    def bytes_used(self) -> int:
        """Bytes of the pages that hold live rows."""
        return _bytes_used(self._transaction, self._databases)

    def commit(self) -> None:
        """Make it durable.

        Raises:
            lmdb.Error: it could not be; whether any of it is on disk is seen after `LmdbEnvironment.reopen`.
        """
        self._transaction.commit()

    def abort(self) -> None:
        """Undo it. Harmless after a commit, failed or not."""
        with suppress(lmdb.Error):
            self._transaction.abort()


class LmdbEnvironment:
    """An open environment.

    Args:
        directory: the real path of a directory that is ours alone; see `doors` and `locks`.
        map_size: bytes of address space; None tries 1 TiB and halves it down to 64 GiB.
        min_free_bytes: what a new directory must have room for.
        further_tables: tables to open, and to make, beside those of this release.
    """

    Error = lmdb.Error

    def __init__(
        self,
        directory: Path,
        map_size: int | None = None,
        min_free_bytes: int = DEFAULT_FREE_BYTES,
        *,
        further_tables: Iterable[str] = (),
    ) -> None:
        self.directory = directory
        self._further_tables = (*further_tables,)
        self._map_size = map_size
        self._swap = threading.Lock()
        self._is_closed = False
        doors.check_free_space(directory, doors.check_data_format(directory, DATA_FORMAT), min_free_bytes)
        self._opened = self._open()
        self._file = self._identity()

    def read(self, work: Callable[[ReadTransaction], ResultT], is_short: bool = False) -> ResultT:
        """Run `work` over one snapshot, which ends with it.

        Args:
            work: what to read.
            is_short: whether to give up where there is much to read.

        Raises:
            LongRead: the read was to be short and is not.
            StoreClosedError: it was closed.
            StoreError: the engine could not read.
        """
        while True:
            opened = self._opened
            environment, databases = opened
            try:
                with environment.begin() as transaction:
                    return work(ReadTransaction(transaction, databases, is_short))
            except lmdb.Error as error:
                with self._swap:  # if it is being opened anew, that ends first
                    if self._is_closed:
                        raise StoreClosedError("the store was closed") from error
                    if self._opened is opened:
                        raise translated(error, "reading") from error

    def begin_write(self) -> WriteTransaction:
        """Begin the write transaction, on the thread that will end it.

        Raises:
            StoreError: the data file was removed or replaced; what is written to it would be gone with this process.
        """
        if self._identity() != self._file:
            raise StoreError(
                f"{self.directory / doors.DATA_FILE} was removed or replaced while it was open",
                hint="close the store, put the directory back, and open it again",
            )
        environment, databases = self._opened
        return WriteTransaction(environment.begin(write=True), databases)

    def reopen(self) -> None:
        """After a commit that failed: open the environment anew, and have the disk keep all that is found in it.

        Raises:
            StoreError: it cannot be opened any more.
            lmdb.Error: the disk refuses.
        """
        with self._swap:
            self._opened[0].close()
            self._opened = self._open()
            self._opened[0].sync(True)

    def check_readers(self) -> int:
        """Free the reader slots of dead processes; returns how many there were."""
        return self._opened[0].reader_check()

    def space(self) -> Space:
        """How much the committed state holds, and how much could still be written."""
        return self.read(self._space)

    def growth(self) -> float:
        """Bytes the data file could still grow by: what the disk, RLIMIT_FSIZE and the map allow."""
        environment = self._opened[0]
        info = environment.info()
        size = (info["last_pgno"] + 1) * environment.stat()["psize"]
        return max(0, min(doors.bytes_free(self.directory), doors.largest_file() - size, info["map_size"] - size))

    def bytes_on_disk(self) -> int:
        """The data file's size; 0 where it was removed."""
        try:
            return (self.directory / doors.DATA_FILE).stat().st_size
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Close it. Closing twice is harmless."""
        with self._swap:
            self._is_closed = True
            self._opened[0].close()

    def _space(self, snapshot: ReadTransaction) -> Space:
        environment = self._opened[0]
        used = snapshot.bytes_used()
        in_file = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        return Space(used, left=int(self.growth()) + max(0, in_file - used))

    def _identity(self) -> tuple[int, int] | None:
        """Which file has the data file's name; None where there is none."""
        try:
            found = os.stat(self.directory / doors.DATA_FILE)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _open(self) -> tuple[lmdb.Environment, dict[str, Any]]:
        is_new = doors.check_data_format(self.directory, DATA_FORMAT)
        if is_new:
            data_file.create(self.directory / doors.DATA_FILE, _write_empty)
        data_file.check(self.directory / doors.DATA_FILE)
        doors.allocate(self.directory / doors.LOCK_FILE, _LOCK_FILE_BYTES)
        environment = self._map()
        try:
            databases = _open_tables(environment, self.directory, self._further_tables)
            environment.reader_check()
            if is_new:
                doors.make_durable(self.directory)
        except lmdb.Error as error:
            environment.close()
            raise StoreOpenError(f"{self.directory} cannot be opened: {error}") from error
        except BaseException:
            environment.close()
            raise
        return environment, databases

    def _map(self) -> lmdb.Environment:
        size = self._map_size or LARGEST_MAP
        while True:
            try:
                return lmdb.Environment(
                    os.fspath(self.directory),
                    map_size=size,
                    max_dbs=_MOST_TABLES,
                    max_readers=MAX_READERS,
                    max_spare_txns=1,
                    lib_version=ENGINE,
                )
            except OSError as error:
                raise StoreOpenError(f"{self.directory} cannot be opened: {error.strerror}") from error
            except lmdb.Error as error:
                if _code(error) != errno.ENOMEM:
                    raise StoreOpenError(f"{self.directory} cannot be opened: {error}") from error
                if self._map_size is not None or size <= SMALLEST_MAP:
                    raise StoreOpenError(
                        f"{self.directory} cannot be mapped: {size >> 30} GiB of address space are not to be had",
                        hint="raise RLIMIT_AS (ulimit -v), or pass a smaller map_size",
                    ) from error
                size //= 2


class ReadOnlyEnvironment:
    """A directory opened to be read, which another process may have open and may be writing to.

    For a process of its own: a damaged file can end whoever reads it with SIGBUS, and no process may open a directory
    twice. It has all tables that are there, also those that only a newer release knows.

    Args:
        directory: the real path of a data directory.
        any_engine: whether it may be of another engine than ours, and is then read with that one.

    Attributes:
        engine: the engine it is read with.

    Raises:
        StoreVersionError: another engine wrote it.
        StoreOpenError: there is no data file, or it is not one that can be opened.
    """

    def __init__(self, directory: Path, *, any_engine: bool = False) -> None:
        self.directory = directory
        found = doors.data_format(directory)
        if found is None:
            raise StoreOpenError(f"{directory} holds no store", hint="give a data directory or a backup of one")
        if found not in _ENGINES or (found != DATA_FORMAT and not any_engine):
            raise doors.engine_mismatch(directory, found)
        self.engine = _ENGINES[found]
        doors.allocate(directory / doors.LOCK_FILE, _LOCK_FILE_BYTES)
        size = (directory / doors.DATA_FILE).stat().st_size
        try:
            # Room to grow: a writer may add to the file between our opening it and our snapshot of it.
            self._environment = lmdb.Environment(
                os.fspath(directory),
                map_size=2 * size + (1 << 30),
                max_dbs=_MOST_TABLES,
                max_readers=MAX_READERS,
                readonly=True,
                create=False,
                lib_version=self.engine,
            )
            with self._environment.begin() as transaction:
                # LMDB 1.0 keeps the NUL that ends a table's name, 0.9 does not.
                names = [bytes(name).rstrip(b"\0") for name in transaction.cursor().iternext(values=False)]
            # What is not a table is damage, or another program's: verification says so where a table is missing.
            self._databases: dict[str, Any] = {}
            for name in names:
                with suppress(lmdb.Error):
                    table = name.decode(errors="replace")
                    self._databases[table] = self._environment.open_db(name, create=False)
        except lmdb.Error as error:
            raise StoreOpenError(f"{directory} cannot be opened: {error}") from error

    @property
    def tables(self) -> list[str]:
        """The tables that are there."""
        return [*self._databases]

    def read(self, work: Callable[[ReadTransaction], ResultT]) -> ResultT:
        """Run `work` over one snapshot, which ends with it.

        Raises:
            StoreError: the engine could not read.
        """
        try:
            with self._environment.begin() as transaction:
                return work(ReadTransaction(transaction, self._databases))
        except lmdb.Error as error:
            raise translated(error, "reading") from error

    def copy(self, descriptor: int) -> None:
        """Write one consistent, compacted copy of the data file to a descriptor; a pipe will do.

        Raises:
            StoreError: the engine could not read it, or `descriptor` could not be written.
        """
        try:
            self._environment.copyfd(descriptor, compact=True)
        except lmdb.Error as error:
            raise translated(error, "copying") from error

    def close(self) -> None:
        """Close it."""
        self._environment.close()


def _write_empty(path: Path) -> None:
    """Write an empty data file that nobody else knows of, and which therefore needs no locks."""
    try:
        lmdb.Environment(os.fspath(path), subdir=False, lock=False, map_size=1 << 20, lib_version=ENGINE).close()
    except lmdb.Error as error:
        raise StoreOpenError(f"{path} cannot be written: {error}") from error


def _open_tables(environment: lmdb.Environment, directory: Path, further: Iterable[str]) -> dict[str, Any]:
    """The tables, made if the environment is new.

    Raises:
        StoreVersionError: a newer release or another engine wrote it.
        StoreOpenError: it is an LMDB environment of something else.
    """
    version = engine_version(ENGINE)
    with environment.begin(write=True) as transaction:
        is_new = transaction.stat()["entries"] == 0
        if not is_new and transaction.get(b"meta") is None:
            raise StoreOpenError(
                f"{directory} is an LMDB environment of another program", hint="give an empty directory"
            )
        meta = environment.open_db(b"meta", txn=transaction)
        if is_new:
            transaction.put(b"format", str(FORMAT_VERSION).encode(), db=meta)
            transaction.put(b"engine", version.encode(), db=meta)
        written = transaction.get(b"format", b"", db=meta).decode("ascii", "replace")
        if not written.isdecimal():
            raise StoreOpenError(
                f"{directory} is an LMDB environment of another program", hint="give an empty directory"
            )
        if int(written) > FORMAT_VERSION:
            raise StoreVersionError(
                f"{directory} has store format {written}, this release reads up to {FORMAT_VERSION}",
                hint="open it with the release that wrote it, or a newer one",
            )
        engine = transaction.get(b"engine", b"", db=meta).decode("ascii", "replace")
        if engine.split(".")[:2] != version.split(".")[:2]:
            raise doors.made_by_another(directory, f"LMDB {engine}")
        release = transaction.get(b"release", b"", db=meta).decode("ascii", "replace")
        if _numbers(release) < _numbers(__version__):
            transaction.put(b"release", __version__.encode(), db=meta)
        databases = {"meta": meta, "log": environment.open_db(b"log", txn=transaction)}
        for table in (*TABLES, *further):
            databases[table] = environment.open_db(table.encode(), txn=transaction)
    return databases


def _numbers(release: str) -> list[int]:
    """The numbers in a release's name, by which the newer of two is told."""
    return [int(number) for number in re.findall(r"[0-9]+", release)]


def _last_sequence(transaction: lmdb.Transaction[bytes], database: Any, prefix: bytes, table: str = "log") -> int:
    with transaction.cursor(database) as cursor:
        found = cursor.prev() if cursor.set_range(keys.after_prefix(prefix)) else cursor.last()
        if found and cursor.key().startswith(prefix):
            key = cursor.key()
            if len(key) != len(prefix) + keys.SEQUENCE_BYTES:
                raise _out_of_order(table, key)
            return keys.sequence_of(key)
    return -1


def _out_of_order(table: str, key: bytes) -> DamagedRecordError:
    """The error for a page that leads elsewhere, and perhaps round in circles."""
    return DamagedRecordError(
        f"the table {table!r} is damaged: {key!r} is out of order", context=keys.place(table, key)
    )


def _bytes_used(transaction: lmdb.Transaction[bytes], databases: dict[str, Any]) -> int:
    pages = 0
    size = 0
    for database in databases.values():
        figures = transaction.stat(database)
        size = figures["psize"]
        pages += figures["branch_pages"] + figures["leaf_pages"] + figures["overflow_pages"]
    return pages * size


_: type[Snapshot] = ReadTransaction
