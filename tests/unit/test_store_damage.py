"""A damaged record is an error of its own and costs nothing else; what can be rebuilt is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from callboard_protocol.errors import DamagedRecordError, UnknownSchemaError
from callboard_protocol.messages import Message
from callboard_protocol.records import AgentSnapshot, RunBegan, StepCompleted
from callboard_protocol.runs import RunRequest
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_protocol.states import RunState
from callboard_storage import codec
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.schemas import PARTS, Schema, Schemas
from callboard_storage.store_values import Fence

pytestmark = pytest.mark.anyio

MAP_SIZE = 1 << 30


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def request(run_id: str, session_id: str) -> RunRequest:
    return RunRequest(agent_id="agent", session_id=session_id, run_id=run_id, input_text="hello")


async def fill(store: LmdbStore) -> None:
    """Two sessions of three records, a head, a run entry and a memory entry each."""
    loop = asyncio.get_running_loop()
    for number, session_id in enumerate(("one", "two")):
        run_id = f"run-{session_id}"
        began = RunBegan(
            run_id=run_id,
            ordinal=0,
            at=1.0,
            request=request(run_id, session_id),
            agent=AgentSnapshot(),
            messages=(Message.user("hello"),),
        )
        batch = store.batch(session_id)
        batch.append(0, began)
        batch.put_head(SessionHead(session_id=session_id).after(0, began))
        for ordinal in (1, 2):
            step = StepCompleted(run_id=run_id, ordinal=ordinal, at=1.0, step="1", kind="tool", in_transcript=True)
            batch.append(ordinal, step)
        batch.put_run(
            RunEntry(request=request(run_id, session_id), request_digest=b"d", state=RunState.RUNNING, order=number)
        )
        batch.put_memory(MemoryEntry(name="note", value=session_id))
        written = loop.create_future()
        store.commit(batch, Fence(-1), loop, written.set_result)
        assert await written is None


Change = Callable[[bytes], bytes]


def flip(frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1])


def damage(directory: Path, table: bytes, number: int, change: Change = flip) -> None:
    """Change the value of a table's row, by its place in the order of keys."""
    environment = lmdb.open(str(directory), map_size=MAP_SIZE, max_dbs=16)
    database = environment.open_db(table)
    with environment.begin(write=True, db=database) as transaction:
        key, value = list(transaction.cursor())[number]
        transaction.put(key, change(value))
    environment.close()


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Path]:
    async def make() -> None:
        store = LmdbStore(tmp_path / "data", map_size=MAP_SIZE)
        await store.open()
        await fill(store)
        await store.close()

    asyncio.run(make())
    return tmp_path / "data"


@pytest.fixture
async def reopen(filled: Path) -> Any:
    stores: list[LmdbStore] = []

    async def open_again() -> LmdbStore:
        stores.append(LmdbStore(filled, map_size=MAP_SIZE))
        await stores[-1].open()
        return stores[-1]

    yield open_again
    for store in stores:
        await store.close()


async def test_a_damaged_record_is_an_error_and_the_rest_is_read(filled, reopen):
    damage(filled, b"log", 1)
    store = await reopen()
    with pytest.raises(DamagedRecordError, match="fails its checksum"):
        await store.read_log("one")
    assert [stored.sequence for stored in await store.read_log("one", stop=1)] == [0]
    assert [stored.sequence for stored in await store.read_log("one", start=2)] == [2]
    assert len(await store.read_log("two")) == 3


async def test_a_damaged_record_of_a_long_log_is_an_error_too(filled, reopen):
    store = await reopen()
    loop = asyncio.get_running_loop()
    batch = store.batch("one")
    for ordinal in range(3, 100):
        batch.append(ordinal, StepCompleted(run_id="run-one", ordinal=ordinal, at=1.0, step="1", kind="tool"))
    written = loop.create_future()
    store.commit(batch, Fence(2), loop, written.set_result)
    assert await written is None
    await store.close()
    damage(filled, b"log", 50)
    store = await reopen()
    with pytest.raises(DamagedRecordError):
        await store.read_log("one")
    with pytest.raises(DamagedRecordError):
        await store.read_head("one")
    assert (await store.read_head("two")).next_sequence == 3


def places(store: LmdbStore) -> list[tuple[str, str, str]]:
    return [(record.table, record.key, record.code) for record in store.quarantined()]


async def test_a_damaged_head_is_folded_again_from_the_log(filled, reopen):
    store = await reopen()
    expected = await store.read_head("one")
    assert expected is not None
    await store.close()
    damage(filled, b"heads", 0)
    store = await reopen()
    assert await store.read_head("one") == expected
    assert places(store) == [("heads", "one", "damaged_record")]


async def test_a_page_of_another_table_invents_no_session(filled, reopen):
    """Where a page of runs lies in the place of one of heads, its rows are whole, and are no heads."""
    key = b"run-one"
    entry = RunEntry(request=request("run-one", "one"), request_digest=b"d", state=RunState.RUNNING, order=1)
    environment = lmdb.open(str(filled), map_size=MAP_SIZE, max_dbs=16)
    with environment.begin(write=True, db=environment.open_db(b"heads")) as transaction:
        transaction.put(key, codec.encode(key, entry))
    environment.close()
    store = await reopen()
    assert await store.list_sessions() == ["one", "two"]


async def test_a_damaged_run_is_left_out_of_recovery(filled, reopen):
    damage(filled, b"runs", 0)
    store = await reopen()
    assert [entry.run_id for entry in await store.read_unfinished()] == ["run-two"]
    assert places(store) == [("runs", "run-one", "damaged_record")]
    with pytest.raises(DamagedRecordError):
        await store.read_run("run-one")


