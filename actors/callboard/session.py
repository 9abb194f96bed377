"""SessionActor: one per active session, and the only one that appends to that session's log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from callboard.kernel import Actor, LoopFuture, handles
from callboard_protocol.commands import AppendRecords, CloseRun, OpenSession, SaveCheckpoint, SettleAppends
from callboard_protocol.errors import CallboardError, FencedError
from callboard_protocol.messages import Message
from callboard_protocol.records import SessionRewound, StepCompleted, transcript_of
from callboard_protocol.sessions import HeadFold, MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_protocol.states import RunState
from callboard_storage.store import Batch, Fence, Lease, Store, StoredRecord

logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """What a run gets of its session.

    Attributes:
        head: where the session stood before this run's first record.
        transcript: the messages up to there.
        state: its state then, as plain data; None where it has none.
        own: the run's own records, if it began before.
        lease: the session's lock, which the attempt's first record takes and its last one gives back.
    """

    head: SessionHead
    transcript: list[Message]
    state: Any
    own: Sequence[StoredRecord]
    lease: Lease


class SessionActor(Actor[OpenSession | AppendRecords | SettleAppends | SaveCheckpoint | CloseRun]):
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
        self._last_commit: LoopFuture[Any] | None = None

    @handles
    async def open(self, message: OpenSession) -> OpenedSession:
        """Reads the log once and folds it: the transcript, the state, and what the run itself had written.

        The session is not locked by that: the first append takes the lock, and is refused if the log has moved on
        since it was read.
        """
        self._lease = self._store.lease()
        return await self._load(message.run_id)

    @handles
    def append(self, message: AppendRecords) -> LoopFuture[int]:
        """Encodes the records and hands them to the store; the answer comes when they are on disk.

        Raises:
            UnpersistableValueError: a value cannot be stored; nothing was appended.
            FencedError: the session has not been opened, was refused since, or was taken over by another.
            SessionLockedError: another has its lock.
        """
        fold = self._fold
        if fold is None:
            raise FencedError(f"session {self._session_id!r} is not open for appending")
        batch = self._store.batch(self._session_id)
        records = message.records
        first = sequence = fold.next_sequence
        for record in records:
            batch.append(sequence, record)
            sequence += 1
        if message.memory:
            _put_memory(batch, message.memory)
        if message.run is not None:
            batch.put_run(message.run)
        # From here on nothing raises: what the session believes changes together with what it sends.
        sequence = first
        for record in records:
            fold.add(sequence, record)
            sequence += 1
            if isinstance(record, StepCompleted) and record.state_changed:
                self._state = record.state
        if message.run is not None:
            batch.put_head(fold.head())
        if message.checkpoint is not None:
            batch.put_checkpoint(self._stands(message.checkpoint, fold))
        return self._commit(batch, self._fence(first - 1, message.run), first)

    @handles
    def settle(self, message: SettleAppends) -> LoopFuture[Any] | None:
        """Answers once the last commit has been answered."""
        return self._last_commit

    @handles
    async def save_checkpoint(self, message: SaveCheckpoint) -> SessionCheckpoint:
        """Keeps a checkpoint of where the session stands."""
        if self._fold is None:
            await self._load(None)
        assert self._fold is not None
        checkpoint = self._stands(
            SessionCheckpoint(
                checkpoint_id=message.name,
                session_id=self._session_id,
                run_id=self._fold.active_run or self._fold.last_run,
                usage=self._fold.usage,
                created_at=time.time(),
            ),
            self._fold,
        )
        batch = self._store.batch(self._session_id)
        batch.put_checkpoint(checkpoint)
        return await self._commit(batch, None, checkpoint)

    @handles
    def close(self, message: CloseRun) -> None:
        """Lets go of what only the run needed; the next run reads it anew."""
        self._fold = None
        self._state = None
        self._last_commit = None
        if self._lease.token:
            self._give_lock_back()

    def _fence(self, follows: int, run: RunEntry | None) -> Fence:
        """What the batch follows. A run's entry comes with the attempt's first record and with its last one."""
        if run is None:
            return Fence(follows, self._lease)
        return Fence(follows, self._lease, takes=not self._lease.token, gives=run.state != RunState.RUNNING)

    def _give_lock_back(self) -> None:
        """The attempt ended without a last record: it was refused, or its run is to be carried on later."""
        session_id, token = self._session_id, self._lease.token

        def acknowledge(error: CallboardError | None) -> None:
            if error is not None:
                logger.warning("the lock of session %r (token %d) was not given back: %s", session_id, token, error)

        batch = self._store.batch(session_id)
        self._store.commit(batch, Fence(None, self._lease, gives=True), asyncio.get_running_loop(), acknowledge)

    def _stands(self, checkpoint: SessionCheckpoint, fold: HeadFold) -> SessionCheckpoint:
        return checkpoint.model_copy(
            update={
                "log_position": fold.next_sequence - 1,
                "state": self._state,
                "transcript_length": fold.transcript_length,
                "artifact_count": fold.artifact_count,
            }
        )

    def _commit(self, batch: Batch, fence: Fence | None, answer: AnswerT) -> LoopFuture[AnswerT]:
        loop = asyncio.get_running_loop()
        acknowledged: LoopFuture[AnswerT] = LoopFuture()

        def acknowledge(error: CallboardError | None) -> None:
            if error is None:
                acknowledged.set_result(answer)
            else:
                # What this actor believes no longer holds: it appends nothing more until it has read the log again.
                self._fold = None
                acknowledged.set_exception(error)

        self._last_commit = acknowledged
        self._store.commit(batch, fence, loop, acknowledge)
        return acknowledged

    async def _load(self, run_id: str | None) -> OpenedSession:
        fold = HeadFold(SessionHead(session_id=self._session_id))
        transcript: list[Message] = []
        states: dict[int | None, Any] = {None: None}
        own: list[StoredRecord] = []
        before: tuple[SessionHead, Any] | None = None
        for stored in await self._store.read_log(self._session_id):
            record = stored.record
            if record.run_id == run_id:
                before = before or (fold.head(), states[fold.state_sequence])
                own.append(stored)
            if before is None:
                if isinstance(record, SessionRewound):
                    del transcript[record.transcript_length :]
                transcript.extend(transcript_of(record))
            if isinstance(record, StepCompleted) and record.state_changed:
                states[stored.sequence] = record.state
            fold.add(stored.sequence, record)
        self._fold, self._state = fold, states[fold.state_sequence]
        head, state = before or (fold.head(), self._state)
        return OpenedSession(head=head, transcript=transcript, state=state, own=own, lease=self._lease)


def _put_memory(batch: Batch, entries: Sequence[MemoryEntry]) -> None:
    for entry in entries:
        if entry.value is None:
            batch.delete_memory(entry.name)
        else:
            batch.put_memory(entry)
