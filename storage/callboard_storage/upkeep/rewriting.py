"""What a migration's child does: rows as an earlier release or another engine left them, in a new file as ours are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from callboard_protocol.base import Frozen
from callboard_protocol.errors import DamagedRecordError, StoreError
from callboard_storage import chunks, codec, keys
from callboard_storage.chunks import HOLDING_TABLES
from callboard_storage.lmdb_environment import LmdbEnvironment, ReadOnlyEnvironment
from callboard_storage.lmdb_transactions import ReadTransaction
from callboard_storage.upkeep.report import Problem

Row: TypeAlias = tuple[bytes, bytes]

OWN_META: Final = frozenset({b"engine", b"format", b"release"})
"""What a file says of itself; the rest of `meta` goes along, such as the last fencing token."""

_BYTES_AT_ONCE: Final = 8 * 1024 * 1024
"""How much one transaction writes."""


class Rewriting:
    """Writes every row of a directory into another.

    Args:
        source: the directory, whichever engine made it.
        staged: where the new file is to be.
        progress: told how many bytes were written.
        unreadable: told of each record that cannot be read, and is copied as it is.

    Attributes:
        upgraded: records that an earlier schema had.
    """

    def __init__(
        self,
        source: ReadOnlyEnvironment,
        staged: Path,
        *,
        progress: Callable[[int], None],
        unreadable: Callable[[Problem], None],
    ) -> None:
        self._source = source
        self._staged = staged
        self._progress = progress
        self._unreadable = unreadable
        self._waiting: dict[str, list[Row]] = {}
        self._size = 0
        self._done = 0
        self._replaced: set[bytes] = set()
        self.upgraded = 0

    def write(self) -> None:
        """Write all of it; on disk when it returns."""
        target = LmdbEnvironment(self._staged, further_tables=self._source.tables)
        try:
            self._source.read(lambda snapshot: self._write_all(snapshot, target))
        finally:
            target.close()

    def _write_all(self, snapshot: ReadTransaction, target: LmdbEnvironment) -> None:
        for table in in_order(self._source.tables):
            for row in rows_taken_along(snapshot, table, self._replaced):
                for place, key, value in self._migrated(snapshot, table, row):
                    self._waiting.setdefault(place, []).append((key, value))
                    self._size += len(key) + len(value)
                if self._size >= _BYTES_AT_ONCE:
                    self._commit(target)
        self._commit(target)

    def _commit(self, target: LmdbEnvironment) -> None:
        transaction = target.begin_write()
        try:
            for table, rows in self._waiting.items():
                transaction.write(table, rows)
            transaction.commit()
        except BaseException:
            transaction.abort()
            raise
        self._done += self._size
        self._waiting, self._size = {}, 0
        self._progress(self._done)

    def _migrated(self, snapshot: ReadTransaction, table: str, row: Row) -> Iterator[tuple[str, bytes, bytes]]:
        """The rows that take a row's place, each with its table."""
        key, stored = row
        if table in HOLDING_TABLES:
            try:
                model = chunks.read(snapshot, table, key, stored, Frozen)
            except DamagedRecordError as error:
                where = keys.place(table, key)
                self._unreadable(
                    Problem(table=table, key=where["key"], session_id=where["session_id"], what=error.what)
                )
            else:
                if codec.is_behind(stored):
                    self.upgraded += 1
                    if (place := chunks.place(table, key, stored)) is not None:
                        self._replaced.add(place)
                    stored, pieces = chunks.stored(table, key, *codec.pack(model))
                    yield from (("blobs", *piece) for piece in pieces)
        yield table, key, stored


def is_behind(environment: ReadOnlyEnvironment) -> bool:
    """Whether a directory holds a record of an earlier schema that can be read."""

    def look(snapshot: ReadTransaction) -> bool:
        return any(
            codec.is_behind(stored) and _is_readable(snapshot, table, key, stored)
            for table in HOLDING_TABLES
            if table in environment.tables
            for key, stored in snapshot.each(table)
        )

    return environment.read(look)


def _is_readable(snapshot: ReadTransaction, table: str, key: bytes, stored: bytes) -> bool:
    try:
        chunks.read(snapshot, table, key, stored, Frozen)
    except DamagedRecordError:
        return False
    return True


def in_order(tables: list[str]) -> list[str]:
    """Tables with that of chunks behind those that say which of them are still needed."""
    return sorted(tables, key=lambda table: table == "blobs")


def rows_taken_along(snapshot: ReadTransaction, table: str, replaced: set[bytes]) -> Iterator[Row]:
    """The rows of a table that a migration takes along.

    Args:
        snapshot: where they are.
        table: the table.
        replaced: what the keys of the chunks begin with that it does not take along.

    Raises:
        StoreError: damaged pages hide some of them.
    """
    for row in _all_rows(snapshot, table):
        is_left = (
            row[0] in OWN_META if table == "meta" else table == "blobs" and keys.place_of_chunk(row[0]) in replaced
        )
        if not is_left:
            yield row


def _all_rows(snapshot: ReadTransaction, table: str) -> Iterator[Row]:
    """Every row of a table, or an error: what a damaged page hides would be gone with the old file."""
    before, count = b"", 0
    for row in snapshot.each(table):
        if row[0] <= before:
            raise _hidden(f"{keys.readable(table, row[0])} is out of order in the table {table!r}")
        before = row[0]
        count += 1
        yield row
    expected = snapshot.entries(table)
    if count != expected:
        raise _hidden(f"{count} of the {expected} rows of the table {table!r} can be reached")


def _hidden(what: str) -> StoreError:
    return StoreError(
        f"{what}: its pages are damaged, and nothing was changed",
        hint="restore a backup; `callboard store export` saves what sessions can still be read",
    )
