"""What is seen of a data file before LMDB maps it, and how a new one comes to be."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from callboard_protocol.errors import StoreOpenError
from callboard_storage import data_file

MAP_SIZE = 1 << 30
PAGE = 4096
LAST_PAGE = 136
TRANSACTION = 144
FREE_ROOT = 80


def raw(path: Path) -> Any:
    return lmdb.open(str(path), map_size=MAP_SIZE, max_dbs=4, subdir=False, sync=False, lib_version=0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An environment in which pages were taken, given back and written over."""
    path = tmp_path / "data.mdb"
    environment = raw(path)
    for life in range(40):
        with environment.begin(write=True) as transaction:
            for number in range(60):
                transaction.put(b"%d" % number, b"%d" % life * 900)
    with environment.begin(write=True) as transaction:
        for number in range(50):
            transaction.delete(b"%d" % number)
    environment.close()
    return path


def change(path: Path, at: int, kind: str, work: Callable[[int], int]) -> None:
    content = bytearray(path.read_bytes())
    (value,) = struct.unpack_from(kind, content, at)
    struct.pack_into(kind, content, at, work(value))
    path.write_bytes(content)


def newest(path: Path) -> int:
    """Where the newest meta page begins."""
    content = path.read_bytes()
    transactions = [struct.unpack_from("=Q", content, page + TRANSACTION)[0] for page in (0, PAGE)]
    return transactions.index(max(transactions)) * PAGE


def test_a_file_that_is_whole_passes(file):
    data_file.check(file)


def test_a_file_that_nothing_was_written_to_passes(tmp_path):
    raw(tmp_path / "new").close()
    data_file.check(tmp_path / "new")
    (tmp_path / "empty").touch()
    data_file.check(tmp_path / "empty")


@pytest.mark.parametrize("compact", [True, False])
def test_a_copy_that_lmdb_made_passes(file, tmp_path, compact):
    copy = tmp_path / "copy"
    environment = raw(file)
    with copy.open("wb") as target:
        environment.copyfd(target.fileno(), compact=compact)
    environment.close()
    data_file.check(copy)


@pytest.mark.parametrize("left", [1, 100, PAGE, PAGE + 100, 3 * PAGE])
def test_a_file_that_was_cut_short_is_refused(file, left):
    os.truncate(file, left)
    with pytest.raises(StoreOpenError, match="was cut short") as refused:
        data_file.check(file)
    assert "restore a backup" in refused.value.hint


def test_a_file_that_lost_a_page_in_use_is_refused(file):
    environment = raw(file)
    with environment.begin(write=True) as transaction:
        transaction.put(b"big", b"x" * 20 * PAGE)
    environment.close()
    os.truncate(file, file.read_bytes().rindex(b"x" * PAGE) // PAGE * PAGE)
    with pytest.raises(StoreOpenError, match=r"page \d+ of \d+ is missing"):
        data_file.check(file)


def test_pages_that_were_never_written_because_they_are_free_are_not_missed(tmp_path):
    # A transaction that takes pages and gives them back before it commits need not write them.
    short = 0
    for seed in range(120):
        chance = random.Random(seed)  # noqa: S311
        path = tmp_path / str(seed)
        environment = raw(path)
        for _ in range(4):
            with environment.begin(write=True) as transaction:
                for _ in range(chance.randrange(1, 150)):
                    key = b"%d" % chance.randrange(60)
                    if chance.random() < 0.5:
                        transaction.put(key, b"x" * chance.choice((10, 500, 3000, 9000, 50000)))
                    else:
                        transaction.delete(key)
            short += path.stat().st_size // PAGE <= environment.info()["last_pgno"]
            data_file.check(path)
        environment.close()
        path.unlink()
    assert short > 3, "LMDB has written them all: this test shows nothing"


@pytest.mark.parametrize(
    ("at", "kind", "work", "wrong"),
    [
        (0, "=Q", lambda _: 7, "makes no sense"),
        (10, "=H", lambda flags: flags ^ 1, "makes no sense"),
        (16, "=I", lambda magic: magic ^ 1, "makes no sense"),
        (40, "=I", lambda _: 4097, "makes no sense"),
        (40, "=I", lambda _: 1 << 31, "makes no sense"),
        (FREE_ROOT, "=Q", lambda _: 1 << 40, "makes no sense"),
        (128, "=Q", lambda _: 1, "makes no sense"),
        (LAST_PAGE, "=Q", lambda last: last + 5000, "is missing"),
        (LAST_PAGE, "=Q", lambda _: 2, "makes no sense"),
        (TRANSACTION, "=Q", lambda number: number + 1, "makes no sense"),
        (TRANSACTION, "=Q", lambda number: number + 2, "are not in a row"),
        (TRANSACTION, "=Q", lambda number: number ^ 1 << 40, "are not in a row"),
    ],
)
def test_meta_pages_that_lmdb_cannot_have_written_are_refused(file, at, kind, work, wrong):
    change(file, newest(file) + at, kind, work)
    with pytest.raises(StoreOpenError, match=wrong):
        data_file.check(file)


@pytest.mark.parametrize("content", [b"\0", b"\xff", b"\1"])
def test_a_short_file_with_a_damaged_free_list_is_refused(file, content):
    root = struct.unpack_from("=Q", file.read_bytes(), newest(file) + FREE_ROOT)[0]
    with file.open("r+b") as open_file:
        open_file.seek(root * PAGE)
        open_file.write(struct.pack("=Q2xHHH", root, 0x02, 200, 300) + content * 200)
    change(file, newest(file) + LAST_PAGE, "=Q", lambda last: last + 1)
    with pytest.raises(StoreOpenError, match=r"is damaged|is missing"):
        data_file.check(file)


def test_a_commit_between_two_looks_is_no_damage(file, monkeypatch):
    whole = os.pread
    looks: list[int] = []

    def torn(descriptor: int, size: int, at: int) -> bytes:
        looks.append(at)
        content = whole(descriptor, size, at)
        return content if len(looks) > 2 else content[:TRANSACTION] + bytes(8) + content[TRANSACTION + 8 :]

    monkeypatch.setattr(os, "pread", torn)
    data_file.check(file)
    assert len(looks) == 3


def test_a_file_gets_its_name_once_it_is_whole(tmp_path):
    path = tmp_path / "data.mdb"

    def write(made: Path) -> None:
        assert not path.exists()
        made.write_bytes(b"whole")

    (tmp_path / ".creating-of-one-that-was-killed").touch()
    data_file.create(path, write)
    assert path.read_bytes() == b"whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.mdb"]


def test_a_file_that_another_process_made_first_is_left_alone(tmp_path):
    path = tmp_path / "data.mdb"

    def write_too_late(made: Path) -> None:
        made.write_bytes(b"ours")
        path.write_bytes(b"theirs")

    data_file.create(path, write_too_late)
    assert path.read_bytes() == b"theirs"

    def write_and_lose(made: Path) -> None:
        path.write_bytes(b"theirs")  # and ours was cleared away with the leavings

    path.unlink()
    data_file.create(path, write_and_lose)
    assert path.read_bytes() == b"theirs"


def test_a_file_that_cannot_be_made_is_said_so_and_leaves_nothing(tmp_path):
    def write(made: Path) -> None:
        made.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreOpenError, match=r"data\.mdb cannot be made: No space left"):
        data_file.create(tmp_path / "data.mdb", write)
    assert list(tmp_path.iterdir()) == []
