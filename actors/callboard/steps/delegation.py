"""The step that gives work to another agent, and waits for what comes of it."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, TypeAlias, get_args

from callboard import fault_points
from callboard.agents import Agent, find_agent
from callboard.live.live_run import LiveRun
from callboard.live.scopes import Scope
from callboard.requests import own_session
from callboard.runs.results import records_of
from callboard.runs.run_info import InheritedDeps
from callboard.runs.stops import StopRun
from callboard.runs.ticket import RunTicket, SharedSession
from callboard.runs.tree_spending import outcome_of
from callboard.steps.plain_steps import step_record
from callboard.tools.results import to_plain
from callboard_protocol.base import JsonObject, check_identifier
from callboard_protocol.commands import DelegateRun, RegainSlot, StopDelegated
from callboard_protocol.digests import fingerprint
from callboard_protocol.errors import (
    InvalidIdentifierError,
    NonDeterministicRunError,
    NotImplementedYetError,
    RunConflictError,
    StoreError,
    UnknownAgentError,
    UsageError,
)
from callboard_protocol.failures import restore
from callboard_protocol.records import StepCompleted
from callboard_protocol.runs import DelegatedOutcome, OnCrash, RunBudget, RunRequest, RunResult
from callboard_protocol.states import FINAL

SessionSharing: TypeAlias = Literal["isolated", "shared", "forked"]
"""Whether a delegated run has a session of its own, its parent's, or a fork of that."""


async def delegate(
    run: LiveRun,
    scope: Scope,
    agent: Agent[Any, Any] | str,
    said: str,
    *,
    budget: RunBudget | None,
    session: SessionSharing,
    on_crash: OnCrash,
    deps: Any,
    metadata: JsonObject | None,
) -> RunResult[Any]:
    """Have another agent do something, as one step of `scope`; see `RunContext.delegate`."""
    known = await _agent_for(run, scope, agent)
    _check(said, budget, session, on_crash, metadata)
    step = scope.begin(f"delegate {known.id!r}", timed=False)
    run.boundary.begin()
    try:
        fit = fingerprint((said, session, on_crash, budget, metadata or {}))
        recorded = run.journal.recorded(step, "delegate", known.id, fit)
        if recorded is None:
            request = _request(
                run, step, known, said, budget=budget, session=session, on_crash=on_crash, metadata=metadata
            )
            recorded = await _carry_out(run, scope, step, fit, known, request, deps)
        run.state.apply(recorded)
        if isinstance(agent, str):  # it may have been registered while its run waited for it
            known = run.directory.agents.get(agent, known)
        return _result(run, step, known, recorded, metadata or {})
    finally:
        scope.end()
        run.boundary.end()


async def _agent_for(run: LiveRun, scope: Scope, agent: Agent[Any, Any] | str) -> Agent[Any, Any]:
    """Whom the next step delegates to. Where that is on record it need not be registered any more, nor where its run is
    on disk: that waits for it.

    Raises:
        UnknownAgentError: it is not registered.
    """
    if scope.upcoming not in run.journal.completed:
        try:
            return find_agent(run.directory.agents, agent)
        except UnknownAgentError:
            if await run.directory.store.read_run(f"{run.run_id}:{scope.upcoming}") is None:
                raise
    return (run.directory.agents.get(agent) or Agent(agent)) if isinstance(agent, str) else agent


def _check(said: object, budget: object, session: object, on_crash: object, metadata: object) -> None:
    if session == "forked":
        raise NotImplementedYetError(
            "delegating into a forked session is not part of this release",
            hint="session='isolated', or runtime.sessions.fork and a run in the fork",
        )
    if session not in ("isolated", "shared"):
        raise UsageError(f"session={session!r} is no choice of ctx.delegate", hint="one of: isolated, shared")
    if on_crash not in get_args(OnCrash):
        choices = ", ".join(get_args(OnCrash))
        raise UsageError(f"on_crash={on_crash!r} is no choice of ctx.delegate", hint=f"one of: {choices}")
    if session == "shared" and on_crash == "restart":
        raise UsageError(
            "on_crash='restart' goes back in a session, and session='shared' is not the child's own",
            hint="session='isolated', or on_crash='restart' for the run that delegates",
        )
    if not isinstance(said, str):
        raise UsageError(f"the input of ctx.delegate is of type {type(said).__name__}", hint="give a str")
    if not isinstance(budget, RunBudget | None):
        raise UsageError(f"budget={budget!r:.60} is no budget", hint="budget=RunBudget(max_steps=...)")
    if not isinstance(metadata, dict | None):
        raise UsageError(f"metadata={metadata!r:.60} is no dict", hint="metadata={'key': value}")


def _request(
    run: LiveRun,
    step: str,
    agent: Agent[Any, Any],
    said: str,
    *,
    budget: RunBudget | None,
    session: SessionSharing,
    on_crash: OnCrash,
    metadata: JsonObject | None,
) -> RunRequest:
    call_id = f"{run.run_id}:{step}"
    try:
        check_identifier(call_id, "id of the delegated run")
    except InvalidIdentifierError as problem:
        problem.hint = "it is the run's id and the step's: give the run, or its branches, shorter names"
        raise
    return RunRequest(
        agent_id=agent.id,
        session_id=run.session_id if session == "shared" else own_session(call_id),
        run_id=call_id,
        input_text=said,
        parent_run_id=run.run_id,
        metadata=metadata or {},
        approvals=run.request.approvals,
        budget=budget,
        durable=run.request.durable,
        on_crash=on_crash,
    )


