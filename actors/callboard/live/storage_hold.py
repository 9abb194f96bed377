"""How a run waits while the store has no room for it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from callboard.kernel import Ref
from callboard.runs.entries import moved, result_of
from callboard.session import SessionActor
from callboard.sessions.room import room_in
from callboard_protocol.commands import GiveUpHeld, LeaveSlot, RegainSlot
from callboard_protocol.failures import describe
from callboard_protocol.runs import RunResult
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import TRANSITIONS, RunInput
from callboard_protocol.tools import PendingCall
from callboard_protocol.trusted import trusted

if TYPE_CHECKING:
    from callboard.live.live_run import LiveRun

logger = logging.getLogger(__name__)

_OUTCOMES_WAIT = "the store has no room: what has happened is held in memory, and written once there is some"
_NOTHING_BEGINS = "the store has no room: nothing more begins before there is some"


class StorageHold:
    """The waiting of one attempt. Branches may wait side by side: the first suspends the run, and it goes on when the
    last of them can. Meanwhile it has no slot, its time does not count, and everyone can see what it waits for.

    What has happened is never dropped for being cancelled. So a run that is stopped while it holds an outcome answers
    its caller at once, and ends behind that outcome when there is room.

    Args:
        run: the attempt.
        session: the actor that holds its batches.

    Attributes:
        is_suspended: whether the run waits for room, or to get its slot back.
    """

    def __init__(self, run: LiveRun, session: Ref[SessionActor]) -> None:
        self._run = run
        self._session = session
        self._outcomes = 0
        self._beginnings = 0
        self._nobody_waits = asyncio.Event()
        self._nobody_waits.set()
        self._since = 0.0
        self._owes_cancellation = False
        self.is_suspended = False

    def begin(self, *, has_happened: bool) -> None:
        """A branch has to wait from now on; pair with `end`."""
        self._outcomes += has_happened
        self._beginnings += not has_happened
        self._nobody_waits.clear()
        ticket = self._run.ticket
        if not ticket.may_wait or (ticket.stop is not None and not self._outcomes):
            self.give_up()
            return
        if not self.is_suspended:
            self._suspend()
        if ticket.stop is not None:
            self._answer_at_once()

    def end(self, *, has_happened: bool) -> None:
        """A branch waits no more."""
        self._outcomes -= has_happened
        self._beginnings -= not has_happened
        if not self._outcomes and not self._beginnings:
            self._nobody_waits.set()

    async def wait_for_room(self) -> None:
        """Wait before beginning something: return once there is room, and the run has its slot again.

        Raises:
            StopRun: the run was stopped meanwhile.
        """
        self.begin(has_happened=False)
        try:
            await room_in(self._run.directory.store)
        finally:
            self.end(has_happened=False)
        await self.go_on()
        self._run.heed_stop()

    async def go_on(self) -> None:
        """Return once no branch waits and the run has its slot again; a run that is being stopped needs none."""
        while self.is_suspended:
            await self._nobody_waits.wait()
            if self._run.ticket.stop is None:
                await self._run.directory.supervisor.ask(RegainSlot(run_id=self._run.run_id), timeout=None)
            if self._nobody_waits.is_set():
                self._resume()

    def stop(self) -> bool:
        """The run is being stopped. Whether its task may be cancelled: not while it holds what has happened."""
        if self._outcomes:
            self._answer_at_once()
            self._owes_cancellation = True
            return False
        self.give_up()
        return True

    def give_up(self) -> None:
        """Let go of what is held: the log says what it says, and a later start carries the run on from there."""
        if self._outcomes:
            logger.warning("run %s: %d outcomes are not on disk, for want of room", self._run.run_id, self._outcomes)
        if self._session.is_alive():
            self._session.tell(GiveUpHeld(run_id=self._run.run_id))

    def close(self) -> None:
        """The attempt has ended."""
        if self.is_suspended:
            self._leave()

    @property
    def pending(self) -> tuple[PendingCall, ...]:
        """What the run waits for."""
        message = _OUTCOMES_WAIT if self._outcomes else _NOTHING_BEGINS
        return (PendingCall(reason="storage_full", message=message),)

    def shown(self, entry: RunEntry) -> RunEntry:
        """The run's entry as it would read if that could be written now."""
        if (entry.state, RunInput.SUSPEND) not in TRANSITIONS:
            return entry.model_copy(update={"pending": self.pending})
        return moved(entry, RunInput.SUSPEND, pending=self.pending)

    def _suspend(self) -> None:
        run = self._run
        self.is_suspended = True
        self._since = run.clock.monotonic()
        run.ticket.hold = self
        run.directory.held[run.run_id] = self
        run.directory.supervisor.tell(LeaveSlot(run_id=run.run_id))
        run.pause()
        logger.info("run %s is suspended: %s", run.run_id, self.pending[0].message)
        run.publish(("run.suspended", None, {"pending": self.pending}))

    def _resume(self) -> None:
        run = self._run
        if not self.is_suspended:
            return  # a branch beside this one went on first
        waited = self._leave()
        run.publish(("run.resume_succeeded", None, {"attempt": run.attempt, "duration": waited}))
        if self._owes_cancellation and run.ticket.task is not None:
            self._owes_cancellation = False
            run.ticket.task.cancel()

    def _leave(self) -> float:
        """Wait no more; the seconds it took."""
        self.is_suspended = False
        waited = self._run.clock.monotonic() - self._since
        self._run.directory.held.pop(self._run.run_id, None)
        self._run.unpause()
        return waited

    def _answer_at_once(self) -> None:
        """Tell whoever waits for a cancelled run that it has stopped; its ending follows once there is room."""
        run = self._run
        stop = run.ticket.stop
        if stop is None or stop.stop_reason != "cancelled":
            return
        problem = None if stop.error is None else describe(stop.error)
        entry = trusted(RunEntry, **{**vars(run.ticket.entry), "stop_reason": "cancelled", "problem": problem})
        result: RunResult[object] = result_of(entry, artifacts=tuple(run.journal.artifacts))
        run.ticket.answer(result.model_copy(update={"usage": run.meter.usage(), "pending": self.pending}))
