"""A log that begins with a copy of another session's."""

from __future__ import annotations

import asyncio

import pytest

from callboard_protocol.errors import FencedError, UsageError
from callboard_protocol.sessions import SessionHead
from callboard_storage.memory_store import MemoryStore
from callboard_storage.store_values import Fence

pytestmark = pytest.mark.anyio


async def test_a_copy_has_the_same_records_under_the_same_sequences(desk, make):
    await desk.append(0, make.began(), *(make.step(n, {"n": n}) for n in range(1, 100)))
    batch = desk.store.batch("copy")
    await desk.store.copy_log("session", batch, through=80)
    batch.append(81, make.ended())
    await desk.commit(batch, Fence(-1))
    assert await desk.records("copy") == [*(await desk.records())[:81], make.ended()]
    assert len(await desk.records()) == 100


async def test_nothing_of_a_copy_is_there_before_it_is_committed(desk, make):
    await desk.append(0, make.began(), make.step(1))
    batch = desk.store.batch("copy")
    await desk.store.copy_log("session", batch, through=1)
    batch.put_head(SessionHead(session_id="copy", next_sequence=2))
    assert await desk.store.read_head("copy") is None
    assert await desk.records("copy") == []
    assert list(await desk.store.list_sessions()) == []


async def test_a_copy_outlives_its_source(desk, make):
    await desk.append(0, make.began(), make.step(1))
    batch = desk.store.batch("copy")
    await desk.store.copy_log("session", batch, through=1)
    await desk.commit(batch, Fence(-1))
    before = await desk.records()
    assert (await desk.store.delete_session("session")).records == 2
    assert await desk.records("copy") == before
    await desk.append(2, make.ended(), session_id="copy")
    assert (await desk.store.read_head("copy")).next_sequence == 3


async def test_a_copy_into_a_session_that_has_a_log_is_fenced(desk, make):
    await desk.append(0, make.began(), make.step(1))
    await desk.append(0, make.began("other", "copy"), session_id="copy")
    batch = desk.store.batch("copy")
    await desk.store.copy_log("session", batch, through=1)
    batch.put_head(SessionHead(session_id="copy", next_sequence=2))
    with pytest.raises(FencedError):
        await desk.commit(batch, Fence(-1))
    assert await desk.records("copy") == [make.began("other", "copy")]


async def test_of_two_copies_into_one_session_the_first_stands(desk, make):
    await desk.append(0, make.began(), make.step(1))
    await desk.append(0, make.began("other", "other"), session_id="other")
    batches = []
    for source, through in (("session", 1), ("other", 0)):
        batches.append(desk.store.batch("copy"))
        await desk.store.copy_log(source, batches[-1], through=through)
    answers = [desk.send(batch, Fence(-1)) for batch in batches]
    first, second = await asyncio.gather(*answers)
    assert first is None
    assert isinstance(second, FencedError)
    assert await desk.records("copy") == await desk.records()


async def test_what_cannot_be_copied_is_a_mistake_and_leaves_the_batch_as_it_was(desk, make):
    await desk.append(0, make.began(), make.step(1))
    batch = desk.store.batch("copy")
    for source, through in (("session", 2), ("nobody", 0)):
        with pytest.raises(UsageError, match=f"'{source}' has"):
            await desk.store.copy_log(source, batch, through=through)
    await desk.store.copy_log("session", batch, through=1)
    with pytest.raises(UsageError, match="ends at sequence 1"):
        await desk.store.copy_log("session", batch, through=1)
    await desk.commit(batch, Fence(-1))
    assert len(await desk.records("copy")) == 2
    with pytest.raises(UsageError, match="no batch of this store"):
        await desk.store.copy_log("session", MemoryStore(), through=1)
