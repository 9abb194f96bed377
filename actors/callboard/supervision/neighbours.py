"""Other open stores on the same directory, most often in other processes: what they hold, and when they die.

There is no message between processes; what a process has to know of another is on disk or in the kernel's locks, and is
looked at again and again while somebody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from itertools import islice

from callboard.runs.entries import result_of
from callboard.runs.mail import RunMail
from callboard.runs.results import read_result
from callboard.runs.ticket import RunTicket
from callboard.supervision.admission import ELSEWHERE
from callboard.supervision.incoming_letters import IncomingLetters
from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.errors import StoreError
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import FINAL, RunState

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.025
"""How soon a session that another process gave back, or a run that ended there, is noticed. Measured: a look at one
session costs 15 µs."""

SECONDS_BETWEEN_ROLL_CALLS = 1.0
"""How soon the death of another process is noticed, and its runs are taken over."""


_RUNS_LOOKED_AT = 100
"""How many followed runs are looked at at a time: 10,000 that nobody has an agent for must not keep the loop busy."""


class Neighbours:
    """Waits for sessions and runs that are in another's hands.

    Args:
        in_hand: the supervisor's runs.
        queue: those that wait for a slot, and some of them for a session that another has.
        letters: told which runs others have posted letters to.
        someone_died: called when an owner died: it may have left runs.
        someone_came: called when there are others, and there were none.
    """

    def __init__(
        self,
        in_hand: RunsInHand,
        queue: RunQueue,
        letters: IncomingLetters,
        someone_died: Callable[[], Awaitable[object]],
        someone_came: Callable[[], Awaitable[object]],
    ) -> None:
        self._in_hand = in_hand
        self._store = in_hand.store
        self._queue = queue
        self._letters = letters
        self._someone_died = someone_died
        self._someone_came = someone_came
        self._last_arrival: int | None = None
        self._recovers = False
        self._is_wanted = asyncio.Event()
        self._owes_taking_over = False
        self._knows_others = False
        self._sessions: set[str] = set()
        self._runs: dict[str, RunTicket] = {}
        # A run that is being taken over is nobody else's any more, but does not hold its session here yet.
        self._turn = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._calling: asyncio.Task[None] | None = None

    def wait_for(self, session_id: str) -> None:
        """A session is held elsewhere: whoever waits for it is admitted once it is not."""
        self._sessions.add(session_id)
        self._look()

    def follow(self, ticket: RunTicket) -> None:
        """A run is carried elsewhere: whoever waits for it is answered once it has stopped."""
        self._runs[ticket.run_id] = ticket
        self._look()

    def forget(self, run_id: str) -> None:
        """Follow a run no longer."""
        self._runs.pop(run_id, None)

    async def call_the_roll(self, *, recovers: bool) -> None:
        """Begin to notice who comes and goes, and what is posted.

        Args:
            recovers: whether `someone_died` is called.
        """
        if self._calling is None:
            self._recovers = recovers
            self._last_arrival = (await self._store.read_arrivals(None)).number
            self._calling = asyncio.get_running_loop().create_task(self._call(), name="roll call")

    async def take_over_now(self) -> None:
        """Take over what the dead have left, without waiting for the next roll call, if it is taken over at all."""
        if self._recovers:
            async with self._turn:
                await self._someone_died()

    @property
    def may_take_over(self) -> bool:
        """Whether runs that nobody carries are taken over, here or by another process that has their agent."""
        return self._recovers and self._store.has_company

    def take_over_soon(self) -> None:
        """Take over what was left to others for want of an agent, if this process has that by now."""
        if self.may_take_over:
            self._owes_taking_over = True
            self._is_wanted.set()

    def close(self) -> None:
        """Look no more."""
        for task in (self._looking, self._calling):
            if task is not None:
                task.cancel()
        self._looking = self._calling = None
        self._recovers = False

    def _look(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look_around(), name="neighbours")

    async def _look_around(self) -> None:
        while self._sessions or self._runs or self._store.has_company:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            try:
                async with self._turn:
                    await self._look_once()
                await self._fetch_letters()
            except StoreError as error:
                # Who waits goes on waiting; the next look may succeed.
                logger.warning("what other processes hold could not be seen: %s", error)
        self._looking = None

    async def _look_once(self) -> None:
        for session_id in list(self._sessions):
            if not await self._store.held_elsewhere(session_id):
                self._sessions.discard(session_id)
                self._in_hand.admission.release(ELSEWHERE, session_id)
                self._queue.admit()
        for ticket in list(islice(self._runs.values(), _RUNS_LOOKED_AT)):
            entry = await self._store.read_run(ticket.run_id)
            has_stopped = entry is not None and (entry.state in FINAL or await self._stays_suspended(entry))
            if self._runs.pop(ticket.run_id, None) is None or not ticket.is_elsewhere:
                continue
            if entry is not None and has_stopped:
                await self._stopped(ticket, entry)
            else:
                self._runs[ticket.run_id] = ticket  # behind those that were not looked at

    async def _stopped(self, ticket: RunTicket, entry: RunEntry) -> None:
        ticket.entry = entry
        self._in_hand.tickets.pop(ticket.run_id, None)
        ticket.finish(await read_result(self._store, entry, ticket.agent) if entry.state in FINAL else result_of(entry))

    async def _stays_suspended(self, entry: RunEntry) -> bool:
        """Whether a run waits for a decision: not one that has been decided and goes on as soon as that is noticed."""
        if entry.state != RunState.SUSPENDED:
            return False
        mail = RunMail(await self._store.read_letters(entry.session_id, entry.run_id))
        return not mail.cancellation and not any(map(mail.decides, entry.pending))

    async def _fetch_letters(self) -> None:
        arrivals = await self._store.read_arrivals(self._last_arrival)
        self._last_arrival = arrivals.number
        if arrivals.run_ids is None or arrivals.run_ids:
            await self._letters.look_for(arrivals.run_ids)

    async def _call(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SECONDS_BETWEEN_ROLL_CALLS):
                    await self._is_wanted.wait()
            self._is_wanted.clear()
            try:
                await self._note_who_is_there()
                await self._fetch_letters()
                if self._store.has_company:
                    self._look()
            except StoreError as error:
                logger.warning("the runs of a process that died could not be taken over: %s", error)

    async def _note_who_is_there(self) -> None:
        if await self._store.others_died() or self._owes_taking_over:
            self._owes_taking_over = True  # until it was done: an error must not make it forgotten
            await self.take_over_now()
            self._owes_taking_over = False
        if not self.may_take_over:
            self._knows_others = False
        elif not self._knows_others:
            async with self._turn:
                await self._someone_came()
            self._knows_others = True
