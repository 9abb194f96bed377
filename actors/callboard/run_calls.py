"""What becomes of a caller's request: taken in, waited for, stopped when its caller is."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from callboard.access import Runs
from callboard.agents import Agent
from callboard.runs.entries import result_of
from callboard.runs.results import read_result
from callboard.runs.run_info import run_at_work
from callboard.runs.ticket import RunTicket
from callboard.runtime_life import RuntimeLife
from callboard_protocol.commands import CancelRun, FollowRun, SubmitRun
from callboard_protocol.errors import ActorError, RuntimeClosingError, UsageError
from callboard_protocol.runs import RunRequest, RunResult
from callboard_protocol.states import FINAL, RunState


class RunCalls:
    """Asks the supervisor for runs, on behalf of whoever called the runtime.

    Args:
        life: where the supervisor is, as long as the runtime is open.
    """

    def __init__(self, life: RuntimeLife) -> None:
        self._life = life

    async def take_in(
        self, agent: Agent[Any, Any], request: RunRequest, deps: Any, *, is_new: bool, awaited_by: str = ""
    ) -> RunTicket:
        """Submit a run.

        Args:
            agent: who runs.
            request: what is asked.
            deps: stands in for the agent's own.
            is_new: whether its id was made for it, so that nobody can know it.
            awaited_by: the run that is about to wait for it; empty where it is none.

        Raises:
            CallboardError: it was not taken in.
        """
        if self._life.is_closing:
            raise RuntimeClosingError
        message = SubmitRun(
            request=request, agent=agent, model=agent.model, deps=deps, is_new=is_new, awaited_by=awaited_by
        )
        ticket: RunTicket = await self._life.directory.supervisor.ask(message, timeout=None)
        return ticket

    async def abandon(self, run_id: str) -> None:
        """The caller that a run was for has been cancelled; the run too, if it is still going."""
        message = CancelRun(run_id=run_id, reason="the caller was cancelled")
        with contextlib.suppress(ActorError):
            await self._life.directory.supervisor.ask(message, timeout=None)

    async def settled(self, ticket: RunTicket) -> RunResult[Any]:
        """The result of a run in hand, once there is one.

        Raises:
            SessionHeldByAncestorError: the run that calls this holds that run's session, and would wait for itself.
        """
        awaited_by = run_at_work.get()
        if awaited_by and not ticket.result.done():
            follow = FollowRun(run_id=ticket.run_id, awaited_by=awaited_by)
            await self._life.directory.supervisor.ask(follow, timeout=None)
        result: RunResult[Any] = await asyncio.shield(ticket.result)
        return result

    async def wait(self, run_id: str) -> RunResult[Any]:
        """The result of a run, once there is one, whoever submitted it.

        Raises:
            UnknownRunError: there is no such run.
            SessionHeldByAncestorError: the run that calls this holds that run's session, and would wait for itself.
            UsageError: nobody carries it on.
        """
        follow = FollowRun(run_id=run_id, awaited_by=run_at_work.get())
        ticket = await self._life.directory.supervisor.ask(follow, timeout=None)
        if ticket is not None:
            result: RunResult[Any] = await asyncio.shield(ticket.result)
            return result
        directory = self._life.here
        entry = await Runs(directory).get(run_id)
        if entry.state in FINAL:
            return await read_result(directory.store, entry, directory.agents.get(entry.request.agent_id))
        if entry.state == RunState.SUSPENDED:
            return result_of(entry)
        raise UsageError(
            f"run {run_id!r} is {entry.state.value!r} and nobody carries it on",
            hint="runtime.resume(run_id) does, and so does a Runtime with recover=True",
        )
