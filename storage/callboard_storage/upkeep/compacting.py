"""Compaction: a new data file without the free pages, put in the old one's place."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from callboard_protocol.errors import StoreError, StoreFullError
from callboard_storage import doors
from callboard_storage.doors import DATA_FILE
from callboard_storage.upkeep import child, turns
from callboard_storage.upkeep.report import CompactReport

STAGING = ".compacting"
"""Where the new file grows, inside the data directory: a rename must not cross file systems."""


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
    with turns.alone(directory) as descriptor:
        old, staging = directory / DATA_FILE, directory / STAGING
        new = staging / DATA_FILE
        shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
        before = old.stat()
        try:
            staging.mkdir(mode=0o700)
            point("begun")
            place = {"path": str(directory)}
            swept = child.copy_or_raise("sweep", place, inherited=(descriptor,))
            _check_room(directory, child.copy_or_raise("stats", place, inherited=(descriptor,)))
            arguments = {"path": str(directory), "file": str(new), "mode": before.st_mode & 0o777, "gently": False}
            copied = child.copy_or_raise("copy", arguments, inherited=(descriptor,), progress=progress)
            point("copied")
            rows = _compare(directory, staging, descriptor)
            point("compared")
            new.replace(old)
            point("swapped")
            doors.make_durable(directory)
            point("synced")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return CompactReport(
        path=str(directory),
        bytes_before=before.st_size,
        bytes_after=copied["bytes"],
        rows=rows,
        chunks_removed=swept["chunks"],
        seconds=time.perf_counter() - began,
    )


def _check_room(directory: Path, figures: child.Event) -> None:
    needed, free = figures["bytes_used"], shutil.disk_usage(directory).free
    if free < needed:
        raise StoreFullError(
            f"compacting {directory} needs {needed} bytes, {free} are free", hint="free space on that disk"
        )


def _compare(directory: Path, staging: Path, descriptor: int) -> int:
    compared = child.copy_or_raise("compare", {"path": str(directory), "other": str(staging)}, inherited=(descriptor,))
    if not compared["same"]:
        raise StoreError(
            f"the compacted copy of {directory} does not hold the same rows; it was thrown away",
            hint="run `callboard store verify`",
        )
    rows: int = compared["rows"]
    return rows
