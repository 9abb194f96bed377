"""What an agent's tools are given: opened when an attempt begins, closed with it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from callboard.live.live_run import LiveRun
from callboard.runs.run_info import InheritedDeps, RunInfo
from callboard.runs.stops import ParkRun
from callboard.steps.plain_steps import NOT_MEANT_FOR_US, failed
from callboard_protocol.errors import AgentDefinitionError, CallboardError


async def open_deps(run: LiveRun, stack: AsyncExitStack, *, can_park: bool) -> Any:
    """The deps of a run's tools: its caller's, or else its agent's, or else those of the run that delegated it.

    Args:
        run: the run.
        stack: closes what a factory opens.
        can_park: whether the run is left to a further attempt where the factory fails.

    Raises:
        ParkRun: the factory failed, and the run can be left.
        CallboardError: the factory failed, or gave no async context manager.
    """
    agent, deps = run.agent, run.ticket.deps
    if isinstance(deps, InheritedDeps):
        if agent.deps is None:
            return deps.value
        deps = None
    deps = agent.deps if deps is None else deps
    if not callable(deps):
        return deps
    info = RunInfo(run.run_id, run.session_id, agent.id, run.attempt, dict(run.request.metadata))
    try:
        return await stack.enter_async_context(_manager(deps(info), agent.id))
    except (Exception, *NOT_MEANT_FOR_US) as problem:
        who = f"the deps factory of agent {agent.id!r}"
        error = problem if isinstance(problem, CallboardError) else failed(who, problem)
        if can_park:
            raise ParkRun(error.message) from problem
        if error is problem:
            raise
        raise error from problem


def _manager(opened: object, agent_id: str) -> AbstractAsyncContextManager[Any]:
    if isinstance(opened, AbstractAsyncContextManager):
        return opened
    raise AgentDefinitionError(
        f"the deps factory of agent {agent_id!r} gave a {type(opened).__qualname__}, which is no async context manager",
        hint="@asynccontextmanager async def deps(info: RunInfo): yield ...",
    )
