"""A pattern's output, sent back to the model until it fits the agent's output type."""

from __future__ import annotations

from typing import Any

from callboard.live.live_run import LiveRun
from callboard.live.scopes import Scope
from callboard.run import RunContext
from callboard.steps.lifecycle_steps import lifecycle_record
from callboard.steps.model_step import feedback_for
from callboard_protocol.errors import OutputValidationError
from callboard_protocol.messages import Message


async def fitting_output(run: LiveRun, scope: Scope) -> Any:
    """Run the pattern, again and again if need be, until what it returns fits.

    Args:
        run: the run.
        scope: the root of its steps.

    Raises:
        OutputValidationError: it does not fit after as many retries as the budget allows.
    """
    agent = run.agent
    context: RunContext[Any] = RunContext(run, scope)
    retries = run.budget.max_validation_retries
    for retry in range(retries + 1):
        raw = await agent.pattern.run(context)
        try:
            return agent.output.validate(raw)
        except ValueError as problem:
            if retry == retries:
                raise OutputValidationError(
                    f"run {run.run_id}: the output does not fit {agent.output.type!r} after {retries} "
                    f"retries: {problem}",
                    context={"retries": retries},
                ) from None
            feedback = Message.user(feedback_for(str(problem)))
            step = f"/validation.{retry}"
            if step not in run.journal.completed:
                told = {"retry": retry + 1, "max_validation_retries": retries, "message": str(problem)}
                await run.complete(
                    lifecycle_record(
                        run,
                        step,
                        "validation",
                        "output",
                        value=told,
                        messages=(feedback,) if scope.in_transcript else (),
                    )
                )
            scope.conversation.add(feedback)
            scope.begin_again()
    raise AssertionError("the loop above returns or raises")
