"""What somebody may have to decide about a tool call: whether it may be made, and what became of it."""

from __future__ import annotations

from typing import Any

from callboard.live.live_run import LiveRun
from callboard.runs.stops import StopRun
from callboard.tool import Tool
from callboard_protocol.errors import CallboardError, ToolDeniedError
from callboard_protocol.records import DecisionMade
from callboard_protocol.tools import Allow, Decision, Deny, PendingCall, Question


class ToolQuestions:
    """The questions about one call, and what was decided about it, in advance or since.

    Args:
        run: whose call it is.
        step: which step of the run.
        name: the tool's.
        arguments: as they were given, which is how they are shown.
        fit: their digest: a decision is about a call with just these.
    """

    __slots__ = ("_arguments", "_call_id", "_fit", "_name", "_run", "_step")

    def __init__(self, run: LiveRun, step: str, name: str, arguments: dict[str, Any], fit: bytes) -> None:
        self._run = run
        self._step = step
        self._name = name
        self._arguments = arguments
        self._fit = fit
        self._call_id = f"{run.run_id}:{step}"

    async def refusal(self, tool: Tool[Any], arguments: dict[str, Any]) -> CallboardError | None:
        """None to go ahead, the refusal otherwise.

        Raises:
            StopRun: nobody has decided yet: the run is suspended.
        """
        try:
            if not tool.requires_approval(arguments):
                return None
        except CallboardError as problem:
            return problem
        decision = await self.decided("approval", 1) or self._in_advance()
        if isinstance(decision, Allow):
            return None
        if isinstance(decision, Deny):
            return ToolDeniedError(f"the call of {tool.name!r} was denied: {decision.reason or 'no reason given'}")
        if not self._run.request.durable:
            return ToolDeniedError(
                f"the call of {tool.name!r} needs an approval, and a run that is not durable cannot wait for one"
            )
        raise StopRun("suspended", pending=(self._needs_approval(tool),))

    def awaited(self, tool: Tool[Any], arguments: dict[str, Any]) -> PendingCall | None:
        """What would have to be decided before this call is made; None where nothing is left to decide."""
        if self._run.journal.is_in_doubt(self._step) or not tool.requires_approval(arguments):
            return None
        decided = self._run.journal.decisions.get((self._step, "approval", 1))
        is_decided = decided is not None and decided.arguments_digest == self._fit
        is_decided = is_decided or self._run.mail.decision(self._step, "approval", 1, self._fit) is not None
        return None if is_decided or self._in_advance() else self._needs_approval(tool)

    def _needs_approval(self, tool: Tool[Any]) -> PendingCall:
        within = tool.approval_timeout_seconds
        pending = self.pending("approval", f"{tool.name!r} needs an approval", 1)
        if within is None:
            return pending
        # A run that is suspended again asks on: the time goes from when it was asked first.
        asked = next((one.expires_at for one in self._run.ticket.entry.pending if one.call_id == self._call_id), None)
        return pending.model_copy(update={"expires_at": asked or self._run.clock.time() + within})

    async def decided(self, reason: Question, attempt: int) -> Decision | None:
        """What somebody decided about this call with these arguments; it is in the run's journal from then on."""
        run = self._run
        made = run.journal.decisions.get((self._step, reason, attempt))
        if made is None or made.arguments_digest != self._fit:
            posted = run.mail.decision(self._step, reason, attempt, self._fit)
            if posted is None:
                return None
            made = DecisionMade(
                run_id=run.run_id,
                ordinal=run.journal.claim_ordinal(),
                at=run.clock.time(),
                step=self._step,
                tool=self._name,
                decision=posted.decision,
                reason=reason,
                attempt=attempt,
                arguments_digest=self._fit,
                by=posted.by,
                note=posted.note,
            )
            await run.journal.append(made)
            run.journal.decisions[self._step, reason, attempt] = made
        return made.decision

    def _in_advance(self) -> Decision | None:
        approvals = self._run.request.approvals
        return approvals.get(self._call_id) or approvals.get(self._name) or approvals.get("*")

    def pending(self, reason: Question, message: str, attempt: int) -> PendingCall:
        """The question, as the run's entry holds it until somebody has decided.

        Args:
            reason: what is asked.
            message: the same in words.
            attempt: which attempt of the call it is about.
        """
        return PendingCall(
            reason=reason,
            attempt=attempt,
            call_id=self._call_id,
            tool=self._name,
            arguments=self._arguments,
            arguments_digest=self._fit.hex(),
            message=message,
        )
