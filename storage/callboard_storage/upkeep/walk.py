"""The walk through every row of a store, and what must hold of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast
from zlib import crc32

from callboard_protocol.amounts import Amount, total
from callboard_protocol.errors import CallboardError, DamagedRecordError
from callboard_protocol.letters import Letter, Posted
from callboard_protocol.named_accounts import AccountCharge, AccountDraw, AccountEntry
from callboard_protocol.records import LogRecord, Record, RunBegan, SessionRewound
from callboard_protocol.sessions import HeadFold, MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_protocol.states import UNFINISHED
from callboard_storage import account_rows, chunks, keys
from callboard_storage.batch import LATER_TABLES
from callboard_storage.fencing import OWNER_BYTES, holder_in
from callboard_storage.lmdb_transactions import ReadTransaction
from callboard_storage.upkeep.report import Problem

ModelT = TypeVar("ModelT")

TABLES = (
    "log",
    "heads",
    "checkpoints",
    "memory",
    "runs",
    "unfinished",
    "session_runs",
    "blobs",
    "locks",
    "letters",
    "arrivals",
    "accounts",
    "charges",
    "draws",
)

_ROWS_BETWEEN_REPORTS = 8192

_NESTED_BEGINS_WITHIN = 4096
"""A run within another's session begins at some record behind the one its entry names, between those of the other."""


