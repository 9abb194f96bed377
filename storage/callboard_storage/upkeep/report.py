"""What upkeep tells: frozen models, which print as JSON."""

from __future__ import annotations

from callboard_protocol.base import Frozen

MOST_PROBLEMS = 1000
"""How many of one reader's problems a report holds."""


class Problem(Frozen):
    """Something in a store that is not as it should be.

    Attributes:
        table: where; empty for the file as a whole.
        key: the row, readable: a session and a sequence or a name, or a run; empty for the table as a whole.
        session_id: the session it belongs to, where that can be told.
        what: what is wrong.
    """

    table: str
    key: str = ""
    session_id: str | None = None
    what: str


class VerifyReport(Frozen):
    """What a walk through every row found.

    Attributes:
        path: the data directory.
        rows: rows walked, by table.
        sessions: sessions with a log.
        bytes_checked: bytes of keys and values walked.
        seconds: how long it took.
        problems: what is wrong, in the order it was found; at most 1,000 of each reader.
        more_problems: how many others there were.
        unreferenced_chunks: pieces of large values that nothing refers to: of a commit that is being written, or of one
            that was cut off. They are no damage, and `compact` removes the latter.
    """

    path: str
    rows: dict[str, int]
    sessions: int
    bytes_checked: int
    seconds: float
    problems: tuple[Problem, ...] = ()
    more_problems: int = 0
    unreferenced_chunks: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and not self.more_problems

    @property
    def bytes_per_second(self) -> float:
        """How fast it went."""
        return self.bytes_checked / self.seconds if self.seconds else 0.0


class CompactReport(Frozen):
    """What compaction gained.

    Attributes:
        path: the data directory.
        bytes_before: size of the data file before.
        bytes_after: its size now.
        rows: rows in all tables, compared one by one before the files were swapped.
        chunks_removed: pieces of large values that nothing referred to.
        seconds: how long it took.
    """

    path: str
    bytes_before: int
    bytes_after: int
    rows: int
    chunks_removed: int
    seconds: float


class MigrateReport(Frozen):
    """What migration did.

    Attributes:
        path: the data directory.
        is_migrated: whether there was anything to do.
        from_engine: the engine that had made the file.
        engine: this release's.
        from_format: the store format it had.
        format: this release's.
        rows: rows in all tables, compared one by one before the files were swapped.
        upgraded: those of them that an earlier schema had, rewritten as this release writes them.
        problems: those that could not be read, and were copied as they are; at most 1,000.
        more_problems: how many others there were.
        bytes_before: size of the data file before.
        bytes_after: its size now.
        seconds: how long it took.
    """

    path: str
    is_migrated: bool
    from_engine: str
    engine: str
    from_format: str
    format: str
    rows: int
    upgraded: int
    bytes_before: int
    bytes_after: int
    seconds: float
    problems: tuple[Problem, ...] = ()
    more_problems: int = 0

    @property
    def unreadable(self) -> int:
        """How many records could not be read."""
        return len(self.problems) + self.more_problems


class BackupReport(Frozen):
    """A backup that was made.

    Attributes:
        path: the directory it was made of.
        backup: where it is.
        bytes_written: size of the copy.
        digest: blake2b-256 of the copy, in hexadecimal.
        seconds: how long it took.
    """

    path: str
    backup: str
    bytes_written: int
    digest: str
    seconds: float


class RestoreReport(Frozen):
    """A backup that was put in place.

    Attributes:
        backup: where it came from.
        path: the data directory it is now.
        verified: what verifying the copy found, before it was put in place.
        seconds: how long it took.
    """

    backup: str
    path: str
    verified: VerifyReport
    seconds: float


class ExportReport(Frozen):
    """A session that was written out.

    Attributes:
        session_id: which.
        file: where.
        rows: rows written, by table.
        bytes_written: size of the file.
    """

    session_id: str
    file: str
    rows: dict[str, int]
    bytes_written: int


class ImportReport(Frozen):
    """A session that was read in.

    Attributes:
        session_id: under which id.
        runs: the new id of each of its runs, by the old one.
        rows: rows read, by table.
    """

    session_id: str
    runs: dict[str, str]
    rows: dict[str, int]


class StatsReport(Frozen):
    """What a data directory holds.

    Attributes:
        path: the data directory.
        sessions: sessions with a log.
        rows: rows by table.
        bytes_used: bytes of the pages that hold live rows.
        bytes_on_disk: size of the data file; what it has beyond `bytes_used` is reused, or given back by compaction.
        format: the store's format.
        engine: the engine that made it.
    """

    path: str
    sessions: int
    rows: dict[str, int]
    bytes_used: int
    bytes_on_disk: int
    format: str
    engine: str


class RetainReport(Frozen):
    """What retention removed.

    Attributes:
        removed: the sessions removed, the longest untouched first.
        entries: rows that were theirs.
        kept: how many sessions are left.
        in_use: sessions that were due, and stayed because a run of theirs has not ended.
        damaged: sessions that were left alone because where they stand cannot be read.
        dry_run: whether it only said what it would remove.
    """

    removed: tuple[str, ...]
    entries: int
    kept: int
    in_use: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    dry_run: bool = False
