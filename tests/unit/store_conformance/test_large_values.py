"""Large values: whatever a backend does with them, they come and go as small ones do."""

from __future__ import annotations

from typing import Any

import pytest

from callboard_protocol.errors import FencedError, UnpersistableValueError
from callboard_protocol.runs import RunRequest
from callboard_protocol.sessions import MemoryEntry, RunEntry
from callboard_protocol.states import RunState
from callboard_storage import codec
from callboard_storage.store_values import Fence

pytestmark = pytest.mark.anyio

MB = 1_000_000

LARGE: dict[str, Any] = {
    "text": "0123456789" * MB,
    "text beyond ASCII": "größe ✓ " * MB,
    "bytes": bytes(range(256)) * (10 * MB // 256),
    "many small leaves": [{"id": number, "name": f"name {number}", "tags": ["a", "b"]} for number in range(200_000)],
    "a long leaf deep down": {"pages": [{"text": "short"}, {"text": "page " * (2 * MB)}]},
}


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE.keys())
async def test_a_record_of_ten_megabytes_comes_back_as_it_was(desk, make, value):
    await desk.append(0, make.step(0, "before"), make.step(1, value), make.step(2, "behind"))
    assert [record.value for record in await desk.records()] == ["before", value, "behind"]


@pytest.mark.parametrize("length", [65_400, 65_500, 65_600, 262_000, 262_080, 262_200, 524_160, 1_048_576, 1_310_400])
async def test_a_value_of_any_length_comes_back_as_it_was(desk, make, length):
    values = ["x" * (length + off) for off in range(-50, 50, 7)]
    await desk.append(0, *(make.step(number, value) for number, value in enumerate(values)))
    assert [record.value for record in await desk.records()] == values


async def test_everything_a_session_keeps_may_be_large(store, desk, make):
    request = RunRequest(agent_id="agent", session_id="session", run_id="run", input_text="input " * MB)
    batch = desk.batch_of(0, make.began(), make.step(1, "step " * MB))
    batch.put_run(RunEntry(request=request, request_digest=b"d", state=RunState.RUNNING, order=1))
    batch.put_checkpoint(make.checkpoint("point", 1).model_copy(update={"state": {"notes": "state " * MB}}))
    batch.put_memory(MemoryEntry(name="note", value="memory " * MB))
    await desk.commit(batch, Fence(-1))
    assert (await desk.records())[1].value == "step " * MB
    assert (await store.read_run("run")).request == request
    assert [entry.request for entry in await store.read_unfinished()] == [request]
    assert [entry.request for entry in await store.list_runs()] == [request]
    assert [one.state for one in await store.read_checkpoints("session")] == [{"notes": "state " * MB}]
    assert [entry.value for entry in await store.read_memory("session")] == ["memory " * MB]
    assert (await store.read_head("session")).next_sequence == 2


async def test_a_sessions_commits_keep_their_order_around_a_large_one(desk, make):
    for number in range(12):
        value = "large " * MB if number % 4 == 1 else number
        desk.send(desk.batch_of(number, make.step(number, value)), Fence(number - 1), name=str(number))
    last = desk.store.batch("session")
    last.put_memory(MemoryEntry(name="note", value="last"))
    await desk.send(last, name="last")
    assert desk.answers == [(name, None) for name in [*map(str, range(12)), "last"]]
    assert [record.ordinal for record in await desk.records()] == [*range(12)]


async def test_a_session_is_deleted_in_its_turn_behind_a_large_commit(store, desk, make):
    written = desk.send(desk.batch_of(0, make.step(0, "large " * MB)), Fence(-1))
    assert (await store.delete_session("session")).records == 1
    assert await written is None
    assert await desk.records() == []


async def test_committing_a_large_batch_again_is_harmless(desk, make):
    batch = desk.batch_of(0, make.step(0, "large " * MB))
    await desk.commit(batch, Fence(-1))
    await desk.commit(batch, Fence(-1))
    await desk.commit(desk.batch_of(0, make.step(0, "large " * MB)), Fence(-1))
    assert [record.value for record in await desk.records()] == ["large " * MB]


async def test_another_large_batch_at_the_same_place_is_refused(desk, make):
    await desk.append(0, make.step(0, "first " * MB))
    with pytest.raises(FencedError):
        await desk.append(0, make.step(0, "other " * MB))
    assert [record.value for record in await desk.records()] == ["first " * MB]


