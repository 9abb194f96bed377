"""Memory: what outlives a run beside the transcript, and the actor that owns one session's."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from callboard.kernel import Actor, LoopFuture, handles
from callboard_protocol.commands import AbandonMemoryCall, InjectMemory, KeepMemory, WriteBackMemory
from callboard_protocol.messages import Message
from callboard_protocol.sessions import MemoryEntry
from callboard_storage.store import Store

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger("callboard.memory")

LAST_PATIENCE: Final = 1.0
"""Seconds a memory that is asked while its actor stops may take to notice that it is cancelled."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A run in short.

    Attributes:
        run_id: which run.
        asked: its input, as text.
        answered: its final output, as text.
    """

    run_id: str
    asked: str
    answered: str


@runtime_checkable
class Memory(Protocol):
    """Decides what to keep of runs and what to say before the next. It holds nothing itself: what it keeps is handed
    to it, so that one memory serves any number of sessions. What it is asked is cancelled when the run is stopped.

    Attributes:
        on_error: whether a run goes on when the memory raises, or fails.
    """

    on_error: Literal["continue", "fail"]

    async def inject(self, held: Mapping[str, Any], message: Message) -> Sequence[str]:
        """Texts for the system prompt of a run that begins.

        Args:
            held: what it keeps for this session, by name.
            message: the run's input.
        """
        ...

    async def writeback(self, held: Mapping[str, Any], exchange: Exchange) -> Mapping[str, Any]:
        """What it keeps from now on: changed entries by name, plain data; None removes one.

        Args:
            held: what it keeps for this session, by name.
            exchange: the run that has ended.
        """
        ...


@dataclass(frozen=True, slots=True)
class MemoryOutcome:
    """What came of asking a memory.

    Attributes:
        answer: texts to inject, or entries to keep; empty where it failed, or was not waited for.
        error: what it raised; None where it did not.
    """

    answer: tuple[Any, ...] = ()
    error: Exception | None = None


class MemoryActor(Actor[InjectMemory | WriteBackMemory | KeepMemory | AbandonMemoryCall]):
    """One session's memory: reads it when first asked, and hands its entries to whichever memory the agent has.

    The memory is asked by a task beside the actor's turn, so that it can be called off, and keeps nobody waiting whose
    run does not wait for it.

    Args:
        session_id: the session.
        memory: the agent's memory.
        store: where entries last.
    """

    def __init__(self, session_id: str, memory: Memory, store: Store) -> None:
        super().__init__()
        self._session_id = session_id
        self._memory = memory
        self._store = store
        self._held: dict[str, Any] | None = None
        self._asked: dict[asyncio.Task[None], LoopFuture[MemoryOutcome]] = {}

    @handles
    def inject(self, message: InjectMemory) -> LoopFuture[MemoryOutcome]:
        """Asks the memory what to say."""

        async def texts(held: Mapping[str, Any]) -> tuple[str, ...]:
            return tuple(await self._memory.inject(held, message.message))

        return self._ask(texts)

    @handles
    def write_back(self, message: WriteBackMemory) -> LoopFuture[MemoryOutcome]:
        """Asks the memory what to keep. The run writes it, in the transaction of its own step."""

        async def entries(held: Mapping[str, Any]) -> tuple[MemoryEntry, ...]:
            changed = await self._memory.writeback(held, message.exchange)
            now = time.time()
            return tuple(MemoryEntry(name=name, value=value, updated_at=now) for name, value in changed.items())

        return self._ask(entries)

    @handles
    def keep(self, message: KeepMemory) -> None:
        """Takes over what has been written."""
        if self._held is None:
            return
        for entry in message.entries:
            if entry.value is None:
                self._held.pop(entry.name, None)
            else:
                self._held[entry.name] = entry.value

    @handles
    def abandon(self, message: AbandonMemoryCall) -> None:
        """Cancels what the memory is asked: the run that waited for it has stopped, and the session has no other."""
        for task, reply in self._asked.items():
            if not reply.done():
                reply.set(MemoryOutcome())
                task.cancel()

    def on_stop(self) -> Awaitable[None] | None:
        """Cancels what the memory is asked, and waits for it, but not for long."""
        asked = [task for task, reply in self._asked.items() if not reply.done()]
        for task in asked:
            task.cancel()
        return _ended(asked) if asked else None

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> Awaitable[None] | None:
        """As `on_stop`."""
        return self.on_stop()

    def _ask(self, ask: Callable[[Mapping[str, Any]], Awaitable[tuple[Any, ...]]]) -> LoopFuture[MemoryOutcome]:
        reply: LoopFuture[MemoryOutcome] = LoopFuture()
        task = self.loop.create_task(self._answer(ask, reply), name=f"memory of {self._session_id}")
        self._asked[task] = reply
        task.add_done_callback(self._asked.pop)
        return reply

    async def _answer(
        self, ask: Callable[[Mapping[str, Any]], Awaitable[tuple[Any, ...]]], reply: LoopFuture[MemoryOutcome]
    ) -> None:
        try:
            held = await self._entries()
            try:
                outcome = MemoryOutcome(await ask(held))
            except Exception as problem:  # noqa: BLE001  (whatever a memory raises is what came of asking it)
                outcome = MemoryOutcome(error=problem)
        except BaseException as problem:  # noqa: BLE001  (an interrupt within it must not pass through the loop)
            if not reply.done():
                reply.set_exception(problem)
            elif not isinstance(problem, asyncio.CancelledError):
                self._log_unheard(problem)
            return
        if not reply.done():
            reply.set(outcome)
        elif outcome.error is not None:
            self._log_unheard(outcome.error)

    def _log_unheard(self, problem: BaseException) -> None:
        logger.warning("%s failed, and nobody waits for it any more", type(self._memory).__name__, exc_info=problem)

    async def _entries(self) -> dict[str, Any]:
        if self._held is None:
            self._held = {entry.name: entry.value for entry in await self._store.read_memory(self._session_id)}
        return self._held


async def _ended(asked: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(asked, timeout=LAST_PATIENCE)
