"""An exported session comes back the same, frame by frame, or not at all."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import json
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard_protocol.errors import (
    DamagedRecordError,
    RunConflictError,
    StoreVersionError,
    UnknownSessionError,
    UsageError,
)
from callboard_protocol.sessions import MemoryEntry
from callboard_protocol.states import RunState
from callboard_storage import upkeep
from callboard_storage.codec import encode
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.memory_store import MemoryStore
from callboard_storage.posting import send
from callboard_storage.upkeep.exporting import write_session
from callboard_storage.upkeep.plain_json import from_json, to_json

EVERYTHING = {
    "bytes": b"\x00\xff",
    "numbers": [0, -1, 0.5, -0.0, 2**53 + 1, 2**63, -(2**70), float("inf")],
    "when": dt.datetime(2024, 2, 29, 12, tzinfo=ZoneInfo("Europe/Berlin")),
    "day": dt.date(2024, 2, 29),
    "hour": dt.time(23, 59, 1),
    "span": dt.timedelta(days=-1, microseconds=3),
    "price": Decimal("19.90"),
    "id": UUID(int=5),
    "keys": {7: "a number", b"k": "bytes", None: "nothing"},
    "$bytes": "not bytes",
    "one": {"$int": "not a number"},
    "text": "Zo\u00eb \u2028 \U0001f600\n",
}

zones = st.none() | st.just(dt.UTC) | st.integers(-1439, 1439).map(lambda n: dt.timezone(dt.timedelta(minutes=n)))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(["$map", "$int", "$leaf"])
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=20)
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times(timezones=zones)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
plain = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts | st.integers() | st.binary(max_size=4) | st.none(), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(value=plain)
def test_any_stored_value_comes_back_from_json_as_it_was(value):
    back = from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))
    assert encode(b"k", MemoryEntry(name="k", value=back)) == encode(b"k", MemoryEntry(name="k", value=value))


@given(value=plain, memory=plain)
@settings(max_examples=50, deadline=None)
def test_any_session_comes_back_frame_by_frame(tmp_path_factory, keeper, value, memory):
    async def work() -> None:
        source, target = MemoryStore(), MemoryStore()
        await source.open()
        await target.open()
        await keeper.add(source, "one", value=value, memory=memory)
        file = tmp_path_factory.mktemp("export") / "one.jsonl"
        with file.open("wb") as lines:
            write_session(source._snapshot(), "one", lines)
        await upkeep.import_session(target, file)
        here, there = source._snapshot(), target._snapshot()
        assert here.sessions[b"one\0"].log == there.sessions[b"one\0"].log
        assert here.sessions[b"one\0"].tables == there.sessions[b"one\0"].tables
        assert here.shared == there.shared

    asyncio.run(work())


def exported(filled, tmp_path, session_id="one"):
    file = tmp_path / f"{session_id}.jsonl"
    upkeep.export_session(filled, session_id, file)
    return file


def test_an_exported_session_is_the_same_in_another_store(filled, keeper, tmp_path):
    keeper.at(filled, lambda store: keeper.add(store, "rich", value=EVERYTHING, memory=EVERYTHING))
    file = tmp_path / "rich.jsonl"
    report = upkeep.export_session(filled, "rich", file)
    assert report.rows == {"heads": 1, "log": 5, "checkpoints": 1, "memory": 1, "runs": 1}
    assert report.bytes_written == file.stat().st_size
    keeper.at(tmp_path / "other", lambda store: upkeep.import_session(store, file))
    here, there = keeper.rows(filled), keeper.rows(tmp_path / "other")
    for table, rows in here.items():
        assert [row for row in rows if b"rich" in row[0]] == there[table]
    assert upkeep.verify(tmp_path / "other").is_sound


def test_every_line_is_json_and_the_first_says_what_it_is(filled, tmp_path):
    lines = [json.loads(line) for line in exported(filled, tmp_path).read_text(encoding="utf-8").splitlines()]
    assert lines[0]["callboard"] == "session"
    assert lines[0]["format"] == 1
    assert lines[0]["session_id"] == "one"
    assert lines[2]["kind"] == "RunBegan"
    assert lines[-1]["end"] is True


def test_a_session_is_exported_while_the_store_is_open(filled, keeper, tmp_path):
    async def work(_: LmdbStore) -> None:
        await asyncio.to_thread(upkeep.export_session, filled, "one", tmp_path / "one.jsonl")

    keeper.at(filled, work)
    assert (tmp_path / "one.jsonl").exists()


def test_sessions_are_exported_page_by_page_as_each_is_alone(filled, tmp_path):
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    first = upkeep.export_page(filled, folders[0], limit=2)
    second = upkeep.export_page(filled, folders[1], after="three", limit=2)
    assert [*first, *second] == ["one", "three", "two"]
    for session_id, file in {**first, **second}.items():
        assert file.read_bytes() == exported(filled, tmp_path, session_id).read_bytes()
        assert upkeep.read_session(file).id == session_id
    assert upkeep.export_page(filled, folders[2], after="two") == {}


def test_exporting_overwrites_nothing(filled, tmp_path):
    file = exported(filled, tmp_path)
    with pytest.raises(UsageError, match="exists"):
        upkeep.export_session(filled, "one", file)


def test_a_session_that_is_not_there_cannot_be_exported(filled, tmp_path):
    with pytest.raises(UnknownSessionError, match="nobody"):
        exported(filled, tmp_path, "nobody")
    assert list(tmp_path.glob("*.jsonl*")) == []


def test_a_damaged_session_is_not_exported_in_part(filled, keeper, tmp_path):
    keeper.change(filled, "log", lambda transaction, rows: transaction.put(rows[1][0], rows[1][1][:-1] + b"?"))
    with pytest.raises(DamagedRecordError):
        exported(filled, tmp_path)
    assert list(tmp_path.glob("*.jsonl*")) == []


def test_a_session_that_is_here_already_is_refused(filled, keeper, tmp_path):
    file = exported(filled, tmp_path)
    before = keeper.rows(filled)
    with pytest.raises(UsageError, match="is in this store already"):
        keeper.at(filled, lambda store: upkeep.import_session(store, file))
    assert keeper.rows(filled) == before


def test_a_run_that_is_here_already_is_refused(filled, keeper, tmp_path):
    file = exported(filled, tmp_path)

    async def work(store: LmdbStore) -> None:
        await store.delete_session("one")
        entry = await store.read_run("run-two")
        batch = store.batch("two")
        batch.put_run(entry.model_copy(update={"request": entry.request.model_copy(update={"run_id": "run-one"})}))
        written = asyncio.get_running_loop().create_future()
        store.commit(batch, None, asyncio.get_running_loop(), written.set_result)
        await written
        with pytest.raises(RunConflictError, match="run-one"):
            await upkeep.import_session(store, file)
        assert await store.read_head("one") is None

    keeper.at(filled, work)


def test_under_a_new_id_a_session_and_its_runs_are_new(filled, keeper, tmp_path):
    file = exported(filled, tmp_path)
    report = keeper.at(filled, lambda store: upkeep.import_session(store, file, session_id="twin"))
    assert report.session_id == "twin"
    assert report.runs == {"run-one": "run-one@twin"}
    assert upkeep.verify(filled).is_sound

    async def work(store: LmdbStore) -> None:
        head = await store.read_head("twin")
        assert (head.session_id, head.last_run) == ("twin", "run-one@twin")
        (checkpoint,) = await store.read_checkpoints("twin")
        assert checkpoint.checkpoint_id == "run-one@twin:step:3"
        records = [stored.record for stored in await store.read_log("twin")]
        assert {record.run_id for record in records} == {"run-one@twin"}
        assert records[0].request.session_id == "twin"
        assert (await store.read_run("run-one")).session_id == "one"

    keeper.at(filled, work)


def test_a_run_that_has_not_ended_comes_in_only_where_that_is_said(filled, keeper, tmp_path):
    file = exported(filled, tmp_path, "three")
    other = tmp_path / "other"
    with pytest.raises(UsageError, match="'run-three' of session 'three' has not ended"):
        keeper.at(other, lambda store: upkeep.import_session(store, file))
    with pytest.raises(UsageError, match="has not ended"):
        keeper.at(other, lambda store: upkeep.import_session(store, file, session_id="new", with_unfinished=True))
    keeper.at(other, lambda store: upkeep.import_session(store, file, with_unfinished=True))
    (entry,) = keeper.at(other, lambda store: store.read_unfinished())
    assert entry.state is RunState.RUNNING


def test_letters_to_runs_that_have_not_ended_come_along(filled, keeper, tmp_path):
    async def send_two(store):
        for value in ("first", "m" * 100_000):
            await send(store, "three", "run-three", "mail", value)

    keeper.at(filled, send_two)
    file = tmp_path / "three.jsonl"
    report = upkeep.export_session(filled, "three", file)
    assert report.rows["letters"] == 2
    other = tmp_path / "other"
    keeper.at(other, lambda store: upkeep.import_session(store, file, with_unfinished=True))
    letters = keeper.at(other, lambda store: store.read_letters("three", "run-three"))
    assert [letter.value for letter in letters] == ["first", "m" * 100_000]
    assert upkeep.verify(other).is_sound


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-20],
        lambda content: b"".join(content.splitlines(keepends=True)[:-1]),
        lambda content: content.replace(b'"hello"', b'"hallo"'),
        lambda content: b"".join(line for n, line in enumerate(content.splitlines(keepends=True)) if n != 3),
        lambda content: b"",
        lambda content: b"[]\n",
        lambda content: b"\xff\xfe",
        lambda content: b'{"callboard": "other"}\n',
    ],
)
def test_a_file_that_is_not_a_whole_export_brings_nothing_in(filled, keeper, tmp_path, change):
    file = exported(filled, tmp_path)
    file.write_bytes(change(file.read_bytes()))
    other = tmp_path / "other"
    with pytest.raises(UsageError, match="is not a whole export"):
        keeper.at(other, lambda store: upkeep.import_session(store, file))
    assert keeper.at(other, lambda store: store.list_sessions()) == []


def test_a_newer_export_is_refused_by_name(filled, keeper, tmp_path):
    file = exported(filled, tmp_path)
    file.write_bytes(file.read_bytes().replace(b'"format":1', b'"format":2', 1))
    with pytest.raises(StoreVersionError, match="export format 2"):
        keeper.at(tmp_path / "other", lambda store: upkeep.import_session(store, file))


@pytest.mark.parametrize(
    "value", [{"$what": 1}, {"$int": "x"}, {"$leaf": [99, ""]}, {"$bytes": 7}, {"$map": [[[], 1]]}]
)
def test_json_that_was_never_written_is_a_value_error(value):
    with pytest.raises(ValueError, match=r".+"):
        from_json(value)


def test_what_is_written_has_no_session_that_is_not_there():
    async def snapshot():
        store = MemoryStore()
        await store.open()
        return store._snapshot()

    with pytest.raises(UnknownSessionError):
        write_session(asyncio.run(snapshot()), "nobody", io.BytesIO())
