"""The sessions that are in memory: activated on demand, parked when idle or when there are too many."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from callboard.kernel import ActorSystem, Ref
from callboard.limits import RuntimeLimits
from callboard.memory import Memory, MemoryActor
from callboard.session import SessionActor
from callboard_protocol.base import as_seconds
from callboard_storage.store import Store


@dataclass(slots=True)
class ActiveSession:
    """A session in memory.

    Attributes:
        session: the actor that owns its log.
        memory: its memory actor, once a run needed one.
        memory_kind: the agent's memory that actor serves.
        runs: attempts that use it now.
        used_at: monotonic seconds of its last use.
    """

    session: Ref[SessionActor]
    memory: Ref[MemoryActor] | None = None
    memory_kind: Memory | None = None
    runs: int = 0
    used_at: float = 0.0


class ActiveSessions:
    """The table of sessions in memory, the one used longest ago first.

    Args:
        system: where their actors live.
        store: where the sessions last.
        limits: how many, and for how long.
    """

    def __init__(self, system: ActorSystem, store: Store, limits: RuntimeLimits) -> None:
        self._system = system
        self._store = store
        self._most = limits.max_active_sessions
        self._idle = as_seconds(limits.session_idle)
        self._table: OrderedDict[str, ActiveSession] = OrderedDict()
        self._sweep: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._table)

    def enter(self, session_id: str) -> ActiveSession:
        """A session for one more attempt: woken if it was parked. Pair with `leave`."""
        active = self._table.get(session_id)
        if active is None or not active.session.is_alive():
            active = ActiveSession(self._system.start(SessionActor, session_id, self._store))
            self._table[session_id] = active
        active.runs += 1
        self._make_room()
        return active

    def memory_of(self, session_id: str, memory: Memory) -> Ref[MemoryActor]:
        """The memory actor of an entered session."""
        active = self._table[session_id]
        if active.memory is None or active.memory_kind is not memory or not active.memory.is_alive():
            if active.memory is not None:
                active.memory.stop_now()
            active.memory = self._system.start(MemoryActor, session_id, memory, self._store)
            active.memory_kind = memory
        return active.memory

    def leave(self, session_id: str) -> None:
        """An attempt is done with a session."""
        active = self._table.get(session_id)
        if active is None:
            return
        active.runs -= 1
        active.used_at = time.monotonic()
        self._table.move_to_end(session_id)
        self._make_room()
        if len(self._table) > self._most:
            # A session that has been told to close its run is idle once it has: a turn later.
            asyncio.get_running_loop().call_soon(self._make_room)
        if self._sweep is None and self._table:
            self._sweep = asyncio.get_running_loop().call_later(self._idle, self._park_idle)

    def park(self, session_id: str) -> bool:
        """Let go of a session now; False while something uses it."""
        active = self._table.get(session_id)
        if active is None:
            return True
        if active.runs or not active.session.stop_now():
            return False
        if active.memory is not None:
            active.memory.stop_now()
        del self._table[session_id]
        return True

    def close(self) -> None:
        """Stop sweeping."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _make_room(self) -> None:
        if len(self._table) <= self._most:
            return
        for session_id in list(self._table):
            if len(self._table) <= self._most:
                return
            self.park(session_id)

    def _park_idle(self) -> None:
        self._sweep = None
        now = time.monotonic()
        for session_id, active in list(self._table.items()):
            if active.runs:
                continue
            if active.used_at + self._idle > now:
                # The table is in order of use: whatever follows was used later still.
                due = active.used_at + self._idle - now
                self._sweep = asyncio.get_running_loop().call_later(due, self._park_idle)
                return
            self.park(session_id)
