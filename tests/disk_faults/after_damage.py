"""Serves a damaged data directory as a runtime would, and says how that went: a server, see `forked.py`.

A job is ``{"directory": path, "sessions": [ids], "runs": [ids]}``. The outcome is ``{"verdict": "refused", "what": the
error's code}`` where opening was refused, else ``{"verdict": "served", "first": what each read gave, "written": the
commits that were acknowledged, "again": what each read gave after them}``. What a read gave is a list of digests, one
of each thing that was read, or the code of its error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

from forked import Job, Outcome, serve
from pydantic import BaseModel

from callboard_protocol.errors import CallboardError
from callboard_protocol.sessions import MemoryEntry
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import StoredRecord

WRITTEN = "written"
"""The entry of a session's memory that the commits in between write."""


def examine(job: Job) -> Outcome:
    """How a process that serves the directory fares."""
    return asyncio.run(_examine(**job))


async def _examine(directory: str, sessions: list[str], runs: list[str]) -> Outcome:
    store = LmdbStore(directory, map_size=1 << 30)
    try:
        await store.open()
    except CallboardError as error:
        return {"verdict": "refused", "what": error.code}
    try:
        first = await _read_all(store, sessions, runs)
        written = [session_id for session_id in sessions if await _is_written(store, session_id)]
        again = await _read_all(store, sessions, runs)
    finally:
        await store.close()
    return {"verdict": "served", "first": first, "written": written, "again": again}


async def _read_all(store: LmdbStore, sessions: list[str], runs: list[str]) -> dict[str, list[str] | str]:
    reads: dict[str, Callable[[], Awaitable[object]]] = {
        "sessions": partial(store.list_sessions, limit=10_000),
        "runs": partial(store.list_runs, limit=10_000),
        "unfinished": store.read_unfinished,
    }
    for session_id in sessions:
        reads[f"log {session_id}"] = partial(store.read_log, session_id)
        reads[f"head {session_id}"] = partial(store.read_head, session_id)
        reads[f"memory {session_id}"] = partial(store.read_memory, session_id)
        reads[f"checkpoints {session_id}"] = partial(store.read_checkpoints, session_id)
    for run_id in runs:
        reads[f"run {run_id}"] = partial(store.read_run, run_id)
    return {name: await _digests(read) for name, read in reads.items()}


async def _digests(read: Callable[[], Awaitable[object]]) -> list[str] | str:
    try:
        found = await read()
    except CallboardError as error:
        return error.code
    things = found if isinstance(found, Sequence) else [] if found is None else [found]
    return [
        blake2b(json.dumps(_plain(thing), sort_keys=True).encode(), digest_size=8).hexdigest()
        for thing in things
        if not (isinstance(thing, MemoryEntry) and thing.name == WRITTEN)
    ]


def _plain(thing: object) -> object:
    """A thing in the one form that equal ones share, in whichever order their fields were set."""
    if isinstance(thing, StoredRecord):
        return thing.sequence, _plain(thing.record)
    return thing.model_dump(mode="json") if isinstance(thing, BaseModel) else thing


async def _is_written(store: LmdbStore, session_id: str) -> bool:
    """Commit something that fits wherever the session stands, and enough of it to need free pages."""
    batch = store.batch(session_id)
    batch.put_memory(MemoryEntry(name=WRITTEN, value="x" * 5000))
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()
    store.commit(batch, None, loop, answer.set_result)
    return await answer is None


if __name__ == "__main__":
    serve(examine)
