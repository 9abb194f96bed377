"""What is checked before a data directory is opened: each refusal says what to do instead.

Nothing here opens LMDB. The checks run in this order, and each assumes that those before it passed.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from callboard_protocol.errors import StoreOpenError, StoreVersionError
from callboard_storage.ballast import BALLAST_FILE
from callboard_storage.locks import ALIVE_DIRECTORY

logger = logging.getLogger(__name__)

DATA_FILE = "data.mdb"
LOCK_FILE = "lock.mdb"

_NETWORK = """
    9p afpfs afs beegfs ceph cifs coda davfs fuse.ceph fuse.cephfs fuse.davfs2 fuse.gcsfuse
    fuse.glusterfs fuse.juicefs fuse.rclone fuse.s3fs fuse.sshfs gfs gfs2 glusterfs gpfs lustre ncpfs nfs
    nfs4 ocfs2 orangefs panfs pvfs2 smb smb2 smb3 smbfs vboxsf virtiofs webdav
"""
NETWORK_FILE_SYSTEMS = frozenset(_NETWORK.split())
"""Where memory maps and file locks are not shared with whoever else has the directory."""

_MOUNTS = Path("/proc/self/mounts")
_LMDB_MAGIC = 0xBEEFC0DE
_DATA_FORMATS = {1: "LMDB 0.9", 3: "LMDB 1.0"}
"""What LMDB's files say of themselves, by the engine that writes them."""


def check_platform(platform: str = sys.platform) -> None:
    """Raise unless the operating system is one whose locks and maps this store relies on.

    Raises:
        StoreOpenError: it is neither Linux nor macOS.
    """
    if platform not in {"linux", "darwin"}:
        raise StoreOpenError(
            f"a store on disk needs Linux or macOS, this is {platform}",
            hint="use store=None: it keeps all in memory",
        )


def prepare_directory(path: str | os.PathLike[str]) -> Path:
    """The real path of a data directory that exists, is writable, and is empty or ours.

    Raises:
        StoreOpenError: it is a file, cannot be made or written, or holds something else.
    """
    directory = Path(path).expanduser()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = directory.resolve(strict=True)
        entries = sorted(entry.name for entry in directory.iterdir())
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreOpenError(f"{path} is a file", hint="give a directory of its own") from error
    except OSError as error:
        raise StoreOpenError(f"{path} cannot be used as a data directory: {error.strerror}") from error
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise StoreOpenError(f"{directory} is not writable", hint="give a directory this process may write to")
    if DATA_FILE not in entries:
        ours = {ALIVE_DIRECTORY, LOCK_FILE, BALLAST_FILE, "lost+found"}
        foreign = [name for name in entries if name not in ours and name[0] != "."]
        if foreign:
            raise StoreOpenError(
                f"{directory} holds something else: {', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''}",
                hint="give an empty directory, or one that does not exist yet",
            )
    return directory


def check_file_system(directory: Path, kind_of: Callable[[Path], str | None] | None = None) -> None:
    """Raise if the directory is on a network file system.

    Args:
        directory: the real path of the data directory.
        kind_of: tells a path's file system type; the system's own answer where None.

    Raises:
        StoreOpenError: it is on one.
    """
    kind = (kind_of or file_system_of)(directory)
    if kind is not None and kind.lower() in NETWORK_FILE_SYSTEMS:
        raise StoreOpenError(
            f"{directory} is on a {kind} file system, where neither locks nor memory maps can be relied on",
            hint="give a directory on a local disk",
        )


def file_system_of(directory: Path) -> str | None:
    """The type of the file system a path is on; None where the system does not say."""
    try:
        if _MOUNTS.exists():
            return kind_in_mounts(_MOUNTS.read_text(encoding="utf-8", errors="replace"), directory)
        listed = subprocess.run(["/sbin/mount"], capture_output=True, text=True, check=True, timeout=10)
        return kind_in_mount_output(listed.stdout, directory)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the file system of %s is unknown: %s", directory, error)
        return None


def kind_in_mounts(text: str, directory: Path) -> str | None:
    """The type of the mount a path is on, from Linux's table; the last mount on a point hides the earlier."""
    mounts = [line.split(" ") for line in text.splitlines()]
    points = [(_unescaped(fields[1]), fields[2]) for fields in mounts if len(fields) >= 3]
    return _kind_of_longest(points, directory)


