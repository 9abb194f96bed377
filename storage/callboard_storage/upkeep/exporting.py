"""A session as JSON Lines: a header, a line per stored row, and a last line that says that this was all of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final

from callboard_protocol._version import __version__
from callboard_protocol.errors import UnknownSessionError, UsageError
from callboard_storage import chunks, keys
from callboard_storage.codec import CODEC
from callboard_storage.reading import Snapshot
from callboard_storage.upkeep import child, turns
from callboard_storage.upkeep.plain_json import to_json
from callboard_storage.upkeep.report import ExportReport

FORMAT: Final = 1
"""What the lines mean. An importer refuses a newer one."""

_PAGE = 1000


def export_session(path: str | os.PathLike[str], session_id: str, file: str | os.PathLike[str]) -> ExportReport:
    """Write everything a session holds to a file of JSON Lines; runs may go on. Blocks: call it on a thread.

    Args:
        path: the data directory, or a backup of one.
        session_id: the session.
        file: where to; it must not exist yet.

    Raises:
        UnknownSessionError: there is no such session.
        DamagedRecordError: one of its rows is damaged; nothing was written.
        UsageError: the file exists.
        StoreOpenError: there is no store.
        StoreInUseError: it is being compacted or restored.
        StoreError: the data file cannot be read.
        StoreVersionError: a newer release or another engine wrote it.
    """
    directory = turns.existing(path)
    keys.session_prefix(session_id)
    target = Path(file).expanduser()
    part = target.with_name(target.name + ".part")
    if target.exists():
        raise UsageError(f"{target} exists", hint="nothing is overwritten: give another file")
    part.unlink(missing_ok=True)
    try:
        with turns.reading(directory) as descriptor:
            arguments = {"path": str(directory), "session_id": session_id, "file": str(part.absolute())}
            written = child.copy_or_raise("export", arguments, inherited=(descriptor,))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return ExportReport(session_id=session_id, file=str(target), rows=written["rows"], bytes_written=written["bytes"])


def export_page(
    path: str | os.PathLike[str], folder: Path, *, after: str | None = None, limit: int = 200
) -> dict[str, Path]:
    """Write the next sessions of a data directory to files of JSON Lines; runs may go on. Blocks: call it on a thread.

    Args:
        path: the data directory, or a backup of one.
        folder: where to; it is empty.
        after: the session before the first one.
        limit: sessions at most.

    Returns:
        Each session's file, in the order of their ids; empty where no session follows.

    Raises:
        DamagedRecordError: a row of one of them is damaged.
        StoreOpenError: there is no store.
        StoreInUseError: it is being compacted or restored.
        StoreError: the data file cannot be read.
        StoreVersionError: a newer release or another engine wrote it.
    """
    directory = turns.existing(path)
    with turns.reading(directory) as descriptor:
        arguments = {"path": str(directory), "folder": str(folder.absolute()), "after": after, "limit": limit}
        written = child.copy_or_raise("export_page", arguments, inherited=(descriptor,))
    return {session_id: folder / f"{place}.jsonl" for place, session_id in enumerate(written["ids"])}


def write_session(snapshot: Snapshot, session_id: str, file: BinaryIO) -> dict[str, int]:
    """Write a session's lines; returns how many rows of each table that were.

    Raises:
        UnknownSessionError: there is no such session.
        DamagedRecordError: one of its rows is damaged.
    """
    digest = blake2b(digest_size=32)
    counts: dict[str, int] = {}

    def line(content: dict[str, Any]) -> None:
        encoded = json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        digest.update(encoded)
        file.write(encoded)

    line({"callboard": "session", "format": FORMAT, "release": __version__, "session_id": session_id})
    for table, key, frame in _rows(snapshot, keys.session_prefix(session_id)):
        schema, version, body = CODEC.body(key, chunks.whole(snapshot, table, key, frame))
        place = {"sequence": keys.sequence_of(key)} if table == "log" else {}
        line(
            {
                "table": table,
                **place,
                "kind": schema.model.__name__,
                "schema": schema.id,
                "version": version,
                "body": to_json(body),
            }
        )
        counts[table] = counts.get(table, 0) + 1
    if not counts:
        raise UnknownSessionError(f"there is no session {session_id!r}", hint="")
    line({"end": True, "rows": counts, "blake2b": digest.hexdigest()})
    return counts


def _rows(snapshot: Snapshot, prefix: bytes) -> Iterator[tuple[str, bytes, bytes]]:
    head = snapshot.get("heads", prefix[:-1])
    if head is not None:
        yield "heads", prefix[:-1], head
    end = snapshot.last_sequence(prefix) + 1
    for start in range(0, end, _PAGE):
        for key, frame in snapshot.log_rows(prefix, start, min(start + _PAGE, end)):
            yield "log", key, frame
    for key, frame in snapshot.session_rows("checkpoints", prefix):
        yield "checkpoints", key, frame
    for key, frame in snapshot.session_rows("memory", prefix):
        yield "memory", key, frame
    for key, frame in snapshot.session_rows("letters", prefix):
        yield "letters", key, frame
    for key, _ in snapshot.session_rows("session_runs", prefix):
        run = key[len(prefix) :]
        entry = snapshot.get("runs", run)
        if entry is not None:
            yield "runs", run, entry
