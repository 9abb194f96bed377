"""From what a user passes as ``store=`` to a store."""

from __future__ import annotations

import os

from callboard_protocol.errors import UsageError
from callboard_storage.memory_store import MemoryStore
from callboard_storage.store import Store


def open_store(store: str | os.PathLike[str] | Store | None, *, max_bytes: int | None = None) -> Store:
    """The store a user means; it still has to be opened.

    Args:
        store: a path for a store on disk, None for one in memory, or a store.
        max_bytes: the quota of a store on disk.
    """
    if store is None:
        return MemoryStore()
    if isinstance(store, str | os.PathLike):
        # Imported here: a system without LMDB, or without its locks, can still run in memory.
        from callboard_storage.lmdb_store import LmdbStore  # noqa: PLC0415

        return LmdbStore(store, max_bytes=max_bytes)
    if not callable(getattr(store, "commit", None)):
        raise UsageError(f"store={store!r:.60} is no store", hint="give a directory, or None to keep all in memory")
    return store
