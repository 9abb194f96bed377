"""Compaction: a new data file without the free pages, put in the old one's place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from callboard_storage.doors import DATA_FILE
from callboard_storage.upkeep import child, replacing, turns
from callboard_storage.upkeep.report import CompactReport

STAGING = ".compacting"
"""Where the new file grows, inside the data directory."""


def compact(
    path: str | os.PathLike[str],
    *,
    progress: child.Progress | None = None,
    reached: Callable[[str], None] | None = None,
) -> CompactReport:
    """Rewrite the data file without the pages that deletions left free. Blocks: call it on a thread.

    The new file is written beside the old one, compared with it row by row, and renamed over it: at every instant the
    directory holds one whole file or the other. Needs room for the live data once more.

    Args:
        path: a data directory that nobody has open.
        progress: told how many bytes are done, and of how many.
        reached: told the name of each point passed, for tests: ``begun``, ``copied``, ``compared``, ``swapped``,
            ``synced``.

    Raises:
        StoreInUseError: a process has the directory open, or reads it.
        StoreFullError: there is no room for the new file.
        StoreError: the old file cannot be read; it stays as it is.
        StoreOpenError: there is no store.
        StoreVersionError: a newer release or another engine wrote it.
    """
    began = time.perf_counter()
    point = reached or (lambda _: None)
    directory = turns.existing(path)
    with turns.alone(directory) as descriptor, replacing.staging(directory, STAGING) as staged:
        before = (directory / DATA_FILE).stat()
        point("begun")
        place = {"path": str(directory)}
        swept = child.copy_or_raise("sweep", place, inherited=(descriptor,))
        figures = child.copy_or_raise("stats", place, inherited=(descriptor,))
        replacing.check_room(directory, figures["bytes_used"], "compacting")
        new = str(staged / DATA_FILE)
        arguments = {**place, "file": new, "mode": before.st_mode & 0o777, "gently": False}
        copied = child.copy_or_raise("copy", arguments, inherited=(descriptor,), progress=progress)
        point("copied")
        rows = replacing.compared(directory, staged, descriptor, "compacted")
        point("compared")
        replacing.put_in_place(staged, directory, point)
    return CompactReport(
        path=str(directory),
        bytes_before=before.st_size,
        bytes_after=copied["bytes"],
        rows=rows,
        chunks_removed=swept["chunks"],
        seconds=time.perf_counter() - began,
    )
