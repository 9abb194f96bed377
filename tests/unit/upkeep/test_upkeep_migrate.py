"""Migration: what another engine or an earlier release left becomes a directory of ours, row by row."""

from __future__ import annotations

import asyncio
from pathlib import Path

import lmdb
import pytest

from callboard_protocol.errors import StoreError, StoreInUseError, StoreOpenError, StoreVersionError
from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.upkeep.migrating import KEPT, STAGING
from callboard_storage.upkeep.rewriting import rows_taken_along


def flip(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


def test_a_directory_of_another_engine_becomes_one_of_ours(of_lmdb_1_0, filled, keeper):
    with pytest.raises(StoreVersionError, match=r"written by LMDB 1\.0") as refused:
        keeper.at(of_lmdb_1_0, lambda _: asyncio.sleep(0))
    assert f"callboard store migrate {of_lmdb_1_0}" in refused.value.hint
    told: list[tuple[int, int]] = []
    report = upkeep.migrate(of_lmdb_1_0, progress=lambda done, total: told.append((done, total)))
    assert (report.is_migrated, report.upgraded, report.problems) == (True, 0, ())
    assert report.from_engine.startswith("1.0.")
    assert report.engine.startswith("0.9.")
    assert keeper.rows(of_lmdb_1_0) == keeper.rows(filled)
    assert report.rows == sum(len(rows) for rows in keeper.rows(filled).values())
    assert told
    assert upkeep.verify(of_lmdb_1_0).is_sound
    assert sorted(path.name for path in of_lmdb_1_0.iterdir() if path.name.startswith((".", "data"))) == ["data.mdb"]
    keeper.at(of_lmdb_1_0, lambda store: keeper.add(store, "four"))
    assert upkeep.verify(of_lmdb_1_0).sessions == 4


def test_migrating_what_is_up_to_date_changes_nothing(filled):
    before = (filled / "data.mdb").stat()
    report = upkeep.migrate(filled)
    assert not report.is_migrated
    after = (filled / "data.mdb").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_migrating_twice_is_harmless(of_lmdb_1_0, keeper):
    assert upkeep.migrate(of_lmdb_1_0).is_migrated
    rows = keeper.rows(of_lmdb_1_0)
    assert not upkeep.migrate(of_lmdb_1_0).is_migrated
    assert keeper.rows(of_lmdb_1_0) == rows


def test_what_cannot_be_read_is_copied_as_it_is(filled, keeper, as_lmdb_1_0):
    keeper.change(filled, "log", lambda transaction, rows: transaction.put(rows[1][0], flip(rows[1][1])))
    before = keeper.rows(filled)
    directory = as_lmdb_1_0(filled)
    report = upkeep.migrate(directory)
    assert [(problem.table, problem.key, problem.what) for problem in report.problems] == [
        ("log", "one#1", "fails its checksum")
    ]
    assert keeper.rows(directory) == before
    assert [problem.key for problem in upkeep.verify(directory).problems] == ["one#1"]


def test_large_values_go_along_in_their_chunks(filled, keeper, as_lmdb_1_0):
    keeper.at(filled, lambda store: keeper.add(store, "large", value="x" * 300_000))
    before = keeper.rows(filled)
    directory = as_lmdb_1_0(filled)
    report = upkeep.migrate(directory)
    assert report.problems == ()
    assert report.rows == sum(len(rows) for rows in before.values())
    assert keeper.rows(directory) == before
    assert len(before["blobs"]) == 8
    verified = upkeep.verify(directory)
    assert (verified.problems, verified.unreferenced_chunks) == ((), 0)


def test_a_record_with_a_damaged_chunk_is_copied_as_it_is(filled, keeper, as_lmdb_1_0):
    keeper.at(filled, lambda store: keeper.add(store, "large", value="x" * 300_000))
    keeper.change(filled, "blobs", lambda transaction, rows: transaction.put(rows[0][0], flip(rows[0][1])))
    before = keeper.rows(filled)
    directory = as_lmdb_1_0(filled)
    (problem,) = upkeep.migrate(directory).problems
    assert problem.session_id == "large"
    assert "chunk 0 of its payload fails its checksum" in problem.what
    assert keeper.rows(directory) == before


def test_what_else_meta_holds_goes_along_such_as_the_last_fencing_token(filled, as_lmdb_1_0):
    add_table(filled, b"meta", {b"something": b"else"})
    directory = as_lmdb_1_0(filled)
    upkeep.migrate(directory)
    before, after = table(filled, b"meta"), table(directory, b"meta")
    assert after == {**before, b"engine": after[b"engine"]}
    assert b"something" in after


def test_tables_that_only_a_newer_release_knows_go_along(filled, keeper, as_lmdb_1_0):
    add_table(filled, b"novelties", {b"a": b"1", b"b": b"2"})
    directory = as_lmdb_1_0(filled)
    upkeep.migrate(directory)
    assert table(directory, b"novelties") == {b"a": b"1", b"b": b"2"}


def test_tables_that_only_a_newer_release_knows_bother_nobody(filled, keeper):
    for number in range(20):
        add_table(filled, b"novelty-%d" % number, {b"a": b"1"})
    keeper.at(filled, lambda store: keeper.add(store, "four"))
    assert upkeep.verify(filled).is_sound
    assert upkeep.stats(filled).rows["novelty-7"] == 1
    upkeep.compact(filled)
    assert table(filled, b"novelty-7") == {b"a": b"1"}


def test_a_backup_of_another_engine_is_migrated_and_then_restored(filled, tmp_path, keeper, as_lmdb_1_0):
    upkeep.backup(filled, tmp_path / "backup")
    backup = as_lmdb_1_0(tmp_path / "backup")
    (backup / "backup.json").write_bytes((tmp_path / "backup" / "backup.json").read_bytes())
    with pytest.raises(StoreVersionError, match=r"LMDB 1\.0") as refused:
        upkeep.restore(backup, tmp_path / "restored")
    assert f"callboard store migrate {backup}" in refused.value.hint
    assert upkeep.migrate(backup).is_migrated
    upkeep.restore(backup, tmp_path / "restored")
    assert keeper.rows(tmp_path / "restored") == keeper.rows(filled)


class Pages:
    """What a snapshot shows of a table of three rows whose pages are damaged."""

    def __init__(self, *keys: bytes) -> None:
        self._keys = keys

    def each(self, _: str) -> list[tuple[bytes, bytes]]:
        return [(key, b"") for key in self._keys]

    def entries(self, _: str) -> int:
        return 3


@pytest.mark.parametrize(
    ("pages", "said"), [(Pages(b"a", b"b"), "2 of the 3 rows"), (Pages(b"a", b"b", b"a"), "a is out of order")]
)
def test_rows_that_damaged_pages_hide_are_never_left_behind_in_silence(pages, said):
    with pytest.raises(StoreError, match=said):
        list(rows_taken_along(pages, "memory", set()))


def test_an_open_directory_is_not_migrated(filled, keeper):
    async def work(_: LmdbStore) -> None:
        with pytest.raises(StoreInUseError, match="is in use by"):
            await asyncio.to_thread(upkeep.migrate, filled)

    keeper.at(filled, work)


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(StoreOpenError, match="holds no store"):
        upkeep.migrate(tmp_path / "nowhere")


def test_a_newer_format_is_not_migrated_back(filled, keeper):
    keeper.change(filled, "meta", lambda transaction, _: transaction.put(b"format", b"99"))
    with pytest.raises(StoreVersionError, match="format 99"):
        upkeep.migrate(filled)
    assert not (filled / STAGING).exists()
    assert not (filled / KEPT).exists()


def add_table(directory: Path, name: bytes, rows: dict[bytes, bytes]) -> None:
    environment = lmdb.open(str(directory), map_size=1 << 30, max_dbs=64)
    database = environment.open_db(name)
    with environment.begin(write=True, db=database) as transaction:
        for key, value in rows.items():
            transaction.put(key, value)
    environment.close()


def table(directory: Path, name: bytes) -> dict[bytes, bytes]:
    environment = lmdb.open(str(directory), map_size=1 << 30, max_dbs=64)
    database = environment.open_db(name, create=False)
    with environment.begin(db=database) as transaction:
        rows = dict(transaction.cursor())
    environment.close()
    return rows
