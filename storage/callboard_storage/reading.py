"""Every read a store offers, written once over a snapshot of its tables.

A snapshot is synchronous and short-lived: a backend opens one, calls one of these functions, and closes it before its
next await.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence
from typing import Literal, Protocol, TypeVar, cast

from callboard_protocol.errors import DamagedRecordError, UnknownSchemaError, UsageError
from callboard_protocol.letters import Letter, Posted
from callboard_protocol.records import LogRecord, Record
from callboard_protocol.sessions import HeadFold, MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_storage import chunks, keys
from callboard_storage.batch import Table
from callboard_storage.codec import moved
from callboard_storage.fencing import Holder, holder_in
from callboard_storage.quarantine import SetAside, located
from callboard_storage.store_values import StoredRecord

ModelT = TypeVar("ModelT")

Rows = Sequence[tuple[bytes, bytes]]
"""Keys and values, in the order of the keys."""


class Snapshot(Protocol):
    """One consistent view of a store's tables."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value under a key."""
        ...

    def chunk(self, key: bytes) -> bytes | None:
        """A chunk of a large payload."""
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

    def newest_release(self) -> str:
        """The newest release that has written here; empty where that is not kept."""
        ...


def decoded(snapshot: Snapshot, table: Table | Literal["log"], key: bytes, frame: bytes, model: type[ModelT]) -> ModelT:
    """The model of a row.

    Raises:
        DamagedRecordError: it cannot be read; the error says which row it is.
    """
    try:
        return chunks.read(snapshot, table, key, frame, model)
    except DamagedRecordError as error:
        raise located(error, table, key, snapshot.newest_release()) from error


def log_range(
    snapshot: Snapshot, session_id: str, start: int, stop: int | None, limit: int | None, set_aside: SetAside
) -> tuple[int, int]:
    """The sequences a read covers.

    Raises:
        DamagedRecordError: it goes to the end of the log, and records are missing there.
    """
    end = snapshot.last_sequence(keys.session_prefix(session_id)) + 1
    first = max(start, 0)
    behind = end if stop is None else min(stop, end)
    if limit is not None:
        behind = min(behind, first + max(limit, 0))
    if stop is None and (limit is None or first + limit > end):
        stored_head(snapshot, session_id, set_aside)
    return first, max(behind, first)


def log(snapshot: Snapshot, session_id: str, first: int, behind: int) -> list[StoredRecord]:
    """Decoded records with `first` <= sequence < `behind`, all of which must be there."""
    return [
        StoredRecord(keys.sequence_of(key), cast(LogRecord, decoded(snapshot, "log", key, frame, Record)))
        for key, frame in _log_rows(snapshot, session_id, first, behind)
    ]


def _log_rows(snapshot: Snapshot, session_id: str, first: int, behind: int) -> Rows:
    rows = snapshot.log_rows(keys.session_prefix(session_id), first, behind)
    if len(rows) != behind - first:
        there = {keys.sequence_of(key) for key, _ in rows}
        missing = next(sequence for sequence in range(first, behind) if sequence not in there)
        raise _missing(session_id, missing, f"record {missing} is missing")
    return rows


def stored_head(snapshot: Snapshot, session_id: str, set_aside: SetAside) -> tuple[SessionHead | None, int]:
    """A session's head as it is stored, and how many records behind it are not in it yet.

    A damaged head is no loss: it is folded again from the start of the log.

    Raises:
        DamagedRecordError: records it stands behind are missing.
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
            head = decoded(snapshot, "heads", key, frame, SessionHead)
        except UnknownSchemaError:
            raise
        except DamagedRecordError as error:
            set_aside(error)
    holder = holder_of(snapshot, session_id)
    if holder is not None:
        head = head.model_copy(update={"fence": holder.token})
    if head.next_sequence > last + 1:
        what = f"it ends at record {last}, and its head stands behind {head.next_sequence - 1}"
        raise _missing(session_id, last + 1, what)
    return head, last + 1 - head.next_sequence


def catch_up(snapshot: Snapshot, head: SessionHead, lag: int) -> SessionHead:
    """A head with the records behind it folded in."""
    if not lag:
        return head
    fold = HeadFold(head)
    for stored in log(snapshot, head.session_id, head.next_sequence, head.next_sequence + lag):
        fold.add(stored.sequence, stored.record)
    return fold.head()


def head(snapshot: Snapshot, session_id: str, set_aside: SetAside) -> SessionHead | None:
    """Where a session stands."""
    stored, lag = stored_head(snapshot, session_id, set_aside)
    return stored if stored is None else catch_up(snapshot, stored, lag)


def run(snapshot: Snapshot, run_id: str) -> RunEntry | None:
    """A run's entry."""
    key = keys.run_key(run_id)
    frame = snapshot.get("runs", key)
    return None if frame is None else decoded(snapshot, "runs", key, frame, RunEntry)


def runs(snapshot: Snapshot, after: str | None, limit: int, set_aside: SetAside) -> list[RunEntry]:
    """Run entries in the order of their ids."""
    found: list[RunEntry] = []
    last = None if after is None else after.encode()
    while len(found) < limit:
        # What is left out makes room for others: a page that is not full is the last one.
        wanted = limit - len(found)
        rows = snapshot.rows("runs", last, wanted)
        found += _readable(snapshot, "runs", rows, RunEntry, set_aside)
        if len(rows) < wanted:
            break
        last = rows[-1][0]
    return found


