"""One tool call, from its arguments to its record: approval, budget, intent, dispatch, doubt."""

from __future__ import annotations

import asyncio
import difflib
from typing import Any

from callboard import fault_points
from callboard.live.live_run import IDEMPOTENCY_WARNING, LiveRun
from callboard.live.scopes import Scope
from callboard.runs.stops import StopRun
from callboard.steps.tool_dispatch import call_off, context_of, hidden_by, take_state
from callboard.steps.tool_questions import ToolQuestions
from callboard.tool import Tool
from callboard.tools.flights import ToolOutcome
from callboard_protocol.amounts import Amount
from callboard_protocol.commands import CallTool, ReconcileCall
from callboard_protocol.digests import fingerprint
from callboard_protocol.errors import (
    CallboardError,
    CallInDoubtError,
    UnknownToolError,
    UnpersistableValueError,
)
from callboard_protocol.failures import describe
from callboard_protocol.messages import ToolCall
from callboard_protocol.records import IntentRecorded, StepCompleted
from callboard_protocol.tools import (
    Allow,
    Deny,
    Happened,
    NotHappened,
    PendingCall,
    Reconciliation,
)
from callboard_protocol.trusted import trusted

_ONE_CALL = Amount(tool_calls=1)


async def perform_call(
    run: LiveRun,
    scope: Scope,
    step: str,
    name: str,
    raw_arguments: dict[str, Any],
    tool_call_id: str | None,
) -> StepCompleted:
    """One call from its arguments to its record, through approval, intent and doubt."""
    run.boundary.begin()
    try:
        fit = fingerprint(raw_arguments)
        recorded = run.journal.recorded(step, "tool", name, fit, raw_arguments)
        if recorded is not None:
            run.state.apply(recorded)
            return recorded
        call = OpenCall(run, scope, step, name, raw_arguments, fit, tool_call_id)
        try:
            tool = _find(run, name)
            arguments = tool.validate(raw_arguments)
        except CallboardError as problem:
            return await call.refuse(problem)
        return await call.make(tool, arguments)
    finally:
        run.boundary.end()


def awaited_decision(run: LiveRun, step: str, call: ToolCall) -> PendingCall | None:
    """What would have to be decided before a call is made; None where it can be made, or be answered, as it is."""
    if step in run.journal.completed:
        return None
    questions = ToolQuestions(run, step, call.name, call.arguments, fingerprint(call.arguments))
    try:
        tool = _find(run, call.name)
        return questions.awaited(tool, tool.validate(call.arguments))
    except CallboardError:
        return None  # the model is told what is wrong with it, in its turn


def _find(run: LiveRun, name: str) -> Tool[Any]:
    tool = run.agent.tools.get(name)
    if tool is None:
        # A model reads the message alone, so the nearest name is part of it.
        near = difflib.get_close_matches(name, run.agent.tools, n=1)
        raise UnknownToolError(
            f"there is no tool {name!r}{f'; did you mean {near[0]!r}?' if near else ''}",
            hint=f"agent {run.agent.id!r} has: {', '.join(run.agent.tools) or 'no tools'}",
        )
    return tool


