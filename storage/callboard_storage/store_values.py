"""What a store is given and what it answers with, whatever its backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from callboard_protocol.errors import CallboardError
from callboard_protocol.records import LogRecord

Acknowledge: TypeAlias = Callable[[CallboardError | None], None]
"""Called on the committer's loop: None once the batch is on disk, the error if it was refused and nothing of it is."""

StallCause: TypeAlias = Literal["process", "own_write"]
"""Whose write it is that keeps commits waiting."""

RECORDS_READ_ON_LOOP = 64
"""A longer read goes to a reader thread, so that no read holds the loop up."""


class Lease:
    """A session's lock as one writer has it, or wants it. Made by `Store.lease`; changed by the store alone.

    Args:
        owner: the open store the writer works with.

    Attributes:
        token: its fencing token, which no lock of this directory ever had or will have again; 0 while it is not held.
    """

    __slots__ = ("owner", "token")

    def __init__(self, owner: bytes) -> None:
        self.owner = owner
        self.token = 0


class Fence(NamedTuple):
    """Who may append to a session, and after what.

    Attributes:
        follows: the sequence of the session's last record as the writer knows it; -1 for an empty log. None is
            wherever it ends, for a batch that appends nothing.
        lease: the writer's lock. None is a lone batch: it is written if nobody has the session locked.
        takes: take the lock with this batch, if the writer does not have it yet.
        gives: give it back with this batch.
    """

    follows: int | None
    lease: Lease | None = None
    takes: bool = False
    gives: bool = False


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record of a session's log, and where it stands."""

    sequence: int
    record: LogRecord


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Letters that have arrived since an earlier look.

    Attributes:
        number: what to say at the next look.
        run_ids: the runs they are for; None where there were too many to know.
    """

    number: int
    run_ids: frozenset[str] | None


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
        letters: posted to its runs and not taken in.
        chunks: pieces in which a store on disk kept large values of theirs; not counted in `total`.
    """

    records: int = 0
    heads: int = 0
    checkpoints: int = 0
    memory: int = 0
    runs: int = 0
    letters: int = 0
    chunks: int = 0

    @property
    def total(self) -> int:
        """All that was stored, whatever it was kept in."""
        return self.records + self.heads + self.checkpoints + self.memory + self.runs + self.letters


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """A stored record that cannot be read. Its bytes stay where they are.

    Attributes:
        table: where it is: ``log``, ``heads``, ``checkpoints``, ``memory`` or ``runs``.
        key: which one, readable: ``session#sequence``, ``session/name``, or an id.
        session_id: the session it belongs to; None for a run's entry, whose session is in what cannot be read.
        run_id: the run, for a run's entry.
        sequence: its place in the session's log, for a record of one.
        code: ``damaged_record``, or ``unknown_schema`` where a newer release wrote it.
        message: what is wrong with it.
        hint: what to do about it.
    """

    table: str
    key: str
    session_id: str | None
    run_id: str | None
    sequence: int | None
    code: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class WriteStall:
    """Commits wait, and not for room.

    Attributes:
        seconds: how long they have.
        cause: ``process``: another process on the directory has begun to write and does not end it; ``own_write``: a
            transaction of this process does not end: it is very large, or the disk does not answer.
        pids: which processes that can be: the stopped ones among those that have the directory open, or all of them
            where none is known to be stopped.
        stopped: whether those processes are stopped (SIGSTOP, a debugger, a frozen container).
    """

    seconds: float
    cause: StallCause
    pids: tuple[int, ...] = ()
    stopped: bool = False

    def __str__(self) -> str:
        since = f"no commit has gone through for {self.seconds:.0f} s"
        if self.cause == "own_write":
            return f"{since}: one is very large, or the disk does not answer"
        who = f"process {', '.join(map(str, self.pids))}" if self.pids else "another process"
        if self.stopped:
            return f"{since}: {who} was stopped inside a write; continue it (SIGCONT) or kill it"
        return f"{since}: {who} is inside a write"
