"""Every read a store offers, written once over a snapshot of its tables.

A snapshot is synchronous and short-lived: a backend opens one, calls one of these functions, and closes it before its
next await.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, cast

from callboard_protocol.errors import DamagedRecordError, UnknownSchemaError, UsageError
from callboard_protocol.records import LogRecord, Record
from callboard_protocol.sessions import HeadFold, MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_storage import keys
from callboard_storage.batch import Table
from callboard_storage.codec import decode, moved
from callboard_storage.store import StoredRecord

logger = logging.getLogger(__name__)

Rows = Sequence[tuple[bytes, bytes]]
"""Keys and values, in the order of the keys."""


class Snapshot(Protocol):
    """One consistent view of a store's tables."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value under a key."""
        ...

    def rows(self, table: Table, after: bytes | None = None, limit: int | None = None) -> Rows:
        """Rows of a table whose keys follow `after`."""
        ...

    def session_rows(self, table: Table, prefix: bytes) -> Rows:
        """Rows of a table that belong to one session."""
        ...

    def last_sequence(self, prefix: bytes) -> int:
        """The sequence a session's log ends at; -1 where it is empty."""
        ...

    def log_rows(self, prefix: bytes, start: int, stop: int) -> Rows:
        """A session's log records with `start` <= sequence < `stop`."""
        ...


def log_range(last: int, start: int, stop: int | None, limit: int | None) -> tuple[int, int]:
    """The sequences a read covers, once it is known where the log ends."""
    first = max(start, 0)
    behind = last + 1 if stop is None else min(stop, last + 1)
    if limit is not None:
        behind = min(behind, first + max(limit, 0))
    return first, max(behind, first)


def log(snapshot: Snapshot, session_id: str, first: int, behind: int) -> list[StoredRecord]:
    """Decoded records with `first` <= sequence < `behind`."""
    rows = snapshot.log_rows(keys.session_prefix(session_id), first, behind)
    return [StoredRecord(keys.sequence_of(key), cast(LogRecord, decode(key, frame, Record))) for key, frame in rows]


def stored_head(snapshot: Snapshot, session_id: str) -> tuple[SessionHead | None, int]:
    """A session's head as it is stored, and how many records behind it are not in it yet.

    A damaged head is no loss: it is folded again from the start of the log.
    """
    prefix = keys.session_prefix(session_id)
    last = snapshot.last_sequence(prefix)
    key = prefix[:-1]
    frame = snapshot.get("heads", key)
    if frame is None and last < 0:
        return None, 0
    head = SessionHead(session_id=session_id)
    if frame is not None:
        try:
            head = decode(key, frame, SessionHead)
        except UnknownSchemaError:
            raise
        except DamagedRecordError as error:
            logger.warning("the head of session %r is damaged and is rebuilt from its log: %s", session_id, error)
    return head, max(last + 1 - head.next_sequence, 0)


def catch_up(snapshot: Snapshot, head: SessionHead, lag: int) -> SessionHead:
    """A head with the records behind it folded in."""
    if not lag:
        return head
    fold = HeadFold(head)
    for stored in log(snapshot, head.session_id, head.next_sequence, head.next_sequence + lag):
        fold.add(stored.sequence, stored.record)
    return fold.head()


def head(snapshot: Snapshot, session_id: str) -> SessionHead | None:
    """Where a session stands."""
    stored, lag = stored_head(snapshot, session_id)
    return stored if stored is None else catch_up(snapshot, stored, lag)


def run(snapshot: Snapshot, run_id: str) -> RunEntry | None:
    """A run's entry."""
    key = keys.run_key(run_id)
    frame = snapshot.get("runs", key)
    return None if frame is None else decode(key, frame, RunEntry)


def runs(snapshot: Snapshot, after: str | None, limit: int) -> list[RunEntry]:
    """Run entries in the order of their ids."""
    rows = snapshot.rows("runs", None if after is None else after.encode(), limit)
    return [decode(key, frame, RunEntry) for key, frame in rows]


def unfinished(snapshot: Snapshot, session_id: str | None) -> list[RunEntry]:
    """Entries of runs that have not ended, in admission order; a damaged one is left out and logged."""
    entries = []
    for key in _unfinished_keys(snapshot, session_id):
        frame = snapshot.get("runs", key)
        try:
            entries.append(decode(key, frame or b"", RunEntry))
        except DamagedRecordError as error:
            logger.exception("run %r is left out of recovery", key.decode(errors="replace"), exc_info=error)
    entries.sort(key=lambda entry: (entry.order, entry.run_id))
    return entries


def _unfinished_keys(snapshot: Snapshot, session_id: str | None) -> list[bytes]:
    if session_id is None:
        return [key for key, _ in snapshot.rows("unfinished")]
    prefix = keys.session_prefix(session_id)
    runs = [key[len(prefix) :] for key, _ in snapshot.session_rows("session_runs", prefix)]
    return [key for key in runs if snapshot.get("unfinished", key) is not None]


def session_ids(snapshot: Snapshot, after: str | None, limit: int) -> list[str]:
    """Ids of sessions with a head."""
    rows = snapshot.rows("heads", None if after is None else after.encode(), limit)
    return [key.decode() for key, _ in rows]


def checkpoints(snapshot: Snapshot, session_id: str) -> list[SessionCheckpoint]:
    """A session's checkpoints, oldest log position first."""
    rows = snapshot.session_rows("checkpoints", keys.session_prefix(session_id))
    found = [decode(key, frame, SessionCheckpoint) for key, frame in rows]
    found.sort(key=lambda one: (one.log_position, one.created_at))
    return found


def checkpoint(snapshot: Snapshot, session_id: str, checkpoint_id: str) -> SessionCheckpoint | None:
    """One of a session's checkpoints."""
    key = keys.name_key(keys.session_prefix(session_id), checkpoint_id, "checkpoint id")
    frame = snapshot.get("checkpoints", key)
    return None if frame is None else decode(key, frame, SessionCheckpoint)


def copied_log(snapshot: Snapshot, source: str, target: str, behind: int) -> Rows:
    """The records of a session's log with sequence < `behind`, as another session's log would hold them.

    Raises:
        DamagedRecordError: one of them fails its checksum.
        UsageError: the log ends before that.
    """
    prefix = keys.session_prefix(target)
    rows = snapshot.log_rows(keys.session_prefix(source), 0, behind)
    if len(rows) != behind:
        raise UsageError(f"session {source!r} has {len(rows)} records, {behind} of them were to be copied")
    copies = []
    for sequence, (key, frame) in enumerate(rows):
        new_key = prefix + keys.pack_sequence(sequence)
        copies.append((new_key, moved(key, frame, new_key)))
    return copies


def memory(snapshot: Snapshot, session_id: str) -> list[MemoryEntry]:
    """A session's memory entries, by name."""
    rows = snapshot.session_rows("memory", keys.session_prefix(session_id))
    return [decode(key, frame, MemoryEntry) for key, frame in rows]