def kind_in_mount_output(text: str, directory: Path) -> str | None:
    """The type of the mount a path is on, from what `mount` prints on macOS: ``source on point (type, options)``."""
    points = []
    for line in text.splitlines():
        place, found, kind = line.rpartition(" (")
        if found:
            points.append((place.partition(" on ")[2], kind.rstrip(")").split(",")[0].strip()))
    return _kind_of_longest(points, directory)


def check_free_space(directory: Path, is_new: bool, least: int) -> None:
    """Raise if a new directory's disk is all but full; warn if that of an existing one is, which is opened however full
    the disk is, so that it can be read and thinned out.

    Args:
        directory: the data directory.
        is_new: whether it holds no store yet.
        least: the bytes that must be free for a new one.

    Raises:
        StoreOpenError: less than `least` bytes are free for a new directory.
    """
    free = bytes_free(directory)
    if free >= least:
        return
    if is_new:
        raise StoreOpenError(f"the disk of {directory} has {free} bytes free, a new data directory needs {least}")
    logger.warning("the disk of %s has only %d bytes free", directory, free)


def bytes_free(directory: Path) -> int:
    """How many bytes this process may still write to the directory's disk."""
    return shutil.disk_usage(directory).free


def largest_file() -> float:
    """The bytes a file of this process may have (RLIMIT_FSIZE)."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def data_format(directory: Path) -> int | None:
    """The data format of a directory's file, as the engine that made it numbers them; None where there is no file yet.

    Raises:
        StoreOpenError: the data file cannot be read, or is not LMDB's.
    """
    try:
        with (directory / DATA_FILE).open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreOpenError(f"{directory / DATA_FILE} cannot be read: {error.strerror}") from error
    if not head:
        return None
    words = [int.from_bytes(head[at : at + 4], sys.byteorder) for at in range(0, len(head) - 3, 4)]
    if _LMDB_MAGIC not in words[:-1]:
        raise StoreOpenError(f"{directory / DATA_FILE} is not a store's file", hint="give an empty directory")
    return words[words.index(_LMDB_MAGIC) + 1]


def check_data_format(directory: Path, readable: int) -> bool:
    """Whether the directory is new, once it is clear that the engine can read it if it is not.

    Args:
        directory: the data directory.
        readable: the data format this release's engine reads and writes.

    Raises:
        StoreVersionError: another engine wrote it.
        StoreOpenError: the data file is not LMDB's.
    """
    found = data_format(directory)
    if found is not None and found != readable:
        raise engine_mismatch(directory, found)
    return found is None


def allocate(path: Path, size: int) -> None:
    """Make lock.mdb at its full size if it is not there; LMDB takes the number of reader slots from that size.

    Raises:
        StoreOpenError: it cannot be made, or the disk has no room for it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return
    except OSError as error:
        raise StoreOpenError(f"{path} cannot be made: {error.strerror}") from error
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.pwrite(descriptor, b"\0" * size, 0)
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StoreOpenError(f"{path} cannot be allocated: {error.strerror}") from error
    finally:
        os.close(descriptor)


def make_durable(directory: Path) -> None:
    """Have the disk keep the names of a new directory and of the files in it: LMDB syncs only what they hold.

    Raises:
        StoreOpenError: the disk refuses.
    """
    for place in (directory, directory.parent):
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if place == directory:
                raise StoreOpenError(f"{directory} cannot be synced: {error.strerror}") from error
            logger.warning("%s cannot be synced: %s", place, error)  # not ours to read, but its owner's to keep


def engine_mismatch(directory: Path, found: int) -> StoreVersionError:
    """The error for a directory of another engine, by the data format of its file."""
    if found in _DATA_FORMATS:
        return made_by_another(directory, _DATA_FORMATS[found])
    return StoreVersionError(
        f"{directory} was written by an engine of data format {found}, this release uses LMDB 0.9",
        hint="open it where that engine is, `callboard store export` its sessions there, and import them here",
    )


def made_by_another(directory: Path, engine: str) -> StoreVersionError:
    """The error for a directory of another engine that this release can migrate."""
    return StoreVersionError(
        f"{directory} was written by {engine}, this release uses LMDB 0.9",
        hint=f"run `callboard store migrate {directory}` while nobody has it open",
    )


def _kind_of_longest(points: list[tuple[str, str]], directory: Path) -> str | None:
    best: tuple[int, str] | None = None
    for point, kind in points:
        depth = len(Path(point).parts)
        if directory.is_relative_to(point) and (best is None or depth >= best[0]):
            best = depth, kind
    return None if best is None else best[1]


def _unescaped(point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
