"""The group-commit writer: what shares a transaction, and what happens when one fails."""

from __future__ import annotations

import asyncio
import gc
import itertools
import resource
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pykka
import pytest

from callboard_protocol.errors import CallboardError, FencedError, StoreError, StoreFullError
from callboard_protocol.records import StepCompleted
from callboard_protocol.sessions import MemoryEntry, SessionHead
from callboard_storage import lmdb_environment, lmdb_transactions
from callboard_storage.committing import commit
from callboard_storage.lmdb_environment import LmdbEnvironment
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.lmdb_transactions import WriteTransaction
from callboard_storage.room import MIB
from callboard_storage.standings import Standings
from callboard_storage.store_values import Fence
from callboard_storage.write_queue import Operation
from callboard_storage.writer import StoreWriter, Wake

pytestmark = pytest.mark.anyio

MAP_SIZE = 1 << 30


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LmdbStore]:
    store = LmdbStore(tmp_path / "data", map_size=MAP_SIZE)
    await store.open()
    yield store
    await store.close()


def step(ordinal: int, value: Any = None) -> StepCompleted:
    return StepCompleted(run_id="run", ordinal=ordinal, at=1.0, step=str(ordinal), kind="tool", value=value)


def send(store: LmdbStore, first: int, *values: Any, session_id: str = "session") -> asyncio.Future[Any]:
    batch = store.batch(session_id)
    for number, value in enumerate(values, first):
        batch.append(number, step(number, value))
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[CallboardError | None] = loop.create_future()
    store.commit(batch, Fence(first - 1), loop, answer.set_result)
    return answer


async def length(store: LmdbStore, session_id: str = "session") -> int:
    return len(await store.read_log(session_id))


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
    store._directory.queue.put(Operation("session", hold, loop, lambda _count, _error: None))
    begun.wait()
    try:
        yield
    finally:
        go_on.set()


# ---- groups


async def test_everything_that_waits_shares_one_transaction(store):
    with writer_at_work(store):
        answers = [send(store, 0, number, session_id=f"s{number}") for number in range(100)]
    assert await asyncio.gather(*answers) == [None] * 100
    figures = await store.figures()
    assert (figures.commits, figures.batches) == (2, 100)


async def test_a_group_is_told_in_one_turn_of_each_loop(store, monkeypatch):
    loop = asyncio.get_running_loop()
    calls = []
    original = loop.call_soon_threadsafe

    def counted(callback: Any, *arguments: Any, **options: Any) -> asyncio.Handle:
        calls.append(callback)
        return original(callback, *arguments, **options)

    with writer_at_work(store):
        answers = [send(store, 0, number, session_id=f"s{number}") for number in range(50)]
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    await asyncio.gather(*answers)
    monkeypatch.undo()
    assert len(calls) == 2  # the operation's, and the group's


async def test_sessions_of_one_group_are_refused_alone(store):
    assert await send(store, 0, "first") is None
    with writer_at_work(store):
        stale, other, later = (
            send(store, 0, "not the first"),
            send(store, 0, "x", session_id="other"),
            send(store, 1, "y"),
        )
    assert isinstance(await stale, FencedError)
    assert await other is None
    assert isinstance(await later, FencedError)
    assert await length(store) == 1


async def test_a_replay_within_one_group_succeeds(store):
    with writer_at_work(store):
        answers = [send(store, 0, "a"), send(store, 1, "b"), send(store, 0, "a"), send(store, 2, "c")]
    assert await asyncio.gather(*answers) == [None] * 4
    assert await length(store) == 3


async def test_a_refusal_in_one_group_still_stands_in_the_next(store):
    """The next group is written before the loop has had a turn to hear of the refusal."""
    assert await send(store, 0, "a", "b", "c") is None
    assert store._directory is not None
    queue = store._directory.queue
    with writer_at_work(store):
        first = send(store, 1, "stale")
        queue.put(Operation("session", lambda _: 0, asyncio.get_running_loop(), lambda _count, _error: None))
        second = send(store, 3, "would fit by chance")
    assert isinstance(await first, FencedError)
    assert isinstance(await second, FencedError)
    assert await length(store) == 3
    assert await send(store, 3, "after reloading") is None


