"""One tool call, from its arguments to its record: approval, budget, intent, dispatch, doubt."""

from __future__ import annotations

import asyncio
import difflib
from typing import Any

from callboard import fault_points
from callboard.live_run import IDEMPOTENCY_WARNING, LiveRun
from callboard.scopes import Scope
from callboard.stops import StopRun
from callboard.tool import Tool
from callboard.tool_dispatch import call_off, context_of, hidden_by, take_state
from callboard.tools.flights import ToolOutcome
from callboard_protocol.amounts import Amount
from callboard_protocol.commands import CallTool, ReconcileCall
from callboard_protocol.digests import fingerprint
from callboard_protocol.errors import (
    CallboardError,
    CallInDoubtError,
    ToolDeniedError,
    UnknownToolError,
    UnpersistableValueError,
)
from callboard_protocol.failures import describe
from callboard_protocol.messages import ToolCall
from callboard_protocol.records import DecisionMade, IntentRecorded, StepCompleted
from callboard_protocol.tools import (
    Allow,
    Decision,
    Deny,
    Happened,
    NotHappened,
    PendingCall,
    Question,
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


def awaited_decision(run: LiveRun, scope: Scope, step: str, call: ToolCall) -> PendingCall | None:
    """What would have to be decided before a call is made; None where it can be made, or be answered, as it is."""
    if step in run.journal.completed:
        return None
    opened = OpenCall(run, scope, step, call.name, call.arguments, fingerprint(call.arguments), call.id)
    try:
        tool = _find(run, call.name)
        return opened.awaited(tool, tool.validate(call.arguments))
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
            refused = await self._approve(tool, arguments)
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

    # ---- approval

    async def _approve(self, tool: Tool[Any], arguments: dict[str, Any]) -> CallboardError | None:
        """None to go ahead, the refusal otherwise.

        Raises:
            StopRun: nobody has decided yet: the run is suspended.
        """
        try:
            if not tool.requires_approval(arguments):
                return None
        except CallboardError as problem:
            return problem
        decision = await self._decided("approval", 1) or self._in_advance()
        if isinstance(decision, Allow):
            return None
        if isinstance(decision, Deny):
            return ToolDeniedError(f"the call of {tool.name!r} was denied: {decision.reason or 'no reason given'}")
        if not self.run.request.durable:
            return ToolDeniedError(
                f"the call of {tool.name!r} needs an approval, and a run that is not durable cannot wait for one"
            )
        raise StopRun("suspended", pending=(self._needs_approval(tool),))

    def awaited(self, tool: Tool[Any], arguments: dict[str, Any]) -> PendingCall | None:
        """What would have to be decided before this call is made; None where nothing is left to decide."""
        if self.run.journal.is_in_doubt(self.step) or not tool.requires_approval(arguments):
            return None
        decided = self.run.journal.decisions.get((self.step, "approval", 1))
        is_decided = decided is not None or self.run.mail.decision(self.step, "approval", 1, self.fit) is not None
        return None if is_decided or self._in_advance() else self._needs_approval(tool)

    def _needs_approval(self, tool: Tool[Any]) -> PendingCall:
        within = tool.approval_timeout_seconds
        pending = self._pending("approval", f"{tool.name!r} needs an approval", 1)
        if within is None:
            return pending
        # A run that is suspended again asks on: the time goes from when it was asked first.
        asked = next((one.expires_at for one in self.run.ticket.entry.pending if one.call_id == self.call_id), None)
        return pending.model_copy(update={"expires_at": asked or self.run.clock.time() + within})

    async def _decided(self, reason: Question, attempt: int) -> Decision | None:
        """What somebody decided about this call with these arguments; it is in the run's journal from then on."""
        run = self.run
        made = run.journal.decisions.get((self.step, reason, attempt))
        if made is None or made.arguments_digest != self.fit:
            posted = run.mail.decision(self.step, reason, attempt, self.fit)
            if posted is None:
                return None
            made = DecisionMade(
                run_id=run.run_id,
                ordinal=run.journal.claim_ordinal(),
                at=run.clock.time(),
                step=self.step,
                tool=self.name,
                decision=posted.decision,
                reason=reason,
                attempt=attempt,
                arguments_digest=self.fit,
                by=posted.by,
                note=posted.note,
            )
            await run.journal.append(made)
            run.journal.decisions[self.step, reason, attempt] = made
        return made.decision

    def _in_advance(self) -> Decision | None:
        approvals = self.run.request.approvals
        return approvals.get(self.call_id) or approvals.get(self.name) or approvals.get("*")

    def _pending(self, reason: Question, message: str, attempt: int) -> PendingCall:
        return PendingCall(
            reason=reason,
            attempt=attempt,
            call_id=self.call_id,
            tool=self.name,
            arguments=self.raw_arguments,
            arguments_digest=self.fit.hex(),
            message=message,
        )

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
        verdict = await self._decided("in_doubt", attempt) or await self._reconcile(tool, arguments)
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
        raise StopRun("suspended", pending=(self._pending("in_doubt", doubt.message, attempt),))

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
