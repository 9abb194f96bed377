"""What a store's reads promise, on every backend."""

from __future__ import annotations

import pytest

from callboard_protocol.errors import InvalidIdentifierError
from callboard_protocol.sessions import MemoryEntry, SessionHead
from callboard_protocol.states import UNFINISHED, RunState
from callboard_storage.store_values import RECORDS_READ_ON_LOOP, Fence

pytestmark = pytest.mark.anyio

LONG = RECORDS_READ_ON_LOOP + 36
"""Long enough to be read on a thread."""


async def test_an_unknown_session_reads_as_nothing(store):
    assert await store.read_head("nobody") is None
    assert list(await store.read_log("nobody")) == []
    assert list(await store.read_checkpoints("nobody")) == []
    assert list(await store.read_memory("nobody")) == []
    assert await store.read_run("nobody") is None
    assert (await store.delete_session("nobody")).total == 0


async def test_a_head_is_brought_up_to_date_from_its_log(desk, make):
    head = SessionHead(session_id="session").after(0, make.began())
    batch = desk.batch_of(0, make.began())
    batch.put_head(head)
    await desk.commit(batch, Fence(-1))
    await desk.append(1, make.step(1), make.step(2))
    expected = head.after(1, make.step(1)).after(2, make.step(2))
    assert await desk.store.read_head("session") == expected
    assert (expected.next_sequence, expected.transcript_length, expected.active_run) == (3, 3, "run")


async def test_a_head_that_was_never_written_is_folded_from_the_log(desk, make):
    await desk.append(0, make.began(), make.ended(1))
    head = await desk.store.read_head("session")
    assert head == SessionHead(session_id="session").after(0, make.began()).after(1, make.ended(1))


async def test_a_head_far_behind_its_log_is_brought_up_to_date(desk, make):
    batch = desk.store.batch("session")
    batch.put_head(SessionHead(session_id="session"))
    await desk.commit(batch)
    await desk.append(0, *(make.step(number) for number in range(LONG)))
    head = await desk.store.read_head("session")
    assert (head.next_sequence, head.transcript_length) == (LONG, LONG)


@pytest.mark.parametrize("length", [10, LONG])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, slice(None)),
        ({"start": 3}, slice(3, None)),
        ({"stop": 7}, slice(0, 7)),
        ({"start": 2, "stop": 5}, slice(2, 5)),
        ({"limit": 4}, slice(0, 4)),
        ({"start": 3, "limit": 2}, slice(3, 5)),
        ({"start": 8, "stop": 1000, "limit": 1000}, slice(8, None)),
        ({"start": 5, "stop": 5}, slice(0, 0)),
        ({"start": 6, "stop": 2}, slice(0, 0)),
        ({"start": 5000}, slice(0, 0)),
        ({"limit": 0}, slice(0, 0)),
    ],
)
async def test_a_part_of_a_log_is_read(desk, make, length, options, expected):
    records = [make.step(number) for number in range(length)]
    await desk.append(0, *records)
    read = await desk.store.read_log("session", **options)
    assert [(stored.sequence, stored.record) for stored in read] == list(enumerate(records))[expected]


async def test_sessions_whose_ids_begin_alike_are_kept_apart(desk, make):
    ids = ["a", "a ", "a!", "ab", "abc", "b", "a\u00e9", "\U0001f600", "\uffff"]
    for number, session_id in enumerate(ids):
        batch = desk.batch_of(0, *(make.step(step) for step in range(number + 1)), session_id=session_id)
        batch.put_head(SessionHead(session_id=session_id))
        batch.put_memory(MemoryEntry(name="own", value=number))
        await desk.commit(batch, Fence(-1))
    for number, session_id in enumerate(ids):
        assert len(await desk.records(session_id)) == number + 1
        assert [entry.value for entry in await desk.store.read_memory(session_id)] == [number]
    assert sorted(ids, key=str.encode) == list(await desk.store.list_sessions())
    removed = await desk.store.delete_session("a")
    assert removed.total == 3
    assert [len(await desk.records(session_id)) for session_id in ids] == [0, 2, 3, 4, 5, 6, 7, 8, 9]


