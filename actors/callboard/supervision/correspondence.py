"""What is said to runs from outside: decisions, signals, cancellations, from this process or from another one; also
what is said where nobody has decided in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import time_ns
from typing import Any

from callboard import fault_points
from callboard.clock import Timer
from callboard.runs.results import records_of
from callboard.runs.ticket import RunTicket
from callboard.supervision.runs_in_hand import RunsInHand
from callboard.tools.results import to_plain
from callboard_protocol.errors import (
    AlreadyDecidedError,
    RunEndedError,
    UnknownCallError,
    UnknownRunError,
    UsageError,
)
from callboard_protocol.letters import PostedCancellation, PostedDecision, PostedSignal
from callboard_protocol.records import DecisionMade
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import FINAL, RunState
from callboard_protocol.tools import Allow, Decision, Deny, Happened, NotHappened, PendingCall
from callboard_storage.posting import post, send

_ANSWERS: Mapping[str, tuple[type[Any], ...]] = {
    "approval": (Allow, Deny),
    "in_doubt": (Happened, NotHappened, Deny),
}
"""What can be decided about a call, by what is asked about it."""

_HOW = {
    "approval": "Allow() or Deny(reason)",
    "in_doubt": "Happened(result), NotHappened() to make it again, or Deny() to tell the model that nobody knows",
}

_EARLY = 0.001
"""Seconds by which a timer may come before the instant it was set for: the two are read off different clocks."""

NOBODY = "callboard"
"""Who decides where nobody did in time."""


class Correspondence:
    """Posts letters, and one of its own for each call that nobody decides in time.

    Args:
        in_hand: the supervisor's runs.
        arrived: called with a run for which this has posted a letter.
    """

    def __init__(self, in_hand: RunsInHand, arrived: Callable[[str], Awaitable[object]]) -> None:
        self._store = in_hand.store
        self._tickets = in_hand.tickets
        self._clock = in_hand.clock
        self._arrived = arrived
        self._expiries: dict[str, Timer] = {}
        self._expiring: set[asyncio.Task[None]] = set()

    async def decide(self, call_id: str, decision: Decision, by: str, note: str) -> None:
        """Post what was decided about a pending call.

        Raises:
            UnknownCallError: no run asks about such a call.
            AlreadyDecidedError: it was decided before.
            RunEndedError: its run has ended.
            UsageError: that is no answer to what is asked.
            UnpersistableValueError: the result it names cannot be stored.
        """
        entry = await self._asking(call_id)
        pending = next((call for call in entry.pending if call.call_id == call_id), None)
        step = call_id[len(entry.run_id) + 1 :]
        if pending is None:
            await self._refuse(entry, call_id, step)
            return
        letter = PostedDecision(
            run_id=entry.run_id,
            step=step,
            reason=pending.reason,  # type: ignore[arg-type]  # what has a call id is asked about a call
            attempt=pending.attempt,
            tool=pending.tool,
            decision=_fitting(decision, pending),
            arguments_digest=bytes.fromhex(pending.arguments_digest),
            by=by,
            note=note,
            at=self._clock.time(),
        )
        await post(self._store, entry.session_id, letter)
        fault_points.reach("letter.posted", call_id)
        await self._arrived(entry.run_id)

    async def send(self, run_id: str, channel: str, value: Any) -> None:
        """Send a value to a run.

        Raises:
            UnknownRunError: there is no such run.
            RunEndedError: it has ended.
            UnpersistableValueError: the value cannot be stored.
        """
        plain = to_plain(value)
        ticket = self._tickets.get(run_id)
        if ticket is not None and not ticket.request.durable:
            letter = PostedSignal(run_id=run_id, number=time_ns(), channel=channel, value=plain, at=self._clock.time())
            self._store.batch(ticket.session_id).post(letter)  # what could not be stored is refused here as elsewhere
            ticket.mail.take_in([letter])
            return
        entry = await self._entry(run_id) if ticket is None else ticket.entry
        await send(self._store, entry.session_id, run_id, channel, plain)
        fault_points.reach("letter.posted", run_id)
        await self._arrived(run_id)

    async def ask_to_stop(self, entry: RunEntry, by: str, reason: str) -> None:
        """Post that a run is to be stopped by whoever carries it.

        Raises:
            RunEndedError: it has ended meanwhile.
        """
        letter = PostedCancellation(run_id=entry.run_id, by=by, reason=reason, at=self._clock.time())
        await post(self._store, entry.session_id, letter)
        fault_points.reach("letter.posted", entry.run_id)

    # ---- expiry

    def await_expiry(self, ticket: RunTicket) -> None:
        """Have the calls that a suspended run asks about denied when nobody has decided them in time."""
        self.forget_expiry(ticket.run_id)
        if ticket.entry.state != RunState.SUSPENDED:
            return
        times = [call.expires_at for call in ticket.entry.pending if call.expires_at is not None]
        if times:
            left = max(0.0, min(times) - self._clock.time())
            self._expiries[ticket.run_id] = self._clock.call_later(left, self._begin_expiry, ticket)

    def forget_expiry(self, run_id: str) -> None:
        """The run asks no more, or is no more in hand."""
        timer = self._expiries.pop(run_id, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Let nothing expire any more; the next start does."""
        for timer in self._expiries.values():
            timer.cancel()
        self._expiries.clear()
        for task in self._expiring:
            task.cancel()

    def _begin_expiry(self, ticket: RunTicket) -> None:
        self._expiries.pop(ticket.run_id, None)
        task = asyncio.get_running_loop().create_task(self._expire(ticket), name=f"expiry {ticket.run_id}")
        self._expiring.add(task)
        task.add_done_callback(self._expiring.discard)

    async def _expire(self, ticket: RunTicket) -> None:
        now = self._clock.time() + _EARLY
        for call in ticket.entry.pending:
            if call.expires_at is not None and call.expires_at <= now:
                try:
                    await self.decide(call.call_id, Deny("nobody decided in time"), NOBODY, "")
                except (AlreadyDecidedError, UnknownCallError, RunEndedError):
                    continue  # somebody was quicker
        self.await_expiry(ticket)

    # ---- whom it is for

    async def _entry(self, run_id: str) -> RunEntry:
        entry = await self._store.read_run(run_id)
        if entry is None:
            raise UnknownRunError(f"there is no run {run_id!r}", context={"run_id": run_id})
        return entry

    async def _asking(self, call_id: str) -> RunEntry:
        """The run a call belongs to. Its id may hold colons, as that of a run that another one started does."""
        end = len(call_id)
        while (end := call_id.rfind(":", 0, end)) > 0:
            entry = await self._store.read_run(call_id[:end])
            if entry is not None:
                return entry
        raise UnknownCallError(f"there is no run that could have made the call {call_id!r}")

    async def _refuse(self, entry: RunEntry, call_id: str, step: str) -> None:
        letters = await self._store.read_letters(entry.session_id, entry.run_id)
        records = [record async for record in records_of(self._store, entry) if isinstance(record, DecisionMade)]
        if any(one.step == step for one in [*letters, *records] if isinstance(one, PostedDecision | DecisionMade)):
            raise AlreadyDecidedError(f"the call {call_id!r} was decided before", context={"call_id": call_id})
        if entry.state in FINAL:
            raise RunEndedError(f"run {entry.run_id!r} has ended: its call {call_id!r} is not decided any more")
        asked = ", ".join(repr(call.call_id) for call in entry.pending if call.call_id)
        raise UnknownCallError(
            f"run {entry.run_id!r} asks nothing about a call {call_id!r}",
            hint=f"it asks about {asked}" if asked else "it asks about no call now",
        )


def _fitting(decision: Decision, pending: PendingCall) -> Decision:
    """The decision as it is stored.

    Raises:
        UsageError: it is no answer to what is asked.
        UnpersistableValueError: the result it names cannot be stored.
    """
    given: object = decision
    if not isinstance(given, _ANSWERS.get(pending.reason, ())):
        what = type(given).__name__ if isinstance(given, Allow | Deny | Happened | NotHappened) else repr(given)[:40]
        raise UsageError(
            f"{what} is no answer for the call {pending.call_id!r}: {pending.message}", hint=_HOW.get(pending.reason)
        )
    if isinstance(given, Happened):
        return Happened(to_plain(given.result))
    return decision
