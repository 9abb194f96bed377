"""Another data file in the place of the one there is, so that at every instant there is one whole file or the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from callboard_protocol.errors import StoreError, StoreFullError
from callboard_storage import doors
from callboard_storage.doors import DATA_FILE
from callboard_storage.upkeep import child


@contextmanager
def staging(directory: Path, name: str) -> Iterator[Path]:
    """A directory for the new file, inside the one it is for: a rename must not cross file systems.

    What an attempt left that was killed is cleared away first.
    """
    place = directory / name
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(mode=0o700)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def check_room(directory: Path, needed: int, doing: str) -> None:
    """Raise unless the disk has room for the new file beside the old one.

    Raises:
        StoreFullError: it has not.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise StoreFullError(
            f"{doing} {directory} needs {needed} bytes, {free} are free", hint="free space on that disk"
        )


def compared(directory: Path, staged: Path, descriptor: int, what: str, *, job: str = "compare") -> int:
    """How many rows both files hold, once every one of them was held against the other's.

    Args:
        directory: the data directory.
        staged: where the new file is.
        descriptor: the turn at the directory, for the child to inherit.
        what: how to call the new file in the error.
        job: which of the child's jobs compares them.

    Raises:
        StoreError: they differ.
    """
    arguments = {"path": str(directory), "other": str(staged)}
    answer = child.copy_or_raise(job, arguments, inherited=(descriptor,))
    if not answer["same"]:
        raise StoreError(
            f"the {what} copy of {directory} does not hold the same rows; it was thrown away",
            hint="run `callboard store verify`",
        )
    rows: int = answer["rows"]
    return rows


def put_in_place(staged: Path, directory: Path, reached: Callable[[str], None]) -> None:
    """Give the new file its name, and return once the disk keeps that."""
    (staged / DATA_FILE).replace(directory / DATA_FILE)
    reached("swapped")
    doors.make_durable(directory)
    reached("synced")
