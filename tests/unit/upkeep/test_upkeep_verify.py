"""Verification finds what is wrong, says where, and harms nobody."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from callboard_protocol.errors import DamagedRecordError, StoreOpenError, StoreVersionError
from callboard_protocol.records import StepCompleted
from callboard_protocol.sessions import SessionHead
from callboard_storage import upkeep
from callboard_storage.batch import LATER_TABLES, TABLES
from callboard_storage.codec import encode
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.upkeep import Problem

PAGE = 4096


def found(report: upkeep.VerifyReport) -> list[tuple[str, str, str | None]]:
    return [(problem.table, problem.key, problem.session_id) for problem in report.problems]


def flip(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


def test_a_sound_store_is_said_to_be_sound(filled):
    report = upkeep.verify(filled)
    assert report.is_sound
    assert report.problems == ()
    assert report.rows == {
        "log": 14,
        "heads": 3,
        "checkpoints": 3,
        "memory": 3,
        "runs": 3,
        "unfinished": 1,
        "session_runs": 3,
        "locks": 0,
        "blobs": 0,
        "letters": 0,
        "arrivals": 0,
        "accounts": 0,
        "charges": 0,
        "draws": 0,
    }
    assert report.sessions == 3
    assert report.bytes_checked > 1000
    assert report.bytes_per_second > 0


@pytest.mark.parametrize("first", ["blobs", "accounts"])
def test_a_store_of_an_earlier_release_lacks_what_came_later_and_is_sound(filled, keeper, first):
    keeper.drop(filled, LATER_TABLES[LATER_TABLES.index(first) :])
    assert upkeep.verify(filled).problems == ()

    async def go_on(store: LmdbStore) -> None:
        await keeper.add(store, "four")

    keeper.at(filled, go_on)
    report = upkeep.verify(filled)
    assert (report.problems, report.sessions) == ((), 4)
    assert {*TABLES} <= report.rows.keys()


def test_a_store_of_an_earlier_release_can_be_kept_up_before_a_later_one_opens_it(filled, keeper, tmp_path):
    keeper.drop(filled, LATER_TABLES)
    assert upkeep.stats(filled).sessions == 3
    upkeep.compact(filled)
    upkeep.backup(filled, tmp_path / "backup")
    upkeep.restore(tmp_path / "backup", tmp_path / "restored")
    for directory in (filled, tmp_path / "restored"):
        assert upkeep.verify(directory).problems == ()


@pytest.mark.parametrize("table", ["unfinished", "letters", TABLES[-1]])
def test_a_table_that_is_missing_among_others_is_told(filled, keeper, table):
    keeper.drop(filled, [table])
    if table == TABLES[-1]:
        keeper.change(filled, "table of a newer release", lambda transaction, rows: None)
    assert Problem(table=table, what="is missing") in upkeep.verify(filled).problems


def test_a_store_is_verified_while_it_is_open_and_written_to(filled, keeper):
    async def work(store: LmdbStore) -> upkeep.VerifyReport:
        verifying = asyncio.ensure_future(asyncio.to_thread(upkeep.verify, filled))
        number = 0
        while not verifying.done():
            await keeper.add(store, f"more-{number}")
            number += 1
        return await verifying

    assert keeper.at(filled, work).is_sound


def test_nothing_there_is_an_error_and_not_a_report(tmp_path):
    with pytest.raises(StoreOpenError, match="holds no store"):
        upkeep.verify(tmp_path / "nowhere")


def test_a_newer_format_is_an_error_and_not_damage(filled, keeper):
    keeper.change(filled, "meta", lambda transaction, _: transaction.put(b"format", b"99"))
    with pytest.raises(StoreVersionError, match="format 99"):
        upkeep.verify(filled)


@pytest.mark.parametrize(
    ("table", "key", "session"),
    [
        ("log", "one#1", "one"),
        ("heads", "three", "three"),
        ("checkpoints", "one/run-one:step:3", "one"),
        ("memory", "one/note", "one"),
        ("runs", "run-one", None),
    ],
)
def test_a_flipped_bit_is_found_in_every_table(filled, keeper, table, key, session):
    row = 1 if table in {"log", "heads"} else 0
    keeper.change(filled, table, lambda transaction, rows: transaction.put(rows[row][0], flip(rows[row][1])))
    report = upkeep.verify(filled)
    assert found(report) == [(table, key, session)]
    assert "fails its checksum" in report.problems[0].what


def test_a_gap_in_a_log_is_found(filled, keeper):
    keeper.change(filled, "log", lambda transaction, rows: transaction.delete(rows[2][0]))
    report = upkeep.verify(filled)
    assert found(report) == [("log", "one#3", "one")]
    assert report.problems[0].what == "is where record 2 should be"


def test_a_log_that_lost_its_end_is_found_by_its_head_and_checkpoint(filled, keeper):
    keeper.change(filled, "log", lambda transaction, rows: transaction.delete(rows[4][0]))
    assert found(upkeep.verify(filled)) == [
        ("heads", "one", "one"),
        ("checkpoints", "one/run-one:step:3", "one"),
    ]


def test_a_head_that_is_not_the_fold_of_its_log_is_found(filled, keeper):
    wrong = SessionHead(session_id="one", next_sequence=5, transcript_length=77)
    keeper.change(filled, "heads", lambda transaction, _: transaction.put(b"one", encode(b"one", wrong)))
    (problem,) = upkeep.verify(filled).problems
    assert problem.table == "heads"
    assert "transcript_length" in problem.what


def test_a_head_that_lags_is_not_damage(filled, keeper):
    first = keeper.records("one", at=100.0)[0]
    lagging = SessionHead(session_id="one").after(0, first)
    keeper.change(filled, "heads", lambda transaction, _: transaction.put(b"one", encode(b"one", lagging)))
    assert upkeep.verify(filled).is_sound


@pytest.mark.parametrize(
    ("table", "key", "expected"),
    [
        ("unfinished", b"run-three", ("runs", "run-three", "three")),
        ("session_runs", b"one\0run-one", ("runs", "run-one", "one")),
    ],
)
def test_an_index_that_lost_a_row_is_found(filled, keeper, table, key, expected):
    keeper.change(filled, table, lambda transaction, _: transaction.delete(key))
    assert found(upkeep.verify(filled)) == [expected]


def test_an_index_that_names_nothing_is_found(filled, keeper):
    keeper.change(filled, "unfinished", lambda transaction, _: transaction.put(b"nobody", bytes(16)))
    keeper.change(filled, "session_runs", lambda transaction, _: transaction.put(b"one\0nobody", b""))
    assert found(upkeep.verify(filled)) == [("unfinished", "nobody", None), ("session_runs", "one/nobody", "one")]


def test_an_ended_run_in_the_index_of_unfinished_ones_is_found(filled, keeper):
    keeper.change(filled, "unfinished", lambda transaction, _: transaction.put(b"run-one", bytes(16)))
    assert found(upkeep.verify(filled)) == [("runs", "run-one", "one")]


def test_a_record_under_a_key_of_no_session_is_found(filled, keeper):
    keeper.change(filled, "log", lambda transaction, rows: transaction.put(b"odd", rows[0][1]))
    assert (
        Problem(table="log", key="odd", session_id=None, what="has a key that no session's record has")
        in upkeep.verify(filled).problems
    )


def test_a_table_that_cannot_be_walked_to_its_end_keeps_no_other_from_being_walked(filled, keeper):
    """A row that no store writes misleads whoever looks for the end of that log: heads and checkpoints."""
    keeper.change(filled, "log", lambda transaction, rows: transaction.put(b"one\0" + b"\xff" * 9, rows[0][1]))
    keeper.change(filled, "memory", lambda transaction, rows: transaction.put(rows[0][0], flip(rows[0][1])))
    report = upkeep.verify(filled)
    assert {problem.table for problem in report.problems} == {"log", "heads", "checkpoints", "memory"}
    assert ("memory", "one/note", "one") in found(report)


def test_a_long_list_of_problems_is_cut_and_counted(filled, keeper, monkeypatch):
    monkeypatch.setattr("callboard_storage.upkeep.verifying.MOST_PROBLEMS", 2)

    def damage_all(transaction, rows):
        for key, value in rows:
            transaction.put(key, flip(value))

    keeper.change(filled, "log", damage_all)
    report = upkeep.verify(filled)
    assert len(report.problems) == 2
    assert report.more_problems == 12
    assert not report.is_sound


def big(filled, keeper):
    """A file of a few hundred pages."""

    async def fill(store: LmdbStore) -> None:
        for number in range(8):
            await keeper.add(store, f"big-{number}", steps=40, value="x" * 2000)

    keeper.at(filled, fill)
    return filled / "data.mdb"


def test_shares_of_the_work_add_up_to_the_same_report(filled, keeper, monkeypatch):
    big(filled, keeper)
    keeper.change(filled, "log", lambda transaction, rows: transaction.put(rows[20][0], flip(rows[20][1])))
    whole = upkeep.verify(filled)
    monkeypatch.setattr("callboard_storage.upkeep.verifying.BYTES_WORTH_SHARING", 0)
    shared = upkeep.verify(filled)
    assert len(whole.problems) == 1
    unhurried = {"seconds"}
    assert shared.model_dump(exclude=unhurried) == whole.model_dump(exclude=unhurried)


@pytest.mark.parametrize("part", [0.15, 0.5, 0.9])
def test_a_file_cut_short_is_reported_by_a_process_that_lives_on(filled, keeper, part):
    data = big(filled, keeper)
    with data.open("r+b") as file:
        file.truncate(int(data.stat().st_size * part) // PAGE * PAGE)
    report = upkeep.verify(filled)
    assert not report.is_sound
    assert any("ended by SIG" in problem.what or "cannot be" in problem.what for problem in report.problems)


@pytest.mark.parametrize("value", [b"\0", b"\xff"])
def test_overwritten_pages_are_reported_and_never_read_as_other_data(filled, keeper, value, tmp_path):
    data = big(filled, keeper)
    whole = keeper.rows(filled)["log"]
    pages = data.stat().st_size // PAGE
    reported = 0
    for number, page in enumerate(range(2, pages, max(pages // 3, 1))):
        copy = tmp_path / f"copy-{number}"
        copy.mkdir()
        shutil.copy(data, copy / "data.mdb")
        with (copy / "data.mdb").open("r+b") as file:
            file.seek(page * PAGE)
            file.write(value * PAGE)
        report = upkeep.verify(copy)
        reported += not report.is_sound
        if report.is_sound:  # a page that holds nothing alive
            assert keeper.rows(copy)["log"] == whole
    assert reported


def test_a_file_that_is_not_a_store_is_reported(filled):
    (filled / "data.mdb").write_bytes(b"\0" * PAGE * 4)
    (problem,) = upkeep.verify(filled).problems
    assert problem.table == ""
    assert "is not a store's file" in problem.what


def test_a_store_with_a_damaged_record_serves_the_others_while_it_is_verified(filled, keeper):
    keeper.change(filled, "log", lambda transaction, rows: transaction.put(rows[1][0], flip(rows[1][1])))

    async def work(store: LmdbStore) -> None:
        report = await asyncio.to_thread(upkeep.verify, filled)
        assert found(report) == [("log", "one#1", "one")]
        with pytest.raises(DamagedRecordError):
            await store.read_log("one")
        assert isinstance((await store.read_log("two"))[1].record, StepCompleted)

    keeper.at(filled, work)


def test_progress_is_told(filled, keeper, monkeypatch):
    async def fill(store: LmdbStore) -> None:
        await keeper.add(store, "long", steps=9000)

    keeper.at(filled, fill)
    told: list[tuple[int, int]] = []
    assert upkeep.verify(filled, progress=lambda done, total: told.append((done, total))).is_sound
    assert told
    assert all(0 < done <= total for done, total in told)
