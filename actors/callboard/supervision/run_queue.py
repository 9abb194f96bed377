"""Runs that wait for a slot: those that have not begun, those that want theirs back, and how each is put to work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from callboard.runs.entries import write_entry
from callboard.runs.ticket import RunTicket
from callboard.sessions.room import room_in
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.errors import RunOvertakenError, StoreFullError


class RunQueue:
    """Has runs wait for their turn, and begins an attempt for each whose turn it is.

    `enqueue` and `requeue` only give a run its place; `admit` is called once everything is in order.

    Args:
        in_hand: the supervisor's runs.
        attempt: carries a run that has a slot and its session on, until it stops.
    """

    def __init__(self, in_hand: RunsInHand, attempt: Callable[[RunTicket], Coroutine[Any, Any, None]]) -> None:
        self._in_hand = in_hand
        self._store = in_hand.store
        self._admission = in_hand.admission
        self._attempt = attempt
        self._waiting_for_slot: dict[str, asyncio.Future[None]] = {}
        self._looking_for_room: asyncio.Task[None] | None = None

    # ---- places in it

    def enqueue(self, ticket: RunTicket) -> None:
        """A run waits for its session, and for a slot."""
        self._admission.enqueue(ticket.entry.order, ticket.run_id, ticket.session_id)

    def requeue(self, ticket: RunTicket) -> None:
        """A run that has begun in its session waits for a slot, before all others of its session."""
        self._admission.requeue(ticket.entry.order, ticket.run_id, ticket.session_id)

    def put_child_first(self, ticket: RunTicket) -> None:
        """Have a run that another one waits for go to work before anything that has not begun."""
        run_id, session_id = ticket.run_id, ticket.session_id
        if not ticket.is_nested:
            if self._admission.holder_of(session_id) not in (None, run_id) or self._admission.queued_in(session_id):
                self.enqueue(ticket)
                self.admit()
                return
            self._admission.hold(run_id, session_id)
        self._admission.ask_back(run_id)
        self.admit()

    async def write_down(self, ticket: RunTicket, reason: str = "") -> None:
        """Write a run that waits: nothing of it is on disk until its turn comes. If that comes meanwhile, its attempt
        begins once this has ended.

        Args:
            ticket: the run.
            reason: what it waits for; empty for whatever keeps it now.

        Raises:
            RunOvertakenError: another process has taken the same run in.
            StoreError: the store refused, and it is not its turn yet.
        """
        ticket.being_written = asyncio.get_running_loop().create_future()
        try:
            if ticket.request.durable:
                await write_entry(self._store, ticket.entry, seen=ticket.entry)
            ticket.accept()
        except (StoreFullError, RunOvertakenError):
            if ticket.task is None:
                raise
            return  # its turn has come, and it is taken in or refused by its own first record
        finally:
            ticket.being_written.set_result(None)
            ticket.being_written = None
        why = reason or ("slot" if self._admission.free_slots <= 0 else "session")
        self._in_hand.publish(ticket, "run.queued", {"reason": why})

    # ---- to work

    def admit(self) -> None:
        """Put to work whoever's turn it is; called whenever that may be somebody."""
        in_hand = self._in_hand
        has_room = self._store.has_room
        while (run_id := self._admission.admit(begins=has_room and not in_hand.is_closing)) is not None:
            back = self._waiting_for_slot.pop(run_id, None)
            ticket = in_hand.tickets[run_id]
            ticket.has_slot = True
            if back is not None:
                back.set_result(None)
                continue
            if in_hand.is_closing and ticket.request.durable:
                self.leave_slot(ticket)  # a child that has not begun: its parent's next attempt comes to it
                continue
            self.put_to_work(ticket)
        if not has_room and self._admission.queued and not in_hand.is_closing and self._looking_for_room is None:
            self._looking_for_room = asyncio.get_running_loop().create_task(self._admit_when_there_is_room())

    def put_to_work(self, ticket: RunTicket) -> None:
        """Begin an attempt of a run that holds its session."""
        attempts = self._in_hand.directory.attempts
        self._in_hand.running += 1
        ticket.is_at_work = ticket.is_pausing = False
        ticket.boundary = None
        ticket.task = asyncio.get_running_loop().create_task(self._attempt(ticket), name=f"run {ticket.run_id}")
        ticket.tell_whether_it_waits()
        attempts.add(ticket.task)
        ticket.task.add_done_callback(attempts.discard)

    def close(self) -> None:
        """Look for room no more."""
        if self._looking_for_room is not None:
            self._looking_for_room.cancel()

    async def _admit_when_there_is_room(self) -> None:
        """What waits in the queue begins once there is room for what comes of it."""
        await room_in(self._store)
        self._looking_for_room = None
        self.admit()

    # ---- slots of runs at work

    def leave_slot(self, ticket: RunTicket) -> None:
        """A run at work waits for something: its slot is another's until then."""
        if ticket.has_slot:
            self._give_back(ticket)
            self.admit()

    def leave_slot_to_child(self, ticket: RunTicket) -> None:
        """A run at work waits for one that it delegated."""
        back = self._waiting_for_slot.pop(ticket.run_id, None)
        if back is not None:
            # A branch of it wants the slot back, which the child may need: it goes on without.
            self._admission.forget_return(ticket.run_id)
            back.set_result(None)
        self.leave_slot(ticket)

    def regain_slot(self, ticket: RunTicket) -> asyncio.Future[None] | None:
        """Done once the run has a slot again, or None where it need not wait; several branches of it may have waited,
        and share one. While one of them waits for a child it has none, for the child may need it: the others go on
        without.
        """
        if ticket.has_slot or ticket.awaits:
            return None
        waiting = self._waiting_for_slot.get(ticket.run_id)
        if waiting is None:
            waiting = self._waiting_for_slot[ticket.run_id] = asyncio.get_running_loop().create_future()
            self._admission.ask_back(ticket.run_id)
            self.admit()
        return waiting

    def forget_slot(self, ticket: RunTicket) -> None:
        """An attempt has ended: the slot that it held, or wanted back, is free; `admit` gives it to another."""
        if ticket.has_slot:
            self._give_back(ticket)
        elif self._waiting_for_slot.pop(ticket.run_id, None) is not None:
            self._admission.forget_return(ticket.run_id)

    def _give_back(self, ticket: RunTicket) -> None:
        ticket.has_slot = False
        self._admission.leave_slot()
