"""Processes that share the sessions of one directory, and what must be true of the logs they leave."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import pytest

from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import StoredRecord

WRITER = Path(__file__).with_name("writer.py")
MAP_SIZE = 1 << 33
PATIENCE = 60.0


class Writer:
    """One process of `writer.py`."""

    def __init__(self, company: Company, number: int, *, is_fenced: bool) -> None:
        self.name = f"writer-{number}"
        self.owner = ""
        self.kept = 0
        self.is_evicted = False
        self.is_to_end = False
        assignment = {"data": str(company.data), "name": self.name, "is_fenced": is_fenced}
        self._errors = company.data.with_name(f"{self.name}.errors")
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(WRITER), json.dumps(assignment)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._listening = threading.Thread(target=company.listen_to, args=(self,), name=self.name)
        self._listening.start()

    def kill(self) -> None:
        """SIGKILL, and hear out what it had said by then."""
        self.is_to_end = True
        self.process.kill()
        self.process.wait(PATIENCE)
        self._listening.join(PATIENCE)
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.returncode == -signal.SIGKILL, self.error

    def stop(self) -> None:
        """SIGSTOP, at whatever it is doing."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    @property
    def error(self) -> str:
        return f"{self.name} ended by itself: {self._errors.read_text()}"


class Chain:
    """What is known of one session's log, read from its beginning; `wrong` is what should not be.

    Attributes:
        tenures: who wrote, and how many records, in the order of the log.
        batches: the batches in it.
        wrong: what is not as it was promised, in words.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.tenures: dict[str, int] = {}
        self.batches: set[str] = set()
        self.wrong: list[str] = []
        self.length = 0
        self._digest = ""
        self._tenure = ""
        self._batch = ""
        self._left = 0
        self._batch_of_last: dict[int, str] = {}

    def read_on(self, log: Sequence[StoredRecord], acknowledged: dict[int, str]) -> None:
        """Follow the chain through the records behind those that were read.

        Args:
            log: those records.
            acknowledged: the batches of this session that had been acknowledged before the log was read, by the
                sequence of their last record.
        """
        for stored in log:
            self._follow(stored)
        if self._left:
            self._is_wrong(f"ends in the middle of batch {self._batch}")
        for sequence, batch in acknowledged.items():
            if self._batch_of_last.get(sequence) != batch:
                self._is_wrong(f"was said to hold batch {batch} up to record {sequence}, and does not")

    def _follow(self, stored: StoredRecord) -> None:
        record, value = stored.record, stored.record.value
        if stored.sequence != self.length:
            self._is_wrong(f"has record {stored.sequence} where {self.length} should be")
        self.length = stored.sequence + 1
        if value["before"] != self._digest:
            self._is_wrong(f"has at {stored.sequence} a record that does not follow the one before")
        self._digest = blake2b(
            json.dumps(record.model_dump(mode="json"), sort_keys=True).encode(), digest_size=16
        ).hexdigest()
        if record.run_id != self._tenure:
            if record.run_id in self.tenures:
                self._is_wrong(f"was written to by {record.run_id} after {self._tenure} had taken over")
            self._tenure = record.run_id
        self.tenures[record.run_id] = self.tenures.get(record.run_id, 0) + 1
        if value["place"] == 0:
            if self._left:
                self._is_wrong(f"holds batch {self._batch} in part")
            if record.step in self.batches:
                self._is_wrong(f"holds batch {record.step} twice")
            self.batches.add(record.step)
            self._batch, self._left = record.step, value["of"]
        elif record.step != self._batch or value["place"] != value["of"] - self._left:
            self._is_wrong(f"holds a piece of batch {record.step} at {stored.sequence}")
        self._left -= 1
        if self._left == 0:
            self._batch_of_last[stored.sequence] = record.step

    def _is_wrong(self, what: str) -> None:
        self.wrong.append(f"{self.session_id} {what}")


class Company:
    """Some writers at work on one directory, and a ledger of what they were told.

    Args:
        place: where the directory is made.
        size: how many writers there are at a time.
        is_fenced: whether the writers' stores refuse those who have lost a lock.
    """

    def __init__(self, place: Path, size: int, *, is_fenced: bool = True) -> None:
        self.data = place / "data"
        self.place = place
        self.writers: list[Writer] = []
        self.fenced = 0
        self.wrong: list[str] = []
        self._is_fenced = is_fenced
        self._numbers = iter(range(1_000_000))
        self._changed = threading.Condition()
        self._last_in: dict[str, Writer] = {}
        self._acknowledged: dict[str, dict[int, str]] = defaultdict(dict)
        self._unchecked: dict[str, dict[int, str]] = defaultdict(dict)
        self._chains: dict[str, Chain] = {}
        for _ in range(size):
            self.start()

    def start(self) -> Writer:
        self.writers.append(Writer(self, next(self._numbers), is_fenced=self._is_fenced))
        return self.writers[-1]

    def listen_to(self, writer: Writer) -> None:
        """Note all that a writer says; on a thread of its own."""
        assert writer.process.stdout is not None
        with writer.process.stdout as lines:
            for line in lines:
                self._note(writer, *json.loads(line))
        with self._changed:
            if not writer.is_to_end:
                self.wrong.append(writer.error)
            self._changed.notify_all()

    def wait_until(self, happened: Callable[[], bool], patience: float = PATIENCE) -> bool:
        """Whether something came true in time; something going wrong ends the waiting, too."""
        with self._changed:
            self._changed.wait_for(lambda: happened() or bool(self.wrong), patience)
            return happened()

    def wait_for_batches(self, writers: Sequence[Writer], more: int, patience: float = PATIENCE) -> bool:
        """Whether each of them has so many more batches acknowledged in time."""
        goals = [(writer, writer.kept + more) for writer in writers]
        return self.wait_until(lambda: all(writer.kept >= goal for writer, goal in goals), patience)

    def wait_for_takeover(self, writer: Writer, patience: float = PATIENCE) -> bool:
        """Whether others have written to every session that a writer was the last to write to, in time."""
        return self.wait_until(lambda: writer not in self._last_in.values(), patience)

    def replace(self, writer: Writer) -> Writer:
        """Kill a writer and start another."""
        writer.kill()
        self.writers.remove(writer)
        return self.start()

    def evict(self, writer: Writer) -> None:
        """Make a writer seem dead: clear its file away by force."""
        writer.is_evicted = True
        (self.data / "alive" / writer.owner).unlink()

    def disband(self) -> None:
        """Kill everyone."""
        while self.writers:
            self.writers.pop().kill()

    def check_on(self) -> list[str]:
        """What is wrong with what was written since the last check; everyone goes on meanwhile."""
        with self._changed:
            unchecked, self._unchecked = self._unchecked, defaultdict(dict)
        return self._check(self._chains, unchecked)

    def check_all(self) -> list[str]:
        """What is wrong with anything, from the first record on, once everyone is dead."""
        assert not self.writers
        self._chains = {}
        wrong = self._check(self._chains, self._acknowledged)
        return [*wrong, *asyncio.run(self._check_rest())]

    @property
    def figures(self) -> Counter[str]:
        """What there was to go wrong."""
        figures: Counter[str] = Counter(fenced=self.fenced)
        for session_id, chain in self._chains.items():
            acknowledged = set(self._acknowledged[session_id].values())
            figures["batches"] += len(chain.batches)
            figures["acknowledged"] += len(acknowledged)
            figures["on disk and nobody was told"] += len(chain.batches - acknowledged)
            figures["changes of hands"] += len(chain.tenures) - 1
            figures["writers of one session"] = max(
                figures["writers of one session"], len({tenure.split("/")[0] for tenure in chain.tenures})
            )
        return figures

    def _note(self, writer: Writer, word: str, *rest: str) -> None:
        with self._changed:
            if word == "opened":
                (writer.owner,) = rest
            elif word == "kept":
                session_id, sequence, batch = rest
                for acknowledged in (self._acknowledged, self._unchecked):
                    acknowledged[session_id][int(sequence)] = batch
                self._last_in[session_id] = writer
                writer.kept += 1
            elif writer.is_evicted:
                self.fenced += 1
            else:
                self.wrong.append(f"{writer.name} was alive and lost {rest[0]}")
            self._changed.notify_all()

    def _check(self, chains: dict[str, Chain], acknowledged: dict[str, dict[int, str]]) -> list[str]:
        asyncio.run(self._follow(chains, acknowledged))
        return [*self.wrong, *(what for chain in chains.values() for what in chain.wrong)]

    async def _follow(self, chains: dict[str, Chain], acknowledged: dict[str, dict[int, str]]) -> None:
        store = LmdbStore(self.data, map_size=MAP_SIZE)
        await store.open()
        try:
            for session_id in {*await store.list_sessions(), *acknowledged}:
                chain = chains.setdefault(session_id, Chain(session_id))
                log = await store.read_log(session_id, start=chain.length)
                chain.read_on(log, acknowledged[session_id])
        finally:
            await store.close()

    async def _check_rest(self) -> list[str]:
        """That head and memory are of the same batch as the log's last record."""
        wrong: list[str] = []
        store = LmdbStore(self.data, map_size=MAP_SIZE)
        await store.open()
        try:
            for session_id, chain in self._chains.items():
                head = await store.read_head(session_id)
                last = await store.read_log(session_id, start=chain.length - 1)
                entries = [entry.value for entry in await store.read_memory(session_id)]
                if head is None or head.next_sequence != chain.length:
                    wrong.append(f"{session_id} has {chain.length} records, and its head is {head}")
                if entries != [stored.record.step for stored in last]:
                    wrong.append(f"{session_id} ends with {last}, and its memory is of {entries}")
        finally:
            await store.close()
        return wrong


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Callable[..., Company]]:
    """Starts writers; whoever is left in the end is killed."""
    companies: list[Company] = []

    def start(size: int, *, is_fenced: bool = True) -> Company:
        companies.append(Company(tmp_path, size, is_fenced=is_fenced))
        return companies[-1]

    yield start
    for one in companies:
        one.disband()


@pytest.fixture
def wait_a_moment() -> Callable[[random.Random], None]:
    """Burns up to four milliseconds, so that what follows strikes at an instant nobody chose."""

    def wait(chance: random.Random) -> None:
        instant = time.monotonic() + chance.uniform(0, 0.004)
        while time.monotonic() < instant:
            pass

    return wait
