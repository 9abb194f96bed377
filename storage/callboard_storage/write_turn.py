"""What the writer is at, for those who wonder why their commits wait; and whose doing that is."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from callboard_storage.locks import Owners
from callboard_storage.store_values import StallCause, WriteStall

SECONDS_UNTIL_STALLED: Final = 2.0
"""More than any ordinary transaction takes."""

_STOPPED: Final = frozenset("Tt")
"""States of a process, as in proc(5), in which it does nothing until somebody continues it."""


class WriteTurn:
    """The writer's turn at the directory's one write transaction. Written by its thread, read by any."""

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at: tuple[StallCause, float] | None = None

    def waits(self) -> None:
        """It waits for its turn, which another process may have."""
        self._at = ("process", time.monotonic())

    def begins(self) -> None:
        """It has its turn."""
        self._at = ("own_write", time.monotonic())

    def ends(self) -> None:
        """It is done."""
        self._at = None

    def stall(self, owners: Owners) -> WriteStall | None:
        """Why nothing is written, once that takes longer than any ordinary transaction.

        Args:
            owners: who else has the directory open.
        """
        at = self._at
        if at is None or (seconds := time.monotonic() - at[1]) < SECONDS_UNTIL_STALLED:
            return None
        cause = at[0]
        if cause == "own_write":
            return WriteStall(seconds, cause)
        others = sorted({int(pid) for pid in owners.pids() if pid.isdecimal()} - {os.getpid()})
        stopped = [pid for pid in others if _is_stopped(pid)]
        return WriteStall(seconds, cause, tuple(stopped or others), bool(stopped))


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped; False where the system does not say."""
    try:
        # The name before the state is in parentheses and may hold anything.
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in _STOPPED