async def test_a_refused_large_batch_leaves_the_session_as_it_was(store, desk, make):
    batch = desk.batch_of(5, make.step(5, "large " * MB))
    batch.put_memory(MemoryEntry(name="note", value="memory " * MB))
    with pytest.raises(FencedError):
        await desk.commit(batch, Fence(4))
    assert await desk.records() == []
    assert await store.read_memory("session") == []
    await desk.append(0, make.step(0, "small"))
    assert [record.value for record in await desk.records()] == ["small"]


async def test_a_session_that_was_refused_is_refused_behind_a_large_commit_too(desk, make):
    first = desk.send(desk.batch_of(3, make.step(3, "large " * MB)), Fence(2))
    behind = desk.send(desk.batch_of(0, make.step(0, "x")), Fence(-1))
    assert isinstance(await first, FencedError)
    assert isinstance(await behind, FencedError)
    assert await desk.records() == []


async def test_what_replaces_a_large_value_is_all_there_is(store, desk):
    for value in ("first " * MB, "second " * MB, "small", "third " * MB):
        batch = store.batch("session")
        batch.put_memory(MemoryEntry(name="note", value=value))
        await desk.commit(batch)
        assert [entry.value for entry in await store.read_memory("session")] == [value]
    batch = store.batch("session")
    batch.delete_memory("note")
    await desk.commit(batch)
    assert await store.read_memory("session") == []


async def test_the_last_of_several_values_in_one_batch_counts(store, desk):
    batch = store.batch("session")
    for name, values in {
        "ends large": ("small", "large " * MB),
        "ends small": ("large " * MB, "small"),
        "ends larger": ("large " * MB, "larger " * MB),
    }.items():
        for value in values:
            batch.put_memory(MemoryEntry(name=name, value=value))
    batch.put_memory(MemoryEntry(name="gone", value="large " * MB))
    batch.delete_memory("gone")
    await desk.commit(batch)
    held = {entry.name: entry.value for entry in await store.read_memory("session")}
    assert held == {"ends large": "large " * MB, "ends small": "small", "ends larger": "larger " * MB}


async def test_large_values_of_a_deleted_session_are_gone_and_its_name_is_free(store, desk, make):
    async def fill() -> None:
        batch = desk.batch_of(0, make.step(0, "step " * MB))
        batch.put_memory(MemoryEntry(name="note", value="memory " * MB))
        await desk.commit(batch, Fence(-1))

    await fill()
    used = (await store.figures()).bytes_used
    deletion = await store.delete_session("session")
    assert (deletion.records, deletion.memory, deletion.total) == (1, 1, 2)
    assert (await store.figures()).bytes_used < used - 10 * MB
    assert (await desk.records(), await store.read_memory("session")) == ([], [])
    await fill()
    assert [record.value for record in await desk.records()] == ["step " * MB]


async def test_an_unfinished_run_keeps_its_large_request_when_its_session_is_deleted(store, desk, make):
    large = "input " * MB
    for run_id, state in (("ended", RunState.COMPLETED), ("waiting", RunState.QUEUED)):
        request = RunRequest(agent_id="agent", session_id="session", run_id=run_id, input_text=large)
        batch = store.batch("session")
        batch.put_run(RunEntry(request=request, request_digest=b"d", state=state, order=1))
        await desk.commit(batch)
    assert (await store.delete_session("session")).runs == 1
    assert await store.read_run("ended") is None
    assert (await store.read_run("waiting")).request.input_text == large


async def test_what_is_too_large_names_its_place_and_leaves_the_batch_as_it_was(desk, make, monkeypatch):
    monkeypatch.setattr(codec, "MAX_PAYLOAD", MB)
    batch = desk.batch_of(0, make.step(0, "fits"))
    size = batch.size
    with pytest.raises(UnpersistableValueError, match=r"value\.pages\[1\]\.text takes 1,000,005 bytes") as caught:
        batch.append(1, make.step(1, {"pages": ["a", {"text": "x" * MB}], "more": "y" * 1000}))
    assert "at most 1,000,000 can be stored" in str(caught.value)
    assert "keep it elsewhere" in caught.value.hint
    assert batch.size == size
    with pytest.raises(UnpersistableValueError, match=r"value takes \d,\d+,\d+ bytes of a record"):
        batch.append(1, make.step(1, [{"n": number} for number in range(300_000)]))
    await desk.commit(batch, Fence(-1))
    assert [record.value for record in await desk.records()] == ["fits"]
