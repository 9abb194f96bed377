"""What a memory store holds: the same keys and frames as one on disk, in dictionaries."""

from __future__ import annotations

from bisect import bisect_right

from callboard_storage import keys
from callboard_storage.batch import FrameBatch, Table
from callboard_storage.reading import Rows
from callboard_storage.store_values import Deletion


class MemorySession:
    """What is kept of one session; a record's sequence is its place in the list.

    Attributes:
        log: its records.
        tables: its rows of the other tables.
        token: of its lock, as the table of locks has it; 0 is no lock at all.
    """

    __slots__ = ("log", "tables", "token")

    def __init__(self) -> None:
        self.token = 0
        self.log: list[tuple[bytes, bytes]] = []
        self.tables: dict[Table, dict[bytes, bytes]] = {}


class MemoryTables:
    """Everything a memory store holds; a `Snapshot` of itself."""

    def __init__(self) -> None:
        self.sessions: dict[bytes, MemorySession] = {}
        self.shared: dict[Table, dict[bytes, bytes]] = {
            "heads": {},
            "runs": {},
            "unfinished": {},
            "locks": {},
            "accounts": {},
            "charges": {},
            "draws": {},
        }
        self.bytes_used = 0
        self._sorted: dict[Table, list[bytes]] = {}

    def session(self, prefix: bytes) -> MemorySession:
        """A session's rows; made where they are missing."""
        found = self.sessions.get(prefix)
        if found is None:
            found = self.sessions[prefix] = MemorySession()
        return found

    def change(self, session: MemorySession, table: Table, key: bytes, value: bytes | None) -> None:
        """Have a row written, or removed where `value` is None."""
        if table in self.shared:
            self.share(table, key, value)
        else:
            self._put(session.tables.setdefault(table, {}), key, value)

    def share(self, table: Table, key: bytes, value: bytes | None) -> None:
        """As `change`, for a table that all sessions share."""
        rows = self.shared[table]
        if (key in rows) == (value is None):
            self._sorted.pop(table, None)
        self._put(rows, key, value)

    def _put(self, rows: dict[bytes, bytes], key: bytes, value: bytes | None) -> None:
        before = rows.pop(key, b"")
        self.bytes_used -= len(before)
        if value is not None:
            rows[key] = value
            self.bytes_used += len(value)

    def change_all(self, session: MemorySession, batch: FrameBatch) -> None:
        """Write what a batch changes beside the log."""
        for table, key, value in batch.changes:
            self.change(session, table, key, value)
        for prefix in batch.done_with:
            for key in [key for key in session.tables.get("letters", {}) if key.startswith(prefix)]:
                self.change(session, "letters", key, None)

    def delete_session(self, prefix: bytes) -> Deletion:
        """Remove a session, but for runs of it that have not ended."""
        session = self.sessions.pop(prefix, None)
        if session is None:
            return Deletion()
        runs = session.tables.pop("session_runs", {})
        self.bytes_used -= sum(len(frame) for _, frame in session.log)
        self.bytes_used -= sum(len(frame) for rows in session.tables.values() for frame in rows.values())
        heads = ended = 0
        if prefix[:-1] in self.shared["heads"]:
            self.change(session, "heads", prefix[:-1], None)
            heads = 1
        self.change(session, "locks", prefix[:-1], None)
        for key in runs:
            run = key[len(prefix) :]
            if run in self.shared["unfinished"]:
                self.session(prefix).tables.setdefault("session_runs", {})[key] = b""
            else:
                self.change(session, "runs", run, None)
                ended += 1
        return Deletion(
            records=len(session.log),
            heads=heads,
            checkpoints=len(session.tables.get("checkpoints", {})),
            memory=len(session.tables.get("memory", {})),
            runs=ended,
            letters=len(session.tables.get("letters", {})),
        )

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value under a key."""
        rows = self.shared.get(table)
        if rows is None:
            session = self.sessions.get(key[: key.index(b"\0") + 1])
            rows = {} if session is None else session.tables.get(table, {})
        return rows.get(key)

    def chunk(self, key: bytes) -> bytes | None:
        """None: every frame is in its row."""
        return None

    def last_number(self, prefix: bytes) -> int:
        """The number at the end of the last letter's key that begins so; -1 where there is none."""
        session = self.sessions.get(prefix[: prefix.index(b"\0") + 1])
        letters = {} if session is None else session.tables.get("letters", {})
        return max((keys.sequence_of(key) for key in letters if key.startswith(prefix)), default=-1)

    def rows(self, table: Table, after: bytes | None = None, limit: int | None = None) -> Rows:
        """Rows of a shared table whose keys follow `after`."""
        rows = self.shared[table]
        ordered = self._sorted.get(table)
        if ordered is None:
            ordered = self._sorted[table] = sorted(rows)
        start = 0 if after is None else bisect_right(ordered, after)
        return [(key, rows[key]) for key in ordered[start : None if limit is None else start + max(limit, 0)]]

    def session_rows(self, table: Table, prefix: bytes) -> Rows:
        """Rows of a table that belong to one session."""
        session = self.sessions.get(prefix)
        return [] if session is None else sorted(session.tables.get(table, {}).items())

    def last_sequence(self, prefix: bytes) -> int:
        """The sequence a session's log ends at; -1 where it is empty."""
        session = self.sessions.get(prefix)
        return -1 if session is None else len(session.log) - 1

    def log_rows(self, prefix: bytes, start: int, stop: int) -> Rows:
        """A session's log records with `start` <= sequence < `stop`."""
        session = self.sessions.get(prefix)
        return [] if session is None else session.log[start:stop]

    def newest_release(self) -> str:
        """Empty: whoever has written here has this release."""
        return ""