class Walk:
    """A walk over one snapshot.

    Args:
        snapshot: what to walk.
        tables: the tables that are there.
        problem: told what is wrong.
        progress: told, now and then, how many bytes have been walked.

    Attributes:
        unreferenced: chunks met so far that no row refers to.
    """

    def __init__(
        self,
        snapshot: ReadTransaction,
        tables: Sequence[str],
        *,
        problem: Callable[[Problem], None],
        progress: Callable[[int], None],
    ) -> None:
        self._snapshot = snapshot
        self._tables = tables
        self._tell = problem
        self._progress = progress
        self._rows = 0
        self._bytes = 0
        self._done = 0
        self._sessions = 0
        self._is_whole = True
        self._places: set[bytes] | None = None
        self.unreferenced = 0

    def check(self, table: str, shard: int = 0, shards: int = 1) -> tuple[int, int, int]:
        """Walk a table; returns its rows, their bytes and, for the log, how many sessions they belong to.

        Args:
            table: which.
            shard: which share of the log's sessions to walk; the first also looks after the table as a whole.
            shards: into how many shares they are divided.
        """
        self._rows = self._bytes = self._sessions = 0
        self._is_whole = shard == 0 or table != "log"
        if table not in self._tables:
            if self._is_whole and not self._is_still_to_come(table):
                self._tell(Problem(table=table, what="is missing"))
            return 0, 0, 0
        if table == "log":
            self._check_log(shard, shards)
        else:
            checks = {
                "heads": self._check_head,
                "checkpoints": self._check_checkpoint,
                "memory": self._check_memory,
                "runs": self._check_run,
                "unfinished": self._check_unfinished,
                "session_runs": self._check_session_run,
                "locks": self._check_lock,
                "blobs": self._check_chunk,
                "letters": self._check_letter,
                "arrivals": self._check_arrival,
                "accounts": self._check_account,
                "charges": self._check_charge,
                "draws": self._check_draw,
            }
            for key, value in self._each(table):
                checks[table](key, value)
        return self._rows, self._bytes, self._sessions

    def _is_still_to_come(self, table: str) -> bool:
        """Whether no release that knows a table has opened the directory yet: neither it nor any that came later is
        there, nor any of a newer release.
        """
        if table not in LATER_TABLES:
            return False
        earlier = {*TABLES, "meta"}.difference(LATER_TABLES[LATER_TABLES.index(table) :])
        return earlier.issuperset(self._tables)

    def _each(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        yield from self._counted(table, self._snapshot.each(table))
        self._expect(table, self._rows)

    def _each_of_share(self, shard: int, shards: int) -> Iterator[tuple[bytes, bytes]]:
        """The log's rows of one share of the sessions; the others are jumped over."""
        if shard == 0:
            self._expect("log", self._snapshot.count_keys("log"))
        return self._counted("log", self._snapshot.each_of("log", lambda prefix: crc32(prefix) % shards == shard))

    def _expect(self, table: str, rows: int) -> None:
        expected = self._snapshot.entries(table)
        if rows != expected:
            self._whole(table, f"has {rows} rows, it should have {expected}")

    def _counted(self, table: str, rows: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        before = b""
        for row in rows:
            key, value = row
            if key <= before:
                # Pages that point back would lead round in circles.
                self._whole(table, f"is out of order behind {keys.readable(table, before)}; the rest was not read")
                return
            before = key
            self._rows += 1
            self._bytes += len(key) + len(value)
            if self._rows % _ROWS_BETWEEN_REPORTS == 0:
                self._progress(self._done + self._bytes)
            yield row
        self._done += self._bytes

    def _whole(self, table: str, what: str) -> None:
        if self._is_whole:
            self._tell(Problem(table=table, what=what))

    def _wrong(self, table: str, key: bytes, what: str, session: bytes | None = None) -> None:
        session_id = None if session is None else session.decode(errors="replace")
        self._tell(Problem(table=table, key=keys.readable(table, key), session_id=session_id, what=what))

    def _decoded(
        self, table: str, key: bytes, frame: bytes, model: type[ModelT], session: bytes | None
    ) -> ModelT | None:
        try:
            return chunks.read(self._snapshot, table, key, frame, model)
        except CallboardError as error:
            self._wrong(table, key, error.message, session)
            return None

    def _check_log(self, shard: int, shards: int) -> None:
        current: _SessionLog | None = None
        prefix = b""
        for key, frame in self._each("log") if shards == 1 else self._each_of_share(shard, shards):
            if len(key) != len(prefix) + 8 or not key.startswith(prefix) or not prefix:
                if current is not None:
                    current.finish()
                    current = None
                behind = key.find(b"\0") + 1
                prefix = key[:behind]
                if len(key) != behind + 8 or behind < 2:
                    prefix = b""
                    self._wrong("log", key, "has a key that no session's record has")
                    continue
                self._sessions += 1
                current = self._begin(prefix)
            if current is not None:
                current.add(key, frame)
        if current is not None:
            current.finish()

    def _begin(self, prefix: bytes) -> _SessionLog:
        session = prefix[:-1]
        stored: SessionHead | None = None
        frame = self._snapshot.get("heads", session) if "heads" in self._tables else None
        if frame is not None:
            stored = self._decoded("heads", session, frame, SessionHead, session)
        return _SessionLog(session, stored, self._decoded, self._wrong)

    def _check_head(self, key: bytes, frame: bytes) -> None:
        """A head with a log was held against it there; what is left are heads without one."""
        if "log" in self._tables and self._snapshot.last_sequence(key + b"\0") >= 0:
            return
        head = self._decoded("heads", key, frame, SessionHead, key)
        if head is not None and (head.next_sequence or head.session_id.encode() != key):
            self._wrong("heads", key, f"stands at sequence {head.next_sequence}, but the session has no log", key)

    def _check_checkpoint(self, key: bytes, frame: bytes) -> None:
        session, name = _split(key)
        found = self._decoded("checkpoints", key, frame, SessionCheckpoint, session)
        if found is None:
            return
        if (found.session_id.encode(), found.checkpoint_id.encode()) != (session, name):
            self._wrong("checkpoints", key, "is the checkpoint of something else", session)
        last = self._snapshot.last_sequence(session + b"\0") if "log" in self._tables else -1
        if found.log_position > last:
            self._wrong("checkpoints", key, f"stands at {found.log_position}, but the log ends at {last}", session)

    def _check_memory(self, key: bytes, frame: bytes) -> None:
        session, name = _split(key)
        found = self._decoded("memory", key, frame, MemoryEntry, session)
        if found is not None and found.name.encode() != name:
            self._wrong("memory", key, f"is the entry {found.name!r}", session)

    def _check_run(self, key: bytes, frame: bytes) -> None:
        entry = self._decoded("runs", key, frame, RunEntry, None)
        if entry is None:
            return
        session = entry.session_id.encode()
        if entry.run_id.encode() != key:
            self._wrong("runs", key, f"is the run {entry.run_id!r}", session)
        if "unfinished" in self._tables:
            is_indexed = self._snapshot.get("unfinished", key) is not None
            if is_indexed != (entry.state in UNFINISHED):
                how = "is in the index of unfinished runs" if is_indexed else "is not in the index of unfinished runs"
                self._wrong("runs", key, f"is {entry.state} and {how}", session)
        if "session_runs" in self._tables and self._snapshot.get("session_runs", session + b"\0" + key) is None:
            self._wrong("runs", key, "is not among its session's runs", session)
        if entry.began_sequence is not None and "log" in self._tables:
            self._check_beginning(entry, key, session)

    def _check_beginning(self, entry: RunEntry, key: bytes, session: bytes) -> None:
        at = cast(int, entry.began_sequence)
        is_nested = entry.request.parent_run_id is not None
        try:
            for row in self._snapshot.log_rows(session + b"\0", at, at + (_NESTED_BEGINS_WITHIN if is_nested else 1)):
                first = chunks.read(self._snapshot, "log", *row, Record)
                if isinstance(first, RunBegan | SessionRewound) and first.run_id == entry.run_id:
                    return
        except DamagedRecordError:
            return  # told with the log
        else:
            self._wrong("runs", key, f"began at sequence {at}, where its first record is not", session)

    def _check_unfinished(self, key: bytes, value: bytes) -> None:
        if "runs" in self._tables and self._snapshot.get("runs", key) is None:
            self._wrong("unfinished", key, "names a run that is not there")
        if len(value) != OWNER_BYTES:
            self._wrong("unfinished", key, "does not name an owner")

    def _check_lock(self, key: bytes, value: bytes) -> None:
        holder = holder_in(value)
        if holder is None or not holder.token:
            self._wrong("locks", key, "does not name a holder", key)

    def _check_letter(self, key: bytes, frame: bytes) -> None:
        session, _ = _split(key)
        letter = self._decoded("letters", key, frame, Posted, session)
        if letter is None:
            return
        if keys.letter_key(session + b"\0", cast(Letter, letter)) != key:
            self._wrong("letters", key, "is kept under another letter's key", session)
        if "unfinished" in self._tables and self._snapshot.get("unfinished", letter.run_id.encode()) is None:
            self._wrong("letters", key, f"is for run {letter.run_id!r}, which has ended", session)

    def _check_arrival(self, key: bytes, _: bytes) -> None:
        if len(key) != keys.SEQUENCE_BYTES:
            self._wrong("arrivals", key, "is not under a number")

    def _check_account(self, key: bytes, frame: bytes) -> None:
        account = self._decoded("accounts", key, frame, AccountEntry, None)
        if account is not None and keys.account_key(account.name) != key:
            self._wrong("accounts", key, f"is the account {account.name!r}")
        if account is None or "draws" not in self._tables:
            return
        try:
            draws = list(account_rows.draws(self._snapshot, account.name))
        except DamagedRecordError:
            return  # told with the draws
        for what in ("used", "reserved"):
            there = total(Amount(*getattr(draw, what)) for draw in draws)
            if there != getattr(account, what):
                self._wrong("accounts", key, f"has {getattr(account, what)} as {what}, and its runs' draws {(*there,)}")

    def _check_charge(self, key: bytes, frame: bytes) -> None:
        charge = self._decoded("charges", key, frame, AccountCharge, None)
        if charge is not None and keys.charge_key(charge) != key:
            self._wrong("charges", key, "is kept under another charge's key")

    def _check_draw(self, key: bytes, frame: bytes) -> None:
        draw = self._decoded("draws", key, frame, AccountDraw, None)
        if draw is not None and keys.draw_key(draw.account, draw.run_id) != key:
            self._wrong("draws", key, "is kept under another draw's key")

    def _check_session_run(self, key: bytes, value: bytes) -> None:
        session, run = _split(key)
        frame = self._snapshot.get("runs", run) if "runs" in self._tables else None
        if frame is None:
            self._wrong("session_runs", key, "names a run that is not there", session)
            return
        try:
            entry = chunks.read(self._snapshot, "runs", run, frame, RunEntry)
        except DamagedRecordError:
            return  # told with the runs
        if entry.session_id.encode() != session:
            self._wrong("session_runs", key, f"names a run of session {entry.session_id!r}", session)
        if value:
            self._wrong("session_runs", key, "holds a value", session)

    def _check_chunk(self, key: bytes, _: bytes) -> None:
        """Chunks that are referred to were read with their rows; what is left are those that are not."""
        if self._places is None:
            self._places = chunks.places(self._snapshot, [one for one in chunks.HOLDING_TABLES if one in self._tables])
        self.unreferenced += keys.place_of_chunk(key) not in self._places


class _SessionLog:
    """One session's log, held against its head."""

    __slots__ = ("_decoded", "_fold", "_next", "_session", "_stored", "_wrong")

    def __init__(
        self,
        session: bytes,
        stored: SessionHead | None,
        decoded: Callable[[str, bytes, bytes, type[Record], bytes | None], Record | None],
        wrong: Callable[[str, bytes, str, bytes | None], None],
    ) -> None:
        self._session = session
        self._stored = stored
        self._decoded = decoded
        self._wrong = wrong
        self._next = 0
        base = SessionHead(session_id=session.decode(errors="replace"), fence=stored.fence if stored else 0)
        self._fold: HeadFold | None = HeadFold(base)

    def add(self, key: bytes, frame: bytes) -> None:
        """Take the next row in."""
        sequence = keys.sequence_of(key)
        if sequence != self._next:
            self._wrong("log", key, f"is where record {self._next} should be", self._session)
            self._fold = None
        self._compare()
        self._next = sequence + 1
        record = self._decoded("log", key, frame, Record, self._session)
        if record is None:
            self._fold = None
        elif self._fold is not None:
            self._fold.add(sequence, cast(LogRecord, record))

    def finish(self) -> None:
        """The log ends here."""
        if self._stored is not None and self._stored.next_sequence > self._next:
            what = f"stands at sequence {self._stored.next_sequence}, but the log ends at {self._next - 1}"
            self._wrong("heads", self._session, what, self._session)
        else:
            self._compare()

    def _compare(self) -> None:
        stored, fold = self._stored, self._fold
        if stored is None or fold is None or stored.next_sequence != self._next:
            return
        self._stored = None
        if fold.head() != stored:
            expected = fold.head()
            differing = [name for name in SessionHead.model_fields if getattr(stored, name) != getattr(expected, name)]
            what = f"is not the fold of its log: {', '.join(differing)}"
            self._wrong("heads", self._session, what, self._session)


def _split(key: bytes) -> tuple[bytes, bytes]:
    session, _, name = key.partition(b"\0")
    return session, name
