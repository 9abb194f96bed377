"""Runs at work: an attempt with what it needs around it, and what becomes of the run when that has ended."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from callboard.agents import Agent
from callboard.attempts.attempt import RunAttempt
from callboard.runs.entries import interrupted, moved
from callboard.runs.stops import RunElsewhere, SessionElsewhere
from callboard.runs.ticket import RunTicket
from callboard.supervision.correspondence import Correspondence
from callboard.supervision.incoming_letters import IncomingLetters
from callboard.supervision.making_way import MakingWay
from callboard.supervision.neighbours import Neighbours
from callboard.supervision.returning import ReturningRuns
from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_in_hand import RunsInHand
from callboard.supervision.taking_over import TakingOver
from callboard_protocol.errors import (
    DamagedRecordError,
    RunOvertakenError,
    RuntimeBusyError,
    RuntimeClosingError,
    StoreError,
)
from callboard_protocol.runs import RunResult
from callboard_protocol.states import RunInput, RunState


class RunsAtWork:
    """Carries runs on that have a slot and their session, and takes both back.

    Args:
        in_hand: the supervisor's runs.
        queue: those that wait for a slot.
        taking_over: leaves a run to whoever has it.
        returning: those between two attempts.
        letters: what has come for them.
        correspondence: where the calls that they ask about expire.
        making_way: clears the session of a run that interrupts another.
        neighbours: other processes, who may have the session.
    """

    def __init__(
        self,
        in_hand: RunsInHand,
        queue: RunQueue,
        *,
        taking_over: TakingOver,
        returning: ReturningRuns,
        letters: IncomingLetters,
        correspondence: Correspondence,
        making_way: MakingWay,
        neighbours: Neighbours,
    ) -> None:
        self._in_hand = in_hand
        self._queue = queue
        self._taking_over = taking_over
        self._returning = returning
        self._letters = letters
        self._correspondence = correspondence
        self._making_way = making_way
        self._neighbours = neighbours

    async def attempt(self, ticket: RunTicket) -> None:
        """Carry a run on until it stops, and do with it what follows from that."""
        # A parked run has no agent, and needs none to be ended.
        agent = ticket.agent or Agent(ticket.request.agent_id)
        sessions = self._in_hand.sessions
        active = sessions.enter(ticket.session_id)
        try:
            if ticket.being_written is not None:
                # Whether the run has been taken in decides whether its first record may wait for room, or is refused.
                await asyncio.wait([ticket.being_written])
            ticket.is_at_work = True
            keeps = None if ticket.is_nested else agent.memory
            memory = None if keeps is None else sessions.memory_of(ticket.session_id, keeps)
            result = await RunAttempt(ticket, agent, active.session, memory, self._in_hand.directory).perform()
        except SessionElsewhere:
            await self._stand_back(ticket)
        except RunElsewhere:
            await self._stand_aside(ticket)
        except BaseException as error:
            self._let_go(ticket)
            ticket.fail(error)
            self._queue.admit()
            if not isinstance(error, Exception):
                raise
        else:
            if result is None:
                self._keep_for_later(ticket)
            else:
                self._stopped(ticket, result)
            self._queue.admit()

    def _keep_for_later(self, ticket: RunTicket) -> None:
        """The attempt has ended, and the run has not."""
        self._let_go(ticket, keeps_session=ticket.entry.began_sequence is not None)
        self._in_hand.left_over += self._in_hand.is_closing
        self._returning.keep(ticket)

    def _stopped(self, ticket: RunTicket, result: RunResult[Any]) -> None:
        """The run has ended, or waits for something."""
        in_hand = self._in_hand
        self._let_go(ticket, keeps_session=ticket.entry.state == RunState.SUSPENDED)
        self._returning.forget(ticket)
        if ticket.unreadable is not None and not in_hand.is_closing:
            result = self._park_unreadable(ticket, ticket.unreadable, result)
        elif result.stop_reason == "completed":
            in_hand.completed += 1
        elif result.stop_reason != "suspended":
            in_hand.stopped += 1
        if result.stop_reason == "interrupted":
            is_written = ticket.entry.began_sequence is not None or ticket.unreadable is not None
            ticket.accept(None if is_written else RuntimeClosingError())
            in_hand.left_over += ticket.request.durable and ticket.accepted.exception() is None
        in_hand.publish(
            ticket,
            "session.run.completed",
            {"stop_reason": result.stop_reason, "queued": in_hand.admission.queued_in(ticket.session_id)},
        )
        # Somebody may have decided while other calls of the run were still being made.
        if not self._letters.wake_if_decided(ticket):
            ticket.finish(result)
            self._correspondence.await_expiry(ticket)
        if ticket.parent is not None and ticket.entry.state == RunState.INTERRUPTED and not in_hand.is_closing:
            in_hand.tickets[ticket.run_id] = ticket  # for its parent's next attempt

    async def _stand_back(self, ticket: RunTicket) -> None:
        """Another process has the run's session: it waits for that without a slot, and begins again."""
        refused = ticket.request.on_busy == "reject" and not ticket.accepted.done()
        if self._in_hand.is_closing or refused:
            self._let_go(ticket)
            ticket.accept(RuntimeBusyError(f"session {ticket.session_id!r} has a run in another process"))
            ticket.finish(interrupted(ticket.entry))
            self._queue.admit()
            return
        if not ticket.accepted.done() and ticket.request.durable:
            stored = await self._in_hand.store.read_run(ticket.run_id)
            if stored is not None:
                self._let_go(ticket)
                await self._leave_to_whoever_has(ticket)
                return
        self._let_go(ticket, keeps_session=True)
        if ticket.is_interrupting:
            self._making_way.clear(ticket)
        self._in_hand.admission.stand_back(ticket.entry.order, ticket.run_id, ticket.session_id)
        self._neighbours.wait_for(ticket.session_id)
        self._queue.admit()
        if not ticket.accepted.done():
            try:
                await self._queue.write_down(ticket, "session")
            except RunOvertakenError:
                await self._leave_to_whoever_has(ticket)
            except StoreError as problem:
                ticket.fail(problem)  # whoever takes it in lets it go

    async def _stand_aside(self, ticket: RunTicket) -> None:
        """Another process took the very run in at the same moment, and has it."""
        stop, ticket.stop = ticket.stop, None
        self._let_go(ticket)
        await self._leave_to_whoever_has(ticket)
        if stop is not None and stop.stop_reason == "cancelled":
            self._letters.cancel_soon(ticket.run_id, ticket.stopped_by, ticket.reason)

    async def _leave_to_whoever_has(self, ticket: RunTicket) -> None:
        # Whoever submitted it is told what goes wrong, by the ticket.
        with contextlib.suppress(Exception):
            await self._taking_over.leave_to_whoever_has(ticket)

    def _let_go(self, ticket: RunTicket, *, keeps_session: bool = False) -> None:
        """What a run held goes back, whatever became of it."""
        in_hand = self._in_hand
        in_hand.running -= 1
        if ticket.deadline is not None:
            ticket.deadline.cancel()
            ticket.deadline = None
        in_hand.sessions.leave(ticket.session_id)
        in_hand.budgets.close(ticket.run_id)
        self._returning.clear(ticket.run_id)
        self._queue.forget_slot(ticket)
        ticket.task = None
        if not keeps_session:
            in_hand.admission.release(ticket.run_id, ticket.session_id)
            in_hand.tickets.pop(ticket.run_id, None)
        in_hand.look_whether_drained()

    def _park_unreadable(self, ticket: RunTicket, error: DamagedRecordError, result: RunResult[Any]) -> RunResult[Any]:
        """Keep a run at hand whose session cannot be read. It holds nothing: later runs of the session fare alike."""
        if ticket.entry.state == RunState.INTERRUPTED:
            ticket.entry = moved(ticket.entry, RunInput.REQUEUE)
        self._in_hand.tickets[ticket.run_id] = ticket
        self._returning.park(ticket, error.message)
        return result.model_copy(update={"pending": ticket.entry.pending})
