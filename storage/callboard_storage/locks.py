"""Who is alive in a data directory, and who may replace its files.

Every open store is an *owner*: an id nobody ever has again, and a file of that name in ``alive/`` under a `flock` for
as long as the store is open. The kernel drops the lock when the process ends, however it ends, so whether an owner
lives is never a matter of clocks: a process that was stopped (SIGSTOP) is alive, a killed one is dead at once. Session
locks name their owner; see `fencing` for the rules and `Fence` for how a batch carries them.

A `flock` belongs to the open file, not to the process: looking whether someone else's can be taken disturbs nobody,
also within one process.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from callboard_protocol.errors import StoreInUseError, StoreOpenError
from callboard_storage.fencing import OWNER_BYTES

ALIVE_DIRECTORY: Final = "alive"

_SECONDS_FOR_OTHERS_TO_OPEN = 30.0
_SECONDS_BETWEEN_TRIES = 0.01


class Owner:
    """One open store, alive until `resign`.

    Args:
        path: its file, which this object holds locked.
        descriptor: that file, open.

    Attributes:
        id: by which session locks name it.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.id = bytes.fromhex(path.name)
        self._path = path
        self._descriptor: int | None = descriptor

    def resign(self) -> None:
        """Die: every session this owner holds is free. Resigning twice is harmless."""
        if self._descriptor is not None:
            with suppress(OSError):  # swept away by whoever thought so first, or the disk refuses: the flock decides
                self._path.unlink()
            self.leave_to_parent()

    def leave_to_parent(self) -> None:
        """In a forked child: let go of the inherited descriptor, which would outlive the parent; its lock stays."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class Owners:
    """Everyone who has a data directory open.

    Args:
        directory: the data directory.
    """

    def __init__(self, directory: Path) -> None:
        self._place = directory / ALIVE_DIRECTORY

    def register(self) -> Owner:
        """A new owner, alive from now on.

        Raises:
            StoreOpenError: its file cannot be made.
        """
        try:
            self._place.mkdir(mode=0o700, exist_ok=True)
            while True:
                path = self._place / secrets.token_hex(OWNER_BYTES)
                # It gets its name once it is locked: nobody ever sees an owner that only seems dead.
                unnamed = path.with_name(f".{path.name}")
                descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    unnamed.rename(path)
                except (BlockingIOError, FileNotFoundError):
                    os.close(descriptor)  # swept away between its making and its lock
                    continue
                with suppress(OSError):  # the pid is for people; a full disk must not keep anyone out
                    os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
                return Owner(path, descriptor)
        except OSError as error:
            raise StoreOpenError(f"{self._place} cannot be written: {error.strerror}") from error

    def is_alive(self, owner: bytes) -> bool:
        """Whether an owner lives. One whose file is gone does not."""
        return self._is_locked(self._place / owner.hex())

    def living(self) -> set[bytes]:
        """Everyone who lives, this process's own owners too; the files of the dead are removed."""
        living: set[bytes] = set()
        for path in self._files():
            if not self._is_locked(path, remove=True) or path.name.startswith("."):
                continue
            with suppress(ValueError):  # someone else's file
                living.add(bytes.fromhex(path.name))
        return living

    def pid_of(self, owner: bytes) -> str:
        """The pid an owner wrote down, for error texts; ``unknown`` where it could not."""
        try:
            return (self._place / owner.hex()).read_text(encoding="ascii", errors="replace").strip() or "unknown"
        except OSError:
            return "unknown"

    def pids(self) -> list[str]:
        """The pids of the living, for error texts."""
        return sorted({self.pid_of(owner) for owner in self.living()})

    def _files(self) -> list[Path]:
        try:
            return sorted(self._place.iterdir())
        except FileNotFoundError:
            return []

    @staticmethod
    def _is_locked(path: Path, *, remove: bool = False) -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if remove else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            if remove:
                path.unlink(missing_ok=True)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


class DirectoryTurn:
    """A `flock` on a data directory itself: shared by those who use its files, exclusive to who replaces them.

    LMDB's lock file cannot tell them apart: a reader that still maps the old data file through the same lock file would
    make a writer begin at the wrong root page.

    Args:
        directory: the data directory.
        exclusive: to replace its files.

    Raises:
        StoreInUseError: others use it, where `exclusive`; someone replaces its files, where not.
        StoreOpenError: the directory cannot be opened or locked.
    """

    def __init__(self, directory: Path, *, exclusive: bool = False) -> None:
        self.descriptor: int | None = _opened(directory)
        try:
            fcntl.flock(self.descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            self.end()
            raise _in_use(directory, exclusive=exclusive) from None
        except OSError as error:
            self.end()
            raise StoreOpenError(f"{directory} cannot be locked: {error.strerror}") from error

    def end(self) -> None:
        """Let others have their turn. Ending twice is harmless; in a forked child it leaves the parent's turn alone."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def one_opens_at_a_time(directory: Path) -> Iterator[None]:
    """Hold off every other process that would open the directory: its first files are made once. Blocks.

    Raises:
        StoreInUseError: another process has been opening it for half a minute.
        StoreOpenError: the directory cannot be written or locked.
    """
    place = directory / ALIVE_DIRECTORY
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreOpenError(f"{place} cannot be made: {error.strerror}") from error
    descriptor = _opened(place)
    deadline = time.monotonic() + _SECONDS_FOR_OTHERS_TO_OPEN
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreInUseError(
                        f"another process has been opening {directory} for {_SECONDS_FOR_OTHERS_TO_OPEN:g} s",
                        hint="is one of them stopped (SIGSTOP), or in a debugger?",
                    ) from None
                time.sleep(_SECONDS_BETWEEN_TRIES)
            except OSError as error:
                raise StoreOpenError(f"{place} cannot be locked: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)


def _opened(directory: Path) -> int:
    try:
        return os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError as error:
        raise StoreOpenError(f"{directory} cannot be opened: {error.strerror}") from error


def _in_use(directory: Path, *, exclusive: bool) -> StoreInUseError:
    if not exclusive:
        return StoreInUseError(f"{directory} is being compacted or restored", hint="wait until that has ended")
    pids = Owners(directory).pids()
    if not pids:
        return StoreInUseError(
            f"{directory} is being read, by verify, backup or export", hint="wait until that has ended"
        )
    return StoreInUseError(
        f"{directory} is in use by the process{'es' if len(pids) > 1 else ''} with pid {', '.join(pids)}",
        hint="stop that first: this needs the directory alone",
        context={"pids": pids},
    )