async def test_the_index_of_unfinished_runs_follows_their_state(desk, make):
    for state in RunState:
        batch = desk.store.batch("session")
        batch.put_run(make.entry(state=state))
        await desk.commit(batch)
        unfinished = await desk.store.read_unfinished()
        assert [entry.state for entry in unfinished] == ([state] if state in UNFINISHED else [])
        assert (await desk.store.read_run("run")).state is state


async def test_unfinished_runs_come_in_admission_order(desk, make):
    for order, run_id in [(30, "a"), (10, "c"), (20, "b"), (10, "d")]:
        batch = desk.store.batch(f"session-{run_id}")
        batch.put_run(make.entry(run_id, f"session-{run_id}", order=order))
        await desk.commit(batch)
    assert [entry.run_id for entry in await desk.store.read_unfinished()] == ["c", "d", "b", "a"]


async def test_a_run_admitted_anew_is_unfinished_once(desk, make):
    for order in (1, 2):
        batch = desk.store.batch("session")
        batch.put_run(make.entry(order=order))
        await desk.commit(batch)
    assert [entry.order for entry in await desk.store.read_unfinished()] == [2]


async def test_runs_and_sessions_are_listed_in_pages(desk, make):
    ids = sorted(f"run-{number:03}" for number in range(25))
    for run_id in reversed(ids):
        batch = desk.store.batch(run_id)
        batch.put_run(make.entry(run_id, run_id))
        batch.put_head(SessionHead(session_id=run_id))
        await desk.commit(batch)
    for read, name in ((desk.store.list_runs, lambda entry: entry.run_id), (desk.store.list_sessions, str)):
        seen, after = [], None
        while page := [name(one) for one in await read(after=after, limit=10)]:
            seen += page
            after = page[-1]
        assert seen == ids
        assert [name(one) for one in await read(after="run-0225")] == ids[23:]
        assert [name(one) for one in await read()] == ids
        assert list(await read(limit=0)) == []


async def test_a_list_of_runs_follows_new_and_deleted_ones(desk, make):
    for run_id in ("b", "a", "c"):
        batch = desk.store.batch("session-" + run_id)
        batch.put_run(make.entry(run_id, "session-" + run_id, state=RunState.COMPLETED))
        await desk.commit(batch)
        await desk.store.list_runs()
    await desk.store.delete_session("session-b")
    assert [entry.run_id for entry in await desk.store.list_runs()] == ["a", "c"]


async def test_checkpoints_come_by_log_position(desk, make):
    batch = desk.store.batch("session")
    for checkpoint_id, position in [("zero", 0), ("a", 7), ("m", 3)]:
        batch.put_checkpoint(make.checkpoint(checkpoint_id, position))
    await desk.commit(batch)
    again = desk.store.batch("session")
    again.put_checkpoint(make.checkpoint("m", 9))
    await desk.commit(again)
    found = await desk.store.read_checkpoints("session")
    assert [(one.checkpoint_id, one.log_position) for one in found] == [("zero", 0), ("a", 7), ("m", 9)]
    assert found[2].state == {"at": 9}


async def test_one_checkpoint_is_read_by_its_id(desk, make):
    assert await desk.store.read_checkpoint("session", "mine") is None
    batch = desk.store.batch("session")
    batch.put_checkpoint(make.checkpoint("mine", 7))
    batch.put_checkpoint(make.checkpoint("min", 3))
    await desk.commit(batch)
    found = await desk.store.read_checkpoint("session", "mine")
    assert (found.checkpoint_id, found.log_position, found.state) == ("mine", 7, {"at": 7})
    assert await desk.store.read_checkpoint("other", "mine") is None
    assert await desk.store.read_checkpoint("session", "m") is None
    with pytest.raises(InvalidIdentifierError):
        await desk.store.read_checkpoint("session", "a\0b")


async def test_unfinished_runs_of_one_session_are_those_of_that_session(desk, make):
    states = {"a": RunState.QUEUED, "b": RunState.COMPLETED, "c": RunState.RUNNING}
    for order, (run_id, state) in enumerate(states.items()):
        for session_id in ("one", "two"):
            batch = desk.store.batch(session_id)
            batch.put_run(make.entry(f"{run_id}-{session_id}", session_id, state, order=-order))
            await desk.commit(batch)
    assert [entry.run_id for entry in await desk.store.read_unfinished("one")] == ["c-one", "a-one"]
    assert list(await desk.store.read_unfinished("three")) == []
    assert len(await desk.store.read_unfinished()) == 4


