"""How a run ends: completed, stopped from outside, or over whatever came out of its pattern."""

from __future__ import annotations

import asyncio
from typing import Any

from callboard.attempts.last_record import write_end
from callboard.attempts.run_leaving import RunLeaving
from callboard.attempts.run_opening import RunOpening
from callboard.directory import Directory
from callboard.live.live_run import LiveRun
from callboard.runs.entries import ended_early, result_of, write_entry
from callboard.runs.resuming import can_pass
from callboard.runs.stops import StopRun
from callboard.runs.ticket import RunTicket
from callboard.steps.plain_steps import failed
from callboard_protocol.errors import (
    CallboardError,
    DamagedRecordError,
    PoisonousRunError,
    RunNotResumableError,
    StoreError,
    StoreFullError,
    UnpersistableValueError,
)
from callboard_protocol.runs import RunResult, StopReason


class RunEnding:
    """Brings a run to its end, or leaves it to a further attempt where that is what stopped it.

    Args:
        ticket: the run.
        directory: where the other actors are.
        opening: what the attempt stands on.
        leaving: leaves the run to a further attempt.
    """

    def __init__(self, ticket: RunTicket, directory: Directory, opening: RunOpening, leaving: RunLeaving) -> None:
        self._ticket = ticket
        self._directory = directory
        self._opening = opening
        self._leaving = leaving

    async def break_off(self, error: BaseException) -> RunResult[Any]:
        """End the run as what came out of its pattern says."""
        ticket = self._ticket
        if isinstance(error, BaseExceptionGroup):
            # Of a task group around branches, say: what ends the run may be among what it gathered.
            error = _stop_in(error) or _first_of(error, StoreError) or error
        if ticket.stop is not None and not isinstance(error, StopRun | StoreError):
            # Whatever its pattern makes of being stopped, that is why the run ends.
            error = ticket.stop
        elif isinstance(error, asyncio.CancelledError) and _is_cancelled():
            # By the loop, which is about to end without the runtime having been closed.
            error = StopRun("interrupted")
        elif isinstance(error, asyncio.CancelledError):
            # Nobody stopped this run: its own code awaited something that was cancelled.
            error = failed(f"agent {ticket.request.agent_id!r}", error)
        if isinstance(error, StopRun):
            return await self.stop(error)
        if isinstance(error, DamagedRecordError) and self._stands_on(error) and ticket.request.durable:
            return await self._leaving.set_aside(error)
        if isinstance(error, StoreFullError) and ticket.stop is not None:
            return await self._give_up(error, ticket.stop)
        if isinstance(error, StoreError):
            return self._leaving.unwritten(error)
        return await self.end("failed", error=error)

    async def stop(self, stop: StopRun) -> RunResult[Any]:
        """End the run for what stopped it from outside or from within a step, or leave it."""
        if stop.stop_reason == "suspended":
            return await self._leaving.suspend(stop)
        if stop.stop_reason == "interrupted":
            return await self._leaving.interrupt()
        return await self.end(stop.stop_reason, error=stop.error)

    async def end(
        self, stop_reason: StopReason, *, output: Any = None, error: BaseException | None = None
    ) -> RunResult[Any]:
        """Write how the run ended, and all that it has delegated before. An output that cannot be stored is how it
        failed.
        """
        ticket, opening = self._ticket, self._opening
        # Whoever stops the run from now on comes too late, and must not cut its ending short.
        ticket.stop = ticket.stop or StopRun(stop_reason)
        if opening.run is not None and opening.begins_afresh and not opening.has_begun:
            # It was stopped before it began afresh, and ends as it was. Those below it may still be writing that they
            # ended to its session, which is read again behind that.
            await self._leaving.stop_children(leaves=False)
            self._drop_run()
        if opening.run is None and ticket.entry.began_sequence is not None:
            # It was stopped before it went on; what an earlier attempt left open is closed all the same.
            try:
                await opening.open(goes_on=False)
            except (DamagedRecordError, RunNotResumableError):
                # Nothing can be closed in what cannot be read, and the run must not be stuck for that. What has
                # moved on since its end is none of its own.
                await self._leaving.stop_children(leaves=False)
                return await self._never_began(stop_reason, error)
        await self._leaving.stop_children(leaves=False)
        run = opening.run
        if run is None or not opening.has_begun:
            return await self._never_began(stop_reason, error)
        self._tell_of_chances(run, error)
        ordinal = run.journal.claim_ordinal()
        keeps_snapshot = True
        while True:
            try:
                return await write_end(
                    opening, run, ordinal, stop_reason, output=output, error=error, keeps_snapshot=keeps_snapshot
                )
            except UnpersistableValueError as problem:
                if not ticket.request.durable:
                    # It may be any of the run's records, none of which is on disk: nothing of the run is kept.
                    return self._leaving.result("failed", problem)
                if stop_reason == "completed":
                    stop_reason, error, output = "failed", problem, None
                    problem.message = f"run {run.run_id} came to its end, which cannot be stored: {problem.message}"
                elif keeps_snapshot:
                    keeps_snapshot = False
                else:
                    raise

    async def _give_up(self, error: StoreFullError, stop: StopRun) -> RunResult[Any]:
        """The run was stopped while it waited for room, and lets go of what it held."""
        if stop.stop_reason == "interrupted":
            return self._leaving.unwritten(error)
        # Only beginnings are let go of then. What they said never came about, so the run ends as the log has it.
        self._drop_run()
        return await self.stop(stop)

    def _drop_run(self) -> None:
        if self._opening.run is not None:
            self._opening.run.hold.close()
            self._opening.run = None

    def _tell_of_chances(self, run: LiveRun, error: BaseException | None) -> None:
        """Say of a run that fails how often it had been carried on."""
        retries = self._leaving.retries
        if isinstance(error, PoisonousRunError):
            told = {"strikes": error.context["strikes"], "in_flight": error.context["in_flight"]}
        elif error is not None and can_pass(error) and retries:
            assert isinstance(error, CallboardError)
            error.context["tried"] = retries + 1
            error.hint = error.hint or "runtime.resume(run_id) tries once more, when what it needs is there again"
            told = {"retries": retries}
        else:
            return
        run.publish(("run.resume_exhausted", None, told))

    async def _never_began(self, stop_reason: StopReason, error: BaseException | None) -> RunResult[Any]:
        ticket = self._ticket
        entry = ended_early(ticket.entry, stop_reason, error, self._directory.clock.time())
        if ticket.request.durable:
            await write_entry(self._directory.store, entry, seen=ticket.entry)
        ticket.entry = entry
        return result_of(ticket.entry)

    def _stands_on(self, error: DamagedRecordError) -> bool:
        """Whether the run needs what cannot be read: it is its own session's, or else its opening asks for it."""
        return self._opening.run is None or bool(error.context.get("session_id") == self._ticket.session_id)


def _stop_in(group: BaseExceptionGroup[BaseException]) -> StopRun | None:
    """What stops the run, among what branches in a task group raised: what they wait for is asked together."""
    stops = group.subgroup(StopRun)
    if stops is None:
        return None
    found: list[StopRun] = []
    waiting: list[BaseException] = [stops]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        elif isinstance(error, StopRun):
            found.append(error)
    ending = [stop for stop in found if stop.stop_reason != "suspended"]
    return ending[0] if ending else StopRun("suspended", pending=tuple(call for stop in found for call in stop.pending))


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


def _first_of(group: BaseExceptionGroup[BaseException], kind: type[BaseException]) -> BaseException | None:
    """The first exception of a kind in a group, however deep."""
    for error in group.exceptions:
        found = _first_of(error, kind) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, kind):
            return found
    return None