async def _carry_out(
    run: LiveRun,
    scope: Scope,
    step: str,
    fit: bytes,
    agent: Agent[Any, Any],
    request: RunRequest,
    deps: Any,
) -> StepCompleted:
    """Have the child run, unless an earlier attempt did, and record what came of it."""
    await run.be_ready()
    if fault_points.armed is not None:
        fault_points.reach("step.about_to_act", request.run_id)
    started = run.directory.clock.monotonic()
    is_shared = request.session_id == run.session_id
    registered = run.directory.agents.get(agent.id)
    try:
        ticket: RunTicket | None = await run.directory.supervisor.ask(
            DelegateRun(
                parent_id=run.run_id,
                request=request,
                agent=registered,
                model=None if registered is None else registered.model,
                deps=InheritedDeps(run.deps) if deps is None else deps,
                shared=SharedSession(scope.conversation.view(), run.state.plain()) if is_shared else None,
            ),
            timeout=None,
        )
        result = None if ticket is None else await _outcome(run, ticket)
        if ticket is None or result is None:
            # This process lets go of the child, and so it does of the run, once nothing of it is in flight.
            if run.boundary.is_closed:
                await run.boundary.stay()
            raise StopRun("interrupted")
    except RunConflictError as conflict:
        raise NonDeterministicRunError(
            f"run {run.run_id}, step {step}: an earlier attempt delegated something else to {agent.id!r} here",
            context={"step": step, "child_run_id": request.run_id},
        ) from conflict
    except asyncio.CancelledError:
        await _stop(run, request.run_id)
        raise
    outcome = DelegatedOutcome(
        session_id=request.session_id,
        stop_reason=result.stop_reason,
        output=_plain_output(ticket, result),
        usage=result.usage,
        artifacts=result.artifacts,
        error_details=result.error_details,
        spent=ticket.entry.spent,
    )
    record = step_record(
        run,
        scope,
        step,
        "delegate",
        agent.id,
        fit=fit,
        value=to_plain(outcome.model_dump()),
        duration=run.directory.clock.monotonic() - started,
    )
    if is_shared:
        left = await _state_left_by(run, ticket)
        if left is not None:
            record = record.model_copy(update={"state": left.state, "state_changed": True})
    landed = await run.land(record)
    run.pause()
    try:
        await run.directory.supervisor.ask(RegainSlot(run_id=run.run_id), timeout=None)
    finally:
        run.unpause()
    return landed


def _plain_output(ticket: RunTicket, result: RunResult[Any]) -> Any:
    """The output of a child as plain data, which it is already where its agent has not been had."""
    if result.stop_reason != "completed" or ticket.agent is None:
        return result.final_output
    return ticket.agent.output.dump(result.final_output)


async def _outcome(run: LiveRun, ticket: RunTicket) -> RunResult[Any] | None:
    """What became of a child; None where this process lets go of it before it has ended.

    Raises:
        StopRun: the run itself is being stopped.
        StoreError: the store refused what the child had to write.
    """
    result = await run.awaited.until_ended(ticket)
    if ticket.entry.state in FINAL:
        return result
    run.heed_stop()
    if result.error_details is None:
        return None
    problem = restore(result.error_details)
    if isinstance(problem, StoreError):
        raise problem
    return result


async def _stop(run: LiveRun, child_id: str) -> None:
    """Nobody waits for a child any more. Where only that is known, it is left where it is: the run that delegated it
    may go on later, and cancels it when it ends for good.
    """
    stop = run.ticket.stop
    leaves = stop is None or stop.stop_reason in ("interrupted", "suspended")
    reason, by = run.ticket.why_below()
    await run.directory.supervisor.ask(
        StopDelegated(parent_id=run.run_id, child_id=child_id, leaves=leaves, reason=reason, by=by), timeout=None
    )


async def _state_left_by(run: LiveRun, ticket: RunTicket) -> StepCompleted | None:
    """The step by which a child last changed the session's state; None if it did not."""
    last: StepCompleted | None = None
    async for record in records_of(run.directory.store, ticket.entry):
        if isinstance(record, StepCompleted) and record.state_changed:
            last = record
    return last


def _result(
    run: LiveRun, step: str, agent: Agent[Any, Any], recorded: StepCompleted, metadata: JsonObject
) -> RunResult[Any]:
    """The child's result, the same live and on replay."""
    if recorded.error is not None:
        raise restore(recorded.error)
    outcome = outcome_of(recorded)
    return RunResult(
        run_id=f"{run.run_id}:{step}",
        session_id=outcome.session_id,
        agent_id=agent.id,
        final_output=agent.output.load(outcome.output) if outcome.stop_reason == "completed" else None,
        stop_reason=outcome.stop_reason,
        usage=outcome.usage,
        artifacts=outcome.artifacts,
        error_details=outcome.error_details,
        metadata=metadata,
    )
