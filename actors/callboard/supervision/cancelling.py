"""Runs that are stopped for good from outside, wherever they are: at work, waiting, or in another process."""

from __future__ import annotations

import asyncio
import contextlib

from callboard.runs.entries import ended_early, result_of, write_entry
from callboard.runs.stops import StopRun, cancelled
from callboard.runs.ticket import RunTicket
from callboard.supervision.correspondence import Correspondence
from callboard.supervision.returning import ReturningRuns
from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_in_hand import RunsInHand
from callboard.supervision.taking_over import TakingOver
from callboard_protocol.commands import CancelRun
from callboard_protocol.errors import RunEndedError, RunOvertakenError, RuntimeBusyError, StoreFullError
from callboard_protocol.states import FINAL, RunState


class Cancelling:
    """Stops runs where they are.

    Args:
        in_hand: the supervisor's runs.
        queue: those that wait for a slot.
        returning: those between two attempts.
        taking_over: brings a run into hand that nobody carries.
        correspondence: asks other processes.
    """

    def __init__(
        self,
        in_hand: RunsInHand,
        queue: RunQueue,
        *,
        returning: ReturningRuns,
        taking_over: TakingOver,
        correspondence: Correspondence,
    ) -> None:
        self._in_hand = in_hand
        self._admission = in_hand.admission
        self._queue = queue
        self._returning = returning
        self._taking_over = taking_over
        self._correspondence = correspondence
        self._ending: dict[str, asyncio.Task[bool]] = {}

    async def cancel(self, message: CancelRun) -> bool:
        """Stop a run; once it has stopped, whether that was what stopped it.

        Raises:
            RuntimeBusyError: it is part of a session that its parent holds, which is not at work.
            StoreFullError: the store has no room to say so.
        """
        ticket = await self._taking_over.found(message.run_id)
        if ticket is None:
            return False
        if ticket.is_elsewhere:
            with contextlib.suppress(RunEndedError):
                await self._correspondence.ask_to_stop(ticket.entry, message.by, message.reason)
            return await self._cancelled_elsewhere(ticket)
        stop = cancelled(ticket.run_id, message.by, message.reason)
        self._returning.forget(ticket)
        if ticket.task is not None:
            if ticket.stop is not None and ticket.is_held and not ticket.result.done():
                return False  # it has come to its end, which waits to be written
            ticket.stop_with(stop, by=message.by, reason=message.reason)
            was_cancelled = await _cancelled_at_last(ticket)
            if ticket.entry.state != RunState.SUSPENDED or ticket.task is not None:
                return was_cancelled
        if ticket.entry.began_sequence is not None and (ticket.unreadable is None or ticket.children):
            self._end_by_attempt(ticket, stop, message)
            return await _cancelled_at_last(ticket)
        ending = self._ending.get(ticket.run_id)
        if ending is None:
            work = self._end_without_attempt(ticket, stop, message.reason)
            ending = self._ending[ticket.run_id] = asyncio.get_running_loop().create_task(work)
            ending.add_done_callback(lambda _: self._ending.pop(ticket.run_id))
        await asyncio.wait([ending])
        # Where it was begun or ended elsewhere, it is stopped there, if it still can be.
        return ending.result() or await self.cancel(message)

    async def _cancelled_elsewhere(self, ticket: RunTicket) -> bool:
        """Whether a run that another process carries was cancelled, once it has stopped."""
        if await _cancelled_at_last(ticket):
            return True
        if ticket.entry.state in FINAL:
            return False
        # It was seen to wait for a decision, before whoever carries it had read the letter.
        followed = await self._taking_over.found(ticket.run_id)
        if followed is not None:
            return await _cancelled_at_last(followed)
        ended = await self._in_hand.store.read_run(ticket.run_id)
        return ended is not None and ended.state == RunState.CANCELLED

    def _end_by_attempt(self, ticket: RunTicket, stop: StopRun, message: CancelRun) -> None:
        """What a run left open in its transcript is closed by an attempt that only ends it."""
        if ticket.is_nested and ticket.parent is not None and ticket.parent.task is None:
            raise RuntimeBusyError(
                f"run {ticket.run_id!r} is part of a session that its parent holds, which is not at work",
                hint=f"cancel run {ticket.parent.run_id!r}, and this one is cancelled with it",
            )
        if ticket.result.done():
            ticket.result = asyncio.get_running_loop().create_future()
        ticket.stop, ticket.stopped_by, ticket.reason = stop, message.by, message.reason
        ticket.unreadable = None
        self._admission.withdraw(ticket.run_id, ticket.session_id)
        if not ticket.is_nested:
            self._admission.hold(ticket.run_id, ticket.session_id)
        self._queue.put_to_work(ticket)

    async def _end_without_attempt(self, ticket: RunTicket, stop: StopRun, reason: str) -> bool:
        """A run that has written nothing to its session, or whose session cannot be read, ends in the table of runs;
        whether it did, or somebody else was quicker to begin or to end it.
        """
        was_queued = self._admission.withdraw(ticket.run_id, ticket.session_id)
        entry = ended_early(ticket.entry, "cancelled", stop.error, self._in_hand.clock.time())
        if ticket.request.durable:
            try:
                await write_entry(self._in_hand.store, entry, seen=ticket.entry)
            except RunOvertakenError:
                await self._taking_over.leave_to_whoever_has(ticket)
                return False
            except StoreFullError:
                if was_queued:  # as it was: nothing says that it was cancelled
                    self._queue.enqueue(ticket)
                    self._queue.admit()
                raise
        ticket.entry = entry
        self._admission.release(ticket.run_id, ticket.session_id)
        self._in_hand.tickets.pop(ticket.run_id, None)
        self._in_hand.stopped += 1
        self._in_hand.publish(ticket, "run.cancelled", {"reason": reason})
        ticket.finish(result_of(ticket.entry))
        self._queue.admit()
        return True


async def _cancelled_at_last(ticket: RunTicket) -> bool:
    """Whether the run was cancelled, once it has stopped."""
    result = ticket.result
    await asyncio.wait([result])
    return result.exception() is None and result.result().stop_reason == "cancelled"
