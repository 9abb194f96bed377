"""Disks that fail: one that loses power under a traced writer, and one that damages what it keeps."""

from __future__ import annotations

import base64
import functools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from callboard_storage import upkeep

HERE = Path(__file__).parent
CANNOT_TRACE = 77
SECTOR = 512
"""What a disk writes whole or not at all."""

Job = dict[str, Any]
Outcome = dict[str, Any]


@dataclass
class Disk:
    """What of a trace is on disk for certain, and what may be.

    The rules: a sync that has returned keeps all that was written to its file before it began. Bytes written through
    an O_DSYNC descriptor are kept once the write has returned. A name is kept once its directory has been synced, and
    a directory once its parent has. Of everything else, any sector may be on disk or not, in any order.
    """

    files: dict[int, bytearray] = field(default_factory=dict)
    pending: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)
    synchronous: set[int] = field(default_factory=set)
    syncs: dict[int, tuple[int, list[int], list[int]]] = field(default_factory=dict)
    names: list[int] = field(default_factory=list)
    kept_names: int = 0
    is_directory_kept: bool = False

    def begin_write(self, number: int, inode: int, offset: int, content: bytes, is_synchronous: bool) -> None:
        self.pending[number] = inode, offset, content
        if is_synchronous:
            self.synchronous.add(number)

    def begin_sync(self, number: int, inode: int) -> None:
        covered = [one for one, (of, *_) in self.pending.items() if of == inode]
        self.syncs[number] = inode, covered, list(self.names)

    def done(self, number: int, returned: int, directory: int, parent: int) -> None:
        if number in self.syncs:
            inode, covered, names = self.syncs.pop(number)
            if returned == 0:
                for one in covered:
                    self._keep(one)
                if inode == directory:
                    self.kept_names = max(self.kept_names, len(names))
                if inode == parent:
                    self.is_directory_kept = True
            return
        _, _, content = self.pending[number]
        assert returned == len(content), "a write that fell short is not modelled"
        if number in self.synchronous:
            self._keep(number)

    def cut(self, chance: random.Random) -> bytes | None:
        """The data file as one power cut may leave it; None where it is not there, or has no name."""
        if not self.is_directory_kept and chance.random() < 0.5:
            return None
        # Any name given since the last one that is kept may have reached the disk.
        names: list[int | None] = [None, *self.names]
        named = chance.choice(names[self.kept_names :])
        if named is None:
            return None
        content = bytearray(self.files.get(named, b""))
        pending = [one for one in self.pending.values() if one[0] == named]
        chance.shuffle(pending)
        for _, offset, written in pending:
            fate = chance.choice(("lost", "kept", "torn"))
            for begin, end in _sectors(offset, len(written)):
                if fate == "kept" or (fate == "torn" and chance.random() < 0.5):
                    _put(content, begin, written[begin - offset : end - offset])
        if chance.random() < 0.5:  # the file has grown by all of it, and what was lost of it reads as zeros
            content.extend(bytes(max([offset + len(written) - len(content) for _, offset, written in pending] + [0])))
        return bytes(content)

    def _keep(self, number: int) -> None:
        one = self.pending.pop(number, None)
        if one is not None:
            inode, offset, content = one
            _put(self.files.setdefault(inode, bytearray()), offset, content)


