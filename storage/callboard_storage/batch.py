"""A batch as every backend takes it: keys and frames, encoded while it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from callboard_protocol.base import Frozen
from callboard_protocol.errors import UsageError
from callboard_protocol.letters import Letter, PostedSignal
from callboard_protocol.named_accounts import AccountCharge
from callboard_protocol.records import IntentRecorded, LogRecord, ReservationRecorded, RunBegan, RunResumed
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_protocol.states import UNFINISHED, RunState
from callboard_storage import keys
from callboard_storage.chunks import LARGEST_IN_ROW
from callboard_storage.codec import OVERHEAD, pack, parted, seal

Table: TypeAlias = Literal[
    "heads",
    "checkpoints",
    "memory",
    "runs",
    "session_runs",
    "unfinished",
    "blobs",
    "locks",
    "letters",
    "arrivals",
    "accounts",
    "charges",
    "draws",
]
"""The tables beside the log."""

TABLES: Final[tuple[Table, ...]] = (
    "heads",
    "checkpoints",
    "memory",
    "runs",
    "session_runs",
    "unfinished",
    "blobs",
    "locks",
    "letters",
    "arrivals",
    "accounts",
    "charges",
    "draws",
)
"""In the order in which they came: a release adds its own at the end."""

LATER_TABLES: Final = TABLES[TABLES.index("blobs") :]
"""Those that were not there from the beginning: a directory that only earlier releases have opened lacks the last of
them, and the first release that knows them makes them.
"""

Change: TypeAlias = tuple[Table, bytes, bytes | None]
"""A table, a key, and what it is to hold; None removes the key."""

_BEGINNINGS = (RunBegan, RunResumed, IntentRecorded, ReservationRecorded)
"""Records of what is about to happen. Nothing has yet, so it can wait for room."""


@dataclass(frozen=True, slots=True, eq=False)
class LargeFrame:
    """A frame too long for its row. Its digest is still to be taken, which is no work for the loop.

    Attributes:
        table: where its row is.
        place: which of the batch's records, or of its other changes, it is.
        key: the row's key.
        header: the frame's header.
        payload: the frame's payload.
    """

    table: Literal["log"] | Table
    place: int
    key: bytes
    header: bytes
    payload: bytes

    def whole(self) -> bytes:
        """The frame in one piece."""
        return seal(self.key, self.header, self.payload)


class FrameBatch:
    """What one transaction writes for one session.

    Args:
        session_id: the session.
        owner: the open store it is made by; a run's entry is that owner's from then on.

    Attributes:
        log: keys and frames of the records it appends, in order.
        changes: what it changes beside the log, in order.
        large: frames too long for their rows. Until `with_frames` puts something in their place, those rows hold no
            more than a header.
        first: the sequence of its first record; -1 where it appends none.
        last: the sequence of its last record; -1 where it appends none.
        log_size: bytes of its records' frames.
        prefix: what the session's keys begin with.
        size: encoded bytes so far.
        large_size: how many of them are of large payloads, which take up little more on disk than they are long.
        begins_work: whether it begins something that can wait, rather than keep what has happened.
        posted: the letters it posts, by their keys.
        seen: of the runs whose entries it writes without a log to stand on, the entries those follow, by their keys.
        done_with: the beginnings of the keys of letters that nobody will read any more.

    Raises:
        InvalidIdentifierError: the session id cannot be stored.
    """

    __slots__ = (
        "begins_work",
        "changes",
        "done_with",
        "first",
        "large",
        "large_size",
        "last",
        "log",
        "log_size",
        "owner",
        "posted",
        "prefix",
        "seen",
        "session_id",
        "size",
    )

    def __init__(self, session_id: str, owner: bytes = b"") -> None:
        self.prefix = keys.session_prefix(session_id)
        self.session_id = session_id
        self.owner = owner
        self.log: list[tuple[bytes, bytes]] = []
        self.changes: list[Change] = []
        self.large: list[LargeFrame] = []
        self.first = -1
        self.last = -1
        self.size = 0
        self.large_size = 0
        self.log_size = 0
        self.begins_work = False
        self.posted: dict[bytes, Letter] = {}
        self.seen: dict[bytes, RunEntry] = {}
        self.done_with: list[bytes] = []

    @property
    def committer(self) -> tuple[bytes, str]:
        """Whose batches stand and fall together with this one: the open store's, of the session."""
        return self.owner, self.session_id

    def append(self, sequence: int, record: LogRecord) -> None:
        """Append a record at `sequence`.

        Raises:
            UnpersistableValueError: the record holds a value that cannot persist.
            UsageError: `sequence` does not follow the batch's last one.
        """
        if sequence != self.last + 1 and (self.log or sequence < 0):
            raise UsageError(f"a batch that ends at sequence {self.last} cannot go on at {sequence}")
        key = self.prefix + keys.pack_sequence(sequence)
        frame = self._frame("log", key, record)
        if not self.log:
            self.first = sequence
        self.log.append((key, frame))
        self.last = sequence
        self.log_size += len(frame)
        self.size += len(key) + len(frame)
        if isinstance(record, _BEGINNINGS):
            self.begins_work = True

    def append_copied(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Append records that are encoded already: those of another session's log, under this one's keys.

        Args:
            rows: keys and frames, from sequence 0 on.

        Raises:
            UsageError: the batch appends records already, and these would not follow them.
        """
        if self.log:
            raise UsageError(f"the batch ends at sequence {self.last}; a copy of a log begins one")
        for key, frame in rows:
            in_row = frame
            if len(frame) - OVERHEAD > LARGEST_IN_ROW:
                in_row, payload = parted(frame)
                self._add_large(LargeFrame("log", len(self.log), key, in_row, payload))
            self.log.append((key, in_row))
        self.first, self.last = 0, len(rows) - 1
        self.log_size = sum(len(frame) for _, frame in self.log)
        self.size += self.log_size + sum(len(key) for key, _ in rows)
        self.begins_work = True

    def put_head(self, head: SessionHead) -> None:
        """Write where the session stands."""
        self._check_session(head.session_id)
        key = self.prefix[:-1]
        self.change("heads", key, self._frame("heads", key, head))

    def put_run(self, entry: RunEntry, *, seen: RunEntry | None = None) -> None:
        """Write a run's entry, and whether it is unfinished; see `callboard_storage.overtaking`."""
        self._check_session(entry.session_id)
        key = keys.run_key(entry.run_id)
        if seen is not None:
            self.seen[key] = seen
        if entry.state == RunState.QUEUED:
            self.begins_work = True
        self.change("runs", key, self._frame("runs", key, entry))
        self.change("unfinished", key, self.owner if entry.state in UNFINISHED else None)
        if entry.state not in UNFINISHED:
            self.done_with.append(keys.letters_prefix(self.prefix, entry.run_id))
        self.change("session_runs", keys.name_key(self.prefix, entry.run_id, "run id"), b"")

    def charge(self, charge: AccountCharge) -> None:
        """Charge what an end of a run cost to its account."""
        key = keys.charge_key(charge)
        self.change("charges", key, self._frame("charges", key, charge))

    def put_checkpoint(self, checkpoint: SessionCheckpoint) -> None:
        """Write a checkpoint under its id."""
        self._check_session(checkpoint.session_id)
        key = keys.name_key(self.prefix, checkpoint.checkpoint_id, "checkpoint id")
        self.change("checkpoints", key, self._frame("checkpoints", key, checkpoint))

    def put_memory(self, entry: MemoryEntry) -> None:
        """Write one entry of the session's memory."""
        key = keys.name_key(self.prefix, entry.name, "memory name")
        self.change("memory", key, self._frame("memory", key, entry))

    def delete_memory(self, name: str) -> None:
        """Remove one entry of the session's memory."""
        self.change("memory", keys.name_key(self.prefix, name, "memory name"), None)

    def post(self, letter: Letter) -> None:
        """Post a letter to a run of the session, which has not ended."""
        key = keys.letter_key(self.prefix, letter)
        self.change("letters", key, self._frame("letters", key, letter))
        self.posted[key] = letter
        if isinstance(letter, PostedSignal):
            self.begins_work = True

    def take_letter(self, letter: Letter) -> None:
        """Remove a letter that the run has taken in."""
        self.change("letters", keys.letter_key(self.prefix, letter), None)

    def with_frames(self, frames: Sequence[bytes]) -> FrameBatch:
        """A copy with `frames`, whole ones or references, where `large` was."""
        twin = FrameBatch(self.session_id, self.owner)
        twin.first, twin.last, twin.begins_work = self.first, self.last, self.begins_work
        twin.posted, twin.seen, twin.done_with = self.posted, self.seen, self.done_with
        twin.log = [*self.log]
        twin.changes = [*self.changes]
        for large, frame in zip(self.large, frames, strict=True):
            if large.table == "log":
                twin.log[large.place] = (large.key, frame)
            else:
                twin.changes[large.place] = (large.table, large.key, frame)
        twin.log_size = sum(len(frame) for _, frame in twin.log)
        twin.size = self.size + sum(
            len(frame) - len(large.header) - len(large.payload) for large, frame in zip(self.large, frames, strict=True)
        )
        twin.large_size = sum(len(frame) for frame in frames if len(frame) > LARGEST_IN_ROW)
        return twin

    def change(self, table: Table, key: bytes, value: bytes | None) -> None:
        """Have a row of a table beside the log written, or removed where `value` is None."""
        if self.large:
            self._forget_replaced(table, key)
        self.changes.append((table, key, value))
        size = len(value) if value else 0
        self.size += len(key) + size
        if table == "blobs":
            self.large_size += size

    def _forget_replaced(self, table: Table, key: bytes) -> None:
        for large in [one for one in self.large if (one.table, one.key) == (table, key)]:
            if large.place < len(self.changes):
                self.large.remove(large)
                self.size -= len(large.payload)
                self.large_size -= len(large.payload)

    def _frame(self, table: Table | Literal["log"], key: bytes, model: Frozen) -> bytes:
        header, payload = pack(model)
        if len(payload) <= LARGEST_IN_ROW:
            return seal(key, header, payload)
        place = len(self.log if table == "log" else self.changes)
        self._add_large(LargeFrame(table, place, key, header, payload))
        return header

    def _add_large(self, large: LargeFrame) -> None:
        self.large.append(large)
        self.size += len(large.payload)
        self.large_size += len(large.payload)

    def _check_session(self, session_id: str) -> None:
        if session_id != self.session_id:
            raise UsageError(f"what belongs to session {session_id!r} was put into a batch of {self.session_id!r}")
