"""What `Store.commit` and `Batch` promise, on every backend."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from callboard_protocol.errors import (
    FencedError,
    InvalidIdentifierError,
    StoreClosedError,
    UnpersistableValueError,
    UsageError,
)
from callboard_protocol.sessions import MemoryEntry, SessionHead
from callboard_storage.store_values import Fence

pytestmark = pytest.mark.anyio


async def test_what_was_committed_is_read_back(desk, make):
    await desk.append(0, make.began(), make.step(1))
    assert await desk.records() == [make.began(), make.step(1)]


async def test_commit_returns_before_it_acknowledges(desk, make):
    answer = desk.send(desk.batch_of(0, make.began()), Fence(-1))
    assert not answer.done()
    assert desk.answers == []
    assert await answer is None


async def test_acknowledgements_come_in_the_order_of_the_commits(desk, make):
    waiting = []
    for number in range(20):
        session_id = f"s{number % 4}"
        batch = desk.batch_of(number // 4, make.step(number), session_id=session_id)
        waiting.append(desk.send(batch, Fence(number // 4 - 1), name=str(number)))
    await asyncio.gather(*waiting)
    assert desk.answers == [(str(number), None) for number in range(20)]


async def test_a_burst_of_one_session_is_applied_in_order(desk, make):
    waiting = [desk.send(desk.batch_of(number, make.step(number)), Fence(number - 1)) for number in range(50)]
    assert await asyncio.gather(*waiting) == [None] * 50
    assert await desk.records() == [make.step(number) for number in range(50)]


async def test_acknowledgement_runs_on_the_committers_loop(store, desk, make):
    batch = desk.batch_of(0, make.began())
    heard: list[threading.Thread] = []

    async def commit_elsewhere() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def acknowledge(error: object) -> None:
            heard.append(threading.current_thread())
            done.set()

        store.commit(batch, Fence(-1), loop, acknowledge)
        await done.wait()

    elsewhere = threading.Thread(target=asyncio.run, args=(commit_elsewhere(),))
    elsewhere.start()
    await asyncio.to_thread(elsewhere.join)
    assert heard == [elsewhere]
    assert await desk.records() == [make.began()]


async def test_an_acknowledgement_that_raises_costs_no_one_else_theirs(store, desk, make):
    loop = asyncio.get_running_loop()
    reported: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))

    def fail(_: object) -> None:
        raise RuntimeError("a committer's mistake")

    store.commit(desk.batch_of(0, make.began(), session_id="one"), Fence(-1), loop, fail)
    assert await desk.send(desk.batch_of(0, make.began(), session_id="two"), Fence(-1)) is None
    loop.set_exception_handler(None)
    assert [str(context["exception"]) for context in reported] == ["a committer's mistake"]


async def test_a_stale_fence_is_refused(desk, make):
    await desk.append(0, make.began(), make.step(1))
    with pytest.raises(FencedError, match="ends at sequence 1; the batch follows 0"):
        await desk.append(1, make.step(1, value="another"))
    assert await desk.records() == [make.began(), make.step(1)]


async def test_a_fence_ahead_of_the_log_is_refused(desk, make):
    await desk.append(0, make.began())
    with pytest.raises(FencedError):
        await desk.append(5, make.step(5))


async def test_nothing_of_a_refused_batch_is_written(desk, make):
    await desk.append(0, make.began())
    batch = desk.batch_of(0, make.step(0), make.step(1))
    batch.put_head(SessionHead(session_id="session", next_sequence=99))
    batch.put_run(make.entry())
    batch.put_checkpoint(make.checkpoint("mine", 1))
    batch.put_memory(MemoryEntry(name="note"))
    with pytest.raises(FencedError):
        await desk.commit(batch, Fence(-1))
    assert await desk.records() == [make.began()]
    assert await desk.store.read_head("session") == SessionHead(session_id="session").after(0, make.began())
    assert await desk.store.read_run("run") is None
    assert not await desk.store.read_unfinished()
    assert not await desk.store.read_checkpoints("session")
    assert not await desk.store.read_memory("session")


async def test_a_repeated_commit_succeeds_and_changes_nothing(desk, make):
    batch = desk.batch_of(0, make.began(), make.step(1))
    batch.put_memory(MemoryEntry(name="note", value="old"))
    await desk.commit(batch, Fence(-1))
    later = desk.batch_of(2, make.step(2))
    later.put_memory(MemoryEntry(name="note", value="new"))
    await desk.commit(later, Fence(1))

    await desk.commit(batch, Fence(-1))

    assert await desk.records() == [make.began(), make.step(1), make.step(2)]
    assert [entry.value for entry in await desk.store.read_memory("session")] == ["new"]


async def test_a_commit_repeated_before_its_acknowledgement_succeeds(desk, make):
    batch = desk.batch_of(0, make.began())
    assert await asyncio.gather(desk.send(batch, Fence(-1)), desk.send(batch, Fence(-1))) == [None, None]
    assert await desk.records() == [make.began()]


async def test_the_same_records_encoded_anew_count_as_repeated(desk, make):
    await desk.append(0, make.began(), make.step(1))
    await desk.append(0, make.began(), make.step(1))
    assert await desk.records() == [make.began(), make.step(1)]


async def test_a_repeat_that_goes_on_past_the_log_is_refused(desk, make):
    await desk.append(0, make.began(), make.step(1))
    with pytest.raises(FencedError):
        await desk.append(0, make.began(), make.step(1), make.step(2))
    assert len(await desk.records()) == 2


async def test_other_content_at_the_same_sequence_is_refused(desk, make):
    await desk.append(0, make.began(), make.step(1))
    with pytest.raises(FencedError):
        await desk.append(0, make.began(), make.step(1, value="something else"))


async def test_without_a_fence_a_batch_may_not_append(desk, make):
    with pytest.raises(UsageError, match="needs a fence"):
        desk.send(desk.batch_of(0, make.began()))


async def test_records_must_follow_the_fence(desk, make):
    with pytest.raises(UsageError, match="starts at sequence 3, its fence follows 1"):
        desk.send(desk.batch_of(3, make.step(3)), Fence(1))


async def test_a_batch_appends_without_gaps(desk, make):
    batch = desk.batch_of(0, make.began())
    with pytest.raises(UsageError, match="cannot go on at 2"):
        batch.append(2, make.step(2))
    with pytest.raises(UsageError):
        desk.store.batch("session").append(-1, make.step(0))


async def test_a_batch_of_something_else_is_refused(desk):
    with pytest.raises(UsageError, match=r"store\.batch"):
        desk.send(object())


async def test_without_a_fence_anything_else_is_written(desk, make):
    batch = desk.store.batch("session")
    batch.put_run(make.entry())
    await desk.commit(batch)
    assert await desk.store.read_run("run") == make.entry()


async def test_a_fence_holds_for_a_batch_without_records(desk, make):
    await desk.append(0, make.began())
    batch = desk.store.batch("session")
    batch.put_memory(MemoryEntry(name="note"))
    with pytest.raises(FencedError):
        await desk.commit(batch, Fence(3))
    await desk.commit(batch, Fence(0))
    assert len(await desk.store.read_memory("session")) == 1


async def test_after_a_refusal_what_already_waits_is_refused(desk, make):
    await desk.append(0, make.began(), make.step(1), make.step(2))
    # The second of these meets the log's end by chance: it must not slip in behind records its sender never wrote.
    refused = desk.send(desk.batch_of(2, make.step(2, "x")), Fence(1))
    by_chance = desk.send(desk.batch_of(3, make.step(3, "y")), Fence(2))
    assert isinstance(await refused, FencedError)
    assert isinstance(await by_chance, FencedError)
    assert len(await desk.records()) == 3


async def test_after_a_refusal_each_receiver_gets_an_error_of_its_own(desk, make):
    await desk.append(0, make.began())
    errors = await asyncio.gather(
        desk.send(desk.batch_of(5, make.step(5)), Fence(4)), desk.send(desk.batch_of(6, make.step(6)), Fence(5))
    )
    assert all(isinstance(error, FencedError) for error in errors)
    assert errors[0] is not errors[1]


async def test_once_told_of_a_refusal_a_session_starts_anew(desk, make):
    await desk.append(0, make.began())
    with pytest.raises(FencedError):
        await desk.append(5, make.step(5))
    await desk.append(1, make.step(1))
    assert await desk.records() == [make.began(), make.step(1)]


async def test_a_session_may_start_anew_inside_the_refusals_acknowledgement(desk, make):
    await desk.append(0, make.began())
    loop = asyncio.get_running_loop()
    second: asyncio.Future[object] = loop.create_future()

    def try_again(error: object) -> None:
        assert isinstance(error, FencedError)
        desk.store.commit(desk.batch_of(1, make.step(1)), Fence(0), loop, second.set_result)

    desk.store.commit(desk.batch_of(7, make.step(7)), Fence(6), loop, try_again)
    assert await second is None


async def test_a_refusal_costs_other_sessions_nothing(desk, make):
    refused = desk.send(desk.batch_of(5, make.step(5), session_id="one"), Fence(4))
    written = desk.send(desk.batch_of(0, make.began(), session_id="two"), Fence(-1))
    assert isinstance(await refused, FencedError)
    assert await written is None


async def test_a_refusal_does_not_touch_batches_without_a_fence(desk, make):
    refused = desk.send(desk.batch_of(5, make.step(5)), Fence(4))
    batch = desk.store.batch("session")
    batch.put_run(make.entry())
    written = desk.send(batch)
    assert isinstance(await refused, FencedError)
    assert await written is None
    assert await desk.store.read_run("run") == make.entry()


async def test_size_counts_encoded_bytes(desk, make):
    batch = desk.store.batch("session")
    assert batch.size == 0
    batch.append(0, make.step(0, value="x" * 1000))
    one = batch.size
    assert 1000 < one < 1200
    batch.put_memory(MemoryEntry(name="note", value="y" * 500))
    assert one + 500 < batch.size < one + 600


async def test_a_value_that_cannot_persist_is_refused_and_the_batch_stays_as_it_was(desk, make):
    batch = desk.batch_of(0, make.began())
    size = batch.size
    with socket.socket() as unpersistable:
        with pytest.raises(UnpersistableValueError, match=r"value\.items\[3\] is a socket"):
            batch.append(1, make.step(1, value={"items": [1, 2, 3, unpersistable]}))
        with pytest.raises(UnpersistableValueError, match="value is a socket"):
            batch.put_memory(MemoryEntry(name="note", value=unpersistable))
        with pytest.raises(UnpersistableValueError, match=r"state\.open is a socket"):
            batch.put_checkpoint(make.checkpoint("mine", 1).model_copy(update={"state": {"open": unpersistable}}))
        entry = make.entry()
        request = entry.request.model_copy(update={"metadata": {"where": unpersistable}})
        with pytest.raises(UnpersistableValueError, match=r"request\.metadata\.where is a socket"):
            batch.put_run(entry.model_copy(update={"request": request}))
    assert batch.size == size
    batch.append(1, make.step(1))
    await desk.commit(batch, Fence(-1))
    assert await desk.records() == [make.began(), make.step(1)]
    assert await desk.store.read_run("run") is None


@pytest.mark.parametrize("bad", ["", "nul\0", "x" * 201, "\ud800", "line\nbreak"])
async def test_a_session_id_that_cannot_be_a_key_is_refused(desk, bad):
    with pytest.raises(InvalidIdentifierError):
        desk.store.batch(bad)


async def test_what_belongs_to_another_session_is_refused(desk, make):
    batch = desk.store.batch("session")
    for put in (
        lambda: batch.put_head(SessionHead(session_id="other")),
        lambda: batch.put_run(make.entry(session_id="other")),
        lambda: batch.put_checkpoint(make.checkpoint("mine", 1, session_id="other")),
    ):
        with pytest.raises(UsageError, match="belongs to session 'other'"):
            put()
    assert batch.size == 0


@pytest.mark.parametrize("bad", ["", "nul\0", "x" * 400, "\ud800"])
async def test_a_name_that_cannot_be_a_key_is_refused(desk, make, bad):
    batch = desk.store.batch("s" * 200)
    with pytest.raises(InvalidIdentifierError):
        batch.put_memory(MemoryEntry(name=bad))
    with pytest.raises(InvalidIdentifierError):
        batch.put_checkpoint(make.checkpoint(bad, 1, session_id="s" * 200))
    with pytest.raises(InvalidIdentifierError):
        batch.delete_memory(bad)


async def test_a_closed_store_takes_nothing(new_store, make):
    store = new_store()
    batch = store.batch("session")
    batch.append(0, make.began())
    with pytest.raises(StoreClosedError):
        store.commit(batch, Fence(-1), asyncio.get_running_loop(), lambda _: None)
    with pytest.raises(StoreClosedError):
        await store.read_log("session")
    await store.open()
    with pytest.raises(UsageError, match="before this one was opened"):
        store.commit(batch, Fence(-1), asyncio.get_running_loop(), lambda _: None)
    await store.close()
    await store.close()
    with pytest.raises(StoreClosedError):
        store.commit(batch, Fence(-1), asyncio.get_running_loop(), lambda _: None)
    with pytest.raises(StoreClosedError):
        await store.delete_session("session")


async def test_close_commits_what_waits(new_store, make):
    store = new_store()
    await store.open()
    loop = asyncio.get_running_loop()
    answers = []
    for number in range(30):
        batch = store.batch("session")
        batch.append(number, make.step(number))
        store.commit(batch, Fence(number - 1), loop, answers.append)
    await store.close()
    await asyncio.sleep(0)
    assert answers == [None] * 30
    await store.open()
    assert len(await store.read_log("session")) == 30
    await store.close()


async def test_opening_twice_is_harmless(store, desk, make):
    await store.open()
    await desk.append(0, make.began())
    assert await desk.records() == [make.began()]


async def test_a_store_whose_commits_go_through_is_not_stalled(store, desk, make):
    assert store.stalled() is None
    await desk.append(0, make.began())
    assert store.stalled() is None