def _sectors(offset: int, length: int) -> Iterator[tuple[int, int]]:
    at = offset
    while at < offset + length:
        end = min((at // SECTOR + 1) * SECTOR, offset + length)
        yield at, end
        at = end


def _put(content: bytearray, offset: int, written: bytes) -> None:
    if len(content) < offset + len(written):
        content.extend(bytes(offset + len(written) - len(content)))
    content[offset : offset + len(written)] = written


class Trace:
    """What a writer did to its disk and what it said, in order.

    Args:
        lines: of the trace.
        directory: the data directory it left.

    Attributes:
        events: the lines.
        directory: where what it wrote is, as it left it.
    """

    def __init__(self, lines: list[Any], directory: Path) -> None:
        self.events = lines
        self.directory = directory
        self._directory = directory.stat().st_ino
        self._parent = directory.parent.stat().st_ino

    def until(self, event: int) -> tuple[Disk, list[str]]:
        """The disk once so many events have happened, and what had been said by then."""
        disk = Disk()
        told: list[str] = []
        for one in self.events[:event]:
            facts = dict(one)
            kind = facts.pop("kind")
            if kind == "write":
                disk.begin_write(**facts | {"content": base64.b64decode(facts["content"])})
            elif kind == "sync":
                disk.begin_sync(**facts)
            elif kind == "done":
                disk.done(**facts, directory=self._directory, parent=self._parent)
            elif kind == "named":
                disk.names.append(facts["inode"])
            else:
                told += facts["text"].splitlines()
        return disk, told


class Examiner:
    """A server of checks, each made in a process of its own.

    Args:
        script: the server, a file beside this one.
    """

    def __init__(self, script: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def examine(self, job: Job) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        outcome: Outcome = json.loads(self._process.stdout.readline())
        return outcome

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


@pytest.fixture(scope="module")
def examiner() -> Iterator[Callable[[str], Examiner]]:
    """Servers of checks, one of each kind."""
    started: dict[str, Examiner] = {}

    def serving(script: str) -> Examiner:
        if script not in started:
            started[script] = Examiner(script)
        return started[script]

    yield serving
    for one in started.values():
        one.close()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trace]:
    """What the writer does under the tracer; the same writer is run once."""

    @functools.cache
    def run(batches: int, unsafe: str = "") -> Trace:
        place = tmp_path_factory.mktemp("traced")
        directory, lines = place / "written" / "data", place / "trace"
        directory.parent.mkdir()
        command = [sys.executable, HERE / "tracer.py", lines, directory]
        command += [sys.executable, HERE / "writer.py", directory, str(batches), unsafe]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode == CANNOT_TRACE:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        return Trace([json.loads(line) for line in lines.read_text().splitlines()], directory)

    return run


class PowerCuts:
    """Cuts the power of a traced writer's disk, over and over."""

    def __init__(self, place: Path, examiner: Examiner) -> None:
        self._place = place
        self._examiner = examiner

    def outcomes(self, trace: Trace, seeds: Iterable[int], within: int | None = None) -> dict[int, Outcome]:
        """How the store fared after each cut that it did not survive, by the cut's seed.

        Args:
            trace: what was written.
            seeds: one for each cut.
            within: cut within so many events, not anywhere in the trace.
        """
        events = len(trace.events) if within is None else within
        bad: dict[int, Outcome] = {}
        for seed in seeds:
            chance = random.Random(seed)  # noqa: S311 - any spread will do
            disk, told = trace.until(chance.randrange(events + 1))
            directory = self._place / str(seed)
            self._leave(directory, disk.cut(chance), chance)
            outcome = self._examiner.examine({"directory": str(directory), "told": told})
            if outcome["verdict"] != "good":
                bad[seed] = outcome
            shutil.rmtree(directory)
        return bad

    @staticmethod
    def _leave(directory: Path, content: bytes | None, chance: random.Random) -> None:
        directory.mkdir(parents=True)
        if content is not None:
            (directory / "data.mdb").write_bytes(content)
        # The lock file is never synced, so anything may be in it.
        left = chance.choice((None, b"", bytes(135_168), chance.randbytes(135_168)))
        if left is not None:
            (directory / "lock.mdb").write_bytes(left)
        if chance.random() < 0.1:  # of an earlier cut
            (directory / ".creating-0").write_bytes(bytes(chance.choice((0, 4096, 8192))))


@pytest.fixture
def power_cuts(tmp_path: Path, examiner: Callable[[str], Examiner]) -> PowerCuts:
    return PowerCuts(tmp_path / "cut", examiner("after_power_loss.py"))


PAGE = 4096


class Damage:
    """Ways in which a data file is damaged, each drawn by chance."""

    def __init__(self, whole: bytes) -> None:
        self._whole = whole
        self._pages = len(whole) // PAGE

    def bits(self, chance: random.Random) -> bytes:
        return self._flipped(chance, 0, len(self._whole), chance.randrange(1, 9))

    def page_heads(self, chance: random.Random) -> bytes:
        at = chance.randrange(2, self._pages) * PAGE
        return self._flipped(chance, at, at + 64, 1)

    def meta_pages(self, chance: random.Random) -> bytes:
        at = chance.randrange(2) * PAGE
        return self._flipped(chance, at, at + 152, 1)

    def truncated(self, chance: random.Random) -> bytes:
        return self._whole[: chance.randrange(1, len(self._whole))]

    def zeroed_pages(self, chance: random.Random) -> bytes:
        return self._zeroed(chance, PAGE)

    def zeroed_sectors(self, chance: random.Random) -> bytes:
        return self._zeroed(chance, SECTOR)

    def swapped_pages(self, chance: random.Random) -> bytes:
        one, other = (number * PAGE for number in chance.sample(range(2, self._pages), 2))
        content = bytearray(self._whole)
        content[one : one + PAGE], content[other : other + PAGE] = (
            self._whole[other : other + PAGE],
            self._whole[one : one + PAGE],
        )
        return bytes(content)

    def _zeroed(self, chance: random.Random, size: int) -> bytes:
        content = bytearray(self._whole)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(content) // size) * size
            content[at : at + size] = bytes(size)
        return bytes(content)

    def _flipped(self, chance: random.Random, begin: int, end: int, times: int) -> bytes:
        content = bytearray(self._whole)
        for _ in range(times):
            content[chance.randrange(begin, end)] ^= 1 << chance.randrange(8)
        return bytes(content)


class DamagedDirectories:
    """Copies of one directory, each damaged by one kind of fault and served by a process of its own.

    Args:
        place: where they go.
        examiner: the server of `after_damage.py`.
        whole: the directory.
        sessions: its sessions, or some of them.
    """

    def __init__(self, place: Path, examiner: Examiner, whole: Path, sessions: list[str]) -> None:
        self._place = place
        self._examiner = examiner
        self._work = {"sessions": sessions, "runs": [f"run-{session_id}" for session_id in sessions]}
        self.damage = Damage((whole / "data.mdb").read_bytes())
        served = self.serve((whole / "data.mdb").read_bytes())
        assert served["verdict"] == "served"
        assert served["first"] == served["again"]
        assert served["written"] == sessions
        self.truth: dict[str, list[str]] = served["first"]

    @property
    def directory(self) -> Path:
        """The damaged copy that was served last, as it was before it was served."""
        return self._place / "untouched"

    def serve(self, content: bytes) -> Outcome:
        for name in ("untouched", "served"):
            shutil.rmtree(self._place / name, ignore_errors=True)
            (self._place / name).mkdir(parents=True)
            (self._place / name / "data.mdb").write_bytes(content)
        return self._examiner.examine({"directory": str(self._place / "served"), **self._work})

    def invented(self, outcome: Outcome) -> list[str]:
        """Reads that gave something which was never written."""
        return [name for name, found, known in self._answers(outcome) if not set(found) <= set(known)]

    def missing(self, outcome: Outcome) -> list[str]:
        """Reads that gave less than was written, without an error."""
        return [name for name, found, known in self._answers(outcome) if found != known]

    def _answers(self, outcome: Outcome) -> Iterator[tuple[str, list[str], list[str]]]:
        for phase in ("first", "again"):
            for name, found in outcome[phase].items():
                if isinstance(found, list):
                    yield name, found, self.truth[name]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, examiner: Callable[[str], Examiner]) -> DamagedDirectories:
    """A directory of real shape, to be damaged: runs that ended and runs in flight, values of all sizes, free pages."""
    place = tmp_path_factory.mktemp("damaged")
    whole = place / "whole"
    subprocess.run([sys.executable, HERE / "fill.py", whole], check=True, timeout=60)
    assert upkeep.verify(whole).is_sound
    return DamagedDirectories(
        place / "copies", examiner("after_damage.py"), whole, [f"session-{number:03}" for number in range(1, 120, 4)]
    )
