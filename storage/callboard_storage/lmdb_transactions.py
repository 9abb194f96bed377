"""What can be read and written in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from callboard_protocol.errors import DamagedRecordError
from callboard_storage import keys
from callboard_storage.batch import Table
from callboard_storage.lmdb_engine import Databases, Error, Transaction
from callboard_storage.reading import Rows, Snapshot

ARRIVALS_KEPT: Final = 1024
"""How many announced letters somebody may have missed and still know which they were."""

_LAST_TOKEN = b"token"
_LAST_ARRIVAL = b"arrival"


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

    def __init__(self, transaction: Transaction, databases: Databases, is_short: bool = False) -> None:
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
    """The one write transaction. It belongs to the thread that began it.

    Attributes:
        id: its number: one more than that of the last transaction that changed anything, whoever's that was.
        has_changes: whether it changes anything. If not, its commit writes nothing and its number goes to the next one.
    """

    __slots__ = ("_databases", "_transaction", "has_changes", "id")

    def __init__(self, transaction: Transaction, databases: Databases) -> None:
        self._transaction = transaction
        self._databases = databases
        self.id: int = transaction.id()
        self.has_changes = False

    def last_sequence(self, prefix: bytes, table: str = "log") -> int:
        """The number at the end of the last key of a table that begins so; -1 where there is none."""
        return _last_sequence(self._transaction, self._databases[table], prefix, table)

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value under a key."""
        return self._transaction.get(key, db=self._databases[table])

    def has(self, table: str, key: bytes) -> bool:
        """Whether there is a row under a key; its value is not looked at."""
        with self._transaction.cursor(self._databases[table]) as cursor:
            return cursor.set_key(key)

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
        self.has_changes = True
        return number

    def write(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Put rows, replacing what their keys held."""
        with self._transaction.cursor(self._databases[table]) as cursor:
            put, _ = cursor.putmulti(rows)
        self.has_changes |= put > 0

    def delete(self, table: str, key: bytes) -> bool:
        """Remove a row; whether there was one."""
        was_there = self._transaction.delete(key, db=self._databases[table])
        self.has_changes |= was_there
        return was_there

    def delete_prefix(self, table: str, prefix: bytes, limit: int | None = None) -> int:
        """Remove the rows whose keys begin so, at most `limit`; returns how many that were."""
        count = 0
        with self._transaction.cursor(self._databases[table]) as cursor:
            cursor.set_range(prefix)
            while count != limit and cursor.key().startswith(prefix):
                cursor.delete()
                count += 1
        self.has_changes |= count > 0
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
        with suppress(Error):
            self._transaction.abort()


def _last_sequence(transaction: Transaction, database: Any, prefix: bytes, table: str = "log") -> int:
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


def _bytes_used(transaction: Transaction, databases: Databases) -> int:
    pages = 0
    size = 0
    for database in databases.values():
        figures = transaction.stat(database)
        size = figures["psize"]
        pages += figures["branch_pages"] + figures["leaf_pages"] + figures["overflow_pages"]
    return pages * size


_: type[Snapshot] = ReadTransaction
