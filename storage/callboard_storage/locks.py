"""Who owns a data directory.

In this release one process owns a whole directory. The next one shares it between processes: an owner file per
process, and a fencing token per session. Everything that knows about owners is in this file, so that only this file
and `Fence.token` change then.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from callboard_protocol.errors import StoreInUseError, StoreOpenError

OWNER_FILE = "owner"


class DirectoryLock:
    """An exclusive `flock` on a directory's owner file, held for life.

    The kernel releases it when the process ends, however it ends. The file stays: its content is only read to name the
    owner in an error.

    Args:
        directory: the data directory.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / OWNER_FILE
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the directory, without waiting.

        Raises:
            StoreInUseError: another process has it; the error names its pid.
            StoreOpenError: the owner file cannot be opened.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreOpenError(f"{self._path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreInUseError(
                f"{self._path.parent} is in use by the process with pid {owner}",
                hint="one process at a time can open a data directory in this release: stop that one first",
                context={"pid": owner},
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StoreOpenError(f"{self._path} cannot be locked: {error.strerror}") from error
        self._descriptor = descriptor
        with suppress(OSError):  # a full disk must not keep anyone out; the pid is only for the other's error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Give the directory back. Releasing twice is harmless."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def leave_to_parent(self) -> None:
        """In a forked child: let go of the inherited descriptor.

        Else the child would keep the directory locked after its parent died. The parent's lock stays, because `flock`
        belongs to the open file both share.
        """
        self.release()
