"""A batch as every backend takes it: keys and frames, encoded while it is built."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from callboard_protocol.errors import UsageError
from callboard_protocol.records import IntentRecorded, LogRecord, ReservationRecorded, RunBegan, RunResumed
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_protocol.states import UNFINISHED, RunState
from callboard_storage import keys
from callboard_storage.codec import encode

Table: TypeAlias = Literal["heads", "checkpoints", "memory", "runs", "session_runs", "unfinished"]
"""The tables beside the log."""

TABLES: Final[tuple[Table, ...]] = ("heads", "checkpoints", "memory", "runs", "session_runs", "unfinished")

Change: TypeAlias = tuple[Table, bytes, bytes | None]
"""A table, a key, and what it is to hold; None removes the key."""

_BEGINNINGS = (RunBegan, RunResumed, IntentRecorded, ReservationRecorded)
"""Records of what is about to happen. Nothing has yet, so it can wait for room."""


class FrameBatch:
    """What one transaction writes for one session.

    Args:
        session_id: the session.

    Attributes:
        log: keys and frames of the records it appends, in order.
        changes: what it changes beside the log, in order.
        first: the sequence of its first record; -1 where it appends none.
        last: the sequence of its last record; -1 where it appends none.
        log_size: bytes of those frames.
        prefix: what the session's keys begin with.
        size: encoded bytes so far.
        begins_work: whether it begins something that can wait, rather than keep what has happened.

    Raises:
        InvalidIdentifierError: the session id cannot be stored.
    """

    __slots__ = ("begins_work", "changes", "first", "last", "log", "log_size", "prefix", "session_id", "size")

    def __init__(self, session_id: str) -> None:
        self.prefix = keys.session_prefix(session_id)
        self.session_id = session_id
        self.log: list[tuple[bytes, bytes]] = []
        self.changes: list[Change] = []
        self.first = -1
        self.last = -1
        self.size = 0
        self.log_size = 0
        self.begins_work = False

    def append(self, sequence: int, record: LogRecord) -> None:
        """Append a record at `sequence`.

        Raises:
            UnpersistableValueError: the record holds a value that cannot persist.
            UsageError: `sequence` does not follow the batch's last one.
        """
        if sequence != self.last + 1 and (self.log or sequence < 0):
            raise UsageError(f"a batch that ends at sequence {self.last} cannot go on at {sequence}")
        key = self.prefix + keys.pack_sequence(sequence)
        frame = encode(key, record)
        if not self.log:
            self.first = sequence
        self.log.append((key, frame))
        self.last = sequence
        self.log_size += len(frame)
        self.size += len(key) + len(frame)
        if isinstance(record, _BEGINNINGS):
            self.begins_work = True

    def put_head(self, head: SessionHead) -> None:
        """Write where the session stands."""
        self._check_session(head.session_id)
        key = self.prefix[:-1]
        self._change("heads", key, encode(key, head))

    def put_run(self, entry: RunEntry) -> None:
        """Write a run's entry, and whether it is unfinished."""
        self._check_session(entry.session_id)
        key = keys.run_key(entry.run_id)
        if entry.state == RunState.QUEUED:
            self.begins_work = True
        self._change("runs", key, encode(key, entry))
        self._change("unfinished", key, b"" if entry.state in UNFINISHED else None)
        self._change("session_runs", keys.name_key(self.prefix, entry.run_id, "run id"), b"")

    def put_checkpoint(self, checkpoint: SessionCheckpoint) -> None:
        """Write a checkpoint under its id."""
        self._check_session(checkpoint.session_id)
        key = keys.name_key(self.prefix, checkpoint.checkpoint_id, "checkpoint id")
        self._change("checkpoints", key, encode(key, checkpoint))

    def put_memory(self, entry: MemoryEntry) -> None:
        """Write one entry of the session's memory."""
        key = keys.name_key(self.prefix, entry.name, "memory name")
        self._change("memory", key, encode(key, entry))

    def delete_memory(self, name: str) -> None:
        """Remove one entry of the session's memory."""
        self._change("memory", keys.name_key(self.prefix, name, "memory name"), None)

    def _check_session(self, session_id: str) -> None:
        if session_id != self.session_id:
            raise UsageError(f"what belongs to session {session_id!r} was put into a batch of {self.session_id!r}")

    def _change(self, table: Table, key: bytes, value: bytes | None) -> None:
        self.changes.append((table, key, value))
        self.size += len(key) + (len(value) if value else 0)
