"""Where a store on disk keeps large values, who waits for them, and what is left of them when they go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from callboard_protocol.errors import CallboardError, DamagedRecordError, FencedError, StoreFullError
from callboard_protocol.records import StepCompleted
from callboard_protocol.runs import RunRequest
from callboard_protocol.sessions import MemoryEntry, RunEntry
from callboard_protocol.states import RunState
from callboard_storage import chunks, uploads
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.lmdb_transactions import LongRead, WriteTransaction
from callboard_storage.store_values import Fence
from callboard_storage.write_queue import Operation

pytestmark = pytest.mark.anyio

MAP_SIZE = 1 << 30
MB = 1_000_000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LmdbStore]:
    store = LmdbStore(tmp_path / "data", map_size=MAP_SIZE)
    await store.open()
    yield store
    await store.close()


class Acknowledged:
    """Who was told what, in that order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def send(
        self, store: LmdbStore, name: str, first: int, *values: Any, session_id: str = ""
    ) -> asyncio.Future[CallboardError | None]:
        batch = store.batch(session_id or name)
        for number, value in enumerate(values, first):
            batch.append(
                number,
                StepCompleted(run_id="run", ordinal=number, at=1.0, step=str(number), kind="tool", value=value),
            )
        return self.commit(store, name, batch, Fence(first - 1))

    def commit(
        self, store: LmdbStore, name: str, batch: Any, fence: Fence | None = None
    ) -> asyncio.Future[CallboardError | None]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[CallboardError | None] = loop.create_future()

        def acknowledge(error: CallboardError | None) -> None:
            self.names.append(name)
            answer.set_result(error)

        store.commit(batch, fence, loop, acknowledge)
        return answer


@pytest.fixture
def told() -> Acknowledged:
    return Acknowledged()


@contextmanager
def writer_at_work(store: LmdbStore) -> Iterator[None]:
    """Everything committed inside waits while the writer is held up by something else."""
    assert store._directory is not None
    begun, go_on = threading.Event(), threading.Event()

    def hold(_: WriteTransaction) -> int:
        begun.set()
        go_on.wait()
        return 0

    loop = asyncio.get_running_loop()
    store._directory.queue.put(Operation("nobody", hold, loop, lambda _count, _error: None))
    begun.wait()
    try:
        yield
    finally:
        go_on.set()


def rows(store: LmdbStore, table: str = "blobs") -> dict[bytes, bytes]:
    assert store._directory is not None
    return store._directory.environment.read(lambda snapshot: dict(snapshot.each(table)))


def change(store: LmdbStore, work: Callable[[WriteTransaction], object]) -> None:
    """Change rows behind the store's back."""
    assert store._directory is not None
    transaction = store._directory.environment.begin_write()
    work(transaction)
    transaction.commit()


def remember(store: LmdbStore, value: Any, name: str = "note") -> Any:
    batch = store.batch("session")
    batch.put_memory(MemoryEntry(name=name, value=value))
    return batch


# ---- who waits


async def test_a_small_commit_overtakes_a_large_one_of_another_session(store, told):
    with writer_at_work(store):
        large = told.send(store, "large", 0, "x" * 5 * MB)
        small = [told.send(store, f"small {number}", 0, "x") for number in range(3)]
    assert await asyncio.gather(large, *small) == [None] * 4
    assert told.names == ["small 0", "small 1", "small 2", "large"]


async def test_small_commits_go_between_the_chunks_of_a_large_one(store, told, monkeypatch):
    """Each transaction of chunks is followed by whatever came meanwhile, so no small commit waits for two of them."""
    written: list[str] = []
    write = WriteTransaction.write

    def noted(transaction: WriteTransaction, table: str, rows: Any) -> None:
        rows = list(rows)
        written.append(table)
        if table == "blobs":
            assert sum(len(frame) for _, frame in rows) <= uploads.UPLOADED_AT_ONCE + 1000
            if len(written) < 20:
                small = store.batch(f"small {len(written)}")
                small.put_memory(MemoryEntry(name="n", value=1))
                arrived.clear()
                loop.call_soon_threadsafe(told.commit, store, "small", small)
                arrived.wait(10)
        write(transaction, table, rows)

    class Noting(type(store._directory.queue._waiting)):  # type: ignore[misc]
        def append(self, item: Any) -> None:
            super().append(item)
            arrived.set()

    arrived = threading.Event()
    loop = asyncio.get_running_loop()
    assert store._directory is not None
    store._directory.queue._waiting = Noting()
    monkeypatch.setattr(WriteTransaction, "write", noted)
    assert await told.send(store, "large", 0, "x" * 5 * MB) is None
    assert written[:8] == ["blobs", "memory"] * 4