async def test_the_last_word_of_a_group_counts(store):
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    with writer_at_work(store):
        for number in range(3):
            batch = store.batch("session")
            batch.put_head(SessionHead(session_id="session", run_count=number))
            batch.put_memory(MemoryEntry(name="kept", value=number))
            batch.put_memory(MemoryEntry(name="dropped", value=number))
            store.commit(batch, None, loop, lambda _: None)
        batch = store.batch("session")
        batch.delete_memory("dropped")
        store.commit(batch, None, loop, done.set_result)
    assert await done is None
    assert (await store.read_head("session")).run_count == 2
    assert [(entry.name, entry.value) for entry in await store.read_memory("session")] == [("kept", 2)]


async def test_fences_hold_past_the_cache_of_ends(store, monkeypatch):
    monkeypatch.setattr("callboard_storage.standings.MOST_SESSIONS", 3)
    for value in range(3):
        with writer_at_work(store):
            answers = [send(store, value, value, session_id=f"s{number}") for number in range(10)]
        assert await asyncio.gather(*answers) == [None] * 10
    with writer_at_work(store):
        twice = [send(store, 3, 3, session_id="s1"), *(send(store, 3, 3, session_id=f"s{n}") for n in range(10))]
    assert await asyncio.gather(*twice) == [None] * 11
    assert [await length(store, f"s{number}") for number in range(10)] == [4] * 10
    with writer_at_work(store):
        first = send(store, 4, 4, session_id="s1")
        between = [send(store, 4, 4, session_id=f"s{number}") for number in range(2, 10)]
        second = send(store, 5, 5, session_id="s1")
    assert await asyncio.gather(first, *between, second) == [None] * 10


# ---- other processes on the directory

APPEND = """
import asyncio, sys
from callboard_protocol.records import StepCompleted
from callboard_storage.committing import commit
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence

async def main():
    store = LmdbStore(sys.argv[1], map_size=1 << 30)
    await store.open()
    batch = store.batch("session")
    batch.append(1, StepCompleted(run_id="other", ordinal=1, at=1.0, step="1", kind="tool"))
    await commit(store, batch, Fence(0))
    await store.close()

asyncio.run(main())
"""


async def _repeat_a_commit(store: LmdbStore) -> None:
    assert await send(store, 0, "before") is None


async def _be_refused(store: LmdbStore) -> None:
    assert isinstance(await send(store, 7, "nowhere near the end", session_id="other"), FencedError)


async def test_nothing_is_kept_of_a_session_whose_lock_was_given_back(store):
    (standings,) = (one for one in gc.get_objects() if isinstance(one, Standings))
    lease = store.lease()
    batch = store.batch("session")
    batch.append(0, step(0))
    await commit(store, batch, Fence(-1, lease, takes=True))
    assert standings.known("session") == (0, lease.token)
    batch = store.batch("session")
    batch.append(1, step(1))
    await commit(store, batch, Fence(0, lease, gives=True))
    assert standings.known("session") is None
    # Who has it next is asked of the tables, and held to what they say.
    later, stale = store.batch("session"), store.batch("session")
    stale.append(1, step(1, "another"))
    with pytest.raises(FencedError):
        await commit(store, stale, Fence(0, store.lease(), takes=True))
    later.append(2, step(2))
    await commit(store, later, Fence(1, store.lease(), takes=True))


@pytest.mark.parametrize("change_nothing", [_repeat_a_commit, _be_refused])
async def test_what_another_process_writes_is_seen_behind_a_transaction_that_changed_nothing(
    store, tmp_path, change_nothing
):
    """Such a transaction leaves its number to the next one, which is the other process's."""
    assert await send(store, 0, "before") is None
    await change_nothing(store)
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", APPEND, tmp_path / "data"], check=True, timeout=60)
    assert isinstance(await send(store, 1, "over it"), FencedError)
    assert [stored.record.run_id for stored in await store.read_log("session")] == ["run", "other"]


# ---- the actor


async def test_stopping_all_of_pykkas_actors_does_not_stop_the_writer(store):
    assert pykka.ActorRegistry.get_by_class(StoreWriter) == []
    pykka.ActorRegistry.stop_all()
    assert await send(store, 0, "still here") is None


