"""The sessions that are in memory: activated on demand, parked when idle or when there are too many."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import islice

from callboard.clock import SYSTEM_CLOCK, Clock, Timer
from callboard.kernel import ActorSystem, Ref
from callboard.limits import RuntimeLimits
from callboard.memory import Memory, MemoryActor
from callboard.session import SessionActor
from callboard_protocol.base import as_seconds
from callboard_storage.store import Store

_MORE_LOOKED_AT = 8
"""How many unused sessions beyond those that must go are looked at, in case some still have something to do."""


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
    """The table of sessions in memory, and which of them nothing uses, the one used longest ago first.

    Args:
        system: where their actors live.
        store: where the sessions last.
        limits: how many, and for how long.
        clock: how long that is.
    """

    def __init__(self, system: ActorSystem, store: Store, limits: RuntimeLimits, clock: Clock = SYSTEM_CLOCK) -> None:
        self._system = system
        self._store = store
        self._clock = clock
        self._most = limits.max_active_sessions
        self._idle = as_seconds(limits.session_idle)
        self._table: dict[str, ActiveSession] = {}
        self._unused: dict[str, None] = {}
        self._sweep: Timer | None = None

    def __len__(self) -> int:
        return len(self._table)

    def enter(self, session_id: str) -> ActiveSession:
        """A session for one more attempt: woken if it was parked. Pair with `leave`."""
        active = self._table.get(session_id)
        if active is None or not active.session.is_alive():
            active = ActiveSession(self._system.start(SessionActor, session_id, self._store))
            self._table[session_id] = active
        self._unused.pop(session_id, None)
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
        if not active.runs:
            active.used_at = self._clock.monotonic()
            self._unused[session_id] = None
        self._make_room()
        if len(self._table) > self._most:
            # A session that has been told to close its run is idle once it has: a turn later.
            asyncio.get_running_loop().call_soon(self._make_room)
        if self._sweep is None:
            self._sweep = self._clock.call_later(self._idle, self._park_idle)

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
        self._unused.pop(session_id, None)
        return True

    def close(self) -> None:
        """Stop sweeping."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _make_room(self) -> None:
        excess = len(self._table) - self._most
        if excess <= 0:
            return
        # Not all that are unused: once the table is full this happens at every run.
        for session_id in list(islice(self._unused, excess + _MORE_LOOKED_AT)):
            if len(self._table) <= self._most:
                return
            self.park(session_id)

    def _park_idle(self) -> None:
        self._sweep = None
        now = self._clock.monotonic()
        for session_id in list(self._unused):
            due = self._table[session_id].used_at + self._idle - now
            if due > 0:
                # In order of use: whatever follows was used later still.
                self._sweep = self._clock.call_later(due, self._park_idle)
                return
            self.park(session_id)
