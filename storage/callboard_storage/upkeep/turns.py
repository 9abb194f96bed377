"""Who may do what to a data directory's file at the same time.

Reading it is for anyone; putting another file in its place is for one who is alone. LMDB's lock file cannot tell: a
reader that still maps the old data file through the same lock file would make a writer begin at the wrong root page. So
each upkeep process holds a `flock` on the directory itself: shared to read, exclusive to replace. A child inherits it,
so that it stays held if its parent dies first.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from callboard_protocol.errors import StoreInUseError, StoreOpenError
from callboard_storage.doors import DATA_FILE
from callboard_storage.locks import DirectoryLock


def existing(path: str | os.PathLike[str]) -> Path:
    """The real path of a directory that holds a store.

    Raises:
        StoreOpenError: it does not.
    """
    directory = Path(path).expanduser()
    if not (directory / DATA_FILE).is_file():
        raise StoreOpenError(f"{path} holds no store", hint="give a data directory or a backup of one")
    return directory.resolve()


@contextmanager
def reading(directory: Path) -> Iterator[int]:
    """Hold off whoever would replace the file; yields the descriptor that a child has to inherit.

    Raises:
        StoreInUseError: it is being replaced.
        StoreOpenError: the directory cannot be opened or locked.
    """
    with _locked(directory, fcntl.LOCK_SH, "is being compacted or restored") as descriptor:
        yield descriptor


@contextmanager
def alone(directory: Path) -> Iterator[int]:
    """Keep everybody else out: those who would open it, and those who read it.

    Raises:
        StoreInUseError: a process has it open, or is reading it.
        StoreOpenError: the directory cannot be opened or locked.
    """
    lock = DirectoryLock(directory)
    lock.acquire()
    try:
        with _locked(directory, fcntl.LOCK_EX, "is being read, by verify, backup or export") as descriptor:
            yield descriptor
    finally:
        lock.release()


@contextmanager
def _locked(directory: Path, how: int, otherwise: str) -> Iterator[int]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError as error:
        raise StoreOpenError(f"{directory} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        raise StoreInUseError(f"{directory} {otherwise}", hint="wait until that has ended") from None
    finally:
        os.close(descriptor)