async def test_reader_slots_are_looked_after(store, caplog):
    assert store._directory is not None
    checked = threading.Event()
    environment = store._directory.environment
    environment.check_readers = lambda: checked.set() or 2
    store._check_readers()
    assert await asyncio.to_thread(checked.wait, 10)
    assert await send(store, 0, "x") is None
    assert "freed 2 reader slots" in caplog.text


async def test_a_failing_check_of_the_readers_stops_nothing(store, caplog):
    assert store._directory is not None

    def fail() -> int:
        raise lmdb.Error("mdb_reader_check", 5)

    store._directory.environment.check_readers = fail
    store._directory._writer.tell(Wake.CHECK_READERS)
    assert await send(store, 0, "x") is None
    assert "checking the reader table failed" in caplog.text


async def test_threads_that_read_and_end_leave_no_reader_slot_behind(store):
    assert store._directory is not None
    await send(store, 0, "x")
    environment = store._directory.environment
    for _ in range(100):
        reader = threading.Thread(target=environment.read, args=(lambda snapshot: snapshot.entries("log"),))
        reader.start()
        reader.join()
    assert environment._opened[0].info()["num_readers"] <= 4


async def test_an_acknowledgement_for_a_closed_loop_is_dropped(store, caplog):
    other = asyncio.new_event_loop()
    batch = store.batch("session")
    batch.append(0, step(0))
    with writer_at_work(store):
        store.commit(batch, Fence(-1), other, lambda _: None)
        other.close()
        answer = send(store, 0, "x", session_id="other")
    assert await answer is None
    assert await length(store) == 1
    assert "after its event loop was closed" in caplog.text


# ---- what fails


async def test_a_full_map_refuses_its_group_and_the_store_goes_on(tmp_path):
    store = LmdbStore(tmp_path / "data", map_size=256 * 1024)
    await store.open()
    try:
        assert await send(store, 0, "small") is None
        with writer_at_work(store):
            huge, beside = send(store, 0, *["x" * 50_000] * 8, session_id="huge"), send(store, 1, "small")
            behind = send(store, 2, "small")
        errors = [await huge, await beside, await behind]
        assert all(isinstance(error, StoreFullError) for error in errors)
        assert len({id(error) for error in errors}) == 3
        assert await length(store) == 1
        assert await send(store, 1, "small") is None
        assert await length(store) == 2
    finally:
        await store.close()


