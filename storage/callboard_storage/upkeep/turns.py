"""Who may do what to a data directory's files at the same time: reading is for anyone, replacing for one who is alone.

A child process inherits the descriptor, so that the turn lasts if its parent dies first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from callboard_protocol.errors import StoreOpenError
from callboard_storage.doors import DATA_FILE
from callboard_storage.locks import DirectoryTurn


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
    """Hold off whoever would replace the files; yields the descriptor that a child has to inherit.

    Raises:
        StoreInUseError: they are being replaced.
        StoreOpenError: the directory cannot be opened or locked.
    """
    with _turn(directory, exclusive=False) as descriptor:
        yield descriptor


@contextmanager
def alone(directory: Path) -> Iterator[int]:
    """Keep everybody else out: those who would open it, and those who read it.

    Raises:
        StoreInUseError: a process has it open, or is reading it.
        StoreOpenError: the directory cannot be opened or locked.
    """
    with _turn(directory, exclusive=True) as descriptor:
        yield descriptor


@contextmanager
def _turn(directory: Path, *, exclusive: bool) -> Iterator[int]:
    turn = DirectoryTurn(directory, exclusive=exclusive)
    assert turn.descriptor is not None
    try:
        yield turn.descriptor
    finally:
        turn.end()
