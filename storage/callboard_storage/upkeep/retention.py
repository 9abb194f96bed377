"""Retention: whole sessions go, the longest untouched first."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from callboard_protocol.errors import DamagedRecordError, RuntimeBusyError, UnknownSessionError, UsageError
from callboard_protocol.sessions import SessionHead
from callboard_storage.store import Store
from callboard_storage.store_values import Deletion
from callboard_storage.upkeep.report import RetainReport

_PAGE = 500


async def retain(
    store: Store,
    *,
    older_than: timedelta | float | None = None,
    keep: int | None = None,
    dry_run: bool = False,
    delete: Callable[[str], Awaitable[Deletion]] | None = None,
) -> RetainReport:
    """Remove sessions by age and by count, each in a transaction of its own.

    A session with a run that has not ended is never removed, however old it is. A fork needs nothing of the session it
    came from.

    Args:
        store: an open store. While a runtime is open on it, give `runtime.sessions.delete` as `delete`.
        older_than: remove sessions whose last record is older than this; a number is seconds.
        keep: remove all but so many sessions, the ones touched last.
        dry_run: remove nothing, and say what would be.
        delete: removes one session; the store's own where None.

    Raises:
        UsageError: neither `older_than` nor `keep` is given, or one of them is negative.
    """
    age = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
    if age is None and keep is None:
        raise UsageError("retain needs older_than or keep", hint="older_than=timedelta(days=90), or keep=10_000")
    if (age or 0) < 0 or (keep or 0) < 0:
        raise UsageError("older_than and keep cannot be negative")
    heads, damaged = await _heads(store)
    due = _due(heads, age, keep)
    busy = {entry.session_id for entry in await store.read_unfinished()}
    remove = delete or store.delete_session
    removed: list[str] = []
    in_use: list[str] = []
    entries = 0
    for head in due:
        if head.session_id in busy or (not dry_run and await _is_touched(store, head)):
            in_use.append(head.session_id)
            continue
        if not dry_run:
            try:
                entries += (await remove(head.session_id)).total
            except RuntimeBusyError:
                in_use.append(head.session_id)
                continue
            except UnknownSessionError:
                continue
        removed.append(head.session_id)
    return RetainReport(
        removed=tuple(removed),
        entries=entries,
        kept=len(heads) + len(damaged) - len(removed),
        in_use=tuple(in_use),
        damaged=tuple(damaged),
        dry_run=dry_run,
    )


async def _heads(store: Store) -> tuple[list[SessionHead], list[str]]:
    """Every session's head, the longest untouched first, and the sessions whose head cannot be read."""
    heads: list[SessionHead] = []
    damaged: list[str] = []
    after: str | None = None
    while page := await store.list_sessions(after=after, limit=_PAGE):
        for session_id in page:
            try:
                head = await store.read_head(session_id)
            except DamagedRecordError:
                damaged.append(session_id)
            else:
                if head is not None:
                    heads.append(head)
        after = page[-1]
    heads.sort(key=lambda head: (head.updated_at, head.session_id))
    return heads, damaged


def _due(heads: list[SessionHead], age: float | None, keep: int | None) -> list[SessionHead]:
    beyond = 0 if keep is None else max(len(heads) - keep, 0)
    oldest = None if age is None else time.time() - age
    return [
        head for place, head in enumerate(heads) if place < beyond or (oldest is not None and head.updated_at < oldest)
    ]


async def _is_touched(store: Store, head: SessionHead) -> bool:
    """Whether the session has a run in hand or in the queue, or went on since it was found due."""
    if await store.read_unfinished(head.session_id):
        return True
    now = await store.read_head(head.session_id)
    return now is not None and (now.active_run is not None or now.next_sequence != head.next_sequence)
