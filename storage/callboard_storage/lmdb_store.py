"""The store on disk: LMDB, one writer thread, one thread for long reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from callboard_protocol.drawing import DrawChange, Drawn
from callboard_protocol.letters import Letter
from callboard_protocol.named_accounts import AccountEntry
from callboard_protocol.runs import RunBudget
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_storage import account_rows, keys, reading
from callboard_storage.batch import FrameBatch
from callboard_storage.deletion import delete_rows
from callboard_storage.fencing import NOBODY, check_shape, claimable, own, owned
from callboard_storage.lmdb_access import LmdbAccess
from callboard_storage.lmdb_transactions import ReadTransaction, WriteTransaction
from callboard_storage.store import Batch
from callboard_storage.store_values import (
    RECORDS_READ_ON_LOOP,
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
from callboard_storage.uploads import Upload
from callboard_storage.write_queue import Commit

ResultT = TypeVar("ResultT")


class LmdbStore(LmdbAccess):
    """A `Store` in a data directory.

    Args:
        path: the directory; made if it is not there. Every store of a process on one directory shares it.
        map_size: bytes of address space to map; None tries 1 TiB and halves that down to 64 GiB.
        verify_first: have another process read everything before the directory is opened, and refuse one whose pages
            are damaged: LMDB trusts its pages, so one of them could end this process. Damaged records are only logged,
            as reading one is an error and no danger. Takes as long as `callboard store verify` does.
        max_bytes: how many bytes of live data it may hold; None is no limit. Past three quarters of that (or 64 MiB
            before it) commits that begin work are refused with `StoreFullError`: the rest is kept for outcomes.
        min_free_bytes: how much must be left to write (on its disk, under RLIMIT_FSIZE, in the map) for work to begin.
        kind_of_file_system: tells a path's file system type; the system's own answer where None.

    Raises:
        UsageError: a limit is too small to work with.
    """

    def lease(self) -> Lease:
        """A lease for one session."""
        return Lease(self._own_id)

    def batch(self, session_id: str) -> FrameBatch:
        """An empty batch for one session."""
        return FrameBatch(session_id, b"" if self._owner is None else self._owner.id)

    def commit(
        self, batch: Batch, fence: Fence | None, loop: asyncio.AbstractEventLoop, acknowledge: Acknowledge
    ) -> None:
        """Put the batch in line for the next transaction."""
        directory = self._opened()
        frames = check_shape(batch, fence, self._own_id)
        self._quarantine.written(frames)
        upload = Upload(frames) if frames.large else None
        directory.queue.put(Commit(frames, fence, loop, acknowledge, directory.refusals.stamp, upload))

    @property
    def has_room(self) -> bool:
        """Whether work may begin, as the writer found it last."""
        directory = self._directory
        return directory is None or directory.room.has_room

    async def find_room(self) -> bool:
        """Have the writer look."""
        directory = self._opened()
        if not directory.room.has_room:
            await self._operate("", lambda _: None)
        return directory.room.has_room

    async def read_head(self, session_id: str) -> SessionHead | None:
        """Where a session stands."""

        def head_or_lag(snapshot: ReadTransaction) -> SessionHead | int | None:
            stored, lag = reading.stored_head(snapshot, session_id, self._quarantine.add)
            if stored is None:
                return None
            return lag if lag > RECORDS_READ_ON_LOOP else reading.catch_up(snapshot, stored, lag)

        found = await self._read(head_or_lag)
        if isinstance(found, int):
            return await self._read_on_thread(lambda snapshot: reading.head(snapshot, session_id, self._quarantine.add))
        return found

    async def read_log(
        self, session_id: str, *, start: int = 0, stop: int | None = None, limit: int | None = None
    ) -> Sequence[StoredRecord]:
        """Records of a session's log."""

        def records_or_range(snapshot: ReadTransaction) -> list[StoredRecord] | tuple[int, int]:
            first, behind = reading.log_range(snapshot, session_id, start, stop, limit, self._quarantine.add)
            if behind - first > RECORDS_READ_ON_LOOP:
                return first, behind
            return reading.log(snapshot, session_id, first, behind)

        found = await self._read(records_or_range)
        if isinstance(found, list):
            return found
        first, behind = found
        return await self._read_on_thread(lambda snapshot: reading.log(snapshot, session_id, first, behind))

    async def read_run(self, run_id: str) -> RunEntry | None:
        """A run's entry."""
        return await self._read(lambda snapshot: reading.run(snapshot, run_id))

    async def read_unfinished(self, session_id: str | None = None) -> Sequence[RunEntry]:
        """The entries of all runs that have not ended."""
        return await self._read_on_thread(
            lambda snapshot: reading.unfinished(snapshot, session_id, self._quarantine.add)
        )

    async def read_letters(self, session_id: str, run_id: str) -> Sequence[Letter]:
        """The letters posted to a run that it has not taken in."""
        return await self._read(lambda snapshot: reading.letters(snapshot, session_id, run_id))

    async def read_arrivals(self, after: int | None) -> Arrivals:
        """Which runs have been posted letters to."""
        number, rows = self._read_here(lambda snapshot: snapshot.arrivals(after))
        is_whole = after is None or len(rows) == number - after
        return Arrivals(number, frozenset(run.decode() for _, run in rows) if is_whole else None)

    async def read_claimable(self) -> Sequence[RunEntry]:
        """The entries of unfinished runs that are this open store's, or nobody's who is alive."""
        is_alive, own = self._opened().owners.is_alive, self._own_id

        def claimed(snapshot: ReadTransaction) -> list[RunEntry]:
            rows = reading.owners_of_unfinished(snapshot)
            return reading.unfinished(snapshot, None, self._quarantine.add, set(claimable(rows, own, is_alive)))

        return await self._read_on_thread(claimed)

    async def claim_unfinished(self, run_ids: Collection[str] | None = None) -> Sequence[RunEntry]:
        """The entries of unfinished runs that are this open store's, those of the dead included."""
        directory, own = self._opened(), self._own_id
        # Looked at first: who dies later is missed by nobody, because `others_died` remembers them.
        self._seen_alive |= directory.owners.living()
        self._seen_unclaimed.clear()

        def claim(transaction: WriteTransaction) -> set[bytes]:
            rows = reading.owners_of_unfinished(transaction.snapshot(), run_ids)
            claimed = claimable(rows, own, directory.owners.is_alive)
            transaction.write("unfinished", [(key, own) for key in claimed])
            return set(claimed)

        claimed = await self._operate("", claim)
        return await self._read_on_thread(
            lambda snapshot: reading.unfinished(snapshot, None, self._quarantine.add, claimed)
        )

    async def release_unfinished(self, run_ids: Collection[str]) -> Collection[str]:
        """Give up unfinished runs that are this open store's."""
        own = self._own_id

        def release(transaction: WriteTransaction) -> list[bytes]:
            released = owned(reading.owners_of_unfinished(transaction.snapshot(), run_ids), own)
            transaction.write("unfinished", [(key, NOBODY) for key in released])
            return released

        released = await self._operate("", release)
        self._seen_unclaimed.update(released)
        return {key.decode() for key in released}

    @property
    def has_company(self) -> bool:
        """Whether others had it open at the last look."""
        return not self._seen_alive <= {self._own_id}

    async def others_died(self) -> bool:
        """Whether there may be runs to claim that there were not."""
        rows = await self._read_on_thread(reading.owners_of_unfinished)
        living = self._opened().owners.living()
        have_died = not self._seen_alive <= living
        self._seen_alive = living
        # Who came and died between two looks was never seen alive; what it left names it all the same.
        unclaimed = {key for key, owner in rows if owner not in living}
        are_more = not unclaimed <= self._seen_unclaimed
        self._seen_unclaimed = unclaimed
        return have_died or are_more

    async def carried_elsewhere(self, run_id: str) -> bool:
        """Whether a run has not ended and is another open store's, which is alive."""
        is_alive, own = self._opened().owners.is_alive, self._own_id
        owners = self._read_here(lambda snapshot: reading.owners_of_unfinished(snapshot, [run_id]))
        return any(owner != own and is_alive(owner) for _, owner in owners)

    async def held_elsewhere(self, session_id: str) -> bool:
        """Whether a session is in other hands than this open store's."""
        is_alive, own_id = self._opened().owners.is_alive, self._own_id
        set_aside = self._quarantine.add
        return self._read_here(
            lambda snapshot: reading.is_held_elsewhere(snapshot, session_id, own_id, is_alive, set_aside)
        )

    async def keep_account(self, name: str, budget: RunBudget | None, *, opens: bool = False) -> AccountEntry | None:
        """Give an account a budget, and bring its entry up to date."""
        is_alive = self._opened().owners.is_alive
        drawn = await self._change_account(
            lambda snapshot: account_rows.kept(snapshot, name, budget, time.time(), opens=opens, is_alive=is_alive)
        )
        return None if drawn is None else drawn.entry

    async def draw(self, name: str, changes: Sequence[DrawChange], *, for_the_dead: bool = False) -> Drawn | None:
        """Change what runs draw on an account."""
        owner, is_alive = self._own_id, self._opened().owners.is_alive if for_the_dead else None
        return await self._change_account(lambda snapshot: account_rows.drawn(snapshot, name, changes, owner, is_alive))

    async def _change_account(
        self, ask: Callable[[reading.Snapshot], account_rows.AccountChanges | None]
    ) -> Drawn | None:
        def work(transaction: WriteTransaction) -> Drawn | None:
            changes = ask(transaction.snapshot())
            if changes is None:
                return None
            for table, key, value in changes.rows:
                if value is None:
                    transaction.delete(table, key)
                else:
                    transaction.write(table, [(key, value)])
            return changes.drawn

        return await self._operate("", work)

    async def read_account(self, name: str) -> AccountEntry | None:
        """An account, with all charges to it taken in."""
        return await self._read_on_thread(lambda snapshot: account_rows.read(snapshot, name))

    async def list_accounts(self) -> Sequence[str]:
        """The names of all accounts."""
        return await self._read_on_thread(account_rows.names)

    async def delete_account(self, name: str) -> bool:
        """Remove an account, the charges to it, and what runs draw on it."""

        def delete(transaction: WriteTransaction) -> bool:
            for table in ("charges", "draws"):
                transaction.delete_prefix(table, keys.account_prefix(name))
            return transaction.delete("accounts", keys.account_key(name))

        return await self._operate("", delete)

    async def list_runs(self, *, after: str | None = None, limit: int = 1000) -> Sequence[RunEntry]:
        """Runs in the order of their ids."""
        aside = self._quarantine.add
        return await self._read_anywhere(limit, lambda snapshot: reading.runs(snapshot, after, limit, aside))

    async def list_sessions(self, *, after: str | None = None, limit: int = 1000) -> Sequence[str]:
        """Ids of sessions with a head."""
        return await self._read_anywhere(limit, lambda snapshot: reading.session_ids(snapshot, after, limit))

    async def read_checkpoints(self, session_id: str) -> Sequence[SessionCheckpoint]:
        """The session's stored checkpoints."""
        aside = self._quarantine.add
        return await self._read_on_thread(lambda snapshot: reading.checkpoints(snapshot, session_id, aside))

    async def read_checkpoint(self, session_id: str, checkpoint_id: str) -> SessionCheckpoint | None:
        """One of the session's stored checkpoints."""
        return await self._read(lambda snapshot: reading.checkpoint(snapshot, session_id, checkpoint_id))

    async def copy_log(self, source: str, batch: Batch, *, through: int) -> None:
        """Have an empty batch begin its session's log with a copy of another session's."""
        frames = own(batch)
        frames.append_copied(
            await self._read_on_thread(
                lambda snapshot: reading.copied_log(snapshot, source, frames.session_id, through + 1)
            )
        )

    async def read_memory(self, session_id: str) -> Sequence[MemoryEntry]:
        """All entries of a session's memory."""
        return await self._read(lambda snapshot: reading.memory(snapshot, session_id))

    def quarantined(self) -> Sequence[QuarantinedRecord]:
        """What it has found that cannot be read."""
        return self._quarantine.records()

    def watch_quarantine(self, told: Callable[[QuarantinedRecord], None]) -> Callable[[], None]:
        """Have `told` called with each record that is found from now on."""
        return self._quarantine.watch(told)

    def stalled(self) -> WriteStall | None:
        """Why commits do not go through."""
        return self._opened().stalled()

    async def delete_session(self, session_id: str) -> Deletion:
        """Remove a session."""
        is_alive = self._opened().owners.is_alive
        deletion = await self._operate(session_id, lambda transaction: delete_rows(transaction, session_id, is_alive))
        self._quarantine.deleted(session_id, self._has_run)
        return deletion

    async def figures(self) -> StoreFigures:
        """What it holds."""
        directory = self._opened()
        on_disk = directory.environment.bytes_on_disk()
        commits, batches = directory.queue.commits, directory.queue.batches

        def count(snapshot: ReadTransaction) -> StoreFigures:
            return StoreFigures(
                sessions=snapshot.count_sessions(),
                runs=snapshot.entries("runs"),
                unfinished=snapshot.entries("unfinished"),
                records=snapshot.entries("log"),
                bytes_used=snapshot.bytes_used(),
                bytes_on_disk=on_disk,
                commits=commits,
                batches=batches,
            )

        return await self._read_on_thread(count)

    def _has_run(self, run_id: str) -> bool:
        return self._read_here(lambda snapshot: snapshot.get("runs", keys.run_key(run_id))) is not None
