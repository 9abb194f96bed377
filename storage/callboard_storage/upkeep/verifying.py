"""Verification: every row of every table, read in children."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from callboard_protocol.errors import StoreOpenError, StoreVersionError
from callboard_storage.doors import DATA_FILE
from callboard_storage.upkeep import child, turns
from callboard_storage.upkeep.report import Problem, VerifyReport
from callboard_storage.upkeep.walk import TABLES

MOST_PROBLEMS = 1000
"""How many of one reader's problems a report holds."""

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
    rest = TABLES[1:]
    readers = [_Reader(directory, descriptor, ("log",), shard, shards) for shard in range(shards)]
    if shards == 1:
        readers[0].tables = TABLES
    else:
        readers.append(_Reader(directory, descriptor, rest, 0, 1))
    if progress is not None:
        readers[0].progress = progress
    with ThreadPoolExecutor(len(readers), thread_name_prefix="callboard-verify") as threads:
        for done in [threads.submit(reader.read) for reader in readers]:
            done.result()
    firsts = [reader for reader in readers if reader.shard == 0]
    return VerifyReport(
        path=str(directory),
        rows={table: count for reader in firsts for table, count in reader.rows.items()},
        sessions=sum(reader.sessions for reader in firsts),
        bytes_checked=sum(reader.bytes for reader in firsts),
        seconds=time.perf_counter() - began,
        problems=tuple({problem: None for reader in readers for problem in reader.problems}),
        more_problems=sum(reader.more for reader in readers),
        unreferenced_chunks=sum(reader.unreferenced for reader in readers),
    )


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
            except child.ChildDied as death:
                self._add(Problem(table=self.at, what=f"cannot be read: the reader {death.how}"))
                if not self.at:
                    return
                left = left[left.index(self.at) + 1 :]
            except StoreVersionError:
                raise
            except StoreOpenError as error:
                self._add(Problem(table="", what=error.message))
                return
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
