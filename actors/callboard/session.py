"""SessionActor: one per active session, and the only one that appends to that session's log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from callboard.commit_line import CommitLine
from callboard.kernel import Actor, LoopFuture, handles
from callboard_protocol.commands import (
    AppendRecords,
    CloseRun,
    GiveUpHeld,
    OpenSession,
    SaveCheckpoint,
    SettleAppends,
)
from callboard_protocol.errors import FencedError
from callboard_protocol.messages import Message
from callboard_protocol.records import SessionRewound, StepCompleted, transcript_of
from callboard_protocol.sessions import HeadFold, MemoryEntry, SessionCheckpoint, SessionHead
from callboard_storage.store import Batch, Fence, Store, StoredRecord


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """What a run gets of its session.

    Attributes:
        head: where the session stood before this run's first record.
        transcript: the messages up to there.
        state: its state then, as plain data; None where it has none.
        own: the run's own records, if it began before.
    """

    head: SessionHead
    transcript: list[Message]
    state: Any
    own: Sequence[StoredRecord]


class SessionActor(Actor[OpenSession | AppendRecords | GiveUpHeld | SettleAppends | SaveCheckpoint | CloseRun]):
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
        self._line = CommitLine(store, self._lose_track)

    @handles
    async def open(self, message: OpenSession) -> OpenedSession:
        """Reads the log once and folds it: the transcript, the state, and what the run itself had written."""
        return await self._load(message.run_id)

    @handles
    def append(self, message: AppendRecords) -> LoopFuture[int]:
        """Encodes the records and hands them to the store; the answer comes when they are on disk.

        Raises:
            UnpersistableValueError: a value cannot be stored; nothing was appended.
            FencedError: the session has not been opened, or was refused since.
            StoreFullError: what came before was given up.
        """
        fold = self._fold
        if fold is None:
            if self._line.given_up is not None:
                raise self._line.given_up.fresh()
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
        return self._line.commit(batch, Fence(first - 1), first, message.hold)

    @handles
    def give_up(self, message: GiveUpHeld) -> None:
        """Lets go of what waits for room."""
        self._line.give_up()

    @handles
    def settle(self, message: SettleAppends) -> LoopFuture[Any] | None:
        """Answers once the last commit has been answered."""
        return self._line.last

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
        return await self._line.commit(batch, None, checkpoint)

    @handles
    def close(self, message: CloseRun) -> None:
        """Lets go of what only the run needed; the next run reads it anew."""
        self._fold = None
        self._state = None
        self._line.close()

    def _stands(self, checkpoint: SessionCheckpoint, fold: HeadFold) -> SessionCheckpoint:
        return checkpoint.model_copy(
            update={
                "log_position": fold.next_sequence - 1,
                "state": self._state,
                "transcript_length": fold.transcript_length,
                "artifact_count": fold.artifact_count,
            }
        )

    def _lose_track(self) -> None:
        """What this actor believes no longer holds: it appends nothing more until it has read the log again."""
        self._fold = None

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
        return OpenedSession(head=head, transcript=transcript, state=state, own=own)


def _put_memory(batch: Batch, entries: Sequence[MemoryEntry]) -> None:
    for entry in entries:
        if entry.value is None:
            batch.delete_memory(entry.name)
        else:
            batch.put_memory(entry)
