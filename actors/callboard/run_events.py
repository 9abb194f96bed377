"""A run's events from its log and from the bus, as one sequence without gaps or repeats."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from callboard.directory import Directory
from callboard.event_bus import Subscription
from callboard.events.record_events import events_of
from callboard.runs.results import stored_records_of
from callboard.runs.ticket import RunTicket
from callboard_protocol.commands import FindTicket, Subscribe, Unsubscribe
from callboard_protocol.errors import UnknownRunError, UsageError
from callboard_protocol.event_base import Event
from callboard_protocol.event_models_llm import LlmDelta
from callboard_protocol.events import LIVE_ONLY, build_event
from callboard_protocol.records import StepCompleted
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import FINAL, RunState
from callboard_storage.store import Store

_LOOK_AGAIN = 0.02
"""Seconds between looks at the log of a run that another process carries on. Measured: a look costs 20 µs."""

_CURSOR = re.compile(r"r([0-9]{1,18})\.([0-9]{1,4})")

_NOTHING_TOLD = (-1, 0)

_STANDING = frozenset({RunState.SUSPENDED, RunState.PARKED})


async def follow_run(directory: Directory, run_id: str, after: str | None) -> AsyncIterator[Event]:
    """What the log holds after a cursor, then what happens, until the run has stopped.

    Args:
        directory: where the runtime's actors are.
        run_id: the run.
        after: an event's cursor; None for the beginning.

    Raises:
        UnknownRunError: there is no such run.
        UsageError: `after` is no cursor.
    """
    told = _NOTHING_TOLD if after is None else _position(after)
    subscription: Subscription = await directory.bus.ask(Subscribe(run_id=run_id))
    try:
        ticket: RunTicket | None = await directory.supervisor.ask(FindTicket(run_id=run_id))
        if ticket is not None and ticket.is_elsewhere:
            ticket = None  # its events are published there; here the log is read as it grows
        if ticket is not None:
            # By way of the bus, so that it ends behind the run's last events.
            ticket.result.add_done_callback(lambda _: directory.bus.tell(Unsubscribe(subscription=subscription)))
        entry = await directory.store.read_run(run_id)
        if entry is None and ticket is None:
            raise UnknownRunError(f"there is no run {run_id!r}", context={"run_id": run_id})
        log = _RunLog(directory.store, told)
        while True:
            if entry is not None:
                async for event in log.read_on(entry):
                    yield event
            if ticket is not None or entry is None or entry.state in FINAL or entry.state in _STANDING:
                break
            await asyncio.sleep(_LOOK_AGAIN)
            entry = await directory.store.read_run(run_id)
        if ticket is not None:
            async for event in _live(ticket, subscription, directory.clock.time()):
                is_recorded = event.name not in LIVE_ONLY and event.sequence is not None
                if not is_recorded or _place(event) > log.told:
                    yield event
    finally:
        subscription.close()


class _RunLog:
    """A run's events as its log holds them, read on from wherever the last look ended.

    Args:
        store: where the log is.
        told: the place of the last event that is known already.

    Attributes:
        told: the place of the last event that was read.
    """

    def __init__(self, store: Store, told: tuple[int, int]) -> None:
        self.told = told
        self._store = store
        self._next: int | None = None
        self._steps = 0

    async def read_on(self, entry: RunEntry) -> AsyncIterator[Event]:
        """What is there by now."""
        async for stored in stored_records_of(self._store, entry, start=self._next):
            record = stored.record
            self._next = stored.sequence + 1
            self._steps += isinstance(record, StepCompleted)
            if record.ordinal < self.told[0]:
                continue
            for raw in events_of(record, entry.session_id, entry.request.agent_id, self._steps):
                event = build_event(raw)
                if _place(event) > self.told:
                    self.told = _place(event)
                    yield event


async def _live(ticket: RunTicket, subscription: Subscription, now: float) -> AsyncIterator[Event]:
    """What is being written, and then what happens; pieces that the first holds are not told twice."""
    known = {call_id: partial.length for call_id, partial in ticket.partials.items()}
    for partial in list(ticket.partials.values()):
        told = {**partial.told(), "text": partial.text}
        yield build_event(("llm.partial", ticket.run_id, ticket.session_id, ticket.request.agent_id, now, None, told))
    async for event in subscription:
        if not isinstance(event, LlmDelta) or event.offset >= known.get(event.call_id, 0):
            yield event


def _place(event: Event) -> tuple[int, int]:
    """Where a recorded event stands among those of its run."""
    return (-1 if event.sequence is None else event.sequence), event.place


def _position(cursor: object) -> tuple[int, int]:
    position = _CURSOR.fullmatch(cursor) if isinstance(cursor, str) else None
    if position is None:
        raise UsageError(f"{cursor!r:.40} is no cursor", hint="pass the `cursor` of an event you have read")
    return int(position[1]), int(position[2])
