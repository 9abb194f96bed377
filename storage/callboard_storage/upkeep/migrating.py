"""Migration: a data directory of an earlier release or another engine, made into one of ours."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from callboard_storage.doors import DATA_FILE, LOCK_FILE, make_durable
from callboard_storage.upkeep import child, replacing, turns
from callboard_storage.upkeep.backups import MANIFEST
from callboard_storage.upkeep.report import MigrateReport, Problem

STAGING = ".migrating"
"""Where the new file grows, inside the data directory."""

KEPT = "data.mdb.before-migration"
"""What the old file is called besides, until the disk keeps the new one's name."""


def migrate(
    path: str | os.PathLike[str],
    *,
    progress: child.Progress | None = None,
    reached: Callable[[str], None] | None = None,
) -> MigrateReport:
    """Make a data directory one of this release's engine, format and schemas. Blocks: call it on a thread.

    A child reads the old file with the engine that made it and writes a new one beside it. Both are compared row by
    row, and the new one is renamed over the old: at every instant the directory holds one whole file or the other. A
    directory that needs none of this is left as it is, so migrating twice is harmless.

    A record that cannot be read is copied as it is, and the report names it.

    Args:
        path: a data directory that nobody has open, or a backup of one.
        progress: told how many bytes are done, and of how many.
        reached: told the name of each point passed, for tests: ``begun``, ``copied``, ``compared``, ``kept``,
            ``swapped``, ``synced``.

    Raises:
        StoreInUseError: a process has the directory open, or reads it.
        StoreFullError: there is no room for the new file.
        StoreError: the old file cannot be read; it stays as it is.
        StoreOpenError: there is no store.
        StoreVersionError: a newer release wrote it, or an engine this release does not have.
    """
    began = time.perf_counter()
    point = reached or (lambda _: None)
    directory = turns.existing(path)
    with turns.alone(directory) as descriptor:
        old = directory / DATA_FILE
        before = old.stat()
        where = {"path": str(directory)}
        found = child.copy_or_raise("survey", where, inherited=(descriptor,))
        # Of one that was killed: the data file is whole, whichever of the two it is.
        (directory / KEPT).unlink(missing_ok=True)
        shutil.rmtree(directory / STAGING, ignore_errors=True)
        written: child.Event = {"upgraded": 0, "problems": (), "more_problems": 0}
        rows = 0
        if found["is_due"]:
            replacing.check_room(directory, found["bytes_used"], "migrating")
            with replacing.staging(directory, STAGING) as staged:
                point("begun")
                written = child.copy_or_raise(
                    "rewrite", {**where, "staged": str(staged)}, inherited=(descriptor,), progress=progress
                )
                (staged / DATA_FILE).chmod(before.st_mode & 0o777)
                point("copied")
                rows = replacing.compared(directory, staged, descriptor, "migrated", job="compare_migrated")
                point("compared")
                _keep(old)
                point("kept")
                # A backup is no longer the file that this describes.
                (directory / MANIFEST).unlink(missing_ok=True)
                replacing.put_in_place(staged, directory, point)
            # The other engine's, if it was another's; ours is made anew when the directory is opened.
            (directory / LOCK_FILE).unlink(missing_ok=True)
            (directory / KEPT).unlink(missing_ok=True)
    return MigrateReport(
        path=str(directory),
        is_migrated=found["is_due"],
        from_engine=found["from_engine"],
        engine=found["engine"],
        from_format=found["from_format"],
        format=found["format"],
        rows=rows,
        upgraded=written["upgraded"],
        problems=tuple(Problem(**problem) for problem in written["problems"]),
        more_problems=written["more_problems"],
        bytes_before=before.st_size,
        bytes_after=old.stat().st_size,
        seconds=time.perf_counter() - began,
    )


def _keep(old: Path) -> None:
    """Give the old file a second name, which the disk keeps before it loses its first."""
    os.link(old, old.with_name(KEPT))
    make_durable(old.parent)
