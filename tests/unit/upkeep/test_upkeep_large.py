"""Large values in a data directory's care: verified, copied, exported, compacted like everything else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from callboard_protocol.errors import DamagedRecordError
from callboard_protocol.sessions import MemoryEntry
from callboard_protocol.states import RunState
from callboard_storage import codec, keys, upkeep
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.memory_store import MemoryStore

LARGE = {"text": "größe " * 300_000, "bytes": b"\0\xff" * 200_000, "many": [{"n": n} for n in range(30_000)]}


@pytest.fixture
def large(tmp_path: Path, keeper: Any) -> Path:
    """Session one holds large values in its log, checkpoint and memory; session two is small."""

    async def fill(store: LmdbStore) -> None:
        await keeper.add(store, "one", value=LARGE, memory=LARGE)
        await keeper.add(store, "two", state=RunState.RUNNING)

    keeper.at(tmp_path / "data", fill)
    return tmp_path / "data"


def leave_chunks_behind(keeper: Any, directory: Path) -> int:
    """Leave what a writer leaves that is killed between a large value's chunks and its row; how many chunks that is."""

    def leave(transaction: Any, _: list[tuple[bytes, bytes]]) -> None:
        for number in range(3):
            key = keys.chunk_key(keys.session_prefix("one"), bytes(keys.DIGEST_SIZE), number)
            transaction.put(key, codec.seal_chunk(key, memoryview(b"x" * 100_000)))

    keeper.change(directory, "blobs", leave)
    return 3


def test_large_values_are_verified_with_their_rows(large, keeper):
    report = upkeep.verify(large)
    assert report.is_sound
    assert report.rows["blobs"] == len(keeper.rows(large)["blobs"]) > 20
    assert report.bytes_checked > 5 * sum(len(part) for part in (LARGE["text"], LARGE["bytes"]))


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_damaged_chunk_is_told_with_the_row_it_belongs_to(large, keeper, damage):
    def spoil(transaction: Any, rows: list[tuple[bytes, bytes]]) -> None:
        key, frame = rows[1]
        transaction.delete(key) if damage == "missing" else transaction.put(key, frame[:-1] + b"?")

    keeper.change(large, "blobs", spoil)
    report = upkeep.verify(large)
    (problem,) = [one for one in report.problems if one.table != "heads"]
    assert (problem.session_id, problem.table in {"log", "checkpoints", "memory"}) == ("one", True)
    assert "chunk 1 of its payload" in problem.what


def test_chunks_of_a_killed_writer_are_counted_and_no_damage(large, keeper):
    left = leave_chunks_behind(keeper, large)
    report = upkeep.verify(large)
    assert report.is_sound
    assert report.unreferenced_chunks == left


def test_compaction_removes_the_chunks_that_nothing_refers_to_and_no_others(large, keeper):
    before = keeper.rows(large)
    left = leave_chunks_behind(keeper, large)
    report = upkeep.compact(large)
    assert report.chunks_removed == left
    assert keeper.rows(large) == before
    assert upkeep.compact(large).chunks_removed == 0


def test_an_exported_session_brings_its_large_values_along(large, keeper, tmp_path):
    exported = upkeep.export_session(large, "one", tmp_path / "one.jsonl")
    assert "blobs" not in exported.rows

    async def read_in(store: LmdbStore) -> None:
        await upkeep.import_session(store, tmp_path / "one.jsonl")

    keeper.at(tmp_path / "new", read_in)
    theirs, mine = keeper.rows(tmp_path / "new"), keeper.rows(large)
    assert theirs["blobs"] == mine["blobs"]
    assert theirs["log"] == [row for row in mine["log"] if row[0].startswith(b"one\0")]
    assert upkeep.verify(tmp_path / "new").is_sound


def test_an_exported_session_brings_its_large_values_into_memory(large, tmp_path):
    upkeep.export_session(large, "one", tmp_path / "one.jsonl")

    async def read_in() -> None:
        store = MemoryStore()
        await store.open()
        await upkeep.import_session(store, tmp_path / "one.jsonl")
        assert [entry.value for entry in await store.read_memory("one")] == [LARGE]
        assert [stored.record.value for stored in (await store.read_log("one"))[1:-1]] == [LARGE] * 3

    asyncio.run(read_in())


def test_a_session_with_a_damaged_chunk_is_not_exported(large, keeper, tmp_path):
    keeper.change(large, "blobs", lambda transaction, rows: transaction.delete(rows[0][0]))
    with pytest.raises(DamagedRecordError, match="chunk 0 of its payload is missing"):
        upkeep.export_session(large, "one", tmp_path / "one.jsonl")
    assert not (tmp_path / "one.jsonl").exists()


def test_a_backup_holds_large_values(large, keeper, tmp_path):
    upkeep.backup(large, tmp_path / "backup")
    upkeep.restore(tmp_path / "backup", tmp_path / "again")
    assert keeper.rows(tmp_path / "again") == keeper.rows(large)


def test_a_retained_out_session_takes_its_chunks_along(large, keeper):
    async def thin_out(store: LmdbStore) -> None:
        assert (await upkeep.retain(store, keep=1)).removed == ("one",)

    keeper.at(large, thin_out)
    assert keeper.rows(large)["blobs"] == []


def test_stats_count_chunks(large, keeper):
    assert upkeep.stats(large).rows["blobs"] == len(keeper.rows(large)["blobs"])


def test_memory_replaced_again_and_again_takes_no_more_room(large, keeper):
    async def replace(store: LmdbStore) -> None:
        for number in range(5):
            batch = store.batch("one")
            batch.put_memory(MemoryEntry(name="note", value=f"{number}" * 1_000_000))
            answer = asyncio.get_running_loop().create_future()
            store.commit(batch, None, asyncio.get_running_loop(), answer.set_result)
            assert await answer is None

    keeper.at(large, replace)
    before = len(keeper.rows(large)["blobs"])
    keeper.at(large, replace)
    assert len(keeper.rows(large)["blobs"]) == before
    assert upkeep.verify(large).unreferenced_chunks == 0