class OpenCall:
    """One tool call that has no outcome yet."""

    def __init__(
        self,
        run: LiveRun,
        scope: Scope,
        step: str,
        name: str,
        raw_arguments: dict[str, Any],
        fit: bytes,
        tool_call_id: str | None,
    ) -> None:
        self.run = run
        self.scope = scope
        self.step = step
        self.name = name
        self.raw_arguments = raw_arguments
        self.fit = fit
        self.tool_call_id = tool_call_id
        self.questions = ToolQuestions(run, step, name, raw_arguments, fit)
        self.intended: int | None = None
        self.started = run.clock.monotonic()

    @property
    def call_id(self) -> str:
        """The call, the same at every attempt: its id and its idempotency key."""
        return f"{self.run.run_id}:{self.step}"

    async def refuse(self, problem: CallboardError) -> StepCompleted:
        """Answer a call that cannot be made; one that an earlier attempt began, with a tool since changed, is in doubt.

        Args:
            problem: why it cannot be made.

        Raises:
            StopRun: the call is in doubt, and someone must decide or the run fails over it.
        """
        intent = self.run.journal.intents.get(self.step)
        if intent is not None and self.run.journal.is_in_doubt(self.step):
            settled = await self._resolve(None, {}, "crash", intent.attempt)
            if settled is not None:
                return settled
        return await self.completed(None, problem)

    async def make(self, tool: Tool[Any], arguments: dict[str, Any]) -> StepCompleted:
        """Make it, or settle it if an earlier attempt began it; the outcome is on disk when this returns.

        Args:
            tool: what is called.
            arguments: validated.

        Raises:
            StopRun: someone must decide first, the budget has no room, or the run fails over it.
            UnpersistableValueError: what the tool returned cannot be stored.
        """
        run = self.run
        intent = run.journal.intents.get(self.step)
        if tool.specification.may_be_repeated:
            intent = None
        attempt = 1 if intent is None else intent.attempt + 1
        if intent is not None and run.journal.is_in_doubt(self.step):
            settled = await self._resolve(tool, arguments, "crash", intent.attempt)
            if settled is not None:
                return settled
        else:
            refused = await self.questions.refusal(tool, arguments)
            if refused is not None:
                return await self.completed(None, refused)
        while True:
            await run.spend(_ONE_CALL)
            try:
                outcome = await self._dispatch(tool, arguments, attempt)
            except UnpersistableValueError as problem:
                # Only the intent is written there: its arguments cannot be stored, so the call was not made.
                return await self.completed(None, problem, ordinal=self.intended)
            cause = hidden_by(run, tool, outcome)
            if cause is None:
                return await self._record(tool, outcome)
            settled = await self._resolve(tool, arguments, cause, attempt, outcome.error)
            if settled is not None:
                return settled
            attempt += 1

    async def _dispatch(self, tool: Tool[Any], arguments: dict[str, Any], attempt: int) -> ToolOutcome:
        run = self.run
        if run.request.durable and not tool.specification.may_be_repeated:
            run.warn_once(IDEMPOTENCY_WARNING, tool=self.name)
            await self._intend(attempt)
        if run.is_watched:
            live = {"step": self.step, "call_id": self.call_id, "tool": self.name, "arguments": arguments}
            run.tell_restart(self.step)
            run.publish(("tool.called", None, live))
        self._about_to_act()
        context = context_of(run, self.step, self.name, attempt)
        state = context.state
        try:
            outcome: ToolOutcome = await run.directory.executor.ask(
                trusted(CallTool, tool=tool, arguments=arguments, context=context), timeout=None
            )
        except asyncio.CancelledError:
            stopped = await call_off(run, tool, self.call_id)
            if stopped is not None and not stopped.cancelled and hidden_by(run, tool, stopped) is None:
                # It came to its end all the same.
                take_state(run, context, state)
                await self._record(tool, stopped)
            raise
        take_state(run, context, state)
        return outcome

    def _about_to_act(self) -> None:
        if fault_points.armed is not None:
            fault_points.reach("step.about_to_act", self.call_id)

    async def _intend(self, attempt: int) -> None:
        run = self.run
        self.intended = run.journal.claim_ordinal()
        intent = IntentRecorded(
            run_id=run.run_id,
            ordinal=self.intended,
            at=run.clock.time(),
            step=self.step,
            tool=self.name,
            arguments=self.raw_arguments,
            arguments_digest=self.fit,
            tool_call_id=self.tool_call_id,
            attempt=attempt,
            clock=self.scope.clock,
        )
        await run.journal.append(intent)
        run.journal.intend(intent)

    # ---- doubt

    async def _resolve(
        self,
        tool: Tool[Any] | None,
        arguments: dict[str, Any],
        cause: str,
        attempt: int,
        error: CallboardError | None = None,
    ) -> StepCompleted | None:
        """The outcome of a call nobody knows the end of; None if it is to be made again.

        Args:
            tool: what was called; None where that cannot be called any more.
            arguments: validated.
            cause: what hid the outcome.
            attempt: which attempt of the call is in doubt.
            error: what is known of that.

        Raises:
            StopRun: someone has to decide, or the run fails over it.
        """
        run = self.run
        verdict = await self.questions.decided("in_doubt", attempt) or await self._reconcile(tool, arguments)
        if isinstance(verdict, Happened):
            try:
                result = verdict.result if tool is None else tool.dump_result(verdict.result)
            except UnpersistableValueError as problem:
                return await self.completed(None, problem)
            return await self.completed(result, None)
        if isinstance(verdict, NotHappened | Allow):
            return None
        doubt = CallInDoubtError(
            f"the call of {self.name!r} ({self.call_id}) began, and a {cause} hid whether it took effect"
            + ("" if error is None else f": {error.message}")
        )
        if isinstance(verdict, Deny):
            return await self.completed(None, doubt)
        policy = (None if tool is None else tool.specification.on_in_doubt) or run.agent.on_in_doubt
        if tool is None and policy == "retry":
            policy = "tell"
        run.publish(
            (
                "tool.in_doubt",
                None,
                {
                    "call_id": self.call_id,
                    "tool": self.name,
                    "arguments": self.raw_arguments,
                    "arguments_digest": self.fit.hex(),
                    "cause": cause,
                    "on_in_doubt": policy,
                },
            )
        )
        if policy == "tell":
            return await self.completed(None, doubt)
        if policy == "retry":
            return None
        if policy == "fail":
            raise StopRun("failed", doubt)
        raise StopRun("suspended", pending=(self.questions.pending("in_doubt", doubt.message, attempt),))

    async def _reconcile(self, tool: Tool[Any] | None, arguments: dict[str, Any]) -> Reconciliation | None:
        if tool is None or not tool.can_reconcile:
            return None
        self._about_to_act()
        run = self.run
        context = context_of(run, self.step, self.name, run.attempt)
        verdict: Reconciliation = await run.directory.executor.ask(
            ReconcileCall(tool=tool, arguments=arguments, context=context), timeout=None
        )
        return verdict

    # ---- the outcome

    async def _record(self, tool: Tool[Any], outcome: ToolOutcome) -> StepCompleted:
        value = None
        if outcome.error is None:
            try:
                value = tool.dump_result(outcome.value)
            except UnpersistableValueError as problem:
                return await self.completed(None, problem)
        return await self.completed(value, outcome.error)

    async def completed(self, value: Any, error: CallboardError | None, *, ordinal: int | None = None) -> StepCompleted:
        """Record the outcome: what the tool returned as plain data, or why there is nothing."""
        run = self.run
        changed, state = run.state.changed()
        record = trusted(
            StepCompleted,
            run_id=run.run_id,
            ordinal=run.journal.claim_ordinal() if ordinal is None else ordinal,
            at=run.clock.time(),
            step=self.step,
            kind="tool",
            name=self.name,
            fit=self.fit,
            value=value,
            error=None if error is None else describe(error),
            tool_call_id=self.tool_call_id,
            in_transcript=self.scope.in_transcript and self.tool_call_id is not None,
            state=state,
            state_changed=changed,
            clock=self.scope.clock,
            duration=run.clock.monotonic() - self.started,
            running=run.running(),
            attempt=run.attempt,
        )
        return await run.land(record)
