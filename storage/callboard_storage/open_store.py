"""From what a user passes as ``store=`` to a store."""

from __future__ import annotations

import os

from callboard_protocol.errors import UsageError
from callboard_storage.memory_store import MemoryStore
from callboard_storage.room import DEFAULT_FREE_BYTES
from callboard_storage.store import Store


def open_store(
    store: str | os.PathLike[str] | Store | None, *, max_bytes: int | None = None, min_free_bytes: int | None = None
) -> Store:
    """The store a user means; it still has to be opened.

    Args:
        store: a path for a store on disk, None for one in memory, or a store.
        max_bytes: the quota of a store made here.
        min_free_bytes: what a store on disk keeps free; None is 64 MiB.

    Raises:
        UsageError: it is no store, or one that was made with limits of its own.
    """
    if store is None:
        return MemoryStore(max_bytes=max_bytes)
    if isinstance(store, str | os.PathLike):
        # Imported here: a system without LMDB, or without its locks, can still run in memory.
        from callboard_storage.lmdb_store import LmdbStore  # noqa: PLC0415

        free = DEFAULT_FREE_BYTES if min_free_bytes is None else min_free_bytes
        return LmdbStore(store, max_bytes=max_bytes, min_free_bytes=free)
    if not callable(getattr(store, "commit", None)):
        raise UsageError(f"store={store!r:.60} is no store", hint="give a directory, or None to keep all in memory")
    if max_bytes is not None or min_free_bytes is not None:
        raise UsageError(
            f"a {type(store).__name__} has limits of its own", hint="give max_bytes to the store when it is made"
        )
    return store
