"""What upkeep's children do: ``python -m callboard_storage.upkeep.jobs JOB ARGUMENTS``, JSON in, lines of JSON out."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from callboard_protocol.errors import CallboardError, StoreError, StoreFullError, StoreOpenError, StoreVersionError
from callboard_storage import chunks, data_file, doors, reading
from callboard_storage.lmdb_engine import ENGINE, engine_version, translated
from callboard_storage.lmdb_environment import FORMAT_VERSION, LmdbEnvironment, ReadOnlyEnvironment
from callboard_storage.lmdb_transactions import ReadTransaction
from callboard_storage.upkeep.comparing import same_records, same_rows
from callboard_storage.upkeep.exporting import write_session
from callboard_storage.upkeep.report import MOST_PROBLEMS, Problem
from callboard_storage.upkeep.rewriting import Rewriting, is_behind
from callboard_storage.upkeep.walk import Walk

SYNCED_EVERY = 8 * 1024 * 1024
"""Bytes a copy writes between syncs, where nobody waits for the disk."""

GENTLY_SYNCED_EVERY = 128 * 1024
"""The same beside a store at work: a commit's own sync waits behind what is being synced. Measured at 20 sessions
committing 30,000 times a second: their p99 grew 1.5 times; with 4 MiB it grew 5 times and more."""

_GENTLY = 15
"""How nice a process is that copies beside a store at work: its two threads would take a small machine's cores."""

_BETWEEN_REPORTS = 8 * 1024 * 1024
_CHUNK = 128 * 1024

Job = Callable[[dict[str, Any]], dict[str, Any]]


def tell(event: str, **facts: Any) -> None:
    """Tell the parent. A parent that is gone ends this process."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def opened(path: str, *, any_engine: bool = False) -> ReadOnlyEnvironment:
    """The directory, to be read; with `any_engine`, also one that another engine of ours made.

    Raises:
        StoreVersionError: a newer release or another engine wrote it.
        StoreOpenError: it is no store of ours.
    """
    environment = ReadOnlyEnvironment(Path(path), any_engine=any_engine)
    if "meta" in environment.tables:
        written = environment.read(_meta).get("format", "")
        if written.isdecimal() and int(written) > FORMAT_VERSION:
            raise StoreVersionError(
                f"{path} has store format {written}, this release reads up to {FORMAT_VERSION}",
                hint="use the release that wrote it, or a newer one",
            )
    return environment


def verify(arguments: dict[str, Any]) -> dict[str, Any]:
    """Walk tables; tells each problem, and each table once it is done."""
    environment = opened(arguments["path"])
    if arguments["shard"] == 0:
        try:
            data_file.check(Path(arguments["path"]) / doors.DATA_FILE)
        except StoreOpenError as error:
            tell("problem", table="", what=error.message)

    def walk(snapshot: ReadTransaction) -> None:
        total = snapshot.bytes_used()
        walker = Walk(
            snapshot,
            environment.tables,
            problem=lambda found: tell("problem", **found.model_dump()),
            progress=lambda done: tell("progress", done=done, total=total),
        )
        for table in arguments["tables"]:
            tell("table", table=table)
            try:
                rows, size, sessions = walker.check(table, arguments["shard"], arguments["shards"])
            except LmdbEnvironment.Error as error:
                tell("problem", table=table, what=f"cannot be read to its end: {error}")
            else:
                tell("walked", table=table, rows=rows, bytes=size, sessions=sessions)
        tell("unreferenced", chunks=walker.unreferenced)

    environment.read(walk)
    return {}


def copy(arguments: dict[str, Any]) -> dict[str, Any]:
    """Write a consistent, compacted copy of the data file, on disk when it returns."""
    environment = opened(arguments["path"])
    total = environment.read(lambda snapshot: snapshot.bytes_used())
    descriptor = os.open(arguments["file"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, arguments["mode"])
    receiving, sending = os.pipe()
    synced_every = SYNCED_EVERY
    if arguments["gently"]:
        os.nice(_GENTLY)
        synced_every = GENTLY_SYNCED_EVERY
    failures: list[CallboardError] = []

    def send() -> None:
        try:
            environment.copy(sending)
        except CallboardError as error:
            failures.append(error)
        finally:
            os.close(sending)

    # The engine writes into a pipe, so that the disk gets it in small portions with a sync behind each.
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    digest = blake2b(digest_size=32)
    done = synced = told = 0
    try:
        while chunk := os.read(receiving, _CHUNK):
            _write(descriptor, chunk)
            digest.update(chunk)
            done += len(chunk)
            if done - synced >= synced_every:
                _sync(descriptor)
                synced = done
            if done - told >= _BETWEEN_REPORTS:
                told = done
                tell("progress", done=done, total=max(total, done))
        os.fsync(descriptor)
    except OSError as error:
        raise _no_room(error, arguments["file"]) from error
    sender.join()
    if failures:
        raise failures[0]
    return {"bytes": done, "digest": digest.hexdigest()}


def compare(arguments: dict[str, Any]) -> dict[str, Any]:
    """Whether two directories hold the same rows."""
    rows = same_rows(opened(arguments["path"]), opened(arguments["other"]))
    return {"same": rows is not None, "rows": rows or 0}


def compare_migrated(arguments: dict[str, Any]) -> dict[str, Any]:
    """Whether a migrated directory holds what the one did that it was made of."""
    rows = same_records(opened(arguments["path"], any_engine=True), opened(arguments["other"]))
    return {"same": rows is not None, "rows": rows or 0}


def survey(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a migration would have to do."""
    environment = opened(arguments["path"], any_engine=True)
    written = environment.read(_meta)
    is_ours = environment.engine == ENGINE and _series(written.get("engine", "")) == _series(engine_version(ENGINE))
    is_due = not is_ours or written.get("format") != str(FORMAT_VERSION) or is_behind(environment)
    return {
        "is_due": is_due,
        "bytes_used": environment.read(lambda snapshot: snapshot.bytes_used()),
        "from_engine": written.get("engine") or engine_version(environment.engine),
        "engine": engine_version(ENGINE),
        "from_format": written.get("format", ""),
        "format": str(FORMAT_VERSION),
    }


