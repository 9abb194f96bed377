"""Each store against a model in plain Python: whatever is done, in whatever order, it holds what the model holds."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from callboard_storage import chunks
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.memory_store import MemoryStore
from callboard_storage.store import Batch, Store
from callboard_storage.store_values import Fence
from callboard_storage.write_queue import Operation

from .machine import STRANDED, StoreMachine


class MemoryMachine(StoreMachine):
    def opened(self) -> Store:
        store = MemoryStore(max_bytes=self.max_bytes)
        self.wait(store.open())
        return store

    def kill_over(self, batch: Batch, fence: Fence, turns: int) -> None:
        """Nothing survives the process; what an object was given, it has, whoever was told."""
        self.store.commit(batch, fence, self.loop, lambda _: None)
        self.wait(self.store.close())
        self.wait(self.store.open())


class LmdbMachine(StoreMachine):
    """Also: there are no chunks but those that rows refer to, and those of a batch that a crash has cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="callboard-"))
        self.crashes = 0
        self.cut_off: set[bytes] = set()

    def opened(self) -> LmdbStore:
        store = LmdbStore(self.place / str(self.crashes), map_size=1 << 30, max_bytes=self.max_bytes)
        self.wait(store.open())
        return store

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.place)

    def forget(self, session_id: str) -> int:
        self.cut_off.discard(session_id.encode())
        return super().forget(session_id)

    def abandoned(self, session_id: str, size: int) -> None:
        if size == STRANDED:
            self.cut_off.add(session_id.encode())

    def kill_over(self, batch: Batch, fence: Fence, turns: int) -> None:
        """Take the data file as it is while the writer is held up inside a transaction: what SIGKILL leaves."""
        left, self.crashes = self.place / str(self.crashes), self.crashes + 1
        (self.place / str(self.crashes)).mkdir()
        with self.writer_held_after(turns, lambda: self.store.commit(batch, fence, self.loop, lambda _: None)):
            shutil.copy(left / "data.mdb", self.place / str(self.crashes))
        self.wait(self.store.close())
        shutil.rmtree(left)
        self.store = self.opened()

    @contextmanager
    def writer_held_after(self, turns: int, commit: Callable[[], None]) -> Iterator[None]:
        """While the writer is inside a transaction, so many turns behind a commit."""
        assert isinstance(self.store, LmdbStore)
        directory = self.store._opened()
        all_there, reached, go_on = threading.Event(), threading.Event(), threading.Event()

        def put(work: Callable[[], object]) -> None:
            operation = Operation("nobody", lambda _: work(), self.loop, lambda _result, _error: None)
            directory.queue.put(operation)

        put(all_there.wait)
        commit()
        for _ in range(turns):
            put(lambda: None)
        put(lambda: (reached.set(), go_on.wait()))
        all_there.set()
        assert reached.wait(30)
        try:
            yield
        finally:
            go_on.set()

    @invariant()
    def every_chunk_belongs_to_a_row(self) -> None:
        if hasattr(self, "store"):
            assert isinstance(self.store, LmdbStore)
            left = self.store._opened().environment.read(chunks.unreferenced)
            assert {key.partition(b"\0")[0] for key in left} <= self.cut_off


SHORT = settings(max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LONG = settings(SHORT, max_examples=500, stateful_step_count=50)

TestMemoryStore = MemoryMachine.TestCase
TestMemoryStore.settings = SHORT
TestLmdbStore = LmdbMachine.TestCase
TestLmdbStore.settings = SHORT


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", [MemoryMachine, LmdbMachine])
def test_each_store_equals_its_model_through_thousands_of_steps(machine: type[StoreMachine]) -> None:
    run_state_machine_as_test(machine, settings=LONG)