async def test_a_map_filled_step_by_step_still_lets_sessions_be_deleted(tmp_path):
    store = LmdbStore(tmp_path / "data", map_size=512 * 1024)
    await store.open()
    try:
        written = 0
        while (error := await send(store, 0, "x" * 3000, session_id=f"s{written}")) is None:
            written += 1
        assert isinstance(error, StoreFullError)
        assert written > 20
        for number in range(written // 2):
            assert (await store.delete_session(f"s{number}")).total == 1
        assert await send(store, 0, "x" * 3000, session_id="new") is None
        assert await length(store, f"s{written - 1}") == 1
    finally:
        await store.close()


async def test_a_full_disk_refuses_its_group_and_the_store_goes_on(store, tmp_path):
    """A file size limit makes the kernel refuse LMDB's writes as a full disk does."""
    assert await send(store, 0, "x" * 1000) is None
    size = (tmp_path / "data" / "data.mdb").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        refused = send(store, 1, "x" * 200_000)
        behind = send(store, 2, "y")
        assert isinstance(await refused, StoreFullError)
        assert isinstance(await behind, StoreFullError)
        assert await length(store) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert await send(store, 1, "x" * 200_000) is None
    assert await length(store) == 2


async def test_a_commit_that_failed_and_is_not_on_disk_is_an_error(store, monkeypatch):
    assert await send(store, 0, "before") is None

    def fail(_: WriteTransaction) -> None:
        raise lmdb.DiskError("mdb_txn_commit", 5)

    monkeypatch.setattr(WriteTransaction, "commit", fail)
    answers = await asyncio.gather(send(store, 1, "lost"), send(store, 0, "lost", session_id="other"))
    monkeypatch.undo()
    assert all(isinstance(error, StoreError) for error in answers)
    assert "mdb_txn_commit" in str(answers[0])
    assert await length(store) == 1
    assert await send(store, 1, "again") is None


async def test_a_commit_that_failed_is_not_taken_for_done_because_of_a_batch_that_was_repeated_in_it(
    store, monkeypatch
):
    def fail(_: WriteTransaction) -> None:
        raise lmdb.DiskError("mdb_txn_commit", 5)

    assert await send(store, 0, "before") is None
    with writer_at_work(store):
        repeated, new = send(store, 0, "before"), send(store, 0, "lost", session_id="other")
        monkeypatch.setattr(WriteTransaction, "commit", fail)
    answers = await asyncio.gather(repeated, new)
    monkeypatch.undo()
    assert isinstance(answers[1], StoreError)
    assert await length(store, "other") == 0
    assert await send(store, 0, "again", session_id="other") is None


async def test_a_lock_that_a_failed_commit_took_or_gave_back_is_had_as_before(store, monkeypatch):
    def fail(_: WriteTransaction) -> None:
        raise lmdb.DiskError("mdb_txn_commit", 5)

    async def lost(batch: Any, fence: Fence) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(WriteTransaction, "commit", fail)
            with pytest.raises(StoreError, match="mdb_txn_commit"):
                await commit(store, batch, fence)

    lease = store.lease()
    first, last = store.batch("session"), store.batch("session")
    first.append(0, step(0))
    last.append(1, step(1))
    await lost(first, Fence(-1, lease, takes=True))
    assert lease.token == 0
    await commit(store, first, Fence(-1, lease, takes=True))
    token = lease.token
    await lost(last, Fence(0, lease, gives=True))
    assert lease.token == token > 0
    await commit(store, last, Fence(0, lease, gives=True))
    assert lease.token == 0
    await commit(store, store.batch("session"), Fence(None, lease, takes=True))
    token = lease.token
    await lost(store.batch("session"), Fence(None, lease, gives=True))
    assert lease.token == token > 0
    await commit(store, store.batch("session"), Fence(None, lease, gives=True))
    assert await send(store, 2, "by anyone") is None


async def test_after_a_failed_commit_what_already_waits_is_refused(store, monkeypatch):
    assert await send(store, 0, "before") is None
    assert store._directory is not None
    commit = WriteTransaction.commit
    commits = itertools.count(1)

    def fail_the_second(transaction: WriteTransaction) -> None:
        if next(commits) == 2:
            raise lmdb.DiskError("mdb_txn_commit", 5)
        commit(transaction)

    queue = store._directory.queue
    with writer_at_work(store):
        # What holds the writer up commits first; the second commit fails, the third goes through.
        lost = send(store, 1, "lost")
        queue.put(Operation("session", lambda _: 0, asyncio.get_running_loop(), lambda _count, _error: None))
        by_chance = send(store, 1, "fits what is on disk")
        monkeypatch.setattr(WriteTransaction, "commit", fail_the_second)
    assert isinstance(await lost, StoreError)
    assert isinstance(await by_chance, StoreError)
    assert await length(store) == 1
    assert await send(store, 1, "again") is None


async def test_a_commit_that_failed_and_is_on_disk_after_all_succeeds(store, monkeypatch, caplog):
    commit = WriteTransaction.commit

    def commit_and_fail(transaction: WriteTransaction) -> None:
        commit(transaction)
        raise lmdb.DiskError("mdb_txn_commit", 5)

    monkeypatch.setattr(WriteTransaction, "commit", commit_and_fail)
    assert await send(store, 0, "kept") is None
    monkeypatch.undo()
    assert "is on disk" in caplog.text
    assert await length(store) == 1
    assert await send(store, 1, "next") is None


async def test_a_directory_that_cannot_be_opened_again_answers_with_errors(store, monkeypatch):
    def fail(*_: Any) -> None:
        raise lmdb.DiskError("mdb_txn_commit", 5)

    monkeypatch.setattr(WriteTransaction, "commit", fail)
    monkeypatch.setattr(lmdb_environment, "open_for_all", fail)
    first = await send(store, 0, "x")
    second = await send(store, 0, "x")
    assert isinstance(first, StoreError)
    assert isinstance(second, StoreError)
    with pytest.raises(StoreError):
        await store.read_log("session")


async def test_reads_go_on_while_the_environment_is_opened_anew(store, monkeypatch):
    assert await send(store, 0, "x") is None
    assert store._directory is not None
    environment = store._directory.environment
    held, go_on = threading.Event(), threading.Event()
    reopen = LmdbEnvironment._open

    def slow(self: LmdbEnvironment) -> Any:
        held.set()
        go_on.wait()
        return reopen(self)

    monkeypatch.setattr(LmdbEnvironment, "_open", slow)
    reopening = threading.Thread(target=environment.reopen)
    reopening.start()
    held.wait()
    found: list[int] = []
    reading = threading.Thread(target=lambda: found.append(environment.read(lambda s: s.entries("log"))))
    reading.start()
    go_on.set()
    reopening.join()
    reading.join()
    assert found == [1]


async def test_a_mistake_in_the_writer_is_an_answer_and_not_the_end(store, monkeypatch, caplog):
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(WriteTransaction, "write", fail)
    error = await send(store, 0, "x")
    monkeypatch.undo()
    assert isinstance(error, StoreError)
    assert "a mistake" in str(error)
    assert await send(store, 0, "x") is None


async def test_whatever_goes_wrong_every_batch_is_answered(store, monkeypatch, caplog):
    monkeypatch.setattr(StoreWriter, "_transact", lambda *_: 1 // 0)
    answers = await asyncio.gather(send(store, 0, "x"), send(store, 0, "x", session_id="other"))
    with pytest.raises(StoreError, match="the log says why"):
        await store.delete_session("session")
    monkeypatch.undo()
    assert all(isinstance(error, StoreError) for error in answers)
    assert "ZeroDivisionError" in caplog.text
    assert await send(store, 0, "x") is None


async def test_an_operation_that_fails_says_so(store, monkeypatch):
    monkeypatch.setattr(lmdb_transactions.WriteTransaction, "delete_prefix", lambda *_: 1 // 0)
    assert await send(store, 0, "x") is None
    with pytest.raises(StoreError, match="ZeroDivisionError"):
        await store.delete_session("session")
    monkeypatch.undo()
    assert await length(store) == 1


async def test_a_cancelled_deletion_still_happens(store):
    assert await send(store, 0, "x") is None
    with writer_at_work(store):
        deletion = asyncio.ensure_future(store.delete_session("session"))
        await asyncio.sleep(0)
        deletion.cancel()
        answer = send(store, 0, "anew", session_id="other")
    assert await answer is None
    assert deletion.cancelled()
    assert await length(store) == 0


# ---- the quota


async def test_at_the_quota_nothing_gets_in_but_a_deletion_and_then_there_is_room(tmp_path):
    store = LmdbStore(tmp_path / "data", map_size=MAP_SIZE, max_bytes=MIB)
    await store.open()
    try:
        assert store.has_room
        sequence = 0
        while (error := await send(store, sequence, "x" * 5000)) is None:
            sequence += 1
        assert isinstance(error, StoreFullError)
        assert 60 < sequence < 200
        assert (await store.figures()).bytes_used <= MIB
        assert not store.has_room
        assert not await store.find_room()
        assert (await store.delete_session("session")).total == sequence
        assert store.has_room
        assert await send(store, 0, "x" * 5000) is None
    finally:
        await store.close()


# ---- the end of the process


def test_a_process_that_never_closes_its_store_ends_and_loses_nothing(tmp_path):
    script = """
import asyncio, sys, time
from callboard_storage.lmdb_transactions import WriteTransaction
from callboard_protocol.records import StepCompleted
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence

commit = WriteTransaction.commit

def commit_on_a_slow_disk(transaction):
    time.sleep(0.3)
    commit(transaction)

async def main():
    store = LmdbStore(sys.argv[1], map_size=1 << 30)
    await store.open()
    WriteTransaction.commit = commit_on_a_slow_disk
    for number in range(200):
        batch = store.batch("session")
        batch.append(number, StepCompleted(run_id="run", ordinal=number, at=1.0, step="s", kind="tool"))
        store.commit(batch, Fence(number - 1), asyncio.get_running_loop(), lambda _: None)

asyncio.run(main())
"""
    directory = tmp_path / "data"
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)], timeout=60, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    async def read() -> int:
        store = LmdbStore(directory, map_size=MAP_SIZE)
        await store.open()
        try:
            return await length(store)
        finally:
            await store.close()

    assert asyncio.run(read()) == 200
