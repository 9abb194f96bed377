"""A data directory with a few sessions of real shape, and ways to change rows behind the store's back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import pytest

from callboard_protocol.messages import Message
from callboard_protocol.records import AgentSnapshot, LogRecord, RunBegan, RunEnded, StepCompleted
from callboard_protocol.runs import RunRequest
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_protocol.states import RunState
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store import Store
from callboard_storage.store_values import Fence

MAP_SIZE = 1 << 30


class Keeper:
    """Fills stores."""

    def records(self, session_id: str, steps: int = 3, value: Any = "done", at: float = 1.0) -> list[LogRecord]:
        run_id = f"run-{session_id}"
        request = RunRequest(agent_id="agent", session_id=session_id, run_id=run_id, input_text="hello")
        began = RunBegan(
            run_id=run_id,
            ordinal=0,
            at=at,
            request=request,
            agent=AgentSnapshot(),
            messages=(Message.user("hello"),),
        )
        done = [
            StepCompleted(
                run_id=run_id, ordinal=1 + n, at=at, step=str(n), kind="tool", value=value, in_transcript=True
            )
            for n in range(steps)
        ]
        return [began, *done, RunEnded(run_id=run_id, ordinal=1 + steps, at=at, stop_reason="completed", output="bye")]

    async def add(
        self,
        store: Store,
        session_id: str,
        *,
        state: RunState = RunState.COMPLETED,
        steps: int = 3,
        value: Any = "done",
        at: float = 1.0,
        memory: Any = "remembered",
    ) -> None:
        """One session: a run with its log, head, checkpoint, memory and entry."""
        records = self.records(session_id, steps, value, at)
        if state is not RunState.COMPLETED:
            del records[-1]
        batch = store.batch(session_id)
        head = SessionHead(session_id=session_id)
        for sequence, record in enumerate(records):
            batch.append(sequence, record)
            head = head.after(sequence, record)
        batch.put_head(head)
        run_id = f"run-{session_id}"
        request = RunRequest(agent_id="agent", session_id=session_id, run_id=run_id, input_text="hello")
        batch.put_run(RunEntry(request=request, request_digest=b"d", state=state, order=1, began_sequence=0))
        batch.put_checkpoint(
            SessionCheckpoint(
                checkpoint_id=f"{run_id}:step:{steps}",
                session_id=session_id,
                run_id=run_id,
                log_position=len(records) - 1,
                state={"value": value},
            )
        )
        batch.put_memory(MemoryEntry(name="note", value=memory))
        loop = asyncio.get_running_loop()
        written = loop.create_future()
        store.commit(batch, Fence(-1), loop, written.set_result)
        assert await written is None

    def at(self, directory: Path, work: Callable[[LmdbStore], Awaitable[Any]]) -> Any:
        """Do something with the store at a directory."""

        async def opened() -> Any:
            store = LmdbStore(directory, map_size=MAP_SIZE)
            await store.open()
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(opened())

    def change(self, directory: Path, table: str, work: Callable[[Any, list[tuple[bytes, bytes]]], None]) -> None:
        """Change a table behind the store's back: `work(transaction, rows)`."""
        environment = lmdb.open(str(directory), map_size=MAP_SIZE, max_dbs=16)
        database = environment.open_db(table.encode())
        with environment.begin(write=True, db=database) as transaction:
            work(transaction, list(transaction.cursor()))
        environment.close()

    def drop(self, directory: Path, tables: Sequence[str]) -> None:
        """Remove tables, as if no release that knows them had opened the directory."""
        environment = lmdb.open(str(directory), map_size=MAP_SIZE, max_dbs=16)
        for table in tables:
            database = environment.open_db(table.encode(), create=False)
            with environment.begin(write=True) as transaction:
                transaction.drop(database, delete=True)
        environment.close()

    def rows(self, directory: Path) -> dict[str, list[tuple[bytes, bytes]]]:
        """Everything a directory holds."""
        environment = lmdb.open(str(directory), map_size=MAP_SIZE, max_dbs=16)
        found = {}
        for table in ("log", "heads", "checkpoints", "memory", "runs", "unfinished", "session_runs", "blobs"):
            database = environment.open_db(table.encode())
            with environment.begin(db=database) as transaction:
                found[table] = list(transaction.cursor())
        environment.close()
        return found


@pytest.fixture(scope="session")
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def filled(tmp_path: Path, keeper: Keeper) -> Path:
    """Sessions one, two and three; the run of three has not ended."""

    async def fill(store: LmdbStore) -> None:
        await keeper.add(store, "one", at=100.0)
        await keeper.add(store, "two", at=200.0)
        await keeper.add(store, "three", at=50.0, state=RunState.RUNNING)

    keeper.at(tmp_path / "data", fill)
    return tmp_path / "data"


@pytest.fixture
def of_lmdb_1_0(filled: Path, as_lmdb_1_0: Callable[[Path], Path]) -> Path:
    """The same rows in a file that LMDB 1.0 made."""
    return as_lmdb_1_0(filled)
