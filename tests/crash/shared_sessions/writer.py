"""A process that writes to sessions it shares with others, and is there to be killed: `python writer.py ASSIGNMENT`.

Each session's log is a chain: every record holds the digest of the one before it. A session is written to in *tenures*:
its lock is taken with the first batch of one and given back with the last. What happens is told on standard output, a
line of JSON each: ``["opened", owner]``, ``["kept", session, sequence, batch]`` for each batch that was acknowledged,
by its last record, and ``["fenced", session]`` where a tenure lost its lock.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from callboard_protocol.errors import CallboardError, FencedError, SessionLockedError
from callboard_protocol.records import Record, StepCompleted
from callboard_protocol.sessions import MemoryEntry, SessionHead
from callboard_storage.fencing import Verdict
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence
from callboard_storage.writer import StoreWriter

MAP_SIZE = 1 << 33
SESSIONS = 5
AT_ONCE = 3
"""Sessions a process writes to at a time."""

LARGE = 150_000
"""Characters of a value that goes into chunks."""


class Assignment(BaseModel):
    """What a writer is to do.

    Attributes:
        data: the data directory.
        name: nobody else's.
        is_fenced: whether its store refuses those who have lost a lock. Only the control of a test says no.
    """

    data: Path
    name: str
    is_fenced: bool = True


def tell(*words: object) -> None:
    os.write(1, (json.dumps(words) + "\n").encode())


def digest(record: Record) -> str:
    return blake2b(json.dumps(record.model_dump(mode="json"), sort_keys=True).encode(), digest_size=16).hexdigest()


class Tenure:
    """One writer's time with one session."""

    def __init__(self, store: LmdbStore, session_id: str, name: str, chance: random.Random) -> None:
        self._store = store
        self._session_id = session_id
        self._name = name
        self._chance = chance
        self._lease = store.lease()
        self._batches = 0

    async def last(self) -> None:
        """Go on where the log ends, for a while."""
        head = await self._store.read_head(self._session_id)
        self._head = head or SessionHead(session_id=self._session_id)
        self._before = ""
        if head is not None:
            end = head.next_sequence
            (stored,) = await self._store.read_log(self._session_id, start=end - 1, stop=end)
            self._before = digest(stored.record)
        left = self._chance.randint(1, 12)
        while left:
            together = min(left, self._chance.randint(1, 3))
            left -= together
            had_lock = bool(self._lease.token)
            answers = [answer for n in range(together) for answer in self._send(is_last=not left and n == together - 1)]
            errors = [error for error in await asyncio.gather(*answers) if error is not None]
            if errors:
                self._refused(errors[0], had_lock=had_lock)
                return

    def _refused(self, error: CallboardError, *, had_lock: bool) -> None:
        if not isinstance(error, FencedError | SessionLockedError):
            raise error
        if had_lock:
            tell("fenced", self._session_id)

    def _send(self, *, is_last: bool) -> list[asyncio.Future[CallboardError | None]]:
        """Commit one batch; now and then once more, as one does who is not sure that it got there."""
        self._batches += 1
        name = f"{self._name}.{self._batches}"
        batch = self._store.batch(self._session_id)
        follows = self._head.next_sequence - 1
        size = self._chance.randint(1, 3)
        for place in range(size):
            sequence = self._head.next_sequence
            length = LARGE if self._chance.random() < 0.002 else self._chance.randrange(400)
            record = StepCompleted(
                run_id=self._name,
                ordinal=sequence,
                at=1.0,
                step=name,
                kind="tool",
                value={"before": self._before, "place": place, "of": size, "filling": "x" * length},
            )
            batch.append(sequence, record)
            self._head = self._head.after(sequence, record)
            self._before = digest(record)
        batch.put_head(self._head)
        batch.put_memory(MemoryEntry(name="last", value=name))
        fence = Fence(follows, self._lease, takes=not self._lease.token, gives=is_last)
        times = 2 if self._chance.random() < 0.05 else 1
        return [self._commit(batch, fence, self._head.next_sequence - 1, name) for _ in range(times)]

    def _commit(self, batch: Any, fence: Fence, sequence: int, name: str) -> asyncio.Future[CallboardError | None]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[CallboardError | None] = loop.create_future()

        def acknowledge(error: CallboardError | None) -> None:
            if error is None:
                tell("kept", self._session_id, sequence, name)
            answer.set_result(error)

        self._store.commit(batch, fence, loop, acknowledge)
        return answer


def write_without_a_fence() -> None:
    """Have this process's store write what a writer commits that once had the session's lock, whoever has it now."""
    judge = StoreWriter._judge

    def careless(self: StoreWriter, transaction: Any, item: Any, fence: Fence, rows: Any) -> Any:
        verdict = judge(self, transaction, item, fence, rows)
        had_lock = fence.lease is not None and fence.lease.token
        return Verdict.WRITE if had_lock and isinstance(verdict, FencedError) else verdict

    StoreWriter._judge = careless  # type: ignore[method-assign]


async def main(assignment: Assignment) -> None:
    # A writer does not outlive the test that started it.
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), lambda: os._exit(4))
    chance = random.Random(assignment.name)  # noqa: S311  (a pace, no secret)
    if not assignment.is_fenced:
        write_without_a_fence()
    store = LmdbStore(assignment.data, map_size=MAP_SIZE)
    await store.open()
    assert store._owner is not None
    tell("opened", store._owner.id.hex())
    free = [f"session-{number}" for number in range(SESSIONS)]
    tenures = 0

    async def write() -> None:
        nonlocal tenures
        while True:
            session_id = free.pop(chance.randrange(len(free)))
            tenures += 1
            await Tenure(store, session_id, f"{assignment.name}/{tenures}", chance).last()
            free.append(session_id)
            await asyncio.sleep(chance.uniform(0, 0.002))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(write())


if __name__ == "__main__":
    asyncio.run(main(Assignment.model_validate_json(sys.argv[1])))
