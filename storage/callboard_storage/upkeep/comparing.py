"""Whether two files hold the same rows, before the one takes the other's place."""

from __future__ import annotations

from itertools import zip_longest

from callboard_protocol.base import Frozen
from callboard_protocol.errors import DamagedRecordError
from callboard_storage import chunks, codec, keys
from callboard_storage.chunks import HOLDING_TABLES
from callboard_storage.lmdb_environment import ReadOnlyEnvironment
from callboard_storage.lmdb_transactions import ReadTransaction
from callboard_storage.upkeep.rewriting import Row, in_order, rows_taken_along


def same_rows(first: ReadOnlyEnvironment, second: ReadOnlyEnvironment) -> int | None:
    """How many rows two directories hold, if they hold the very same; None if they do not."""
    if first.tables != second.tables:
        return None

    def count(one: ReadTransaction, other: ReadTransaction) -> int | None:
        rows = 0
        for table in first.tables:
            for mine, theirs in zip_longest(one.each(table), other.each(table)):
                if mine != theirs:
                    return None
                rows += 1
        return rows

    return first.read(lambda one: second.read(lambda other: count(one, other)))


def same_records(old: ReadOnlyEnvironment, new: ReadOnlyEnvironment) -> int | None:
    """How many rows a migrated directory holds, if they say what those say that it was made of; None if they do not."""
    if not set(old.tables) <= set(new.tables):
        return None
    return old.read(lambda one: new.read(lambda other: _Migration(one, other).count(old.tables)))


class _Migration:
    """What was, and what a migration made of it."""

    def __init__(self, old: ReadTransaction, new: ReadTransaction) -> None:
        self._old = old
        self._new = new
        self._replaced: set[bytes] = set()
        self._replacing: set[bytes] = set()

    def count(self, tables: list[str]) -> int | None:
        rows = 0
        for table in in_order(tables):
            before = rows_taken_along(self._old, table, self._replaced)
            after = rows_taken_along(self._new, table, self._replacing)
            for mine, theirs in zip_longest(before, after):
                if mine != theirs and not (mine and theirs and self._say_the_same(table, mine, theirs)):
                    return None
                rows += 1
        # The chunks that new references led to have been read.
        return rows + sum(keys.place_of_chunk(key) in self._replacing for key, _ in self._new.each("blobs"))

    def _say_the_same(self, table: str, mine: Row, theirs: Row) -> bool:
        """Whether a row is another one, brought up to date."""
        if mine[0] != theirs[0] or table not in HOLDING_TABLES or codec.is_behind(theirs[1]):
            return False
        try:
            before = chunks.read(self._old, table, *mine, Frozen)
            after = chunks.read(self._new, table, *theirs, Frozen)
        except DamagedRecordError:
            return False
        for places, row in ((self._replaced, mine), (self._replacing, theirs)):
            if (place := chunks.place(table, *row)) is not None:
                places.add(place)
        # As bytes: a NaN does not equal itself.
        return codec.pack(before) == codec.pack(after)
