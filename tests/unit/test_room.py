"""Whether there is room: the two marks under a quota and under a disk's end, and when they are measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from callboard_protocol.errors import StoreFullError, UsageError
from callboard_protocol.records import (
    AgentSnapshot,
    IntentRecorded,
    ReservationRecorded,
    RunBegan,
    RunEnded,
    RunResumed,
    RunSuspended,
    StepCompleted,
)
from callboard_protocol.runs import RunRequest
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import RunState
from callboard_storage.batch import FrameBatch
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.memory_store import MemoryStore
from callboard_storage.open_store import open_store
from callboard_storage.room import MIB, Room, Space, reserve_of

PLENTY = 1 << 40


def room_at(used: int, *, max_bytes: int | None = 8 * MIB, left: int = PLENTY, now: float = 0.0) -> Room:
    """Room with a quota, as measured."""
    room = Room(max_bytes, MIB)
    room.measured(Space(used, left), now)
    return room


def ending() -> FrameBatch:
    batch = FrameBatch("session")
    batch.append(0, StepCompleted(run_id="run", ordinal=0, at=1.0, step="0", kind="tool", value="done"))
    batch.append(1, RunSuspended(run_id="run", ordinal=1, at=1.0))
    batch.append(2, RunEnded(run_id="run", ordinal=2, at=1.0, stop_reason="failed"))
    return batch


def beginnings() -> dict[str, FrameBatch]:
    """Everything that can wait."""
    request = RunRequest(agent_id="agent", session_id="session", run_id="run", input_text="hello")
    records = (
        RunBegan(run_id="run", ordinal=0, at=1.0, request=request, agent=AgentSnapshot()),
        RunResumed(run_id="run", ordinal=0, at=1.0, attempt=2, agent=AgentSnapshot()),
        IntentRecorded(run_id="run", ordinal=0, at=1.0, step="0", tool="tool", arguments={}, arguments_digest=b""),
        ReservationRecorded(run_id="run", ordinal=0, at=1.0, step="0"),
    )
    batches = {}
    for record in records:
        batches[type(record).__name__] = batch = FrameBatch("session")
        batch.append(0, record)
    batches["a queued run"] = queued = FrameBatch("session")
    queued.put_run(RunEntry(request=request, request_digest=b"digest", state=RunState.QUEUED, order=1))
    return batches


def test_past_the_lower_mark_nothing_begins_and_outcomes_get_in():
    kept = reserve_of(8 * MIB)
    below, past = room_at(8 * MIB - kept - MIB), room_at(8 * MIB - kept)
    assert (below.has_room, past.has_room) == (True, False)
    for name, batch in beginnings().items():
        assert below.refusal(batch) is None, name
        assert isinstance(past.refusal(batch), StoreFullError), name
    assert past.refusal(ending()) is None


def test_at_the_quota_nothing_gets_in():
    full = room_at(8 * MIB - 100)
    error = full.refusal(ending())
    assert isinstance(error, StoreFullError)
    assert error.retryable
    assert error.context == {"used": 8 * MIB - 100, "max_bytes": 8 * MIB, "left": PLENTY}


def test_a_disk_that_is_all_but_full_lets_nothing_begin_and_outcomes_in():
    room = room_at(0, max_bytes=None, left=MIB)
    assert not room.has_room
    assert all(isinstance(room.refusal(batch), StoreFullError) for batch in beginnings().values())
    assert room.refusal(ending()) is None


def test_without_a_quota_an_ample_disk_takes_everything():
    room = room_at(1 << 50, max_bytes=None)
    assert room.has_room
    assert all(room.refusal(batch) is None for batch in beginnings().values())


def test_live_bytes_are_counted_anew_only_near_the_mark_or_after_a_second():
    room = room_at(0)
    assert not room.is_due(0.5)
    assert room.is_due(1.5)
    while not room.is_due(0.5):
        room.count(ending().size, 0)
    assert room.has_room, "it is measured before anything is refused"
    room.measured(Space(0, PLENTY), 0.5)
    assert not room.is_due(0.5)
    room.forget()
    assert room.is_due(0.5)


def test_what_a_group_adds_counts_before_it_is_measured():
    room = room_at(8 * MIB - reserve_of(8 * MIB) - 10 * ending().size)
    while room.has_room:
        room.count(ending().size, 0)
    assert isinstance(room.refusal(beginnings()["RunBegan"]), StoreFullError)
    assert room.refusal(ending()) is None


def test_a_disk_that_refused_is_believed_for_a_second_whatever_is_measured():
    room = room_at(0, now=10.0)
    room.failed(10.0)
    assert not room.has_room
    room.measured(Space(0, PLENTY), 10.5)
    assert not room.has_room
    room.measured(Space(0, PLENTY), 11.5)
    assert room.has_room


def test_limits_that_cannot_work_are_refused_at_the_door(tmp_path: Path):
    for limits in ({"max_bytes": 1000}, {"max_bytes": 1e9}, {"max_bytes": True}, {"max_bytes": "1 GB"}):
        with pytest.raises(UsageError, match=r"max_bytes=.* does not fit.*at least 1048576"):
            LmdbStore(tmp_path / "data", **limits)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"max_bytes=.* does not fit"):
            MemoryStore(**limits)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="min_free_bytes=0 does not fit"):
        LmdbStore(tmp_path / "data", min_free_bytes=0)
    with pytest.raises(UsageError, match="a MemoryStore has limits of its own"):
        open_store(MemoryStore(), max_bytes=8 * MIB)
