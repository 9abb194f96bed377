"""What every backend promises about room: nothing begins while there is none, and what has happened is kept."""

from __future__ import annotations

import asyncio

import pytest

from callboard_protocol.errors import StoreFullError
from callboard_protocol.states import RunState
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.memory_store import MemoryStore
from callboard_storage.room import MIB
from callboard_storage.store_values import Fence

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "lmdb"])
def new_store(request, tmp_path):
    """Stores that a test can fill."""
    if request.param == "memory":
        return lambda: MemoryStore(max_bytes=MIB)
    return lambda: LmdbStore(tmp_path / "data", map_size=1 << 30, max_bytes=MIB)


async def fill(desk, make, *, until_full: bool) -> int:
    """Write outcomes until nothing may begin, or until nothing gets in; how many."""
    sequence = 0
    while until_full or desk.store.has_room:
        if await desk.send(desk.batch_of(sequence, make.step(sequence, "x" * 9000), session_id="filler"),
                           Fence(sequence - 1)) is not None:  # fmt: skip
            return sequence
        sequence += 1
    return sequence


async def test_without_room_no_work_begins_and_outcomes_are_kept(desk, make):
    written = await fill(desk, make, until_full=False)
    assert isinstance(await desk.send(desk.batch_of(0, make.began()), Fence(-1)), StoreFullError)
    queued = desk.store.batch("session")
    queued.put_run(make.entry())
    assert isinstance(await desk.send(queued), StoreFullError)
    await desk.append(written, make.step(written), make.ended(written + 1), session_id="filler")
    ended = desk.store.batch("session")
    ended.put_run(make.entry(state=RunState.CANCELLED))
    await desk.commit(ended)


async def test_a_full_store_refuses_everything_and_keeps_what_it_has(desk, make):
    written = await fill(desk, make, until_full=True)
    before = await desk.records("filler")
    assert len(before) == written
    error = await desk.send(desk.batch_of(written, make.step(written, "x" * 9000), session_id="filler"),
                            Fence(written - 1))  # fmt: skip
    assert isinstance(error, StoreFullError)
    assert "1048576" in error.message
    assert await desk.records("filler") == before
    assert (await desk.store.figures()).bytes_used <= MIB


async def test_a_large_value_needs_no_more_room_than_it_takes_up(desk, make):
    used = (await desk.store.figures()).bytes_used
    too_long, fits = ("x" * int((MIB - used) * share) for share in (1.05, 0.85))
    assert isinstance(await desk.send(desk.batch_of(0, make.step(0, too_long)), Fence(-1)), StoreFullError)
    assert (await desk.store.figures()).bytes_used <= used + 2 * 4096, "what was refused gives its room back"
    await desk.append(0, make.step(0, fits))
    assert [record.value for record in await desk.records()] == [fits]
    assert (await desk.store.figures()).bytes_used <= MIB


async def test_behind_a_refusal_for_want_of_room_nothing_of_the_session_overtakes(desk, make):
    await fill(desk, make, until_full=False)
    intent = desk.send(desk.batch_of(0, make.began()), Fence(-1))
    behind = desk.send(desk.batch_of(1, make.step(1)), Fence(0))
    overtaking = desk.send(desk.batch_of(0, make.step(0)), Fence(-1))
    assert all(isinstance(error, StoreFullError) for error in await asyncio.gather(intent, behind, overtaking))
    assert await desk.records() == []


async def test_a_deletion_makes_room_at_once(desk, make):
    await fill(desk, make, until_full=True)
    assert not await desk.store.find_room()
    await desk.store.delete_session("filler")
    assert desk.store.has_room
    await desk.append(0, make.began())


async def test_what_was_refused_for_want_of_room_is_taken_as_it_is_once_there_is_some(desk, make):
    await fill(desk, make, until_full=False)
    batches = [(desk.batch_of(0, make.began()), Fence(-1)), (desk.batch_of(1, make.step(1)), Fence(0))]
    refused = await asyncio.gather(*(desk.send(*one) for one in batches))
    assert all(isinstance(error, StoreFullError) for error in refused)
    await desk.store.delete_session("filler")
    assert await asyncio.gather(*(desk.send(*one) for one in batches)) == [None, None]
    assert await desk.records() == [make.began(), make.step(1)]
    assert await asyncio.gather(*(desk.send(*one) for one in batches)) == [None, None], "a replay is a success"
