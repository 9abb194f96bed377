"""An open data directory: environment, writer and reader thread, shared by every store of this process that opened it.

LMDB must not be opened twice in a process (its locks belong to the process, and closing either copy drops them), so a
directory is opened once per real path and closed with its last user.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pykka

from callboard_protocol.errors import ForkedError, StoreClosedError, StoreOpenError
from callboard_storage import doors
from callboard_storage.ballast import Ballast
from callboard_storage.fencing import Refusals
from callboard_storage.lmdb_engine import LARGEST_MAP
from callboard_storage.lmdb_environment import LmdbEnvironment
from callboard_storage.locks import DirectoryTurn, Owner, Owners, one_opens_at_a_time
from callboard_storage.room import DEFAULT_FREE_BYTES, Room
from callboard_storage.store_values import WriteStall
from callboard_storage.write_queue import WriteQueue
from callboard_storage.writer import StoreWriter, Wake

_open: dict[Path, DataDirectory] = {}
_opening = threading.Lock()


class DataDirectory:
    """One directory, open. Get one with `acquire`, give it back with `release`.

    Args:
        path: its real path.
        map_size: bytes of address space; None finds out.
        max_bytes: the quota on live bytes; None is none.
        min_free_bytes: the space that must be left for work to begin.

    Attributes:
        environment: the LMDB environment.
        room: whether there is room, as the writer found it last.
        queue: what waits for the writer.
        refusals: sessions that were refused and do not know it yet.
        owners: who has the directory open, in this process and in others.
        reader: the one thread for long reads.
        is_forked: whether this is a forked child's copy, in which nothing may be used.
    """

    def __init__(self, path: Path, map_size: int | None, max_bytes: int | None, min_free_bytes: int) -> None:
        self.path = path
        self.options = (map_size, max_bytes, min_free_bytes)
        self.users = 0
        self.is_forked = False
        self.queue = WriteQueue(self._wake)
        self.refusals = Refusals()
        self.owners = Owners(path)
        self._ours: set[Owner] = set()
        with ExitStack() as opened:
            with one_opens_at_a_time(path):
                self._turn = DirectoryTurn(path)
                opened.callback(self._turn.end)
                self.environment = LmdbEnvironment(path, map_size, min_free_bytes)
                opened.callback(self.environment.close)
                # A small map is its owner's choice: what is kept free of it leaves most of it to be used.
                self.room = Room(max_bytes, min(min_free_bytes, (map_size or LARGEST_MAP) // 4))
                self.room.measured(self.environment.space(), time.monotonic())
                ballast = Ballast(path)
                if self.room.has_room:
                    ballast.lay()
            opened.callback(self._resign_all)
            self._writer = StoreWriter.start_unregistered(
                self.environment, self.queue, self.refusals, self.owners, self.room, ballast
            )
            opened.callback(self._writer.stop)
            self.reader = ThreadPoolExecutor(1, thread_name_prefix="callboard-reader")
            opened.callback(self.reader.shutdown)
            self._close = opened.pop_all().close

    def check_readers(self) -> None:
        """Have the writer free the reader slots of dead processes."""
        self._writer.tell(Wake.CHECK_READERS)

    def stalled(self) -> WriteStall | None:
        """Why nothing is written; None while commits go through."""
        return self.queue.turn.stall(self.owners)

    def enter(self) -> Owner:
        """An owner for one more store that uses this directory. Blocks.

        Raises:
            StoreOpenError: its file cannot be made.
        """
        owner = self.owners.register()
        self._ours.add(owner)
        return owner

    def leave(self, owner: Owner) -> None:
        """A store is closed: once what it committed is written, its sessions are free. Blocks."""
        self._writer.ask(Wake.WRITE)
        self._ours.discard(owner)
        owner.resign()

    def close(self) -> None:
        """Write what waits, then close everything."""
        self._close()

    def leave_to_parent(self) -> None:
        """In a forked child: use nothing and close nothing but the files whose locks would outlive the parent."""
        self.is_forked = True
        self._turn.end()
        for owner in self._ours:
            owner.leave_to_parent()

    def _resign_all(self) -> None:
        for owner in self._ours:
            owner.resign()

    def _wake(self) -> None:
        try:
            self._writer.tell(Wake.WRITE)
        except pykka.ActorDeadError:
            raise StoreClosedError(f"the store at {self.path} was closed") from None


def acquire(
    path: str | os.PathLike[str],
    *,
    map_size: int | None = None,
    max_bytes: int | None = None,
    min_free_bytes: int = DEFAULT_FREE_BYTES,
    kind_of: Callable[[Path], str | None] | None = None,
) -> DataDirectory:
    """Open a data directory, or share it if this process has it open. Blocks; call it on a thread.

    Args:
        path: where it is, or is to be.
        map_size: bytes of address space; None finds out.
        max_bytes: the quota on live bytes; None is none.
        min_free_bytes: the space that must be left for work to begin.
        kind_of: tells a path's file system type; the system's own answer where None.

    Raises:
        StoreOpenError: it cannot be opened, or is open in this process with other options.
        ForkedError: it was open in the parent of this process when that forked.
        StoreInUseError: another process replaces its files, or does not come to an end of opening it.
        StoreVersionError: a newer release or another engine wrote it.
    """
    doors.check_platform()
    real = doors.prepare_directory(path)
    with _opening:
        if any(directory.path == real for directory in _left):
            raise ForkedError(f"the store at {real} was opened by the parent of this process")
        directory = _open.get(real)
        if directory is None:
            doors.check_file_system(real, kind_of)
            directory = _open[real] = DataDirectory(real, map_size, max_bytes, min_free_bytes)
        elif directory.options != (map_size, max_bytes, min_free_bytes):
            names = ("map_size", "max_bytes", "min_free_bytes")
            others = ", ".join(f"{name}={value}" for name, value in zip(names, directory.options, strict=True))
            raise StoreOpenError(
                f"{real} is open in this process with other options: {others}",
                hint="open it everywhere with the same options",
            )
        directory.users += 1
        return directory


def release(directory: DataDirectory) -> None:
    """Give a directory back; the last user closes it. Blocks; call it on a thread."""
    with _opening:
        directory.users -= 1
        if directory.users == 0 and not directory.is_forked:
            del _open[directory.path]
            directory.close()


def _close_all() -> None:
    for directory in list(_open.values()):
        directory.close()
    _open.clear()


def _leave_all_to_parent() -> None:
    global _opening  # noqa: PLW0603 - another thread of the parent may have held it
    _opening = threading.Lock()
    for directory in _open.values():
        directory.leave_to_parent()
    _left.extend(_open.values())
    _open.clear()


_left: list[DataDirectory] = []
"""Directories of the parent, kept so that nothing in them is finalised in the child."""

atexit.register(_close_all)
os.register_at_fork(after_in_child=_leave_all_to_parent)
