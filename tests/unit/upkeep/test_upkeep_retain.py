"""Retention removes whole sessions, the longest untouched first, and none that a run needs."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from callboard_protocol.errors import RuntimeBusyError, UsageError
from callboard_protocol.states import RunState
from callboard_storage import upkeep
from callboard_storage.memory_store import MemoryStore
from callboard_storage.store_values import Deletion

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def store(keeper) -> MemoryStore:
    """Sessions of one, two, three and four hours ago; a run of the oldest has not ended."""
    store = MemoryStore()
    await store.open()
    now = time.time()
    for hours, session_id in enumerate(("newest", "newer", "older", "oldest"), 1):
        state = RunState.SUSPENDED if session_id == "oldest" else RunState.COMPLETED
        await keeper.add(store, session_id, at=now - 3600 * hours, state=state)
    return store


async def test_sessions_beyond_an_age_go(store):
    report = await upkeep.retain(store, older_than=timedelta(hours=2.5))
    assert report.removed == ("older",)
    assert report.in_use == ("oldest",)
    assert report.kept == 3
    assert list(await store.list_sessions()) == ["newer", "newest", "oldest"]


async def test_sessions_beyond_a_count_go_and_the_last_touched_stay(store):
    report = await upkeep.retain(store, keep=1)
    assert report.removed == ("older", "newer")
    assert report.in_use == ("oldest",)
    assert report.entries == 2 * (5 + 1 + 1 + 1 + 1)
    assert list(await store.list_sessions()) == ["newest", "oldest"]


async def test_a_dry_run_removes_nothing_and_says_what_would_be(store):
    report = await upkeep.retain(store, keep=0, dry_run=True)
    assert report.dry_run
    assert report.removed == ("older", "newer", "newest")
    assert len(await store.list_sessions()) == 4


async def test_neither_age_nor_count_is_a_mistake(store):
    with pytest.raises(UsageError, match="older_than or keep"):
        await upkeep.retain(store)
    with pytest.raises(UsageError, match="negative"):
        await upkeep.retain(store, keep=-1)


async def test_a_session_that_a_runtime_holds_stays(store):
    async def delete(session_id: str) -> Deletion:
        if session_id == "newer":
            raise RuntimeBusyError("a run uses it")
        return await store.delete_session(session_id)

    report = await upkeep.retain(store, keep=1, delete=delete)
    assert report.removed == ("older",)
    assert report.in_use == ("oldest", "newer")


async def test_a_deletion_says_what_was_removed(store):
    assert await store.delete_session("newest") == Deletion(records=5, heads=1, checkpoints=1, memory=1, runs=1)
    assert await store.delete_session("newest") == Deletion()


def test_a_deletion_on_disk_says_what_was_removed(filled, keeper):
    assert keeper.at(filled, lambda store: store.delete_session("one")) == Deletion(5, 1, 1, 1, 1)


def test_damaged_sessions_are_left_alone_and_named(filled, keeper):
    def damage(transaction, rows):
        for key, value in rows:
            if key.startswith(b"one"):
                transaction.put(key, value[:-1] + b"?")

    keeper.change(filled, "log", damage)
    keeper.change(filled, "heads", damage)
    report = keeper.at(filled, lambda store: upkeep.retain(store, keep=0))
    assert report.damaged == ("one",)
    assert report.removed == ("two",)
    assert report.in_use == ("three",)
