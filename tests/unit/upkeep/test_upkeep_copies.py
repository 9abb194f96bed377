"""Compaction, backup and restore: the same rows, all of them, or nothing happened."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from callboard_protocol.errors import StoreError, StoreInUseError, StoreOpenError, UsageError
from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.upkeep import turns
from callboard_storage.upkeep.compacting import STAGING


def swollen(filled: Path, keeper) -> Path:
    """The directory, with room that a deletion left."""

    async def work(store: LmdbStore) -> None:
        await keeper.add(store, "big", value="x" * 400_000)
        await store.delete_session("big")

    keeper.at(filled, work)
    return filled


def test_compaction_gives_room_back_and_keeps_every_row(filled, keeper):
    swollen(filled, keeper)
    before = keeper.rows(filled)
    report = upkeep.compact(filled)
    assert report.bytes_after < report.bytes_before / 2
    assert (filled / "data.mdb").stat().st_size == report.bytes_after
    assert keeper.rows(filled) == before
    assert upkeep.verify(filled).is_sound
    assert not (filled / STAGING).exists()


def test_a_compacted_store_takes_new_sessions(filled, keeper):
    upkeep.compact(filled)
    keeper.at(filled, lambda store: keeper.add(store, "four"))
    upkeep.compact(filled)
    assert upkeep.verify(filled).sessions == 4


def test_an_open_store_is_not_compacted(filled, keeper):
    before = (filled / "data.mdb").stat().st_ino

    async def work(_: LmdbStore) -> None:
        with pytest.raises(StoreInUseError, match="is in use by the process with pid"):
            await asyncio.to_thread(upkeep.compact, filled)

    keeper.at(filled, work)
    assert (filled / "data.mdb").stat().st_ino == before


def test_a_store_that_is_being_read_is_not_compacted(filled):
    with turns.reading(filled), pytest.raises(StoreInUseError, match="is being read"):
        upkeep.compact(filled)
    upkeep.compact(filled)


def test_a_store_that_is_being_compacted_is_neither_read_nor_opened(filled, keeper):
    with turns.alone(filled):
        with pytest.raises(StoreInUseError, match="is being compacted"):
            upkeep.verify(filled)
        with pytest.raises(StoreInUseError):
            keeper.at(filled, lambda store: store.figures())


def test_what_an_earlier_compaction_left_is_cleared_away(filled):
    (filled / STAGING).mkdir()
    (filled / STAGING / "data.mdb").write_bytes(b"half a file")
    upkeep.compact(filled)
    assert not (filled / STAGING).exists()


def test_a_file_that_cannot_be_read_is_not_compacted_away(filled):
    data = filled / "data.mdb"
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size // 2 // 4096 * 4096)
    left = data.read_bytes()
    with pytest.raises(StoreError):
        upkeep.compact(filled)
    assert data.read_bytes() == left
    assert not (filled / STAGING).exists()


def test_a_backup_holds_every_row_and_can_be_restored(filled, keeper, tmp_path):
    report = upkeep.backup(filled, tmp_path / "backup")
    assert sorted(entry.name for entry in (tmp_path / "backup").iterdir()) == ["backup.json", "data.mdb"]
    manifest = json.loads((tmp_path / "backup" / "backup.json").read_bytes())
    assert manifest["bytes"] == report.bytes_written == (tmp_path / "backup" / "data.mdb").stat().st_size
    assert manifest["blake2b"] == report.digest
    restored = upkeep.restore(tmp_path / "backup", tmp_path / "restored")
    assert restored.verified.is_sound
    assert keeper.rows(tmp_path / "restored") == keeper.rows(filled)


def test_a_backup_is_made_while_commits_go_on_and_is_one_instant(filled, keeper, tmp_path):
    async def work(store: LmdbStore) -> int:
        copying = asyncio.ensure_future(asyncio.to_thread(upkeep.backup, filled, tmp_path / "backup"))
        number = 0
        while not copying.done():
            await keeper.add(store, f"more-{number}", value="x" * 5000)
            number += 1
        await copying
        return number

    added = keeper.at(filled, work)
    report = upkeep.verify(tmp_path / "backup")
    assert report.is_sound
    assert 3 <= report.sessions <= 3 + added


def test_a_backup_overwrites_nothing(filled, tmp_path):
    upkeep.backup(filled, tmp_path / "backup")
    before = (tmp_path / "backup" / "data.mdb").read_bytes()
    for taken in (tmp_path / "backup", filled):
        with pytest.raises(UsageError, match="is not empty"):
            upkeep.backup(filled, taken)
    assert (tmp_path / "backup" / "data.mdb").read_bytes() == before


def test_a_backup_that_was_cut_off_is_no_backup_and_may_be_made_again(filled, tmp_path):
    place = tmp_path / "backup"
    place.mkdir()
    (place / "data.mdb.part").write_bytes(b"half")
    with pytest.raises(StoreOpenError, match="holds no store"):
        upkeep.restore(place, tmp_path / "restored")
    upkeep.backup(filled, place)
    assert upkeep.verify(place).is_sound


def test_restoring_overwrites_nothing(filled, keeper, tmp_path):
    upkeep.backup(filled, tmp_path / "backup")
    keeper.at(filled, lambda store: keeper.add(store, "four"))
    with pytest.raises(UsageError, match="is not empty"):
        upkeep.restore(tmp_path / "backup", filled)
    assert upkeep.verify(filled).sessions == 4


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_damaged_backup_is_not_restored(filled, keeper, tmp_path, with_manifest):
    place = tmp_path / "backup"
    upkeep.backup(filled, place)

    def damage(transaction, rows):
        transaction.put(rows[1][0], rows[1][1][:-1] + b"?")

    keeper.change(place, "log", damage)
    if not with_manifest:
        (place / "backup.json").unlink()
    match = "is not what was written" if with_manifest else "is damaged: log one#1"
    with pytest.raises(StoreError, match=match):
        upkeep.restore(place, tmp_path / "restored")
    assert not (tmp_path / "restored" / "data.mdb").exists()
    assert not (tmp_path / "restored" / ".restoring").exists()


def test_a_backup_cut_short_is_not_restored(filled, tmp_path):
    upkeep.backup(filled, tmp_path / "backup")
    data = tmp_path / "backup" / "data.mdb"
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size - 4096)
    with pytest.raises(StoreError, match="bytes instead of"):
        upkeep.restore(tmp_path / "backup", tmp_path / "restored")


def test_figures_are_counted_while_the_store_is_open(filled, keeper):
    async def work(store: LmdbStore) -> None:
        counted = await asyncio.to_thread(upkeep.stats, filled)
        figures = await store.figures()
        assert counted.sessions == figures.sessions == 3
        assert counted.rows["log"] == figures.records
        assert counted.bytes_used == figures.bytes_used

    keeper.at(filled, work)
