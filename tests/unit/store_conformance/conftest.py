"""What the suite needs: each backend, fresh and open, and short ways to build records and to commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from callboard_protocol.errors import CallboardError
from callboard_protocol.messages import Message
from callboard_protocol.records import AgentSnapshot, LogRecord, RunBegan, RunEnded, StepCompleted
from callboard_protocol.runs import RunRequest
from callboard_protocol.sessions import RunEntry, SessionCheckpoint
from callboard_protocol.states import RunState
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.memory_store import MemoryStore
from callboard_storage.store import Batch, Store
from callboard_storage.store_values import Fence


class Make:
    """Records and entries with nothing to say but what a test is about."""

    def began(self, run_id: str = "run", session_id: str = "session") -> RunBegan:
        request = RunRequest(agent_id="agent", session_id=session_id, run_id=run_id, input_text="hello")
        return RunBegan(
            run_id=run_id, ordinal=0, at=1.0, request=request, agent=AgentSnapshot(), messages=(Message.user("hello"),)
        )

    def step(self, ordinal: int = 0, value: Any = "done", run_id: str = "run") -> StepCompleted:
        return StepCompleted(
            run_id=run_id, ordinal=ordinal, at=2.0, step=str(ordinal), kind="tool", value=value, in_transcript=True
        )

    def ended(self, ordinal: int = 0, run_id: str = "run") -> RunEnded:
        return RunEnded(run_id=run_id, ordinal=ordinal, at=3.0, stop_reason="completed", output="bye")

    def entry(
        self, run_id: str = "run", session_id: str = "session", state: RunState = RunState.QUEUED, order: int = 1
    ) -> RunEntry:
        request = RunRequest(agent_id="agent", session_id=session_id, run_id=run_id, input_text="hello")
        return RunEntry(request=request, request_digest=b"digest", state=state, order=order)

    def checkpoint(self, checkpoint_id: str, position: int, session_id: str = "session") -> SessionCheckpoint:
        return SessionCheckpoint(
            checkpoint_id=checkpoint_id, session_id=session_id, log_position=position, state={"at": position}
        )


class Desk:
    """Where a test commits."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.answers: list[tuple[str, CallboardError | None]] = []

    def batch_of(self, first: int, *records: LogRecord, session_id: str = "session") -> Batch:
        batch = self.store.batch(session_id)
        for sequence, record in enumerate(records, first):
            batch.append(sequence, record)
        return batch

    def send(self, batch: Batch, fence: Fence | None = None, name: str = "") -> asyncio.Future[CallboardError | None]:
        """Commit without waiting; the future's result is what the acknowledgement said."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[CallboardError | None] = loop.create_future()

        def acknowledge(error: CallboardError | None) -> None:
            self.answers.append((name, error))
            answer.set_result(error)

        self.store.commit(batch, fence, loop, acknowledge)
        return answer

    async def commit(self, batch: Batch, fence: Fence | None = None) -> None:
        """Commit, and raise what the acknowledgement said."""
        error = await self.send(batch, fence)
        if error is not None:
            raise error

    async def append(self, first: int, *records: LogRecord, session_id: str = "session") -> None:
        """Append records behind `first` - 1."""
        await self.commit(self.batch_of(first, *records, session_id=session_id), Fence(first - 1))

    async def records(self, session_id: str = "session") -> list[LogRecord]:
        """A session's whole log."""
        return [stored.record for stored in await self.store.read_log(session_id)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make() -> Make:
    return Make()


@pytest.fixture(params=["memory", "lmdb"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Makes a store of each backend."""
    return MemoryStore if request.param == "memory" else lambda: LmdbStore(tmp_path / "data", map_size=1 << 30)


@pytest.fixture
async def store(new_store: Callable[[], Store]) -> AsyncIterator[Store]:
    store = new_store()
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def desk(store: Store) -> Desk:
    return Desk(store)


@pytest.fixture
async def desks() -> AsyncIterator[Callable[[Store], Awaitable[Desk]]]:
    """Opens stores until the test has ended."""
    async with AsyncExitStack() as stack:

        async def opened(store: Store) -> Desk:
            await store.open()
            stack.push_async_callback(store.close)
            return Desk(store)

        yield opened