async def test_an_index_without_its_entry_is_left_out_of_recovery(filled, reopen):
    environment = lmdb.open(str(filled), map_size=MAP_SIZE, max_dbs=16)
    database = environment.open_db(b"runs")
    with environment.begin(write=True, db=database) as transaction:
        transaction.delete(b"run-one")
    environment.close()
    store = await reopen()
    assert [entry.run_id for entry in await store.read_unfinished()] == ["run-two"]
    assert places(store) == [("runs", "run-one", "damaged_record")]


async def test_a_record_moved_to_another_key_is_damaged(filled, reopen):
    environment = lmdb.open(str(filled), map_size=MAP_SIZE, max_dbs=16)
    database = environment.open_db(b"log")
    with environment.begin(write=True, db=database) as transaction:
        rows = list(transaction.cursor())
        transaction.put(rows[0][0], rows[3][1])  # the other session's first record
    environment.close()
    store = await reopen()
    with pytest.raises(DamagedRecordError):
        await store.read_log("one")


async def test_what_a_newer_release_wrote_is_said_to_be_unknown(filled, reopen):
    newer = codec.Codec(Schemas([Schema(32, 2, SessionHead)]), PARTS)
    damage(filled, b"heads", 0, lambda _: newer.encode(b"one", SessionHead(session_id="one")))
    store = await reopen()
    with pytest.raises(UnknownSchemaError, match="version 2 of SessionHead"):
        await store.read_head("one")


async def test_a_damaged_session_can_still_be_deleted(filled, reopen):
    damage(filled, b"log", 1)
    damage(filled, b"memory", 0)
    store = await reopen()
    with pytest.raises(DamagedRecordError):
        await store.read_log("one")
    assert (await store.delete_session("one")).total == 5
    assert list(await store.read_log("one")) == []
    assert places(store) == []


async def test_an_error_says_which_record_it_is_and_what_to_do(filled, reopen):
    damage(filled, b"log", 1)
    damage(filled, b"memory", 1)
    store = await reopen()
    with pytest.raises(DamagedRecordError, match="record 1 of session 'one' fails its checksum") as of_log:
        await store.read_log("one")
    assert of_log.value.context["session_id"] == "one"
    assert of_log.value.context["sequence"] == 1
    assert "runtime.sessions.fork(source, target, checkpoint_id)" in of_log.value.hint
    with pytest.raises(DamagedRecordError, match="the memory entry 'note' of session 'two'"):
        await store.read_memory("two")


async def test_what_cannot_be_read_is_told_once_and_kept(filled, reopen, caplog):
    damage(filled, b"log", 1)
    damage(filled, b"memory", 1)
    store = await reopen()
    told: list[Any] = []
    end = store.watch_quarantine(told.append)
    for _ in range(3):
        with pytest.raises(DamagedRecordError):
            await store.read_log("one")
    assert told == list(store.quarantined())
    (record,) = told
    assert (record.table, record.key, record.session_id, record.run_id, record.sequence) == (
        "log",
        "one#1",
        "one",
        None,
        1,
    )
    assert caplog.text.count("quarantined: record 1 of session 'one'") == 1
    end()
    with pytest.raises(DamagedRecordError):
        await store.read_memory("two")
    assert len(told) == 1
    assert len(store.quarantined()) == 2


async def test_a_list_of_runs_leaves_out_what_cannot_be_read_and_goes_on_behind_it(filled, reopen):
    damage(filled, b"runs", 0)
    store = await reopen()
    assert [entry.run_id for entry in await store.list_runs()] == ["run-two"]
    assert [entry.run_id for entry in await store.list_runs(limit=1)] == ["run-two"]
    assert list(await store.list_runs(after="run-two")) == []
    assert list(await store.list_runs(limit=0)) == []
    assert list(await store.list_sessions()) == ["one", "two"]
    assert places(store) == [("runs", "run-one", "damaged_record")]


async def test_a_damaged_checkpoint_is_left_out_and_its_neighbours_are_read(filled, reopen):
    store = await reopen()
    loop = asyncio.get_running_loop()
    batch = store.batch("one")
    for name in ("early", "late"):
        batch.put_checkpoint(SessionCheckpoint(checkpoint_id=name, session_id="one", log_position=1))
    written = loop.create_future()
    store.commit(batch, None, loop, written.set_result)
    assert await written is None
    await store.close()
    damage(filled, b"checkpoints", 0)
    store = await reopen()
    assert [one.checkpoint_id for one in await store.read_checkpoints("one")] == ["late"]
    assert places(store) == [("checkpoints", "one/early", "damaged_record")]


async def test_what_is_written_anew_is_quarantined_no_longer(filled, reopen):
    damage(filled, b"memory", 0)
    store = await reopen()
    with pytest.raises(DamagedRecordError):
        await store.read_memory("one")
    assert len(places(store)) == 1
    loop = asyncio.get_running_loop()
    batch = store.batch("one")
    batch.put_memory(MemoryEntry(name="note", value="again"))
    written = loop.create_future()
    store.commit(batch, None, loop, written.set_result)
    assert await written is None
    assert places(store) == []
    assert [entry.value for entry in await store.read_memory("one")] == ["again"]


async def test_what_a_newer_release_wrote_names_that_release(filled, reopen):
    newer = codec.Codec(Schemas([Schema(35, 2, MemoryEntry)]), PARTS)
    damage(filled, b"memory", 0, lambda _: newer.encode(b"one\0note", MemoryEntry(name="note")))
    damage(filled, b"meta", 2, lambda _: b"7.1.0")
    store = await reopen()
    with pytest.raises(UnknownSchemaError, match="version 2 of MemoryEntry") as unknown:
        await store.read_memory("one")
    assert "Callboard 7.1.0" in unknown.value.hint
    assert places(store) == [("memory", "one/note", "unknown_schema")]
