"""The program whose disk fails: ``python writer.py DIRECTORY BATCHES [UNSAFE]``.

It commits batches of several sessions through a store and says which were acknowledged, a line each. Every record names
the one before it, so that a session's log is a chain; each batch holds two records, an entry of the session's memory
and where the session stands, all of which must come together. Sessions are deleted now and then, so that pages become
free and are written over.

UNSAFE is a control that a power cut must be seen to break: ``no-sync`` opens LMDB without syncing, ``no-names`` does
not sync the directory.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from hashlib import blake2b
from typing import Any

from callboard_protocol.records import StepCompleted
from callboard_protocol.sessions import MemoryEntry, SessionHead
from callboard_storage import doors, lmdb_engine
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence

SESSIONS = 4
RECORDS_PER_BATCH = 2


def record(session_id: str, life: int, sequence: int, link: str) -> StepCompleted:
    """The record that follows the one with that link."""
    size = random.Random(f"{session_id} {life} {sequence}").choice((10, 200, 1500, 9000))  # noqa: S311
    value = {"life": life, "after": link, "padding": "x" * size}
    return StepCompleted(run_id="run", ordinal=sequence, at=1.0, step=str(sequence), kind="tool", value=value)


def link_of(one: StepCompleted) -> str:
    """What the record behind it has to name."""
    return blake2b(repr((one.ordinal, one.value)).encode(), digest_size=8).hexdigest()


class Session:
    """One session, as its writer knows it."""

    def __init__(self, store: LmdbStore, session_id: str) -> None:
        self._store = store
        self.session_id = session_id
        self._life = 0
        self._head = SessionHead(session_id=session_id)
        self._link = ""

    async def commit(self) -> None:
        """Commit one batch, and say so once it is acknowledged."""
        batch = self._store.batch(self.session_id)
        first = self._head.next_sequence
        for sequence in range(first, first + RECORDS_PER_BATCH):
            one = record(self.session_id, self._life, sequence, self._link)
            self._link = link_of(one)
            batch.append(sequence, one)
            self._head = self._head.after(sequence, one)
        batch.put_head(self._head)
        batch.put_memory(MemoryEntry(name="last", value=self._head.next_sequence - 1))
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._store.commit(batch, Fence(first - 1), loop, answer.set_result)
        error = await answer
        if error is not None:
            raise error
        say("committed", self.session_id, self._life, self._head.next_sequence)

    async def start_over(self) -> None:
        """Delete the session and begin it anew."""
        say("deleting", self.session_id, self._life)
        await self._store.delete_session(self.session_id)
        self._life += 1
        self._head, self._link = SessionHead(session_id=self.session_id), ""
        say("deleted", self.session_id, self._life)


def say(*words: object) -> None:
    """Tell whoever watches; in one write, which is one event of the trace."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def work(session: Session, batches: int) -> None:
    """Commit so many batches, starting over now and then."""
    lengths = random.Random(session.session_id)  # noqa: S311
    left = lengths.randrange(4, 12)
    for _ in range(batches):
        await session.commit()
        left -= 1
        if not left:
            await session.start_over()
            left = lengths.randrange(4, 12)


async def main(directory: str, batches: int) -> None:
    store = LmdbStore(directory, map_size=1 << 30)
    await store.open()
    say("opened")
    await asyncio.gather(*(work(Session(store, f"s{number}"), batches) for number in range(SESSIONS)))
    await store.close()


def spoil(how: str) -> None:
    """Break a promise on purpose."""
    if how == "no-sync":
        safe = lmdb_engine.lmdb.Environment
        lmdb_engine.lmdb.Environment = lambda path, **options: safe(path, **options, sync=False)  # type: ignore[misc,assignment]
    elif how == "no-names":
        doors.make_durable = lambda directory: None
    elif how:
        raise ValueError(how)


if __name__ == "__main__":
    spoil(sys.argv[3] if len(sys.argv) > 3 else "")
    os.kill(os.getpid(), signal.SIGSTOP)  # the tracer begins here
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