async def test_two_large_commits_take_turns(store, told):
    with writer_at_work(store):
        longer = told.send(store, "longer", 0, "x" * 9 * MB)
        shorter = told.send(store, "shorter", 0, "x" * 2 * MB)
    assert await asyncio.gather(longer, shorter) == [None] * 2
    assert told.names == ["shorter", "longer"]


async def test_closing_writes_a_large_commit_to_its_end(tmp_path, told):
    store = LmdbStore(tmp_path / "data", map_size=MAP_SIZE)
    await store.open()
    answer = told.send(store, "large", 0, "x" * 5 * MB)
    await store.close()
    assert await answer is None
    await store.open()
    assert len((await store.read_log("large"))[0].record.value) == 5 * MB
    await store.close()


async def test_a_large_value_is_read_off_the_loop_and_a_small_one_on_it(store, told):
    await told.send(store, "s", 0, "x" * MB)
    environment = store._directory.environment
    row = next(iter(rows(store, "log").items()))
    with pytest.raises(LongRead):
        environment.read(lambda snapshot: chunks.whole(snapshot, "log", *row), is_short=True)
    threads: list[threading.Thread] = []
    read = chunks.read

    def noted(*arguments: Any) -> Any:
        result = read(*arguments)
        threads.append(threading.current_thread())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "read", noted)
        await store.read_log("s")
        assert threads.pop() is not threading.main_thread()
        await told.send(store, "s", 1, "small")
        await store.read_log("s", start=1)
        assert threads.pop() is threading.main_thread()


# ---- what is left


