"""The Store protocol: what any backend promises.

Nothing above this file assumes LMDB, one host or a kernel lock. What each method promises is pinned down by one
conformance suite that every backend passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from callboard_protocol.drawing import DrawChange, Drawn
from callboard_protocol.letters import Letter
from callboard_protocol.named_accounts import AccountCharge, AccountEntry
from callboard_protocol.records import LogRecord
from callboard_protocol.runs import RunBudget
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
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

    def put_run(self, entry: RunEntry, *, seen: RunEntry | None = None) -> None:
        """Write a run's entry, and keep the index of unfinished runs in step with its state.

        Args:
            entry: what to write.
            seen: how the run stood when that was decided. The batch is refused with `RunOvertakenError` where another
                living open store carries the run, or somebody has begun or ended it since. None where the batch's fence
                says enough.
        """
        ...

    def charge(self, charge: AccountCharge) -> None:
        """Charge what an end of a run cost to its account, together with the run's last record."""
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

    def post(self, letter: Letter) -> None:
        """Post a letter to a run of the session; see `callboard_storage.posting.post`."""
        ...

    def take_letter(self, letter: Letter) -> None:
        """Remove a letter that its run has taken in."""
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

    def lease(self) -> Lease:
        """A lease for one session, whose lock it does not hold yet."""
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
        """Have the batch written. Returns at once; `acknowledge` is called on `loop`, in order within a session.

        All of the batch becomes durable, or none of it. With a fence, the session's log must end at `fence.follows` and
        its lock must be the lease's, or be taken by this very batch: otherwise the batch is refused, unless the very
        records it appends are already there (same sequences, same frames), which counts as success: a repeated commit
        is harmless. A lock can be taken when nobody alive has it. Without a fence the batch may hold no log record.
        Batches of one session are applied in the order they were given. After a refusal, the session's fenced batches
        are refused too until the refusal has been acknowledged, and so is each one that was committed before that;
        later ones are judged by their fence alone.

        Refusals are `FencedError` (the log ends elsewhere, or another has the lock this lease held) and
        `SessionLockedError` (another has the lock this batch wanted to take).

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
        """Where a session stands, brought up to date from its log; None if there is none.

        A damaged head is quarantined and folded again from the log.

        Raises:
            DamagedRecordError: so is a record that it takes.
        """
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
        """A run's entry.

        Raises:
            DamagedRecordError: it cannot be read.
        """
        ...

    async def read_unfinished(self, session_id: str | None = None) -> Sequence[RunEntry]:
        """The entries of runs that have not ended, in admission order: all of them, or those of one session.

        What cannot be read is left out.
        """
        ...

    async def read_letters(self, session_id: str, run_id: str) -> Sequence[Letter]:
        """The letters posted to a run that it has not taken in: decisions and cancellations, then signals in order.

        Raises:
            DamagedRecordError: one of them cannot be read.
        """
        ...

    async def read_arrivals(self, after: int | None) -> Arrivals:
        """Which runs have been posted letters to by anyone on the directory.

        Args:
            after: the `number` of an earlier look; None for the first one, which names no run.
        """
        ...

    async def read_claimable(self) -> Sequence[RunEntry]:
        """The entries that `claim_unfinished` would answer with, left to whom they are, in admission order."""
        ...

    async def claim_unfinished(self, run_ids: Collection[str] | None = None) -> Sequence[RunEntry]:
        """The entries of unfinished runs that are this open store's, in admission order.

        A run belongs to the open store that wrote its entry last. One whose owner is no longer alive is this store's
        from now on, so that of several processes on a directory exactly one carries it on.

        Args:
            run_ids: only these.

        Raises:
            StoreError: nothing was claimed.
        """
        ...

    async def release_unfinished(self, run_ids: Collection[str]) -> Collection[str]:
        """Give up unfinished runs, so that they are whose store claims them next.

        Args:
            run_ids: which; those that are not this open store's are left alone.

        Returns:
            Those that were.

        Raises:
            StoreError: nothing was given up.
        """
        ...

    @property
    def has_company(self) -> bool:
        """Whether others had it open at the last look (`others_died`) or claim."""
        ...

    async def others_died(self) -> bool:
        """Whether there may be runs to claim that there were not: since the last look, or a claim, an owner has died,
        or an unfinished run has become nobody's who is alive.
        """
        ...

    async def carried_elsewhere(self, run_id: str) -> bool:
        """Whether a run has not ended and is another open store's, which is alive."""
        ...

    async def held_elsewhere(self, session_id: str) -> bool:
        """Whether a session is in other hands than this open store's.

        It is while another that is alive has its lock, and while the run that is active in it has not ended and is not
        this store's: then that run goes on first, wherever it is carried.
        """
        ...

    async def keep_account(self, name: str, budget: RunBudget | None, *, opens: bool = False) -> AccountEntry | None:
        """Give an account a budget, and bring its entry up to date; it keeps its turn among the commits. What stands
        for runs that are no more, and what those reserved whose process died, counts as spent from then on.

        Args:
            name: which.
            budget: what it gets; None for the one it has.
            opens: make it where it is missing.

        Returns:
            The account as it stands then; None where there is none.

        Raises:
            DamagedRecordError: it, or a charge to it, cannot be read.
            StoreError: nothing was written.
        """
        ...

    async def draw(self, name: str, changes: Sequence[DrawChange], *, for_the_dead: bool = False) -> Drawn | None:
        """Change what runs draw on an account, in one transaction: one change after the other, each with its answer.
        What all runs have spent and reserved, in whatever process, never passes the account's limits by that.

        Args:
            name: the account.
            changes: what is asked. One that settles for a run which has been charged since, or which another open
                store carries by now, changes nothing.
            for_the_dead: count what runs have reserved whose process died as spent, before anything is answered.

        Returns:
            The answers, and the account as it stands then; None where there is none.

        Raises:
            DamagedRecordError: the account, a charge to it, or what a run draws on it, cannot be read.
            StoreError: nothing was changed.
        """
        ...

    async def read_account(self, name: str) -> AccountEntry | None:
        """An account, with all charges to it taken in; None where there is none.

        Raises:
            DamagedRecordError: it, or a charge to it, cannot be read.
        """
        ...

    async def list_accounts(self) -> Sequence[str]:
        """The names of all accounts, in order."""
        ...

    async def delete_account(self, name: str) -> bool:
        """Remove an account, the charges to it, and what runs draw on it. Whether there was one."""
        ...

    async def list_runs(self, *, after: str | None = None, limit: int = 1000) -> Sequence[RunEntry]:
        """Runs in the order of their ids, following `after`. What cannot be read is left out, and does not count."""
        ...

    async def list_sessions(self, *, after: str | None = None, limit: int = 1000) -> Sequence[str]:
        """Ids of sessions with a head, in order, following `after`."""
        ...

    async def read_checkpoints(self, session_id: str) -> Sequence[SessionCheckpoint]:
        """The session's stored checkpoints, oldest log position first. What cannot be read is left out."""
        ...

    async def read_checkpoint(self, session_id: str, checkpoint_id: str) -> SessionCheckpoint | None:
        """One of the session's stored checkpoints.

        Raises:
            InvalidIdentifierError: the checkpoint's id cannot be a key.
            DamagedRecordError: it fails its checksum or does not decode.
        """
        ...

    async def copy_log(self, source: str, batch: Batch, *, through: int) -> None:
        """Have an empty batch begin its session's log with a copy of another session's, frame by frame.

        Nothing is written before the batch is committed, behind ``Fence(-1)``.

        Args:
            source: whose log.
            batch: of another session.
            through: the sequence of the last record to copy.

        Raises:
            DamagedRecordError: one of the records fails its checksum. The batch is as it was.
            UsageError: the log ends before that, or the batch appends records already, or is not from this store.
        """
        ...

    async def read_memory(self, session_id: str) -> Sequence[MemoryEntry]:
        """All entries of a session's memory, by name.

        Raises:
            DamagedRecordError: one of them cannot be read.
        """
        ...

    def quarantined(self) -> Sequence[QuarantinedRecord]:
        """What it has found since it was made that cannot be read, in the order it was found, each once.

        A record that is written anew or deleted is in there no longer.
        """
        ...

    def watch_quarantine(self, told: Callable[[QuarantinedRecord], None]) -> Callable[[], None]:
        """Have `told` called with each record that is found from now on, on whichever thread finds it.

        Returns:
            Ends that.
        """
        ...

    def stalled(self) -> WriteStall | None:
        """Why commits do not go through, once that takes longer than any ordinary one; None while they do.

        Raises:
            StoreClosedError: it is not open.
        """
        ...

    async def delete_session(self, session_id: str) -> Deletion:
        """Remove a session's log, head, checkpoints, memory, ended runs and their letters, and say what that was.

        It keeps its turn among the commits. Unfinished runs stay, and go with the next deletion once they have ended.

        Raises:
            SessionLockedError: someone alive has it locked.
            StoreError: nothing was removed.
        """
        ...

    async def figures(self) -> StoreFigures:
        """What it holds."""
        ...
