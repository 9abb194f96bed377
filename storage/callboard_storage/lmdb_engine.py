"""LMDB as this package uses it, and the only file that imports lmdb.

The settings that keep an acknowledged commit are not parameters: `sync` and `metasync` stay on, `writemap` and
`map_async` off, `lock` on. lock.mdb is made at its full size before LMDB opens it, because LMDB maps it sparse and a
full disk would then end the process with SIGBUS; afterwards nothing of ours ever opens it, because closing any
descriptor of it drops every lock the process holds on it (fcntl(2)).
"""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any, Final, TypeAlias

import lmdb

from callboard_protocol.errors import StoreError, StoreFullError, StoreOpenError
from callboard_storage import doors

Environment: TypeAlias = lmdb.Environment
Transaction: TypeAlias = "lmdb.Transaction[bytes]"
Databases: TypeAlias = dict[str, Any]
"""The tables of an environment, by name."""
Error: TypeAlias = lmdb.Error

ENGINE: Final = 0
"""LMDB's major version: 0.9. The data formats of 0.9 and 1.0 cannot read each other."""

DATA_FORMAT: Final = 1
ENGINES: Final = {DATA_FORMAT: ENGINE, 3: 1}
"""The engines that can be had, by the data format each reads and writes."""

LARGEST_MAP: Final = 1 << 40
SMALLEST_MAP: Final = 1 << 36
MAX_READERS: Final = 2048

_MOST_TABLES: Final = 64
"""More than any release has: what a newer one added must not keep an older one from opening a directory."""

_LOCK_FILE_BYTES = 4096 + MAX_READERS * 64
"""A header, and a slot per reader."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ROOM_FOR_ONE_COMMIT = 16 * 1024 * 1024
"""More than a group of batches takes up. With less than that left, a write that was cut short was so for want of room:
LMDB reports it as an input/output error, as it does a failing disk."""


def translated(error: Error, doing: str, left: float = math.inf) -> StoreError:
    """An error of the engine as one of ours.

    Args:
        error: the engine's.
        doing: what failed, in words.
        left: bytes the data file could still grow by.
    """
    full = isinstance(error, lmdb.MapFullError | lmdb.TxnFullError) or _code(error) in _FULL
    if full or (_code(error) == errno.EIO and left < _ROOM_FOR_ONE_COMMIT):
        return StoreFullError(f"{doing} failed, there is no room: {error}")
    return StoreError(f"{doing} failed: {error}", hint="see runtime.health(); check the disk")


def engine_version(engine: int) -> str:
    """The full version of one of the engines there are."""
    return ".".join(str(part) for part in lmdb.version(lib_version=engine))


def _code(error: Error) -> int:
    """The engine's number for an error; only errors the engine itself raised have one."""
    return getattr(error, "code", 0)


def open_for_all(directory: Path, map_size: int | None) -> Environment:
    """Open a directory to be read and written, beside whoever else has it open.

    Args:
        directory: the real path of a data directory.
        map_size: bytes of address space; None tries 1 TiB and halves it down to 64 GiB.

    Raises:
        StoreOpenError: it cannot be opened or mapped.
    """
    doors.allocate(directory / doors.LOCK_FILE, _LOCK_FILE_BYTES)
    size = map_size or LARGEST_MAP
    while True:
        try:
            return lmdb.Environment(
                os.fspath(directory),
                map_size=size,
                max_dbs=_MOST_TABLES,
                max_readers=MAX_READERS,
                max_spare_txns=1,
                lib_version=ENGINE,
            )
        except OSError as error:
            raise StoreOpenError(f"{directory} cannot be opened: {error.strerror}") from error
        except lmdb.Error as error:
            if _code(error) != errno.ENOMEM:
                raise StoreOpenError(f"{directory} cannot be opened: {error}") from error
            if map_size is not None or size <= SMALLEST_MAP:
                raise StoreOpenError(
                    f"{directory} cannot be mapped: {size >> 30} GiB of address space are not to be had",
                    hint="raise RLIMIT_AS (ulimit -v), or pass a smaller map_size",
                ) from error
            size //= 2


def open_to_read(directory: Path, engine: int) -> Environment:
    """Open a directory to be read, with the engine that made it.

    Raises:
        StoreOpenError: lock.mdb cannot be made.
        lmdb.Error: it cannot be opened.
    """
    doors.allocate(directory / doors.LOCK_FILE, _LOCK_FILE_BYTES)
    size = (directory / doors.DATA_FILE).stat().st_size
    # Room to grow: a writer may add to the file between our opening it and our snapshot of it.
    return lmdb.Environment(
        os.fspath(directory),
        map_size=2 * size + (1 << 30),
        max_dbs=_MOST_TABLES,
        max_readers=MAX_READERS,
        readonly=True,
        create=False,
        lib_version=engine,
    )


def write_empty(path: Path) -> None:
    """Write an empty data file that nobody else knows of, and which therefore needs no locks.

    Raises:
        StoreOpenError: it cannot be written.
    """
    try:
        lmdb.Environment(os.fspath(path), subdir=False, lock=False, map_size=1 << 20, lib_version=ENGINE).close()
    except lmdb.Error as error:
        raise StoreOpenError(f"{path} cannot be written: {error}") from error
