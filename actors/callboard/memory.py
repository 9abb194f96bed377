"""Memory: what outlives a run beside the transcript, and the actor that owns one session's."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from callboard.kernel import Actor, handles
from callboard_protocol.commands import InjectMemory, KeepMemory, WriteBackMemory
from callboard_protocol.messages import Message
from callboard_protocol.sessions import MemoryEntry
from callboard_storage.store import Store


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
    to it, so that one memory serves any number of sessions.

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


class MemoryActor(Actor[InjectMemory | WriteBackMemory | KeepMemory]):
    """One session's memory: reads it when first asked, and hands its entries to whichever memory the agent has.

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

    @handles
    async def inject(self, message: InjectMemory) -> tuple[str, ...]:
        """Asks the memory what to say."""
        return tuple(await self._memory.inject(await self._entries(), message.message))

    @handles
    async def write_back(self, message: WriteBackMemory) -> tuple[MemoryEntry, ...]:
        """Asks the memory what to keep. The run writes it, in the transaction of its own step."""
        changed = await self._memory.writeback(await self._entries(), message.exchange)
        now = time.time()
        return tuple(MemoryEntry(name=name, value=value, updated_at=now) for name, value in changed.items())

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

    async def _entries(self) -> dict[str, Any]:
        if self._held is None:
            self._held = {entry.name: entry.value for entry in await self._store.read_memory(self._session_id)}
        return self._held