async def test_memory_is_put_replaced_deleted_and_read_by_name(desk):
    batch = desk.store.batch("session")
    for name in ("b", "a", "c"):
        batch.put_memory(MemoryEntry(name=name, value=[name], updated_at=1.5))
    await desk.commit(batch)
    change = desk.store.batch("session")
    change.put_memory(MemoryEntry(name="b", value="replaced"))
    change.delete_memory("a")
    change.delete_memory("never there")
    await desk.commit(change)
    entries = await desk.store.read_memory("session")
    assert [(entry.name, entry.value) for entry in entries] == [("b", "replaced"), ("c", ["c"])]


async def test_within_a_batch_the_last_word_counts(desk):
    batch = desk.store.batch("session")
    batch.put_memory(MemoryEntry(name="note", value=1))
    batch.delete_memory("note")
    batch.delete_memory("other")
    batch.put_memory(MemoryEntry(name="other", value=2))
    await desk.commit(batch)
    assert [(entry.name, entry.value) for entry in await desk.store.read_memory("session")] == [("other", 2)]


async def test_a_deleted_session_is_gone_but_for_its_unfinished_runs(desk, make):
    batch = desk.batch_of(0, make.began(), make.step(1))
    batch.put_head(SessionHead(session_id="session", next_sequence=2))
    batch.put_run(make.entry("ended", state=RunState.COMPLETED))
    batch.put_run(make.entry("waiting"))
    batch.put_checkpoint(make.checkpoint("mine", 1))
    batch.put_memory(MemoryEntry(name="note"))
    await desk.commit(batch, Fence(-1))

    assert (await desk.store.delete_session("session")).total == 2 + 1 + 1 + 1 + 1

    assert await desk.store.read_head("session") is None
    assert await desk.records() == []
    assert list(await desk.store.list_sessions()) == []
    assert not await desk.store.read_checkpoints("session")
    assert not await desk.store.read_memory("session")
    assert await desk.store.read_run("ended") is None
    assert [entry.run_id for entry in await desk.store.read_unfinished()] == ["waiting"]
    # Once that one has ended too, it goes the same way.
    batch = desk.store.batch("session")
    batch.put_run(make.entry("waiting", state=RunState.CANCELLED))
    await desk.commit(batch)
    assert (await desk.store.delete_session("session")).total == 1
    assert await desk.store.read_run("waiting") is None


async def test_a_deleted_session_begins_again_at_zero(desk, make):
    await desk.append(0, make.began(), make.step(1))
    await desk.store.delete_session("session")
    await desk.append(0, make.began())
    assert await desk.records() == [make.began()]


async def test_deletion_keeps_its_turn_among_the_commits(desk, make):
    before = desk.send(desk.batch_of(0, make.began()), Fence(-1))
    assert (await desk.store.delete_session("session")).total == 1
    assert await before is None


async def test_figures_count_what_is_there(desk, make):
    empty = await desk.store.figures()
    assert (empty.sessions, empty.runs, empty.unfinished, empty.records, empty.commits, empty.batches) == (0,) * 6
    for session_id in ("one", "two"):
        batch = desk.batch_of(0, make.began(), make.step(1, "x" * 9000), session_id=session_id)
        batch.put_run(make.entry("run-" + session_id, session_id))
        await desk.commit(batch, Fence(-1))
    batch = desk.store.batch("one")
    batch.put_run(make.entry("run-one", "one", state=RunState.FAILED))
    await desk.commit(batch)
    full = await desk.store.figures()
    assert (full.sessions, full.runs, full.unfinished, full.records) == (2, 2, 1, 4)
    assert full.bytes_used > empty.bytes_used + 18_000
    assert (full.commits, full.batches) == (3, 3)
    for value in ("x" * 9000, "y" * 9000):
        batch = desk.store.batch("one")
        batch.put_memory(MemoryEntry(name="note", value=value))
        await desk.commit(batch)
        replaced = (await desk.store.figures()).bytes_used
        assert full.bytes_used + 9000 < replaced < full.bytes_used + 18_000
    await desk.store.delete_session("one")
    await desk.store.delete_session("two")
    after = await desk.store.figures()
    assert (after.sessions, after.records, after.runs) == (0, 0, 1)
    assert after.bytes_used < full.bytes_used - 18_000
