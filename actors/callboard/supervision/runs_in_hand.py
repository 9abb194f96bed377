"""What the rooms of one supervisor share: the runs that have not ended, and who holds slots, sessions and budgets."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from callboard.agents import Agent
from callboard.directory import Directory
from callboard.limits import RuntimeLimits, RuntimeStats
from callboard.runs.account_draws import AccountDraws
from callboard.runs.budgets import Budgets
from callboard.runs.ticket import RunTicket
from callboard.sessions.active_sessions import ActiveSessions
from callboard.supervision.admission import Admission
from callboard_protocol.errors import RuntimeClosingError, SessionHeldByAncestorError
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import RunState


class RunsInHand:
    """The runs of one supervisor, and what they hold.

    Args:
        directory: where the other actors are.
        agents: the registered agents, by id; shared with the runtime, which changes it.
        limits: how much to take on.

    Attributes:
        store: where runs last.
        clock: what they go by.
        tickets: the runs, by id: those at work, those that wait, and those followed that another process carries.
        admission: who has slots and sessions.
        sessions: those that are in memory.
        draws: what runs draw on named accounts.
        budgets: what each run may still use up.
        running: attempts at work.
        being_taken_in: runs that are being submitted.
        completed: runs that have completed here.
        stopped: runs that have ended here otherwise.
        recovered: runs taken over from earlier processes, or from others that died.
        left_over: runs that a closing runtime leaves to the next start.
        drained: done once nothing is at work any more; None while the runtime is not closing.
    """

    def __init__(self, directory: Directory, agents: dict[str, Agent[Any, Any]], limits: RuntimeLimits) -> None:
        self.directory = directory
        self.store = directory.store
        self.clock = directory.clock
        self.agents = agents
        self.limits = limits
        self.tickets: dict[str, RunTicket] = {}
        self.admission = Admission(limits.max_concurrent_runs)
        self.sessions = ActiveSessions(directory.system, directory.store, limits, directory.clock)
        self.draws = AccountDraws(directory.store)
        self.budgets = Budgets(self.draws)
        self.running = 0
        self.being_taken_in = 0
        self.completed = 0
        self.stopped = 0
        self.recovered = 0
        self.left_over = 0
        self.drained: asyncio.Future[None] | None = None
        self._last_order = 0

    # ---- the table

    def ticket_of(self, entry: RunEntry) -> RunTicket:
        """A ticket for a run of the store, with the agent that is registered now; it is not in the table yet."""
        agent = self.agents.get(entry.request.agent_id)
        return RunTicket(entry, agent, None if agent is None else agent.model)

    def next_order(self) -> int:
        """The place in the queue of a run that arrives now: behind all others."""
        self._last_order = max(self._last_order + 1, time.time_ns())
        return self._last_order

    def note_order(self, order: int) -> None:
        """A run was taken over with its place in the queue: whatever arrives later comes behind it."""
        self._last_order = max(self._last_order, order)

    def refuse_to_wait_for_itself(self, run_id: str, session_id: str) -> None:
        """Let a run pass that is about to wait for a session.

        Args:
            run_id: the run that waits; empty where it is none.
            session_id: the session.

        Raises:
            SessionHeldByAncestorError: it holds that session itself, or a run does which waits for it.
        """
        holder = self.admission.holder_of(session_id) if run_id else None
        ticket = self.tickets.get(run_id)
        while ticket is not None and holder is not None:
            if ticket.run_id == holder:
                raise SessionHeldByAncestorError(
                    f"run {holder!r} holds session {session_id!r}, and would wait for itself",
                    hint="give the other run a session of its own, or `submit` it and do not wait for it",
                )
            ticket = ticket.parent

    def carries(self, run_id: str) -> bool:
        """Whether a run is this process's, rather than another's which is only followed."""
        ticket = self.tickets.get(run_id)
        return ticket is not None and not ticket.is_elsewhere

    def find_agent(self, ticket: RunTicket) -> bool:
        """Give a run without an agent the one that is registered for it by now; whether it has one."""
        if ticket.agent is None:
            registered = self.agents.get(ticket.request.agent_id)
            if registered is None:
                return False
            ticket.agent, ticket.model = registered, registered.model
        return True

    # ---- closing

    @property
    def is_closing(self) -> bool:
        """Whether runs are only brought to a step's end any more."""
        return self.drained is not None

    def refuse_when_closing(self) -> None:
        """Let new work pass.

        Raises:
            RuntimeClosingError: the runtime is closing.
        """
        if self.drained is not None:
            raise RuntimeClosingError

    def look_whether_drained(self) -> None:
        """Something has come to its end: if the runtime waits for the last one, that may have been it."""
        is_busy = self.running or self.being_taken_in
        if self.drained is not None and not is_busy and not self.drained.done():
            self.drained.set_result(None)

    # ---- telling

    def publish(self, ticket: RunTicket, name: str, fields: dict[str, Any]) -> None:
        """Tell an event of a run to whoever watches it."""
        if not self.directory.watchers.watched(ticket.run_id):
            return
        raw = (name, ticket.run_id, ticket.session_id, ticket.request.agent_id, self.clock.time(), None, fields)
        self.directory.publish([raw])

    def describe(self, *, waiting_for_their_turn: int) -> RuntimeStats:
        """What is in hand right now.

        Args:
            waiting_for_their_turn: runs that wait outside the queue, as they could have caused a crash.
        """
        states = [ticket.entry.state for ticket in self.tickets.values() if not ticket.is_elsewhere]
        held = len(self.directory.held)
        return RuntimeStats(
            running=self.running - held,
            queued=self.admission.queued + waiting_for_their_turn,
            suspended=states.count(RunState.SUSPENDED) + held,
            parked=states.count(RunState.PARKED),
            active_sessions=len(self.sessions),
            free_slots=self.admission.free_slots,
            completed=self.completed,
            stopped=self.stopped,
            recovered=self.recovered,
            quarantined=len(self.store.quarantined()),
        )
