"""Forking a session: a new one whose log begins with a copy of another's."""

from __future__ import annotations

from callboard import fault_points
from callboard.sessions.checkpoints import fold_at, rewind_marker
from callboard_protocol.errors import FencedError, SessionExistsError, UnknownSessionError
from callboard_protocol.sessions import SessionHead
from callboard_storage.committing import commit
from callboard_storage.store import Store
from callboard_storage.store_values import Fence


async def fork_session(store: Store, source: str, target: str, checkpoint_id: str | None) -> SessionHead:
    """Make session `target` of what `source` was at a checkpoint, in one transaction.

    The records are copied as they are, each under its new key, so that every position they name stands for the same
    record; a marker behind them says where they came from. Nothing of the fork refers to its source.

    Args:
        store: where both last.
        source: which session.
        target: the id of the fork.
        checkpoint_id: where; None for the last checkpoint that a run of the source left.

    Raises:
        SessionExistsError: there is a session under `target`.
        UnknownSessionError: there is none under `source`.
        UnknownCheckpointError: the source has no such checkpoint.
        DamagedRecordError: a record up to there cannot be read.
        StoreError: the store could not write it, and nothing of it is there.
    """
    if await store.read_head(target) is not None:
        raise _exists(target)
    if not await store.read_log(source, limit=1):
        raise UnknownSessionError(f"there is no session {source!r}")
    fold = await fold_at(store, source, checkpoint_id)
    position = fold.position
    marker = rewind_marker(fold, checkpoint_id or fold.checkpoint().checkpoint_id, forked_from=source)
    fold.add(marker)
    head = fold.head().model_copy(update={"session_id": target})
    batch = store.batch(target)
    await store.copy_log(source, batch, through=position)
    batch.append(position + 1, marker)
    batch.put_head(head)
    for checkpoint in await store.read_checkpoints(source):
        if checkpoint.log_position <= position:
            batch.put_checkpoint(checkpoint.model_copy(update={"session_id": target}))
    for entry in await store.read_memory(source):
        batch.put_memory(entry)
    try:
        await commit(store, batch, Fence(-1))
    except FencedError:
        raise _exists(target) from None
    fault_points.reach("fork.recorded", target)
    return head


def _exists(session_id: str) -> SessionExistsError:
    return SessionExistsError(f"there is a session {session_id!r} already", context={"session_id": session_id})
