"""The store in memory: the same promises over the same frames, bar the disk.

What cannot persist fails here as it would on disk, because everything is encoded and decoded by the same codec. An
acknowledgement comes in a later turn of the loop, never inside `commit`, so code that works here does not learn to
rely on an answer that a disk cannot give.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from callboard_protocol.base import build_models
from callboard_protocol.drawing import DrawChange, Drawn
from callboard_protocol.errors import CallboardError, DamagedRecordError, StoreClosedError
from callboard_protocol.letters import Letter
from callboard_protocol.named_accounts import AccountEntry
from callboard_protocol.runs import RunBudget
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_storage import account_rows, keys, overtaking, posting, reading
from callboard_storage.acknowledgements import Answer, deliver
from callboard_storage.batch import FrameBatch
from callboard_storage.fencing import (
    NOBODY,
    OWNER_BYTES,
    Holder,
    Refusals,
    Verdict,
    check_shape,
    claimable,
    expected_token,
    holder_in,
    judge,
    own,
    owned,
    refuse_if_locked,
)
from callboard_storage.memory_tables import MemorySession, MemoryTables
from callboard_storage.quarantine import Quarantine
from callboard_storage.room import Room, Space, check_limits
from callboard_storage.store import Batch
from callboard_storage.store_values import (
    Acknowledge,
    Arrivals,
    Deletion,
    Fence,
    Lease,
    QuarantinedRecord,
    StoredRecord,
    StoreFigures,
    WriteStall,
)

ResultT = TypeVar("ResultT")


class MemoryStore:
    """A `Store` whose contents last as long as the object. It may be closed and opened again, and shared by loops.

    Args:
        max_bytes: how many bytes of frames it may hold; None is no limit. Part of them is kept for outcomes.

    Raises:
        UsageError: `max_bytes` is too small to work with.
    """

    def __init__(self, *, max_bytes: int | None = None) -> None:
        check_limits(max_bytes, None)
        self._tables = MemoryTables()
        self._room = Room(max_bytes, 0)
        self._is_bounded = max_bytes is not None
        self._refusals = Refusals()
        self._answers: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
        self._lock = threading.Lock()
        self._owner = b""
        self._last_token = 0
        self._commits = 0
        self._batches = 0
        self._quarantine = Quarantine()
        self._measure()

    async def open(self) -> None:
        """Open it; nothing can fail."""
        build_models()
        self._owner = self._owner or secrets.token_bytes(OWNER_BYTES)

    async def close(self) -> None:
        """Close it; what it holds stays."""
        self._owner = b""

    def lease(self) -> Lease:
        """A lease for one session."""
        self._check_open()
        return Lease(self._owner)

    def batch(self, session_id: str) -> FrameBatch:
        """An empty batch for one session."""
        return FrameBatch(session_id, self._owner)

    def commit(
        self, batch: Batch, fence: Fence | None, loop: asyncio.AbstractEventLoop, acknowledge: Acknowledge
    ) -> None:
        """Write the batch; the acknowledgement comes in a later turn of `loop`, one turn for a burst of commits."""
        self._check_open()
        frames = check_shape(batch, fence, self._owner)
        if frames.large:
            frames = frames.with_frames([large.whole() for large in frames.large])
        with self._lock:
            self._check_open()
            self._quarantine.written(frames)
            error = self._take(frames, fence)
            answers = self._answers.get(loop)
            if answers is None:
                answers = self._answers[loop] = []
                self._schedule(loop)
            answers.append((frames.committer, acknowledge, error))

    @property
    def has_room(self) -> bool:
        """Whether work may begin."""
        return self._room.has_room

    async def find_room(self) -> bool:
        """The same: it is always up to date."""
        return self._room.has_room

    async def read_head(self, session_id: str) -> SessionHead | None:
        """Where a session stands."""
        return self._read(lambda tables: reading.head(tables, session_id, self._quarantine.add))

    async def read_log(
        self, session_id: str, *, start: int = 0, stop: int | None = None, limit: int | None = None
    ) -> Sequence[StoredRecord]:
        """Records of a session's log."""
        return self._read(
            lambda tables: reading.log(
                tables, session_id, *reading.log_range(tables, session_id, start, stop, limit, self._quarantine.add)
            )
        )

    async def read_run(self, run_id: str) -> RunEntry | None:
        """A run's entry."""
        return self._read(lambda tables: reading.run(tables, run_id))

    async def read_unfinished(self, session_id: str | None = None) -> Sequence[RunEntry]:
        """The entries of all runs that have not ended."""
        return self._read(lambda tables: reading.unfinished(tables, session_id, self._quarantine.add))

    async def read_letters(self, session_id: str, run_id: str) -> Sequence[Letter]:
        """The letters posted to a run that it has not taken in."""
        return self._read(lambda tables: reading.letters(tables, session_id, run_id))

    async def read_arrivals(self, after: int | None) -> Arrivals:
        """Nothing ever arrives from elsewhere: there is nobody else."""
        return Arrivals(0, frozenset())

    async def read_claimable(self) -> Sequence[RunEntry]:
        """The entries of unfinished runs: they belong to whoever has the store open."""
        return await self.read_unfinished()

    async def claim_unfinished(self, run_ids: Collection[str] | None = None) -> Sequence[RunEntry]:
        """The entries of unfinished runs: they belong to whoever has the store open."""
        with self._lock:
            tables = self._snapshot()
            claimed = claimable(reading.owners_of_unfinished(tables, run_ids), self._owner, self._is_alive)
            tables.shared["unfinished"].update(dict.fromkeys(claimed, self._owner))
        return reading.unfinished(tables, None, self._quarantine.add, set(claimed))

    async def release_unfinished(self, run_ids: Collection[str]) -> Collection[str]:
        """Give up unfinished runs."""
        with self._lock:
            tables = self._snapshot()
            released = owned(reading.owners_of_unfinished(tables, run_ids), self._owner)
            tables.shared["unfinished"].update(dict.fromkeys(released, NOBODY))
        return {key.decode() for key in released}

    @property
    def has_company(self) -> bool:
        """Never: there are no others."""
        return False

    async def others_died(self) -> bool:
        """Never: there are no others."""
        return False

    async def carried_elsewhere(self, run_id: str) -> bool:
        """Never: there are no others."""
        return False

    async def held_elsewhere(self, session_id: str) -> bool:
        """Whether a session is in other hands than those that have this store open now."""
        return reading.is_held_elsewhere(
            self._snapshot(), session_id, self._owner, self._is_alive, self._quarantine.add
        )

    async def keep_account(self, name: str, budget: RunBudget | None, *, opens: bool = False) -> AccountEntry | None:
        """Give an account a budget, and bring its entry up to date."""
        drawn = self._change_account(
            lambda tables: account_rows.kept(tables, name, budget, time.time(), opens=opens, is_alive=self._is_alive)
        )
        return None if drawn is None else drawn.entry

    async def draw(self, name: str, changes: Sequence[DrawChange], *, for_the_dead: bool = False) -> Drawn | None:
        """Change what runs draw on an account."""
        is_alive = self._is_alive if for_the_dead else None
        return self._change_account(lambda tables: account_rows.drawn(tables, name, changes, self._owner, is_alive))

    def _change_account(self, ask: Callable[[MemoryTables], account_rows.AccountChanges | None]) -> Drawn | None:
        with self._lock:
            tables = self._snapshot()
            changes = ask(tables)
            if changes is None:
                return None
            for change in changes.rows:
                tables.share(*change)
            self._measure()
            return changes.drawn

    async def read_account(self, name: str) -> AccountEntry | None:
        """An account, with all charges to it taken in."""
        return self._read(lambda tables: account_rows.read(tables, name))

    async def list_accounts(self) -> Sequence[str]:
        """The names of all accounts."""
        return self._read(account_rows.names)

    async def delete_account(self, name: str) -> bool:
        """Remove an account, the charges to it, and what runs draw on it."""
        with self._lock:
            tables = self._snapshot()
            key, prefix = keys.account_key(name), keys.account_prefix(name)
            was_there = tables.get("accounts", key) is not None
            for table in ("charges", "draws"):
                for row in [one for one in tables.shared[table] if one.startswith(prefix)]:
                    tables.share(table, row, None)
            tables.share("accounts", key, None)
            self._measure()
            return was_there

    async def list_runs(self, *, after: str | None = None, limit: int = 1000) -> Sequence[RunEntry]:
        """Runs in the order of their ids."""
        return self._read(lambda tables: reading.runs(tables, after, limit, self._quarantine.add))

    async def list_sessions(self, *, after: str | None = None, limit: int = 1000) -> Sequence[str]:
        """Ids of sessions with a head."""
        return self._read(lambda tables: reading.session_ids(tables, after, limit))

    async def read_checkpoints(self, session_id: str) -> Sequence[SessionCheckpoint]:
        """The session's stored checkpoints."""
        return self._read(lambda tables: reading.checkpoints(tables, session_id, self._quarantine.add))

    async def read_checkpoint(self, session_id: str, checkpoint_id: str) -> SessionCheckpoint | None:
        """One of the session's stored checkpoints."""
        return self._read(lambda tables: reading.checkpoint(tables, session_id, checkpoint_id))

    async def copy_log(self, source: str, batch: Batch, *, through: int) -> None:
        """Have an empty batch begin its session's log with a copy of another session's."""
        frames = own(batch)
        frames.append_copied(
            self._read(lambda tables: reading.copied_log(tables, source, frames.session_id, through + 1))
        )

    async def read_memory(self, session_id: str) -> Sequence[MemoryEntry]:
        """All entries of a session's memory."""
        return self._read(lambda tables: reading.memory(tables, session_id))

    def quarantined(self) -> Sequence[QuarantinedRecord]:
        """What it has found that cannot be read."""
        return self._quarantine.records()

    def stalled(self) -> WriteStall | None:
        """Nothing keeps memory waiting."""
        return None

    def watch_quarantine(self, told: Callable[[QuarantinedRecord], None]) -> Callable[[], None]:
        """Have `told` called with each record that is found from now on."""
        return self._quarantine.watch(told)

    async def delete_session(self, session_id: str) -> Deletion:
        """Remove a session."""
        prefix = keys.session_prefix(session_id)
        with self._lock:
            self._check_open()
            refuse_if_locked(session_id, holder_in(self._tables.get("locks", prefix[:-1])), self._is_alive)
            deletion = self._tables.delete_session(prefix)
            self._quarantine.deleted(session_id, lambda run_id: keys.run_key(run_id) in self._tables.shared["runs"])
            self._measure()
            return deletion

    async def figures(self) -> StoreFigures:
        """What it holds."""
        tables = self._snapshot()
        return StoreFigures(
            sessions=sum(1 for session in tables.sessions.values() if session.log),
            runs=len(tables.shared["runs"]),
            unfinished=len(tables.shared["unfinished"]),
            records=sum(len(session.log) for session in tables.sessions.values()),
            bytes_used=tables.bytes_used,
            bytes_on_disk=0,
            commits=self._commits,
            batches=self._batches,
        )

    def _check_open(self) -> None:
        if not self._owner:
            raise StoreClosedError("the store is not open")

    def _snapshot(self) -> MemoryTables:
        self._check_open()
        return self._tables

    def _read(self, work: Callable[[MemoryTables], ResultT]) -> ResultT:
        try:
            return work(self._snapshot())
        except DamagedRecordError as error:
            self._quarantine.add(error)
            raise

    def _take(self, batch: FrameBatch, fence: Fence | None) -> CallboardError | None:
        session = self._tables.session(batch.prefix)
        if fence is not None:
            if self._refusals:
                standing = self._refusals.standing(batch.committer, self._refusals.stamp)
                if standing is not None:
                    return standing
            if fence.follows != len(session.log) - 1 or session.token != expected_token(fence):
                verdict = judge(
                    batch,
                    fence,
                    len(session.log) - 1,
                    holder_in(self._tables.get("locks", batch.prefix[:-1])),
                    is_alive=self._is_alive,
                    frame_at=lambda key: session.log[keys.sequence_of(key)][1],
                )
                if verdict is Verdict.REPLAY:
                    return None
                if verdict is not Verdict.WRITE:
                    self._refusals.refuse(batch.committer, verdict)
                    return verdict
        refusal = self._refusal(batch)
        if refusal is not None:
            if fence is not None:
                self._refusals.refuse(batch.committer, refusal)
            return refusal
        if fence is not None and fence.lease is not None and (fence.takes or fence.gives):
            self._pass_lock(batch, session, fence.lease, gives=fence.gives)
        session.log += batch.log
        self._tables.change_all(session, batch)
        self._tables.bytes_used += batch.log_size
        self._commits += 1
        self._batches += 1
        self._measure()
        return None

    def _refusal(self, batch: FrameBatch) -> CallboardError | None:
        """Why a batch is not written whose fence holds; None if it is."""
        refusal: CallboardError | None = self._room.refusal(batch) if self._is_bounded else None
        if refusal is None and batch.posted:
            refusal = posting.refusal(batch, self._tables.get, self._tables.last_number)
        if refusal is None and batch.seen:
            refusal = overtaking.refusal(batch, self._tables, self._is_alive)
        return refusal

    def _pass_lock(self, batch: FrameBatch, session: MemorySession, lease: Lease, *, gives: bool) -> None:
        """Take the session's lock with a batch that is written, or give it back."""
        key = batch.prefix[:-1]
        if gives:
            self._tables.change(session, "locks", key, None)
            lease.token = session.token = 0
        elif holder_in(self._tables.get("locks", key)) != (lease.token, lease.owner):
            lease.token = session.token = self._last_token = self._last_token + 1
            self._tables.change(session, "locks", key, Holder(lease.token, lease.owner).pack())

    def _is_alive(self, owner: bytes) -> bool:
        return owner == self._owner

    def _measure(self) -> None:
        if self._is_bounded:
            self._room.measured(Space(self._tables.bytes_used, left=sys.maxsize), time.monotonic())

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        (loop.call_soon if here else loop.call_soon_threadsafe)(self._deliver, loop)

    def _deliver(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            answers = self._answers.pop(loop)
        deliver(loop, self._refusals, answers)
        if self._refusals:
            self._refusals.forget_delivered()
