"""Hot backup, and restoring one."""

from __future__ import annotations

import json
import os
import shutil
import time
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from callboard_protocol._version import __version__
from callboard_protocol.errors import StoreError, StoreFullError, StoreOpenError, UsageError
from callboard_storage import doors
from callboard_storage.doors import DATA_FILE, LOCK_FILE
from callboard_storage.lmdb_engine import DATA_FORMAT
from callboard_storage.locks import ALIVE_DIRECTORY
from callboard_storage.upkeep import child, turns
from callboard_storage.upkeep.report import BackupReport, RestoreReport
from callboard_storage.upkeep.verifying import verify_held

MANIFEST = "backup.json"
RESTORING = ".restoring"
"""Where a restored file is checked, inside the directory it is for."""

_PART = "data.mdb.part"
_CHUNK = 1024 * 1024


def backup(
    path: str | os.PathLike[str], target: str | os.PathLike[str], *, progress: child.Progress | None = None
) -> BackupReport:
    """Make a consistent copy of a data directory while runs go on in it. Blocks: call it on a thread.

    The copy holds what was committed when it began, without free pages. It is itself a data directory, with a
    `backup.json` that says what it is. The data file gets its name last, once it is on disk: a target without one is
    no backup.

    Args:
        path: the data directory.
        target: a directory that does not exist yet, or is empty.
        progress: told how many bytes are done, and of how many.

    Raises:
        UsageError: the target holds something.
        StoreOpenError: there is no store, or the target cannot be made.
        StoreInUseError: the directory is being compacted, or the target is in another's hands.
        StoreFullError: the target's disk has no room.
        StoreError: the data file cannot be read.
        StoreVersionError: a newer release or another engine wrote it.
    """
    began = time.perf_counter()
    directory = turns.existing(path)
    place = _empty_directory(target, leftovers={_PART, MANIFEST})
    with turns.alone(place), turns.reading(directory) as descriptor:
        _check_empty(place, {_PART, MANIFEST})
        part = place / _PART
        arguments = {"path": str(directory), "file": str(part), "mode": 0o600, "gently": True}
        figures = child.copy_or_raise("stats", {"path": str(directory)}, inherited=(descriptor,))
        copied = child.copy_or_raise("copy", arguments, inherited=(descriptor,), progress=progress)
        manifest = {
            "callboard": "backup",
            "release": __version__,
            "made_at": datetime.now(UTC).isoformat(),
            "store_format": figures["meta"].get("format"),
            "engine": figures["meta"].get("engine"),
            "bytes": copied["bytes"],
            "blake2b": copied["digest"],
        }
        _write_durably(place / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
        part.replace(place / DATA_FILE)
        doors.make_durable(place)
    return BackupReport(
        path=str(directory),
        backup=str(place),
        bytes_written=copied["bytes"],
        digest=copied["digest"],
        seconds=time.perf_counter() - began,
    )


def restore(
    source: str | os.PathLike[str], path: str | os.PathLike[str], *, progress: child.Progress | None = None
) -> RestoreReport:
    """Make a data directory of a backup. Blocks: call it on a thread.

    The backup is copied, the copy is held against the backup's digest and verified row by row, and only then gets its
    name. The backup itself is only read.

    Args:
        source: the backup; a copy of a data directory that was closed will do.
        path: a directory that does not exist yet, or is empty.
        progress: told how many bytes are done, and of how many.

    Raises:
        UsageError: `path` holds something.
        StoreError: the backup is damaged; the error says where, and nothing was put in place.
        StoreOpenError: there is no backup, or `path` cannot be made.
        StoreInUseError: `path` is in another's hands.
        StoreFullError: its disk has no room.
        StoreVersionError: a newer release or another engine wrote it.
    """
    began = time.perf_counter()
    origin = turns.existing(source)
    allowed = {RESTORING, LOCK_FILE}
    directory = _empty_directory(path, leftovers=allowed)
    with turns.alone(directory) as descriptor, turns.reading(origin):
        _check_empty(directory, allowed)
        staging = directory / RESTORING
        shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
        try:
            doors.check_data_format(origin, DATA_FORMAT)
            staging.mkdir(mode=0o700)
            _check_digest(origin, _copy(origin / DATA_FILE, staging / DATA_FILE))
            verified = verify_held(staging, descriptor, progress=progress)
            if not verified.is_sound:
                first = verified.problems[0]
                raise StoreError(
                    f"the backup {source} is damaged: {first.table} {first.key} {first.what}".replace("  ", " "),
                    hint=f"run `callboard store verify {source}`; restore an earlier backup",
                )
            (staging / DATA_FILE).replace(directory / DATA_FILE)
            doors.make_durable(directory)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return RestoreReport(
        backup=str(origin), path=str(directory), verified=verified, seconds=time.perf_counter() - began
    )


def _empty_directory(path: str | os.PathLike[str], *, leftovers: set[str]) -> Path:
    directory = Path(path).expanduser()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreOpenError(f"{path} cannot be made: {error.strerror}") from error
    _check_empty(directory, leftovers)
    return directory.resolve()


def _check_empty(directory: Path, leftovers: set[str]) -> None:
    """Raise if a directory holds anything but what an attempt that was cut off left."""
    foreign = sorted({entry.name for entry in directory.iterdir()} - leftovers - {ALIVE_DIRECTORY, "lost+found"})
    if foreign:
        raise UsageError(
            f"{directory} is not empty: {', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}",
            hint="nothing is overwritten: give a directory that does not exist yet",
        )


def _copy(source: Path, target: Path) -> tuple[int, str]:
    digest = blake2b(digest_size=32)
    try:
        with source.open("rb") as reading, target.open("xb") as writing:
            while chunk := reading.read(_CHUNK):
                writing.write(chunk)
                digest.update(chunk)
            writing.flush()
            os.fsync(writing.fileno())
            return writing.tell(), digest.hexdigest()
    except OSError as error:
        raise StoreFullError(f"{source} could not be copied to {target}: {error.strerror}") from error


def _check_digest(origin: Path, copied: tuple[int, str]) -> None:
    try:
        manifest: dict[str, Any] = json.loads((origin / MANIFEST).read_bytes())
        stated = manifest["bytes"], manifest["blake2b"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{origin / MANIFEST} cannot be read: {error}", hint="restore an earlier backup") from error
    if stated != copied:
        raise StoreError(
            f"the backup {origin} is not what was written: {copied[0]} bytes instead of {stated[0]}"
            if stated[0] != copied[0]
            else f"the backup {origin} is not what was written: its digest differs",
            hint=f"it was damaged, or opened and changed; delete its {MANIFEST} to restore what it holds now",
        )


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
