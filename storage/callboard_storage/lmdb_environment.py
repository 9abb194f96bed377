"""A data directory opened: by everybody who uses it, or to be read alone."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from callboard_protocol._version import __version__
from callboard_protocol.errors import StoreClosedError, StoreError, StoreOpenError, StoreVersionError
from callboard_storage import data_file, doors
from callboard_storage.batch import TABLES
from callboard_storage.lmdb_engine import (
    DATA_FORMAT,
    ENGINE,
    ENGINES,
    Databases,
    Environment,
    Error,
    engine_version,
    open_for_all,
    open_to_read,
    translated,
    write_empty,
)
from callboard_storage.lmdb_transactions import ReadTransaction, WriteTransaction
from callboard_storage.room import DEFAULT_FREE_BYTES, Space

ResultT = TypeVar("ResultT")

FORMAT_VERSION: Final = 1
"""What the tables mean. A newer one is refused; only a migration changes it."""


class LmdbEnvironment:
    """An open environment.

    Args:
        directory: the real path of a directory that is ours alone; see `doors` and `locks`.
        map_size: bytes of address space; None tries 1 TiB and halves it down to 64 GiB.
        min_free_bytes: what a new directory must have room for.
        further_tables: tables to open, and to make, beside those of this release.
    """

    Error = Error

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
            except Error as error:
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

    def _open(self) -> tuple[Environment, Databases]:
        is_new = doors.check_data_format(self.directory, DATA_FORMAT)
        if is_new:
            data_file.create(self.directory / doors.DATA_FILE, write_empty)
        data_file.check(self.directory / doors.DATA_FILE)
        environment = open_for_all(self.directory, self._map_size)
        try:
            databases = _open_tables(environment, self.directory, self._further_tables)
            environment.reader_check()
            if is_new:
                doors.make_durable(self.directory)
        except Error as error:
            environment.close()
            raise StoreOpenError(f"{self.directory} cannot be opened: {error}") from error
        except BaseException:
            environment.close()
            raise
        return environment, databases


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
        if found not in ENGINES or (found != DATA_FORMAT and not any_engine):
            raise doors.engine_mismatch(directory, found)
        self.engine = ENGINES[found]
        try:
            self._environment = open_to_read(directory, self.engine)
            with self._environment.begin() as transaction:
                # LMDB 1.0 keeps the NUL that ends a table's name, 0.9 does not.
                names = [bytes(name).rstrip(b"\0") for name in transaction.cursor().iternext(values=False)]
            # What is not a table is damage, or another program's: verification says so where a table is missing.
            self._databases: Databases = {}
            for name in names:
                with suppress(Error):
                    table = name.decode(errors="replace")
                    self._databases[table] = self._environment.open_db(name, create=False)
        except Error as error:
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
        except Error as error:
            raise translated(error, "reading") from error

    def copy(self, descriptor: int) -> None:
        """Write one consistent, compacted copy of the data file to a descriptor; a pipe will do.

        Raises:
            StoreError: the engine could not read it, or `descriptor` could not be written.
        """
        try:
            self._environment.copyfd(descriptor, compact=True)
        except Error as error:
            raise translated(error, "copying") from error

    def close(self) -> None:
        """Close it."""
        self._environment.close()


def _open_tables(environment: Environment, directory: Path, further: Iterable[str]) -> Databases:
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
