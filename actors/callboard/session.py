"""SessionActor: one per active session, and the only one that appends to that session's log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from callboard import fault_points
from callboard.kernel import Actor, LoopFuture, handles
from callboard.runs.entries import charge_of
from callboard.runs.resuming import marker_within, way_back
from callboard.sessions.checkpoints import fold_at, rewind_marker
from callboard.sessions.commit_line import CommitLine
from callboard_protocol.commands import (
    AppendRecords,
    AppendUnawaited,
    CloseRun,
    GiveUpHeld,
    OpenSession,
    SaveCheckpoint,
    SettleAppends,
)
from callboard_protocol.errors import CallboardError, FencedError, StoreError, UnknownSessionError
from callboard_protocol.messages import Message
from callboard_protocol.records import RunBegan, SessionRewound, StepCompleted
from callboard_protocol.session_fold import SessionFold
from callboard_protocol.sessions import HeadFold, MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_protocol.states import RunState
from callboard_protocol.trusted import trusted
from callboard_storage.committing import commit
from callboard_storage.store import Batch, Store
from callboard_storage.store_values import Fence, Lease, StoredRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """What a run gets of its session.

    Attributes:
        head: where the session stood before this run's first record.
        transcript: the messages up to there.
        state: its state then, as plain data; None where it has none.
        own: the run's own records, if it began before.
        lease: the session's lock, which the attempt's first record takes and its last one gives back.
        injected: what the memory had to say to the run before.
        rewind: the marker that the attempt's first record follows, where it goes back. Where the run begins behind it,
            `head`, `transcript`, `state` and `injected` are as this makes them.
        voided: the step whose outcome no longer counts.
    """

    head: SessionHead
    transcript: list[Message]
    state: Any
    own: Sequence[StoredRecord]
    lease: Lease
    injected: tuple[str, ...] = ()
    rewind: SessionRewound | None = None
    voided: str | None = None


SessionCommand = OpenSession | AppendRecords | AppendUnawaited | GiveUpHeld | SettleAppends | SaveCheckpoint | CloseRun


class SessionActor(Actor[SessionCommand]):
    """Owns a session's log, head and state. It keeps nothing of a run once that has ended, so that an idle session
    costs little.

    Args:
        session_id: the session.
        store: where it lasts.
    """

    def __init__(self, session_id: str, store: Store) -> None:
        super().__init__()
        self._session_id = session_id
        self._store = store
        self._fold: HeadFold | None = None
        self._state: Any = None
        self._lease = store.lease()
        self._holder = ""
        self._state_behind_rewind: Any = None
        self._line = CommitLine(store, self._lose_track)

    @handles
    async def open(self, message: OpenSession) -> OpenedSession:
        """Reads the log once and folds it: the transcript, the state, and what the run itself had written.

        The session is not locked by that: the first append takes the lock, and is refused if the log has moved on
        since it was read.

        A nested run changes nothing of that: it appends under the lock of the run that has the session open.

        Raises:
            UnknownCheckpointError: the run is to go back to a checkpoint that is not there.
            RunNotResumableError: the run had ended, and its session has moved on since.
            DamagedRecordError: a record cannot be read.
            FencedError: the run is nested, and no run has the session open.
        """
        if message.is_nested:
            return await self._open_within(message)
        self._holder = message.run_id
        self._lease = self._store.lease()
        records = await self._store.read_log(self._session_id)
        own = _own(message.run_id, records)
        began = next((one.sequence for one in reversed(own) if isinstance(one.record, RunBegan)), len(records))
        before = SessionFold(self._session_id, (stored.record for stored in records[:began]))
        self._follow(before, records[began:])
        rewind: SessionRewound | None = None
        voided: str | None = None
        if not own and message.resume_from_checkpoint is not None:
            at = await fold_at(self._store, self._session_id, message.resume_from_checkpoint)
            rewind = rewind_marker(at, message.resume_from_checkpoint, run_id=message.run_id)
            before.add(rewind)
            self._state_behind_rewind = before.state
        elif own and message.begins_afresh:
            rewind = marker_within(before, own)
            self._state_behind_rewind = before.state
            before = SessionFold(self._session_id, (*(stored.record for stored in records), rewind))
        elif own and message.began_sequence is not None:
            way = way_back(records, own, message.failure)
            voided = way.voided
            if way.back_to is not None:
                at = SessionFold(self._session_id, (stored.record for stored in records[: way.back_to + 1]))
                rewind = marker_within(at, own)
                self._state_behind_rewind = at.state
        return OpenedSession(
            head=before.head(),
            transcript=before.transcript(),
            state=before.state,
            own=own,
            lease=self._lease,
            injected=before.injected(),
            rewind=rewind,
            voided=voided,
        )

    async def _open_within(self, message: OpenSession) -> OpenedSession:
        own: Sequence[StoredRecord] = ()
        if message.began_sequence is not None:
            own = _own(message.run_id, await self._store.read_log(self._session_id, start=message.began_sequence))
        # The log is another run's too, and does not go back for this one.
        voided = way_back(own, own, message.failure).voided if own else None
        head = self._following().head()
        return OpenedSession(head=head, transcript=[], state=None, own=own, lease=self._lease, voided=voided)

    @handles
    def append(self, message: AppendRecords) -> LoopFuture[int]:
        """Encodes the records and hands them to the store; the answer comes when they are on disk.

        Raises:
            UnpersistableValueError: a value cannot be stored; nothing was appended.
            FencedError: the session has not been opened, was refused since, or was taken over by another.
            SessionLockedError: another has its lock.
            RunOvertakenError: another has the run.
            StoreFullError: what came before was given up.
        """
        fold = self._following()
        batch = self._store.batch(self._session_id)
        records = message.records
        first = sequence = fold.next_sequence
        for record in records:
            batch.append(sequence, record)
            sequence += 1
        if message.memory:
            _put_memory(batch, message.memory)
        if message.run is not None:
            batch.put_run(message.run, seen=message.seen)
            charge = charge_of(message.run)
            if charge is not None:
                batch.charge(charge)
        if message.taken is not None:
            batch.take_letter(message.taken)
        # From here on nothing raises: what the session believes changes together with what it sends.
        sequence = first
        for record in records:
            fold.add(sequence, record)
            sequence += 1
            if isinstance(record, StepCompleted):
                if record.state_changed:
                    self._state = record.state
            elif isinstance(record, SessionRewound):
                self._state = self._state_behind_rewind
        if message.run is not None:
            batch.put_head(fold.head())
        if message.checkpoint is not None:
            batch.put_checkpoint(self._stands(message.checkpoint, fold))
        return self._line.commit(batch, self._fence(first - 1, message.run), first, message.hold)

    @handles
    def append_unawaited(self, message: AppendUnawaited) -> None:
        """Appends records nobody waits for. If they are refused, so is whatever is appended next, and that is told."""

        def settled(appended: LoopFuture[int]) -> None:
            if appended.exception() is None:
                message.landed(message.records)

        try:
            appended = self.append(trusted(AppendRecords, records=message.records, hold=message.hold))
        except StoreError:
            return  # the next append meets the same refusal
        appended.add_done_callback(settled)

    @handles
    def give_up(self, message: GiveUpHeld) -> None:
        """Lets go of what waits for room."""
        self._line.give_up()

    @handles
    def settle(self, message: SettleAppends) -> LoopFuture[Any] | None:
        """Answers once the last commit has been answered."""
        return self._line.last

    @handles(concurrent=True)
    async def save_checkpoint(self, message: SaveCheckpoint) -> SessionCheckpoint:
        """Keeps a checkpoint of where the session stands on disk; a run at work goes on meanwhile.

        Raises:
            UnknownSessionError: nothing of the session is on disk.
            DamagedRecordError: a record cannot be read.
        """
        records = await self._store.read_log(self._session_id)
        if not records:
            raise UnknownSessionError(f"there is no session {self._session_id!r}")
        fold = SessionFold(self._session_id, (stored.record for stored in records))
        checkpoint = fold.checkpoint(message.name, at=time.time())
        batch = self._store.batch(self._session_id)
        batch.put_checkpoint(checkpoint)
        await commit(self._store, batch)
        fault_points.reach("checkpoint.recorded", self._session_id)
        return checkpoint

    @handles
    def close(self, message: CloseRun) -> None:
        """Lets go of what only the run needed; the next run reads it anew. A nested run needs nothing of its own."""
        if message.run_id != self._holder:
            return
        self._holder = ""
        self._fold = None
        self._state = self._state_behind_rewind = None
        self._line.close()
        if self._lease.token:
            _give_lock_back(self._store, self._session_id, self._lease)

    def _fence(self, follows: int, run: RunEntry | None) -> Fence:
        """What the batch follows. A run's entry comes with the attempt's first record and with its last one; the lock
        stays with the run that holds the session, whatever those within it write.
        """
        if run is None:
            return Fence(follows, self._lease)
        is_last = run.run_id == self._holder and run.state != RunState.RUNNING
        return Fence(follows, self._lease, takes=not self._lease.token, gives=is_last)

    def _stands(self, checkpoint: SessionCheckpoint, fold: HeadFold) -> SessionCheckpoint:
        return checkpoint.model_copy(
            update={
                "log_position": fold.next_sequence - 1,
                "state": self._state,
                "transcript_length": fold.transcript_length,
                "artifact_count": fold.artifact_count,
                "usage": fold.usage,
            }
        )

    def _following(self) -> HeadFold:
        """Where the session stands with all that was appended.

        Raises:
            FencedError: no run has it open, or it was refused since.
            StoreFullError: what came before was given up.
        """
        if self._fold is None:
            if self._line.given_up is not None:
                raise self._line.given_up.fresh()
            raise FencedError(f"session {self._session_id!r} is not open for appending")
        return self._fold

    def _lose_track(self) -> None:
        """What this actor believes no longer holds: it appends nothing more until it has read the log again."""
        self._fold = None

    def _follow(self, before: SessionFold, records: Sequence[StoredRecord]) -> None:
        """Stand where the log ends: behind `before`, and the records of the run that go on from there."""
        fold, states = HeadFold(before.head()), {before.head().state_sequence: before.state}
        for stored in records:
            fold.add(stored.sequence, stored.record)
            if isinstance(stored.record, StepCompleted) and stored.record.state_changed:
                states[stored.sequence] = stored.record.state
        self._fold, self._state = fold, states[fold.state_sequence]


def _own(run_id: str, records: Sequence[StoredRecord]) -> Sequence[StoredRecord]:
    """A run's own records. What a fork has of its source is another session's, whatever the run is called."""
    own: list[StoredRecord] = []
    for stored in records:
        if stored.record.run_id == run_id:
            own.append(stored)
        elif isinstance(stored.record, SessionRewound) and stored.record.forked_from is not None:
            own.clear()
    return own


def _put_memory(batch: Batch, entries: Sequence[MemoryEntry]) -> None:
    for entry in entries:
        if entry.value is None:
            batch.delete_memory(entry.name)
        else:
            batch.put_memory(entry)


def _give_lock_back(store: Store, session_id: str, lease: Lease) -> None:
    """Give back a lock whose attempt ended without a last record: it was refused, or is to be carried on later."""
    token = lease.token

    def acknowledge(error: CallboardError | None) -> None:
        if error is not None:
            logger.warning("the lock of session %r (token %d) was not given back: %s", session_id, token, error)

    fence = Fence(None, lease, gives=True)
    store.commit(store.batch(session_id), fence, asyncio.get_running_loop(), acknowledge)
