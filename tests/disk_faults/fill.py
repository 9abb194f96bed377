"""Fills a data directory with sessions of real shape: ``python fill.py DIRECTORY``."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

from callboard_protocol.messages import Message
from callboard_protocol.records import AgentSnapshot, LogRecord, RunBegan, RunEnded, StepCompleted
from callboard_protocol.runs import RunRequest
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_protocol.states import RunState
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence

SESSIONS = 120
DELETED = 8
"""Every so many sessions one goes again; its run has ended, or its entry would stay."""

VALUES = (10, 200, 1000, 6000)


async def add(store: LmdbStore, session_id: str, has_ended: bool, chance: random.Random) -> None:
    """One session with one run, which has ended or is in flight."""
    run_id = f"run-{session_id}"
    request = RunRequest(agent_id="agent", session_id=session_id, run_id=run_id, input_text="hello")
    value = "v" * chance.choice(VALUES)
    steps = chance.randrange(3, 12)
    records: list[LogRecord] = [
        RunBegan(
            run_id=run_id,
            ordinal=0,
            at=1.0,
            request=request,
            agent=AgentSnapshot(),
            messages=(Message.user("hello"),),
        )
    ]
    records += [
        StepCompleted(run_id=run_id, ordinal=number, at=1.0, step=str(number), kind="tool", value=value)
        for number in range(1, steps)
    ]
    if has_ended:
        records.append(RunEnded(run_id=run_id, ordinal=steps, at=1.0, stop_reason="completed", output="bye"))
    batch = store.batch(session_id)
    head = SessionHead(session_id=session_id)
    for sequence, record in enumerate(records):
        batch.append(sequence, record)
        head = head.after(sequence, record)
    batch.put_head(head)
    state = RunState.COMPLETED if has_ended else RunState.RUNNING
    batch.put_run(RunEntry(request=request, request_digest=b"d", state=state, order=1, began_sequence=0))
    batch.put_checkpoint(
        SessionCheckpoint(checkpoint_id="mine", session_id=session_id, log_position=len(records) - 1, state=value)
    )
    batch.put_memory(MemoryEntry(name="note", value=value))
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()
    store.commit(batch, Fence(-1), loop, answer.set_result)
    error = await answer
    if error is not None:
        raise error


async def main(directory: str) -> None:
    store = LmdbStore(directory, map_size=1 << 30)
    await store.open()
    chance = random.Random(7)  # noqa: S311 - any spread will do
    for number in range(SESSIONS):
        has_ended = number % DELETED == 0 or chance.random() < 0.7
        await add(store, f"session-{number:03}", has_ended, chance)
    for number in range(0, SESSIONS, DELETED):
        await store.delete_session(f"session-{number:03}")
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
