"""Other open stores on the same directory, most often in other processes: what they hold, and when they die.

There is no message between processes; what a process has to know of another is on disk or in the kernel's locks, and is
looked at again and again while somebody waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from callboard.ticket import RunTicket
from callboard_protocol.errors import StoreError
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import FINAL, RunState
from callboard_storage.store import Store

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.025
"""How soon a session that another process gave back, or a run that ended there, is noticed. Measured: a look at one
session costs 15 µs."""

SECONDS_BETWEEN_ROLL_CALLS = 1.0
"""How soon the death of another process is noticed, and its runs are taken over."""


class Neighbours:
    """Waits for sessions and runs that are in another's hands.

    Args:
        store: the directory they share.
        freed: called with a session that is free again.
        stopped: called with a followed run and its entry, once it has stopped there.
        someone_died: called when an owner died: it may have left runs.
    """

    def __init__(
        self,
        store: Store,
        *,
        freed: Callable[[str], object],
        stopped: Callable[[RunTicket, RunEntry], Awaitable[object]],
        someone_died: Callable[[], Awaitable[object]],
    ) -> None:
        self._store = store
        self._freed = freed
        self._stopped = stopped
        self._someone_died = someone_died
        self._sessions: set[str] = set()
        self._runs: dict[str, RunTicket] = {}
        # A run that is being taken over is nobody else's any more, but does not hold its session here yet.
        self._turn = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._calling: asyncio.Task[None] | None = None

    def wait_for(self, session_id: str) -> None:
        """A session is held elsewhere: `freed` is called once it is not."""
        self._sessions.add(session_id)
        self._look()

    def follow(self, ticket: RunTicket) -> None:
        """A run is carried elsewhere: `stopped` is called once it has stopped."""
        self._runs[ticket.run_id] = ticket
        self._look()

    def forget(self, run_id: str) -> None:
        """Follow a run no longer."""
        self._runs.pop(run_id, None)

    def call_the_roll(self) -> None:
        """Begin to notice deaths."""
        if self._calling is None:
            self._calling = asyncio.get_running_loop().create_task(self._call(), name="roll call")

    def close(self) -> None:
        """Look no more."""
        for task in (self._looking, self._calling):
            if task is not None:
                task.cancel()
        self._looking = self._calling = None

    def _look(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look_around(), name="neighbours")

    async def _look_around(self) -> None:
        while self._sessions or self._runs:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            try:
                async with self._turn:
                    await self._look_once()
            except StoreError as error:
                # Who waits goes on waiting; the next look may succeed.
                logger.warning("what other processes hold could not be seen: %s", error)
        self._looking = None

    async def _look_once(self) -> None:
        for session_id in list(self._sessions):
            if not await self._store.held_elsewhere(session_id):
                self._sessions.discard(session_id)
                self._freed(session_id)
        for ticket in list(self._runs.values()):
            entry = await self._store.read_run(ticket.run_id)
            if entry is not None and (entry.state in FINAL or entry.state == RunState.SUSPENDED):
                self._runs.pop(ticket.run_id, None)
                await self._stopped(ticket, entry)

    async def _call(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_ROLL_CALLS)
            try:
                if await self._store.others_died():
                    async with self._turn:
                        await self._someone_died()
            except StoreError as error:
                logger.warning("the runs of a process that died could not be taken over: %s", error)
