"""What a data directory holds, whoever has it open."""

from __future__ import annotations

import os

from callboard_storage.doors import DATA_FILE
from callboard_storage.upkeep import child, turns
from callboard_storage.upkeep.report import StatsReport


def stats(path: str | os.PathLike[str]) -> StatsReport:
    """Count what a data directory holds; runs may go on. Blocks: call it on a thread.

    Args:
        path: the data directory, or a backup of one.

    Raises:
        StoreOpenError: there is no store.
        StoreInUseError: it is being compacted or restored.
        StoreError: the data file cannot be read.
        StoreVersionError: a newer release or another engine wrote it.
    """
    directory = turns.existing(path)
    with turns.reading(directory) as descriptor:
        figures = child.copy_or_raise("stats", {"path": str(directory)}, inherited=(descriptor,))
    return StatsReport(
        path=str(directory),
        sessions=figures["sessions"],
        rows=figures["rows"],
        bytes_used=figures["bytes_used"],
        bytes_on_disk=(directory / DATA_FILE).stat().st_size,
        format=figures["meta"].get("format", ""),
        engine=figures["meta"].get("engine", ""),
    )
