"""A store's hold on a data directory: opened, read, worked in and closed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from callboard_protocol.base import build_models
from callboard_protocol.errors import CallboardError, DamagedRecordError, ForkedError, StoreClosedError
from callboard_storage import data_directory
from callboard_storage.data_directory import DataDirectory
from callboard_storage.lmdb_transactions import LongRead, ReadTransaction, WriteTransaction
from callboard_storage.locks import Owner
from callboard_storage.quarantine import Quarantine
from callboard_storage.room import DEFAULT_FREE_BYTES, check_limits
from callboard_storage.store_values import RECORDS_READ_ON_LOOP
from callboard_storage.write_queue import Operation
from callboard_storage.writer import SECONDS_BETWEEN_READER_CHECKS

ResultT = TypeVar("ResultT")


class LmdbAccess:
    """What `LmdbStore` stands on; its arguments are explained there."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        map_size: int | None = None,
        max_bytes: int | None = None,
        verify_first: bool = False,
        min_free_bytes: int = DEFAULT_FREE_BYTES,
        kind_of_file_system: Callable[[Path], str | None] | None = None,
    ) -> None:
        check_limits(max_bytes, min_free_bytes)
        self._path = path
        self._map_size = map_size
        self._max_bytes = max_bytes
        self._verify_first = verify_first
        self._min_free_bytes = min_free_bytes
        self._kind_of_file_system = kind_of_file_system
        self._directory: DataDirectory | None = None
        self._owner: Owner | None = None
        self._seen_alive: set[bytes] = set()
        self._seen_unclaimed: set[bytes] = set()
        self._reader_check: asyncio.TimerHandle | None = None
        self._quarantine = Quarantine()

    async def open(self) -> None:
        """Open the directory. Opening twice is harmless.

        Raises:
            StoreOpenError: it cannot be opened; the error says what to do.
            StoreInUseError: its files are being replaced by another process.
            StoreVersionError: a newer release or another engine wrote it.
        """
        if self._directory is not None:
            return
        build_models()  # reads decode on threads of their own
        if self._verify_first:
            # What looks after a directory takes as long to import as all else that opens one.
            from callboard_storage.upkeep.verifying import refuse_damaged_pages  # noqa: PLC0415

            await asyncio.shield(_on_own_thread(partial(refuse_damaged_pages, self._path)))
        acquired = _on_own_thread(self._acquire)
        try:
            self._directory, self._owner = await asyncio.shield(acquired)
        except asyncio.CancelledError:
            acquired.add_done_callback(_give_back)
            raise
        self._check_readers_later()

    async def close(self) -> None:
        """Commit what waits, then close. Closing twice is harmless."""
        directory, self._directory = self._directory, None
        owner, self._owner = self._owner, None
        if self._reader_check is not None:
            self._reader_check.cancel()
        if directory is not None and owner is not None:
            await asyncio.shield(_on_own_thread(partial(_release, directory, owner)))

    def _acquire(self) -> tuple[DataDirectory, Owner]:
        directory = data_directory.acquire(
            self._path,
            map_size=self._map_size,
            max_bytes=self._max_bytes,
            min_free_bytes=self._min_free_bytes,
            kind_of=self._kind_of_file_system,
        )
        try:
            return directory, directory.enter()
        except BaseException:
            data_directory.release(directory)
            raise

    @property
    def _own_id(self) -> bytes:
        if self._owner is None:
            raise StoreClosedError(f"the store at {os.fspath(self._path)} is not open")
        return self._owner.id

    async def _operate(self, session_id: str, work: Callable[[WriteTransaction], ResultT]) -> ResultT:
        """Do some work that has the write transaction to itself, in its session's turn among the commits."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[ResultT] = loop.create_future()

        def done(result: ResultT, error: CallboardError | None) -> None:
            if answered.done():
                return
            if error is not None:
                answered.set_exception(error)
            else:
                answered.set_result(result)

        self._opened().queue.put(Operation(session_id, work, loop, done))
        return await answered

    def _opened(self) -> DataDirectory:
        directory = self._directory
        if directory is None:
            raise StoreClosedError(f"the store at {os.fspath(self._path)} is not open")
        if directory.is_forked:
            raise ForkedError(f"the store at {directory.path} was opened by the parent of this process")
        return directory

    async def _read(self, work: Callable[[ReadTransaction], ResultT]) -> ResultT:
        """A read on the loop, or on the reader thread once it meets a large payload."""
        try:
            return self._read_here(work, is_short=True)
        except LongRead:
            return await self._read_on_thread(work)

    def _read_here(self, work: Callable[[ReadTransaction], ResultT], *, is_short: bool = False) -> ResultT:
        try:
            return self._opened().environment.read(work, is_short=is_short)
        except DamagedRecordError as error:
            self._quarantine.add(error)
            raise

    async def _read_on_thread(self, work: Callable[[ReadTransaction], ResultT]) -> ResultT:
        directory = self._opened()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(directory.reader, self._read_here, work)

    async def _read_anywhere(self, limit: int, work: Callable[[ReadTransaction], ResultT]) -> ResultT:
        return await (self._read(work) if limit <= RECORDS_READ_ON_LOOP else self._read_on_thread(work))

    def _check_readers_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._reader_check = loop.call_later(SECONDS_BETWEEN_READER_CHECKS, self._check_readers)

    def _check_readers(self) -> None:
        if self._directory is not None and not self._directory.is_forked:
            self._directory.check_readers()
            self._check_readers_later()


def _on_own_thread(work: Callable[[], ResultT]) -> asyncio.Future[ResultT]:
    """Run blocking work on a thread of its own: the loop's default threads may all be held by someone's tools."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="callboard-store")
    try:
        return asyncio.get_running_loop().run_in_executor(executor, work)
    finally:
        executor.shutdown(wait=False)


def _release(directory: DataDirectory, owner: Owner) -> None:
    if not directory.is_forked:
        directory.leave(owner)
    data_directory.release(directory)


def _give_back(acquired: asyncio.Future[tuple[DataDirectory, Owner]]) -> None:
    if not acquired.cancelled() and acquired.exception() is None:
        _release(*acquired.result())