def unfinished(
    snapshot: Snapshot, session_id: str | None, set_aside: SetAside, only: Container[bytes] | None = None
) -> list[RunEntry]:
    """Entries of runs that have not ended, in admission order: all of them, or those of one session.

    Args:
        snapshot: where they are.
        session_id: whose; every session's where None.
        set_aside: told what cannot be read.
        only: keys of the runs that are asked for; all where None.
    """
    found = [key for key in _unfinished_keys(snapshot, session_id) if only is None or key in only]
    rows = [(key, snapshot.get("runs", key) or b"") for key in found]
    entries = _readable(snapshot, "runs", rows, RunEntry, set_aside)
    entries.sort(key=lambda entry: (entry.order, entry.run_id))
    return entries


def owners_of_unfinished(snapshot: Snapshot, run_ids: Collection[str] | None = None) -> Rows:
    """Keys of unfinished runs and whose they are: all, or those of some."""
    if run_ids is None:
        return snapshot.rows("unfinished")
    found = [(key, snapshot.get("unfinished", key)) for key in map(keys.run_key, run_ids)]
    return [(key, owner) for key, owner in found if owner is not None]


def is_held_elsewhere(
    snapshot: Snapshot, session_id: str, own: bytes, is_alive: Callable[[bytes], bool], set_aside: SetAside
) -> bool:
    """Whether a session is in other hands than an owner's: see `Store.held_elsewhere`."""
    holder = holder_of(snapshot, session_id)
    if holder is not None and holder.owner != own and is_alive(holder.owner):
        return True
    # The run that is active changes only together with the head, so a head that lags knows it too.
    stored, _ = stored_head(snapshot, session_id, set_aside)
    if stored is None or stored.active_run is None:
        return False
    return snapshot.get("unfinished", keys.run_key(stored.active_run)) not in {None, own}


def holder_of(snapshot: Snapshot, session_id: str) -> Holder | None:
    """Who has a session's lock."""
    return holder_in(snapshot.get("locks", keys.session_prefix(session_id)[:-1]))


def _unfinished_keys(snapshot: Snapshot, session_id: str | None) -> list[bytes]:
    if session_id is None:
        return [key for key, _ in snapshot.rows("unfinished")]
    prefix = keys.session_prefix(session_id)
    runs = [key[len(prefix) :] for key, _ in snapshot.session_rows("session_runs", prefix)]
    return [key for key in runs if snapshot.get("unfinished", key) is not None]


def session_ids(snapshot: Snapshot, after: str | None, limit: int) -> list[str]:
    """Ids of sessions with a head; a damaged head still names its session if that has a log."""
    rows = snapshot.rows("heads", None if after is None else after.encode(), limit)
    return [
        key.decode()
        for key, row in rows
        if snapshot.last_sequence(key + b"\0") >= 0 or chunks.is_whole(snapshot, "heads", key, row, SessionHead)
    ]


def checkpoints(snapshot: Snapshot, session_id: str, set_aside: SetAside) -> list[SessionCheckpoint]:
    """A session's checkpoints, oldest log position first."""
    rows = snapshot.session_rows("checkpoints", keys.session_prefix(session_id))
    found = _readable(snapshot, "checkpoints", rows, SessionCheckpoint, set_aside)
    found.sort(key=lambda one: (one.log_position, one.created_at))
    return found


def checkpoint(snapshot: Snapshot, session_id: str, checkpoint_id: str) -> SessionCheckpoint | None:
    """One of a session's checkpoints."""
    key = keys.name_key(keys.session_prefix(session_id), checkpoint_id, "checkpoint id")
    frame = snapshot.get("checkpoints", key)
    return None if frame is None else decoded(snapshot, "checkpoints", key, frame, SessionCheckpoint)


def copied_log(snapshot: Snapshot, source: str, target: str, behind: int) -> Rows:
    """The records of a session's log with sequence < `behind`, as another session's log would hold them.

    Raises:
        DamagedRecordError: one of them is missing, or fails its checksum.
        UsageError: the log ends before that.
    """
    prefix = keys.session_prefix(target)
    end = snapshot.last_sequence(keys.session_prefix(source)) + 1
    if end < behind:
        raise UsageError(f"session {source!r} has {end} records, {behind} of them were to be copied")
    copies = []
    for sequence, (key, row) in enumerate(_log_rows(snapshot, source, 0, behind)):
        new_key = prefix + keys.pack_sequence(sequence)
        try:
            copies.append((new_key, moved(key, chunks.whole(snapshot, "log", key, row), new_key)))
        except DamagedRecordError as error:
            raise located(error, "log", key, snapshot.newest_release()) from error
    return copies


def letters(snapshot: Snapshot, session_id: str, run_id: str) -> list[Letter]:
    """A run's letters: by kind, signals in their order."""
    prefix = keys.session_prefix(session_id)
    own = keys.letters_prefix(prefix, run_id)
    rows = snapshot.session_rows("letters", prefix)
    return [
        cast(Letter, decoded(snapshot, "letters", key, frame, Posted)) for key, frame in rows if key.startswith(own)
    ]


def memory(snapshot: Snapshot, session_id: str) -> list[MemoryEntry]:
    """A session's memory entries, by name."""
    rows = snapshot.session_rows("memory", keys.session_prefix(session_id))
    return [decoded(snapshot, "memory", key, frame, MemoryEntry) for key, frame in rows]


def _readable(snapshot: Snapshot, table: Table, rows: Rows, model: type[ModelT], set_aside: SetAside) -> list[ModelT]:
    """The models of those rows that can be read."""
    found = []
    for key, frame in rows:
        try:
            found.append(decoded(snapshot, table, key, frame, model))
        except DamagedRecordError as error:
            set_aside(error)
    return found


def _missing(session_id: str, sequence: int, what: str) -> DamagedRecordError:
    """The error for a log that lacks a record, and perhaps more behind it."""
    key = keys.session_prefix(session_id) + keys.pack_sequence(sequence)
    return DamagedRecordError(
        f"the log of session {session_id!r} is damaged: {what}", context=keys.place("log", key) | {"what": "is missing"}
    )
