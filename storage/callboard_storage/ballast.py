"""A file that is thrown overboard so that a full disk can be thinned out.

LMDB never overwrites a page in use, so even a deletion needs new pages before it can free any, and on a disk that is
truly full it gets none. The ballast is room set aside for that: the deletion takes its place, and once there is room
again the file is laid anew.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

BALLAST_FILE: Final = "ballast"
BALLAST_BYTES: Final = 1 << 20


class Ballast:
    """The ballast of one data directory.

    Args:
        directory: the data directory.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / BALLAST_FILE

    def lay(self) -> None:
        """Set the room aside, unless it is; without room there is none to set aside."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return
        except OSError as error:
            logger.warning("%s cannot be made: %s", self._path, error.strerror)
            return
        try:
            with os.fdopen(descriptor, "wb") as file:
                # Noise, so that no file system stores it as nothing.
                file.write(os.urandom(BALLAST_BYTES))
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._path, error.strerror)
            self._path.unlink(missing_ok=True)

    def drop(self) -> bool:
        """Give the room up; whether there was any."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        logger.warning("%s was removed to make room for a deletion", self._path)
        return True
