"""A data file before LMDB maps it: how a new one comes to be, and what can be told of one that is there.

LMDB trusts its file. A page behind the end of a file that was cut short ends the process with SIGBUS, and a wrong meta
page leads to wrong pages. Both show in the first two pages, at the cost of one small read. What else may be damaged
only a walk through every row can tell: see `callboard_storage.upkeep.verify`.

The layout is that of LMDB's data format 1 on 64 bits: what `mdb.c` of 0.9 calls MDB_page, MDB_node and MDB_meta.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from callboard_protocol.errors import StoreOpenError

_BEING_MADE = ".creating-"
_IS_64_BIT = struct.calcsize("P") == 8
_META = struct.Struct("=Q2xH4xII16xI36xQ40xQQQ")
_PAGE = struct.Struct("=Q2xHHH")
_NODE = struct.Struct("=HHHH")
_NUMBER = struct.Struct("=Q")

_MAGIC = 0xBEEFC0DE
_FORMAT = 1
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 0x01, 0x02, 0x04, 0x08
_BIG_VALUE = 0x01
_NO_PAGE = 2**64 - 1
_LARGEST_PAGE = 65_536
_LOOKS = 5
"""A process that commits while this one looks can make the meta pages seem to disagree; not so many times in a row."""


class Meta(NamedTuple):
    """One of the two meta pages: where a transaction left the file."""

    number: int
    flags: int
    magic: int
    format: int
    page_size: int
    free_root: int
    main_root: int
    last_page: int
    transaction: int

    def is_possible(self, number: int) -> bool:
        """Whether LMDB can have written it as the page of that number."""
        size = self.page_size
        return (
            (self.number, self.flags, self.magic, self.format) == (number, _META_PAGE, _MAGIC, _FORMAT)
            and 512 <= size <= _LARGEST_PAGE
            and size & (size - 1) == 0
            and all(root == _NO_PAGE or 1 < root <= self.last_page for root in (self.free_root, self.main_root))
            # The even transactions write page 0, the odd ones page 1; at first both stand at 0.
            and (self.transaction % 2 == number or self.transaction == 0)
        )


class _Wrong(Exception):
    """What is wrong with the file, as the end of a sentence."""


def create(path: Path, write_empty: Callable[[Path], None]) -> None:
    """Have an empty data file there, which gets its name once it is whole and on disk.

    LMDB syncs the first pages of a new file with its first commit. A power cut before that would leave a file that
    nobody can open.

    Args:
        path: the data file; one that is there is left alone.
        write_empty: writes one at a path.

    Raises:
        StoreOpenError: it cannot be made.
    """
    if path.exists():
        return
    made = path.with_name(f"{_BEING_MADE}{uuid4().hex}")
    try:
        write_empty(made)
        with made.open("rb") as whole:
            os.fsync(whole.fileno())
        with suppress(FileExistsError):  # unlike a rename, this leaves alone what another process made meanwhile
            os.link(made, path)
        for left in path.parent.glob(f"{_BEING_MADE}*"):  # this one, and those of processes that were killed
            left.unlink(missing_ok=True)
    except OSError as error:
        if not path.exists():  # else the process that made it has cleared ours away
            raise StoreOpenError(f"{path} cannot be made: {error.strerror}") from error
    finally:
        made.unlink(missing_ok=True)


def check(path: Path) -> None:
    """Raise if a data file of this engine cannot be whole.

    Args:
        path: the data file. An empty one is whole: LMDB makes it.

    Raises:
        StoreOpenError: it was cut short, or its meta pages contradict each other.
    """
    if not _IS_64_BIT:
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreOpenError(f"{path} cannot be read: {error.strerror}") from error
    try:
        _look(descriptor, _LOOKS)
    except _Wrong as wrong:
        raise StoreOpenError(
            f"{path} {wrong}", hint="restore a backup; `callboard store export` saves what sessions can still be read"
        ) from None
    except OSError as error:
        raise StoreOpenError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _look(descriptor: int, times: int) -> None:
    for left in reversed(range(times)):
        try:
            return _check(descriptor)
        except _Wrong:
            if not left:
                raise
    return None


def _check(descriptor: int) -> None:
    if not os.fstat(descriptor).st_size:
        return
    newest = _newest_meta(descriptor)
    # Only now: the file grows before a meta page says so.
    pages = os.fstat(descriptor).st_size // newest.page_size
    if pages > newest.last_page:
        return
    # Pages at the end that one and the same transaction took and gave back were never written.
    free = set(_FreeList(descriptor, newest, pages).numbers())
    missing = next((page for page in range(pages, newest.last_page + 1) if page not in free), None)
    if missing is not None:
        raise _Wrong(f"was cut short: page {missing} of {newest.last_page} is missing")


def _newest_meta(descriptor: int) -> Meta:
    head = os.pread(descriptor, _LARGEST_PAGE + _META.size, 0)
    if len(head) < _META.size:
        raise _Wrong(f"was cut short: it has {len(head)} bytes")
    first = Meta(*_META.unpack_from(head))
    if not first.is_possible(0):
        raise _Wrong("is damaged: meta page 0 makes no sense")
    if len(head) < first.page_size + _META.size:
        raise _Wrong(f"was cut short: it has {len(head)} bytes")
    second = Meta(*_META.unpack_from(head, first.page_size))
    if not second.is_possible(1) or second.page_size != first.page_size:
        raise _Wrong("is damaged: meta page 1 makes no sense")
    if abs(first.transaction - second.transaction) != (first.transaction + second.transaction > 0):
        raise _Wrong(
            f"is damaged: its meta pages stand at transactions {first.transaction} and {second.transaction}, "
            "which are not in a row"
        )
    return max(first, second, key=lambda meta: meta.transaction)


class _FreeList:
    """The tree that lists free pages: its values are page numbers, each list after its length.

    Args:
        descriptor: the data file.
        meta: its newest meta page.
        pages: how many pages the file has.
    """

    def __init__(self, descriptor: int, meta: Meta, pages: int) -> None:
        self._descriptor = descriptor
        self._page_size = meta.page_size
        self._root = meta.free_root
        self._pages = pages
        self._seen: set[int] = set()

    def numbers(self) -> Iterator[int]:
        """Every free page.

        Raises:
            _Wrong: the list is damaged, or part of it is missing.
        """
        waiting = [] if self._root == _NO_PAGE else [self._root]
        try:
            while waiting:
                page = self._read(waiting.pop(), _BRANCH | _LEAF)
                _, kind, lower, _ = _PAGE.unpack_from(page)
                for (at,) in struct.iter_unpack("=H", page[_PAGE.size : lower]):
                    low, high, flags, key_size = _NODE.unpack_from(page, at)
                    if kind == _BRANCH:
                        waiting.append(low | high << 16 | flags << 32)
                    else:
                        value = self._value(page, at + _NODE.size + key_size, low | high << 16, flags)
                        yield from (number for (number,) in struct.iter_unpack("=Q", value[_NUMBER.size :]))
        except struct.error:
            raise _Wrong("is damaged: its free list makes no sense") from None

    def _value(self, page: bytes, begin: int, size: int, flags: int) -> bytes:
        if not flags & _BIG_VALUE:
            return page[begin : begin + size]
        (first,) = _NUMBER.unpack_from(page, begin)
        return self._read(first, _OVERFLOW, -(-(size + _PAGE.size) // self._page_size))[_PAGE.size :][:size]

    def _read(self, number: int, kinds: int, count: int = 1) -> bytes:
        if number + count > self._pages:
            raise _Wrong(f"was cut short: page {number} of its free list is missing")
        content = os.pread(self._descriptor, self._page_size * count, self._page_size * number)
        stated, kind, *_ = _PAGE.unpack_from(content)
        if stated != number or not kind & kinds or number in self._seen:
            raise _Wrong(f"is damaged: page {number} does not belong to its free list")
        self._seen.add(number)
        return content
