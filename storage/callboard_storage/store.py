"""The Store protocol: what any backend promises.

Nothing above this file assumes LMDB, one host or a kernel lock. What each method promises is pinned down by one
conformance suite that every backend passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from callboard_protocol.errors import CallboardError
from callboard_protocol.records import LogRecord
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint, SessionHead

Acknowledge: TypeAlias = Callable[[CallboardError | None], None]
"""Called on the committer's loop: None once the batch is on disk, the error if it was refused and nothing of it is."""

RECORDS_READ_ON_LOOP = 64
"""A longer read goes to a reader thread, so that no read holds the loop up."""


class Fence(NamedTuple):
    """Who may append to a session, and after what.

    Attributes:
        follows: the sequence of the session's last record as the writer knows it; -1 for an empty log.
        token: the fencing token of the writer's session lock; 0 where locks are the process's own.
        owner: who holds the lock.
    """

    follows: int
    token: int = 0
    owner: bytes = b""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record of a session's log, and where it stands."""

    sequence: int
    record: LogRecord


@dataclass(frozen=True, slots=True)
class StoreFigures:
    """What a store holds.

    Attributes:
        sessions: sessions with a log.
        runs: runs ever accepted and not deleted.
        unfinished: runs that have not ended.
        records: records in all logs.
        bytes_used: bytes that hold live data.
        bytes_on_disk: the data file's size; 0 in memory.
        commits: transactions committed since it was opened.
        batches: batches those held together.
    """

    sessions: int
    runs: int
    unfinished: int
    records: int
    bytes_used: int
    bytes_on_disk: int
    commits: int
    batches: int


@dataclass(frozen=True, slots=True)
class Deletion:
    """What was removed with a session.

    Attributes:
        records: of its log.
        heads: 1 if where it stood was written.
        checkpoints: of its checkpoints.
        memory: entries of its memory.
        runs: entries of runs that had ended.
    """

    records: int = 0
    heads: int = 0
    checkpoints: int = 0
    memory: int = 0
    runs: int = 0

    @property
    def total(self) -> int:
        """All of it together."""
        return self.records + self.heads + self.checkpoints + self.memory + self.runs


class Batch(Protocol):
    """What one transaction writes for one session.

    It is encoded while it is built, so that a value which cannot persist is refused here and not later. Every method
    raises `UnpersistableValueError` for such a value, `InvalidIdentifierError` for a name that cannot be a key, and
    `UsageError` for what belongs to another session; the batch is then as it was.
    """

    @property
    def size(self) -> int:
        """Encoded bytes so far."""
        ...

    @property
    def begins_work(self) -> bool:
        """Whether it begins something, which can wait for room, rather than keep what has happened."""
        ...

    def append(self, sequence: int, record: LogRecord) -> None:
        """Append a record to the session's log at `sequence`.

        Raises:
            UsageError: the batch's last record is not the one before.
        """
        ...

    def put_head(self, head: SessionHead) -> None:
        """Write where the session stands. It may lag behind its log, and is then brought up to date on reading."""
        ...

    def put_run(self, entry: RunEntry) -> None:
        """Write a run's entry, and keep the index of unfinished runs in step with its state."""
        ...

    def put_checkpoint(self, checkpoint: SessionCheckpoint) -> None:
        """Write a checkpoint under its id."""
        ...

    def put_memory(self, entry: MemoryEntry) -> None:
        """Write one entry of the session's memory."""
        ...

    def delete_memory(self, name: str) -> None:
        """Remove one entry of the session's memory; an absent one is no error."""
        ...


class Store(Protocol):
    """A place where sessions last."""

    async def open(self) -> None:
        """Open it.

        Raises:
            StoreOpenError: it cannot be opened; the error says what to do.
        """
        ...

    async def close(self) -> None:
        """Commit what waits, then close. Closing twice is harmless."""
        ...

    def batch(self, session_id: str) -> Batch:
        """An empty batch for one session.

        Raises:
            InvalidIdentifierError: the session's id cannot be a key.
        """
        ...

    def commit(
        self, batch: Batch, fence: Fence | None, loop: asyncio.AbstractEventLoop, acknowledge: Acknowledge
    ) -> None:
        """Have the batch written. Returns at once; `acknowledge` is called on `loop`, in the order of the commits.

        All of the batch becomes durable, or none of it. With a fence, the session's log must end at `fence.follows`:
        otherwise the batch is refused with `FencedError`, unless the very records it appends are already there (same
        sequences, same frames), which counts as success: a repeated commit is harmless. Without a fence the batch
        may hold no log record. Batches of one session are applied in the order they were given. After a refusal, the
        session's fenced batches are refused too until the refusal has been acknowledged, and so is each one that was
        committed before that; later ones are judged by their fence alone.

        Nothing waits for room: what does not fit into the next transaction goes into one after it, in order.

        Raises:
            UsageError: the batch appends records without a fence, or elsewhere than behind it, or is another store's.
            StoreClosedError: the store is not open. Nothing was taken.
        """
        ...

    @property
    def has_room(self) -> bool:
        """Whether work may begin: a plain look at what was measured last, for everyone who is about to act.

        Without room, batches that begin work (a run, an intent, an entry of the queue) are refused with
        `StoreFullError`; what keeps an outcome, an ending or a decision is taken as long as there is any place for it.
        """
        ...

    async def find_room(self) -> bool:
        """`has_room`, measured anew where there was none."""
        ...

    async def read_head(self, session_id: str) -> SessionHead | None:
        """Where a session stands, brought up to date from its log; None if there is none."""
        ...

    async def read_log(
        self, session_id: str, *, start: int = 0, stop: int | None = None, limit: int | None = None
    ) -> Sequence[StoredRecord]:
        """Records with `start` <= sequence < `stop`, in order, at most `limit`.

        Raises:
            DamagedRecordError: one of them fails its checksum or does not decode.
        """
        ...

    async def read_run(self, run_id: str) -> RunEntry | None:
        """A run's entry."""
        ...

    async def read_unfinished(self) -> Sequence[RunEntry]:
        """The entries of all runs that have not ended, in admission order. A damaged entry is left out and logged."""
        ...

    async def list_runs(self, *, after: str | None = None, limit: int = 1000) -> Sequence[RunEntry]:
        """Runs in the order of their ids, following `after`."""
        ...

    async def list_sessions(self, *, after: str | None = None, limit: int = 1000) -> Sequence[str]:
        """Ids of sessions with a head, in order, following `after`."""
        ...

    async def read_checkpoints(self, session_id: str) -> Sequence[SessionCheckpoint]:
        """The session's stored checkpoints, oldest log position first."""
        ...

    async def read_memory(self, session_id: str) -> Sequence[MemoryEntry]:
        """All entries of a session's memory, by name."""
        ...

    async def delete_session(self, session_id: str) -> Deletion:
        """Remove a session's log, head, checkpoints, memory and ended runs, and say what that was.

        It keeps its turn among the commits. Unfinished runs stay, and go with the next deletion once they have ended.

        Raises:
            StoreError: nothing was removed.
        """
        ...

    async def figures(self) -> StoreFigures:
        """What it holds."""
        ...