async def test_a_row_of_a_large_value_is_a_reference(store, told):
    await told.send(store, "s", 0, "x" * 5 * MB)
    assert [len(row) for row in rows(store, "log").values()] == [27]
    assert len(rows(store)) == -(-(5 * MB) // chunks.CHUNK_BYTES)


@pytest.mark.parametrize("instead", ["other " * MB, "small", None])
async def test_a_replaced_value_leaves_no_chunks(store, told, instead):
    await told.commit(store, "first", remember(store, "first " * MB))
    before = len(rows(store))
    assert before > 20
    assert await told.commit(store, "second", remember(store, instead)) is None
    assert len(rows(store)) == (before if instead and len(instead) > MB else 0)


async def test_a_value_replaced_by_itself_keeps_its_chunks(store, told):
    for _ in range(2):
        assert await told.commit(store, "same", remember(store, "same " * MB)) is None
    assert [entry.value for entry in await store.read_memory("session")] == ["same " * MB]


async def test_a_removed_entry_leaves_no_chunks(store, told):
    await told.commit(store, "first", remember(store, "first " * MB))
    batch = store.batch("session")
    batch.delete_memory("note")
    await told.commit(store, "second", batch)
    assert rows(store) == {}


async def test_a_session_is_deleted_with_its_chunks_and_no_others(store, told):
    for session_id in ("one", "one!", "on", "two"):
        await told.send(store, session_id, 0, "x" * MB)
    request = RunRequest(agent_id="agent", session_id="one", run_id="two", input_text="input " * MB)
    for state in (RunState.QUEUED, RunState.COMPLETED):
        batch = store.batch("one")
        batch.put_run(RunEntry(request=request, request_digest=b"d", state=state, order=1))
        await told.commit(store, "run", batch)
    before = len(rows(store))
    deletion = await store.delete_session("one")
    assert deletion.chunks > 20
    assert before - len(rows(store)) == deletion.chunks
    for session_id in ("one!", "on", "two"):
        assert len((await store.read_log(session_id))[0].record.value) == MB


async def test_an_upload_that_finds_no_room_leaves_nothing_and_harms_nobody(tmp_path, told):
    store = LmdbStore(tmp_path / "data", map_size=8 * MB)
    await store.open()
    try:
        with writer_at_work(store):
            large = told.send(store, "large", 0, "x" * 10 * MB)
            behind = told.send(store, "behind", 1, "small", session_id="large")
            beside = told.send(store, "beside", 0, "small")
        assert isinstance(await large, StoreFullError)
        assert isinstance(await behind, StoreFullError)
        assert await beside is None
        assert rows(store) == {}
        assert await told.send(store, "large", 0, "x" * MB) is None
        (stored,) = await store.read_log("large")
        assert len(stored.record.value) == MB
        assert len(rows(store)) == -(-MB // chunks.CHUNK_BYTES)
    finally:
        await store.close()


async def test_a_full_store_refuses_a_large_value_before_any_of_it_is_written(tmp_path, told):
    store = LmdbStore(tmp_path / "data", map_size=MAP_SIZE, max_bytes=2 * MB)
    await store.open()
    try:
        number = 0
        while await told.send(store, "s", number, "x" * 20_000) is None:
            number += 1
        assert isinstance(await told.send(store, "s", number, "x" * 10 * MB), StoreFullError)
        assert rows(store) == {}
    finally:
        await store.close()


async def test_a_refused_batch_takes_its_chunks_back_and_no_others(store, told):
    large = "x" * 5 * MB
    assert await told.send(store, "first", 0, large, session_id="s") is None
    before = rows(store)
    assert isinstance(await told.send(store, "late", 0, large + "y", session_id="s"), FencedError)
    assert isinstance(await told.send(store, "early", 9, large, session_id="s"), FencedError)
    assert rows(store) == before
    assert await told.send(store, "again", 0, large, session_id="s") is None, "a replay is a success"
    assert rows(store) == before


async def test_a_value_that_is_replaced_in_its_own_transaction_leaves_no_chunks(store, told):
    with writer_at_work(store):
        large = told.commit(store, "large", remember(store, "first " * MB))
        small = told.commit(store, "small", remember(store, "second"))
    assert await asyncio.gather(large, small) == [None, None]
    assert [entry.value for entry in await store.read_memory("session")] == ["second"]
    assert rows(store) == {}


async def test_what_a_killed_writer_left_behind_is_found_and_taken_over_by_the_same_value(store, told):
    large = "x" * 5 * MB
    assert await told.send(store, "killed", 0, large, session_id="s") is None
    ((key, _),) = rows(store, "log").items()
    change(store, lambda transaction: transaction.delete("log", key))
    left = rows(store)
    assert store._directory.environment.read(chunks.unreferenced) == [*left]
    assert await told.send(store, "again", 0, large, session_id="s") is None
    assert rows(store) == left
    assert store._directory.environment.read(chunks.unreferenced) == []


async def test_chunks_that_another_process_takes_away_during_an_upload_are_written_again(store, told):
    """One that deletes the session, or is refused with the very same value."""
    loop = asyncio.get_running_loop()
    taken: list[int] = []

    def take_away(transaction: WriteTransaction) -> None:
        taken.append(transaction.delete_prefix("blobs", b"session\0"))

    with writer_at_work(store):
        answer = told.commit(store, "large", remember(store, "large " * MB))
        for _ in range(10):  # fewer than the upload takes turns
            store._directory.queue.put(Operation("nobody", take_away, loop, lambda _result, _error: None))
    assert await answer is None
    assert sum(taken) > 4
    assert [entry.value for entry in await store.read_memory("session")] == ["large " * MB]


# ---- damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda transaction, key, _: transaction.delete("blobs", key), "chunk 1 of its payload is missing"),
        (
            lambda transaction, key, frame: transaction.write("blobs", [(key, frame[:-1] + b"?")]),
            "chunk 1 of its payload fails its checksum",
        ),
        (
            lambda transaction, key, frame: transaction.write("blobs", [(key, frame[:-1])]),
            "chunk 1 of its payload is not a frame of its stated length",
        ),
        (
            lambda transaction, key, _: transaction.write("blobs", [(key, transaction.get("blobs", key[:-1] + b"\2"))]),
            "chunk 1 of its payload fails its checksum",
        ),
    ],
    ids=["missing", "flipped", "cut short", "swapped"],
)
async def test_a_damaged_chunk_is_named_and_costs_nothing_else(store, told, damage, says):
    await told.send(store, "s", 0, "before", "x" * 5 * MB, "behind")
    key, frame = [*rows(store).items()][1]
    change(store, lambda transaction: damage(transaction, key, frame))
    with pytest.raises(DamagedRecordError, match=says) as caught:
        await store.read_log("s")
    assert caught.value.context["chunk"] == 1
    assert [stored.record.value for stored in await store.read_log("s", start=2)] == ["behind"]


async def test_a_damaged_reference_is_a_damaged_record(store, told):
    await told.send(store, "s", 0, "x" * 5 * MB)
    ((key, row),) = rows(store, "log").items()
    for damaged in (row[:-1] + b"?", b"??" + row[2:], row[:-1]):
        change(store, lambda transaction, damaged=damaged: transaction.write("log", [(key, damaged)]))
        with pytest.raises(DamagedRecordError):
            await store.read_log("s")
