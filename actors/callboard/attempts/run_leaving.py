"""How an attempt leaves its run to a further one: suspended, parked, to be tried again, or at the next start."""

from __future__ import annotations

import contextlib
from typing import Any

from callboard.attempts.run_opening import RunOpening
from callboard.directory import Directory
from callboard.runs.entries import moved, parked, write_entry
from callboard.runs.resuming import can_pass
from callboard.runs.stops import ParkRun, StopRun
from callboard.runs.ticket import RunTicket
from callboard_protocol.commands import StopDelegated
from callboard_protocol.errors import ActorError, CallboardError, DamagedRecordError, StoreFullError
from callboard_protocol.failures import describe
from callboard_protocol.records import RunSuspended
from callboard_protocol.runs import RunResult, RunUsage, StopReason
from callboard_protocol.states import RunInput, RunState
from callboard_protocol.tools import PendingCall

_STORE_FAILED = "the run stopped without writing; it carries on from its last completed step"


class RunLeaving:
    """Stops a run that has not ended.

    Args:
        ticket: the run.
        directory: where the other actors are.
        opening: what the attempt stands on.
    """

    def __init__(self, ticket: RunTicket, directory: Directory, opening: RunOpening) -> None:
        self._ticket = ticket
        self._directory = directory
        self._opening = opening

    @property
    def retries(self) -> int:
        """How often in a row the run has been tried again by now: since a step of it last succeeded."""
        run = self._opening.run
        return 0 if run is None or run.journal.got_further else self._ticket.entry.retries

    async def put_off(self, error: BaseException) -> bool:
        """Leave the run to a further attempt where that can be what it takes; whether it was left to one."""
        if self._ticket.stop is not None:
            return False
        if isinstance(error, ParkRun):
            await self.stop_children(leaves=True)
            await self._park(error)
            return True
        if self._can_be_tried_again(error):
            await self.stop_children(leaves=True)
            await self._try_again(error)
            return True
        return False

    async def suspend(self, stop: StopRun) -> RunResult[Any]:
        """The run waits for somebody's decision."""
        run, ticket = self._opening.run, self._ticket
        assert run is not None, "only a step suspends a run"
        await self.stop_children(leaves=True)
        ticket.stop = stop
        record = RunSuspended(
            run_id=run.run_id, ordinal=run.journal.claim_ordinal(), at=run.clock.time(), pending=stop.pending
        )
        entry = moved(ticket.entry, RunInput.SUSPEND, pending=stop.pending, stop_reason="suspended")
        await run.journal.append(record, run=entry)
        ticket.entry = entry
        return self.result("suspended")

    async def interrupt(self) -> RunResult[Any]:
        """Leave the run, and what it delegated, so that the next start carries it on and does not count this as a
        crash.
        """
        await self.stop_children(leaves=True)
        return await self._interrupted()

    async def set_aside(self, error: DamagedRecordError) -> RunResult[Any]:
        """Its session cannot be read. The run stays on disk, unfailed, until somebody has mended that."""
        ticket = self._ticket
        if not ticket.accepted.done():
            # Its first record would have said that it is taken in, and that cannot be written.
            await write_entry(self._directory.store, ticket.entry, seen=ticket.entry)
        await self._interrupted()
        ticket.unreadable = error
        return self.result("interrupted", error)

    def unwritten(self, error: CallboardError) -> RunResult[Any]:
        """The store refused: nothing more is written, and what is on disk stands."""
        if not error.hint:
            error.hint = _STORE_FAILED
        self._ticket.accept(error)
        # Where only room was missing, a later start carries the run on.
        return self.result("interrupted" if isinstance(error, StoreFullError) else "failed", error)

    async def stop_children(self, *, leaves: bool) -> None:
        """Have what the run delegated and no longer waits for stopped, before the run itself writes that it has.

        Args:
            leaves: leave it to the run's next attempt; otherwise it is cancelled.
        """
        ticket = self._ticket
        if not ticket.children:
            return
        reason, by = ticket.why_below()
        message = StopDelegated(parent_id=ticket.run_id, leaves=leaves, reason=reason, by=by)
        # A supervisor that has failed has stopped all of them.
        with contextlib.suppress(ActorError):
            await self._directory.supervisor.ask(message, timeout=None)

    async def end_earlier_life(self) -> None:
        """Have what the run had delegated before it begins afresh cancelled, down to the last."""
        run_id = self._ticket.run_id
        reason = f"run {run_id}, which delegated it, begins afresh after a crash"
        message = StopDelegated(parent_id=run_id, looks_them_up=True, reason=reason)
        await self._directory.supervisor.ask(message, timeout=None)

    def result(self, stop_reason: StopReason, error: BaseException | None = None) -> RunResult[Any]:
        """What is known of a run that has written no last record."""
        ticket, run = self._ticket, self._opening.run
        return RunResult(
            run_id=ticket.run_id,
            session_id=ticket.session_id,
            agent_id=ticket.request.agent_id,
            stop_reason=stop_reason,
            usage=RunUsage() if run is None else run.meter.usage(),
            artifacts=() if run is None else tuple(run.journal.artifacts),
            error_details=None if error is None else describe(error),
            pending=ticket.entry.pending,
            metadata=ticket.request.metadata,
        )

    def _can_be_tried_again(self, error: BaseException) -> bool:
        """Whether the run's error can pass, and has not been given its chances."""
        ticket, run = self._ticket, self._opening.run
        if run is None or not ticket.request.durable or ticket.entry.state != RunState.RUNNING:
            return False
        return can_pass(error) and self.retries < run.budget.max_resume_attempts

    async def _try_again(self, error: BaseException) -> None:
        """Leave the run to a further attempt, which begins after a pause."""
        ticket, run = self._ticket, self._opening.run
        assert run is not None
        problem = describe(error)
        pending = (PendingCall(reason="retry", message=problem.message),)
        entry = moved(ticket.entry, RunInput.INTERRUPT, retries=self.retries + 1, problem=problem, pending=pending)
        await run.journal.append(run=entry)
        ticket.entry = entry

    async def _park(self, park: ParkRun) -> None:
        """Leave the run to a further attempt, which is made when it may have what it lacks."""
        ticket, run = self._ticket, self._opening.run
        was, entry = ticket.entry, parked(ticket.entry, park.reason)
        if was.state == RunState.RUNNING and run is not None:
            await run.journal.append(run=entry)
        elif ticket.parked_for != park.reason:
            await write_entry(self._directory.store, entry, seen=was)
        ticket.entry, ticket.parked_for = entry, park.reason

    async def _interrupted(self) -> RunResult[Any]:
        ticket, run = self._ticket, self._opening.run
        if ticket.request.durable and ticket.entry.state == RunState.RUNNING and run is not None:
            entry = moved(ticket.entry, RunInput.INTERRUPT)
            await run.journal.append(run=entry, may_wait=False)
            ticket.entry = entry
        return self.result("interrupted")
