"""What is done with sessions beside runs: checkpoints under names, parking them now, using one alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.commands import SaveCheckpoint
from callboard_protocol.errors import RuntimeBusyError
from callboard_protocol.sessions import SessionCheckpoint

_NO_RUN = "\0"
"""Holds a session that no run may have for a moment; no run's id can be this."""


class SessionVisits:
    """Enters sessions for whoever is not a run.

    Args:
        in_hand: the supervisor's runs.
        queue: those that wait; one may want a session that has just become free.
    """

    def __init__(self, in_hand: RunsInHand, queue: RunQueue) -> None:
        self._in_hand = in_hand
        self._sessions = in_hand.sessions
        self._admission = in_hand.admission
        self._queue = queue

    async def save_checkpoint(self, session_id: str, name: str) -> SessionCheckpoint:
        """Have the session keep a checkpoint, waking it if need be."""
        active = self._sessions.enter(session_id)
        try:
            checkpoint: SessionCheckpoint = await active.session.ask(SaveCheckpoint(name=name), timeout=None)
            return checkpoint
        finally:
            self._sessions.leave(session_id)

    async def use_alone(self, session_id: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """Hold a session that no run has, as a run would, while something else is done with it.

        Raises:
            RuntimeBusyError: a run uses it or waits for it.
        """
        is_held = self._admission.holder_of(session_id) is not None
        has_run = is_held or any(ticket.session_id == session_id for ticket in self._in_hand.tickets.values())
        if has_run or not self._sessions.park(session_id):
            raise RuntimeBusyError(f"session {session_id!r} has a run", hint="cancel it, or wait until it has ended")
        self._admission.hold(_NO_RUN, session_id)
        try:
            return await work()
        finally:
            self._admission.release(_NO_RUN, session_id)
            self._queue.admit()
