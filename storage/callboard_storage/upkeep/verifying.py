"""Verification: every row of every table, read in children."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from callboard_protocol.errors import StoreError, StoreOpenError, StoreVersionError
from callboard_storage.doors import DATA_FILE
from callboard_storage.upkeep import child, turns
from callboard_storage.upkeep.report import MOST_PROBLEMS, Problem, VerifyReport
from callboard_storage.upkeep.walk import TABLES

logger = logging.getLogger(__name__)

BYTES_WORTH_SHARING = 64 * 1024 * 1024
"""A smaller file is walked by one reader: starting a second takes longer than it saves."""

_MOST_READERS = 4


def verify(path: str | os.PathLike[str], *, progress: child.Progress | None = None) -> VerifyReport:
    """Walk everything a data directory holds, and say what is wrong with it.

    Reads in child processes, so a damaged file harms nobody who asks; runs may go on in the meantime. Blocks: call it
    on a thread. Each reader sees one consistent snapshot.

    Args:
        path: a data directory, or a backup of one.
        progress: told how many bytes are done, and of how many.

    Raises:
        StoreOpenError: there is no store.
        StoreVersionError: a newer release or another engine wrote it.
        StoreInUseError: it is being compacted or restored.
    """
    directory = turns.existing(path)
    with turns.reading(directory) as descriptor:
        return verify_held(directory, descriptor, progress=progress)


def verify_held(directory: Path, descriptor: int, *, progress: child.Progress | None = None) -> VerifyReport:
    """As `verify`, for a caller that has its turn at the directory."""
    began = time.perf_counter()
    size = (directory / DATA_FILE).stat().st_size
    shards = min(os.cpu_count() or 1, _MOST_READERS) if size >= BYTES_WORTH_SHARING else 1
    readers = [_Reader(directory, descriptor, ("log",), shard, shards) for shard in range(shards)]
    readers[-1].tables = TABLES
    if progress is not None:
        together = _Together(progress)
        for reader in readers:
            reader.progress = together.of(reader.shard)
    with ThreadPoolExecutor(len(readers), thread_name_prefix="callboard-verify") as threads:
        for done in [threads.submit(reader.read) for reader in readers]:
            done.result()
    rows: Counter[str] = Counter()
    for reader in readers:
        rows.update(reader.rows)
    return VerifyReport(
        path=str(directory),
        rows={table: rows[table] for table in TABLES if table in rows},
        sessions=sum(reader.sessions for reader in readers),
        bytes_checked=sum(reader.bytes for reader in readers),
        seconds=time.perf_counter() - began,
        problems=tuple({problem: None for reader in readers for problem in reader.problems}),
        more_problems=sum(reader.more for reader in readers),
        unreferenced_chunks=sum(reader.unreferenced for reader in readers),
    )


def refuse_damaged_pages(path: str | os.PathLike[str]) -> None:
    """Verify a directory that is about to be opened; one that is not there yet is sound. Blocks: call it on a thread.

    Raises:
        StoreOpenError: a table cannot be read to its end, or has lost rows. Damaged records alone are only logged.
        StoreVersionError: a newer release or another engine wrote it.
        StoreInUseError: it is being compacted or restored.
    """
    file = Path(path).expanduser() / DATA_FILE
    if not file.is_file() or not file.stat().st_size:
        return
    report = verify(path)
    for problem in report.problems:
        logger.warning("%s: %s %s %s", path, problem.table, problem.key, problem.what)
    # What is wrong with a table as a whole has no key; what else is wrong is a record's own affair.
    pages = [problem for problem in report.problems if not problem.key]
    if pages:
        raise StoreOpenError(
            f"{path} has damaged pages: {pages[0].table or 'the file'} {pages[0].what}",
            hint="restore a backup; `callboard store export` saves what sessions can still be read",
        )


class _Together:
    """How far several readers are, as one."""

    def __init__(self, progress: child.Progress) -> None:
        self._progress = progress
        self._done: dict[int, int] = {}

    def of(self, shard: int) -> child.Progress:
        def told(done: int, total: int) -> None:
            self._done[shard] = done
            self._progress(sum(self._done.values()), total)

        return told


@dataclass(slots=True)
class _Reader:
    """One share of the work; a child that dies of it is followed by one for the tables behind."""

    directory: Path
    descriptor: int
    tables: Sequence[str]
    shard: int
    shards: int
    progress: child.Progress | None = None
    rows: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    more: int = 0
    bytes: int = 0
    sessions: int = 0
    unreferenced: int = 0
    at: str = ""

    def read(self) -> None:
        left = list(self.tables)
        while left:
            self.at = ""
            arguments = {"path": str(self.directory), "tables": left, "shard": self.shard, "shards": self.shards}
            try:
                child.run("verify", arguments, inherited=(self.descriptor,), told=self._told)
            except StoreVersionError:
                raise
            except (child.ChildDied, StoreError) as failure:
                self._add(Problem(table=self.at, what=_why(failure)))
                if not self.at:
                    return
                left = left[left.index(self.at) + 1 :]
            else:
                return

    def _told(self, event: child.Event) -> None:
        kind = event.pop("event")
        if kind == "problem":
            self._add(Problem(**event))
        elif kind == "table":
            self.at = event["table"]
        elif kind == "walked":
            self.rows[event["table"]] = event["rows"]
            self.bytes += event["bytes"]
            self.sessions += event["sessions"]
        elif kind == "unreferenced":
            self.unreferenced += event["chunks"]
        elif self.progress is not None:
            self.progress(event["done"], event["total"])

    def _add(self, problem: Problem) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)
        else:
            self.more += 1


def _why(failure: child.ChildDied | StoreError) -> str:
    if isinstance(failure, StoreError):
        return failure.message
    return f"cannot be read: the reader {failure.how}"
