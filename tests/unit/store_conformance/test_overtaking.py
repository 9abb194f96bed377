"""Entries that are written without a log to stand on: only while the run stands as it did when that was decided."""

from __future__ import annotations

from typing import Any

import pytest

from callboard_protocol.errors import FencedError, RunOvertakenError
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import RunState
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence

pytestmark = pytest.mark.anyio


def changed(entry: RunEntry, state: RunState, **changes: Any) -> RunEntry:
    return entry.model_copy(update={"state": state, **changes})


def alone(store, entry: RunEntry, seen: RunEntry | None = None):
    batch = store.batch(entry.session_id)
    batch.put_run(entry, seen=seen)
    return batch


async def opened_anew(store) -> None:
    """Whoever had it open before is dead."""
    await store.close()
    await store.open()


async def test_an_entry_is_written_where_nothing_is_stored(store, desk, make):
    await desk.commit(alone(store, make.entry(), make.entry()))
    assert await store.read_run("run") == make.entry()


@pytest.mark.parametrize(
    "stored",
    [
        {"state": RunState.RUNNING, "began_sequence": 0, "attempts": 1},
        {"state": RunState.CANCELLED},
        {"state": RunState.QUEUED, "request_digest": b"another"},
    ],
    ids=["begun", "ended", "another request"],
)
async def test_an_entry_is_refused_where_the_run_has_moved_on_since(store, desk, make, stored):
    queued = make.entry()
    now = queued.model_copy(update=stored)
    await desk.commit(alone(store, now))
    await opened_anew(store)
    with pytest.raises(RunOvertakenError, match="'run' was not written"):
        await desk.commit(alone(store, changed(queued, RunState.CANCELLED), seen=queued))
    assert await store.read_run("run") == now


async def test_a_run_that_the_dead_have_left_waiting_is_anybodys(store, desk, make):
    await desk.commit(alone(store, changed(make.entry(), RunState.PARKED)))
    await opened_anew(store)
    cancelled = changed(make.entry(), RunState.CANCELLED)
    await desk.commit(alone(store, cancelled, seen=make.entry()))
    assert await store.read_run("run") == cancelled


async def test_a_run_that_has_ended_is_resumed_once(store, desk, make):
    failed = changed(make.entry(), RunState.FAILED, attempts=1, began_sequence=0)
    await desk.commit(alone(store, failed))
    await desk.commit(alone(store, changed(failed, RunState.QUEUED), seen=failed))
    await opened_anew(store)
    with pytest.raises(RunOvertakenError, match="begun or ended"):
        await desk.commit(alone(store, changed(failed, RunState.QUEUED), seen=failed))


async def test_records_that_come_with_a_refused_entry_are_refused_with_it_and_so_is_what_follows_them(
    store, desk, make
):
    await desk.commit(alone(store, changed(make.entry(), RunState.CANCELLED)))
    begins = desk.batch_of(0, make.began())
    running = changed(make.entry(), RunState.RUNNING, began_sequence=0, attempts=1)
    begins.put_run(running, seen=make.entry())
    lease = store.lease()
    first = desk.send(begins, Fence(-1, lease, takes=True))
    second = desk.send(desk.batch_of(1, make.step()), Fence(0, lease))
    assert isinstance(await first, RunOvertakenError)
    assert isinstance(await second, RunOvertakenError | FencedError)
    assert await desk.records() == []
    assert (await store.read_run("run")).state == RunState.CANCELLED
    await desk.append(0, make.began())


async def test_a_large_entry_is_compared_like_any_other(store, desk, make):
    queued = make.entry()
    large = queued.model_copy(update={"request": queued.request.model_copy(update={"input_text": "x" * 3_000_000})})
    await desk.commit(alone(store, changed(large, RunState.RUNNING, attempts=1, began_sequence=0)))
    await opened_anew(store)
    with pytest.raises(RunOvertakenError):
        await desk.commit(alone(store, changed(large, RunState.CANCELLED), seen=large))
    assert (await store.read_run("run")).state == RunState.RUNNING


async def test_a_run_that_another_open_store_carries_is_left_to_that(tmp_path, make, desks):
    one, other = await desks(LmdbStore(tmp_path, map_size=1 << 30)), await desks(LmdbStore(tmp_path, map_size=1 << 30))
    entry = make.entry()
    # In one transaction, as far as the writer that they share is concerned.
    answers = [desk.send(alone(desk.store, entry, seen=entry)) for desk in (one, other)]
    assert await answers[0] is None
    assert isinstance(await answers[1], RunOvertakenError)
    await one.commit(alone(one.store, changed(entry, RunState.PARKED), seen=entry))
    with pytest.raises(RunOvertakenError, match="another open store carries it"):
        await other.commit(alone(other.store, changed(entry, RunState.CANCELLED), seen=entry))
    await one.store.close()
    await other.commit(alone(other.store, changed(entry, RunState.CANCELLED), seen=entry))
    assert (await other.store.read_run("run")).state == RunState.CANCELLED
