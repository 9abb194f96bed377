"""What is done with sessions beside runs: checkpoints under names, parking them now, using one alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from callboard.supervision.run_queue import RunQueue
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.commands import SaveCheckpoint
from callboard_protocol.errors import RuntimeBusyError
from callboard_protocol.sessions import SessionCheckpoint

_NO_RUN = "\0"
"""Holds a session that no run may have for a moment; no run's id can be this."""

_TURNS_TO_CLOSE: Final = 16
"""Of the loop: many more than a session takes to let go of a run that has ended."""


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
        if has_run:
            raise _busy(session_id)
        self._admission.hold(_NO_RUN, session_id)
        try:
            if not await self._is_parked(session_id):
                raise _busy(session_id)
            return await work()
        finally:
            self._admission.release(_NO_RUN, session_id)
            self._queue.admit()

    async def _is_parked(self, session_id: str) -> bool:
        """Whether nothing uses the session any more. One whose run has just ended is told to close it, and does that in
        one of the loop's next turns.
        """
        for _ in range(_TURNS_TO_CLOSE):
            if self._sessions.park(session_id):
                return True
            await asyncio.sleep(0)
        return self._sessions.park(session_id)


def _busy(session_id: str) -> RuntimeBusyError:
    return RuntimeBusyError(f"session {session_id!r} has a run", hint="cancel it, or wait until it has ended")
