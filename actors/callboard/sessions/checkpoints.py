"""A session's checkpoints: listed, found by their ids, and gone back to.

A step's checkpoint is not stored: it is a position of the log, and what a session looks like there is the fold of the
log up to it.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence

from callboard.runs.history import Conversation
from callboard_protocol.base import check_identifier
from callboard_protocol.errors import DamagedRecordError, UnknownCheckpointError
from callboard_protocol.messages import Message
from callboard_protocol.records import LogRecord, RunBegan, SessionRewound, StepCompleted
from callboard_protocol.session_fold import CHECKPOINTED, SessionFold, step_checkpoints
from callboard_protocol.sessions import SessionCheckpoint, step_of_checkpoint
from callboard_storage.store import Store

_PAGE = 256


async def list_checkpoints(store: Store, session_id: str) -> list[SessionCheckpoint]:
    """Every checkpoint of a session, by log position.

    Raises:
        DamagedRecordError: a record cannot be read; the error names the last checkpoint before it.
    """
    records, damage = await read_to_damage(store, session_id)
    if damage is not None:
        raise _explained(damage, session_id, records)
    stored = await store.read_checkpoints(session_id)
    named = [one for one in stored if step_of_checkpoint(one.checkpoint_id) is None]
    # Sorting is stable: a name given to a step's checkpoint stands behind it.
    return sorted([*step_checkpoints(session_id, records), *named], key=lambda one: one.log_position)


async def fold_at(store: Store, session_id: str, checkpoint_id: str | None) -> SessionFold:
    """A session as it stands at a checkpoint, also where a later record is damaged.

    Args:
        store: where it lasts.
        session_id: the session.
        checkpoint_id: the checkpoint; None for the last that a run left.

    Raises:
        UnknownCheckpointError: there is no such checkpoint; the error names the nearest.
        InvalidIdentifierError: the id cannot name one.
        DamagedRecordError: a record up to there cannot be read, or the last checkpoint was asked for and is behind it;
            the error names the last checkpoint before the damage.
    """
    records, damage = await read_to_damage(store, session_id)
    position = await _position(store, session_id, checkpoint_id, records)
    if position is None and damage is None:
        raise _unknown(session_id, checkpoint_id, await list_checkpoints(store, session_id))
    if damage is not None and (position is None or checkpoint_id is None or position >= len(records)):
        raise _explained(damage, session_id, records)
    assert position is not None
    return SessionFold(session_id, records[: position + 1])


async def find_checkpoint(store: Store, session_id: str, checkpoint_id: str) -> SessionCheckpoint:
    """One checkpoint of a session; raises what `fold_at` raises."""
    if _checked(checkpoint_id) is None:
        stored = await store.read_checkpoint(session_id, checkpoint_id)
        if stored is not None:
            return stored
    return (await fold_at(store, session_id, checkpoint_id)).checkpoint()


def rewind_marker(
    fold: SessionFold, checkpoint_id: str, *, run_id: str = "", forked_from: str | None = None
) -> SessionRewound:
    """The record by which a session goes back to where `fold` stands, or a fork begins there.

    Args:
        fold: the session at the checkpoint.
        checkpoint_id: how the checkpoint was named.
        run_id: the run that goes back; empty for a fork.
        forked_from: the session that was forked, if one was.
    """
    how = "the session went back to" if forked_from is None else "the session was forked at"
    closing = [
        Message.tool(f"not answered: {how} checkpoint {checkpoint_id}", tool_call_id=call.id, name=call.name)
        for call in Conversation(fold.transcript()).unanswered()
    ]
    return fold.marker(checkpoint_id, closing, run_id=run_id, at=time.time(), forked_from=forked_from)


async def read_to_damage(store: Store, session_id: str) -> tuple[list[LogRecord], DamagedRecordError | None]:
    """A session's log up to the first record that cannot be read, and why that one cannot."""
    try:
        return [stored.record for stored in await store.read_log(session_id)], None
    except DamagedRecordError as error:
        damage = error
    records: list[LogRecord] = []
    span = _PAGE
    while span:
        try:
            page = await store.read_log(session_id, start=len(records), limit=span)
        except DamagedRecordError as error:
            damage = error
            span //= 2
        else:
            if not page:
                # Whatever could not be read has been deleted meanwhile.
                break
            records += [stored.record for stored in page]
    return records, damage


async def _position(
    store: Store, session_id: str, checkpoint_id: str | None, records: Sequence[LogRecord]
) -> int | None:
    """The log position of a checkpoint; None where the session has none of that id.

    Raises:
        InvalidIdentifierError: the id cannot name one.
    """
    if checkpoint_id is None:
        left = (place for place in reversed(range(len(records))) if isinstance(records[place], CHECKPOINTED))
        return next(left, None)
    step = _checked(checkpoint_id)
    if step is None:
        stored = await store.read_checkpoint(session_id, checkpoint_id)
        return None if stored is None else stored.log_position
    run_id, index = step
    position: int | None = None
    completed = 0
    for place, record in enumerate(records):
        if record.run_id == run_id and isinstance(record, CHECKPOINTED):
            completed = 0 if isinstance(record, RunBegan) else completed + isinstance(record, StepCompleted)
            if completed == index:
                position = place
    return position


def _checked(checkpoint_id: str) -> tuple[str, int] | None:
    """The run and the step that a checkpoint's id names; None for a caller's name.

    Raises:
        InvalidIdentifierError: it cannot name a checkpoint.
    """
    given: object = checkpoint_id
    step = step_of_checkpoint(checkpoint_id) if isinstance(given, str) else None
    check_identifier(checkpoint_id if step is None else step[0], "checkpoint id")
    return step


def _unknown(session_id: str, checkpoint_id: str | None, known: Sequence[SessionCheckpoint]) -> UnknownCheckpointError:
    if checkpoint_id is None or not known:
        return UnknownCheckpointError(f"session {session_id!r} has no checkpoint", hint="no run has begun in it")
    near = difflib.get_close_matches(checkpoint_id, [one.checkpoint_id for one in known], n=1, cutoff=0.0)
    return UnknownCheckpointError(
        f"session {session_id!r} has no checkpoint {checkpoint_id!r}",
        hint=f"did you mean {near[0]!r}? runtime.sessions.checkpoints({session_id!r}) lists them",
    )


def _explained(damage: DamagedRecordError, session_id: str, records: Sequence[LogRecord]) -> DamagedRecordError:
    """The damage, with the way out: the last checkpoint before it."""
    before = step_checkpoints(session_id, records)
    if before:
        last = before[-1].checkpoint_id
        damage.hint = f"what came before it can be had: runtime.sessions.fork({session_id!r}, '...', {last!r})"
    return damage