def rewrite(arguments: dict[str, Any]) -> dict[str, Any]:
    """Write every row into a new file of our engine, format and schemas, on disk when it returns."""
    environment = opened(arguments["path"], any_engine=True)
    total = environment.read(lambda snapshot: snapshot.bytes_used())
    unreadable: list[Problem] = []
    rewriting = Rewriting(
        environment,
        Path(arguments["staged"]),
        progress=lambda done: tell("progress", done=done, total=max(done, total)),
        unreadable=unreadable.append,
    )
    rewriting.write()
    return {
        "upgraded": rewriting.upgraded,
        "problems": [problem.model_dump() for problem in unreadable[:MOST_PROBLEMS]],
        "more_problems": len(unreadable[MOST_PROBLEMS:]),
    }


def stats(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a directory holds."""
    environment = opened(arguments["path"])

    def count(snapshot: ReadTransaction) -> dict[str, Any]:
        return {
            "sessions": snapshot.count_sessions(),
            "rows": {table: snapshot.entries(table) for table in environment.tables if table != "meta"},
            "bytes_used": snapshot.bytes_used(),
        }

    return {**environment.read(count), "meta": environment.read(_meta)}


def sweep(arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove the chunks that no row refers to, from a directory that nobody else has open."""
    environment = LmdbEnvironment(Path(arguments["path"]))
    try:
        transaction = environment.begin_write()
        left = chunks.unreferenced(transaction.snapshot())
        for key in left:
            transaction.delete("blobs", key)
        transaction.commit()
    except LmdbEnvironment.Error as error:
        raise translated(error, "removing what interrupted writes left behind") from error
    finally:
        environment.close()
    return {"chunks": len(left)}


def export(arguments: dict[str, Any]) -> dict[str, Any]:
    """Write a session to a file, on disk when it returns."""
    environment = opened(arguments["path"])
    with open(arguments["file"], "xb") as file:
        rows = environment.read(lambda snapshot: write_session(snapshot, arguments["session_id"], file))
        file.flush()
        os.fsync(file.fileno())
        return {"rows": rows, "bytes": file.tell()}


def export_page(arguments: dict[str, Any]) -> dict[str, Any]:
    """Write some sessions to files that are named by their place among them."""
    environment = opened(arguments["path"])

    def write(snapshot: ReadTransaction) -> list[str]:
        ids = reading.session_ids(snapshot, arguments["after"], arguments["limit"])
        for place, session_id in enumerate(ids):
            with (Path(arguments["folder"]) / f"{place}.jsonl").open("xb") as file:
                write_session(snapshot, session_id, file)
        return ids

    return {"ids": environment.read(write)}


JOBS: Mapping[str, Job] = {
    "verify": verify,
    "copy": copy,
    "compare": compare,
    "compare_migrated": compare_migrated,
    "stats": stats,
    "sweep": sweep,
    "export": export,
    "survey": survey,
    "rewrite": rewrite,
    "export_page": export_page,
}


def _meta(snapshot: ReadTransaction) -> dict[str, str]:
    return {key.decode("ascii", "replace"): value.decode("ascii", "replace") for key, value in snapshot.each("meta")}


def _series(version: str) -> list[str]:
    """What the data formats of two engines that have the same of it have in common."""
    return version.split(".")[:2]


def _sync(descriptor: int) -> None:
    """Have the disk keep what was written so far, without asking it to keep the file's times as well."""
    (os.fdatasync if sys.platform == "linux" else os.fsync)(descriptor)


def _write(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _no_room(error: OSError, file: str) -> StoreError:
    return StoreFullError(f"{file} could not be written: {error.strerror}", hint="free space on that disk")


def main() -> None:
    """Run the job the command line names."""
    job, arguments = sys.argv[1:]
    try:
        tell("result", **JOBS[job](json.loads(arguments)))
    except CallboardError as error:
        tell("error", code=error.code, message=error.message, hint=error.hint)
    except LmdbEnvironment.Error as error:
        tell("error", code=StoreError.code, message=f"reading failed: {error}", hint="run `callboard store verify`")


if __name__ == "__main__":
    main()
