"""What these tests need: a data directory, processes that die on it for real, and waits that are no sleeps."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import pytest

from callboard import Agent, Message, RunResult, Runtime
from callboard_protocol.records import LogRecord
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.memory_store import MemoryStore

T = TypeVar("T")
Scenario = Callable[[Runtime], Awaitable[T]]

MAP_SIZE = 1 << 30
PATIENCE = 30
THE_END = "it came to its end"


class Place:
    """A data directory and a notebook beside it, which outlive the processes that use them.

    The notebook stands for the world: what a tool or a function writes there has happened, whatever Callboard knows
    of it.
    """

    def __init__(self, path: Path) -> None:
        self.data = path / "data"
        self._notes = path / "notes"
        self._notes.touch()
        self._report = path / "report"

    # ---- the world

    def note(self, text: object) -> None:
        """Something happens."""
        descriptor = os.open(self._notes, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, f"{text}\n".encode())
        os.close(descriptor)

    @property
    def noted(self) -> list[str]:
        """What has happened, in order, in whichever process."""
        return self._notes.read_text().splitlines()

    def forget(self, text: object) -> None:
        """What has happened once may happen once more."""
        self._notes.write_text("".join(f"{note}\n" for note in self.noted if note != str(text)))

    def happens_first(self, text: object) -> bool:
        """Note something; whether it had not happened before. What is to go wrong only once asks this."""
        is_first = str(text) not in self.noted
        self.note(text)
        return is_first

    # ---- processes

    def store(self) -> LmdbStore:
        return LmdbStore(self.data, map_size=MAP_SIZE)

    def in_memory(self) -> MemoryStore:
        return MemoryStore()

    @asynccontextmanager
    async def runtime(
        self, *agents: Agent[Any, Any], store: Any = None, drain_timeout: float = 0, **options: Any
    ) -> AsyncIterator[Runtime]:
        """A runtime on the directory. What hangs is not waited for when it closes, unless a test says so."""
        options["drain_timeout"] = drain_timeout
        async with Runtime(agents, store=self.store() if store is None else store, **options) as runtime:
            yield runtime

    def live(self, agents: Sequence[Agent[Any, Any]], scenario: Scenario[T], **options: Any) -> T:
        """Open the directory in this process, do something, and close it in good order."""

        async def live() -> T:
            async with self.runtime(*agents, **options) as runtime:
                return await asyncio.wait_for(scenario(runtime), PATIENCE)

        return asyncio.run(live())

    def live_until_killed(
        self,
        agents: Sequence[Agent[Any, Any]],
        scenario: Scenario[Any],
        *,
        store: Callable[[], Any] | None = None,
        surely: bool = True,
        exits: int | None = None,
        **options: Any,
    ) -> None:
        """The same in a process of its own, which something in the scenario kills; if not `surely`, it may also end.
        With `exits` it ends by that exit code instead, however it comes by it.
        """

        async def live() -> None:
            async with self.runtime(*agents, store=None if store is None else store(), **options) as runtime:
                await scenario(runtime)

        with warnings.catch_warnings():
            # Newer Pythons warn of threads at a fork; none of those that are left here holds a lock the child needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(PATIENCE)
                asyncio.run(live())
                self._report.write_text(THE_END)
            except BaseException:
                self._report.write_text(traceback.format_exc())
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
        if exits is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == exits:
            return
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, "the process hung"
            return
        report = self._report.read_text()
        assert report == THE_END, report
        assert not surely, "nothing killed the process"

    def carry_on(self, agents: Sequence[Agent[Any, Any]], run_id: str, **options: Any) -> RunResult[Any]:
        """Open the directory again, and see a run through that an earlier process left."""
        return self.live(agents, lambda runtime: runtime.wait(run_id), **options)

    def flip(self, table: str, key: bytes) -> None:
        """A bit of a stored row turns over, as on a disk that is failing; done twice, the row is whole again."""
        environment = lmdb.open(str(self.data), map_size=MAP_SIZE, max_dbs=64)
        database = environment.open_db(table.encode(), create=False)
        with environment.begin(write=True, db=database) as transaction:
            frame = transaction.get(key)
            transaction.put(key, frame[:-1] + bytes([frame[-1] ^ 1]))
        environment.close()

    async def log(self, session_id: str) -> list[LogRecord]:
        """What the disk holds of a session, read as any process would."""
        store = self.store()
        await store.open()
        try:
            return [stored.record for stored in await store.read_log(session_id)]
        finally:
            await store.close()


class KilledByCommit(LmdbStore):
    """A store whose process is killed over a commit: just before it, or once it is on disk and nobody knows yet.

    Args:
        path: the data directory.
        number: which commit that appends to a log, from 0.
        when: ``before`` it is written, or ``after``.
    """

    def __init__(self, path: Path, number: int, when: str) -> None:
        super().__init__(path, map_size=MAP_SIZE)
        self._left = number
        self._when = when

    def commit(self, batch: Any, fence: Any, loop: Any, acknowledge: Any) -> None:
        if fence is not None and batch.log:
            self._left -= 1
            if self._left == -1:
                if self._when == "before":
                    die()
                super().commit(batch, fence, loop, lambda error: die())
                return
        super().commit(batch, fence, loop, acknowledge)


def die() -> Any:
    """The process ends here, as in a power cut: nothing is flushed, nobody is told."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something has come about."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  (the condition is the runtime's own state: nobody sets an event for it)
            await asyncio.sleep(0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(name="die")
def _die() -> Callable[[], Any]:
    return die


@pytest.fixture(name="until")
def _until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    return until


def well_formed(transcript: Sequence[Message]) -> bool:
    """Whether each call is answered, right behind the turn that asks for it."""
    waiting: list[str | None] = []
    for message in transcript:
        if message.role == "tool" and message.tool_call_id in waiting:
            waiting.remove(message.tool_call_id)
        elif waiting or message.role == "tool":
            return False
        waiting.extend(call.id for call in message.tool_calls)
    return not waiting


@pytest.fixture(name="well_formed")
def _well_formed() -> Callable[[Sequence[Message]], bool]:
    return well_formed


@pytest.fixture
def killed_by_commit(place: Place) -> Callable[[int, str], Callable[[], KilledByCommit]]:
    return lambda number, when: lambda: KilledByCommit(place.data, number, when)
