"""The one thing in the demo that nobody may do unasked: the report of the audit is published once somebody allows it.

The run that publishes asks for leave before the first audit begins, and nobody answers while the worker is killed again
and again. When every session has its answer, the demo decides, in its own process, on what the last worker left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from callboard import Agent, Allow, ModelRequest, Runtime, ScriptedModel, ToolCall, ToolContext, tool
from callboard.demo.tracker_client import TrackerClient
from callboard_protocol.errors import CallboardError
from callboard_protocol.event_models_tool import ToolApprovalNeeded, ToolDecided

REPORT = "report"
"""The run that publishes, and its session."""
DECIDED_BY = "the demo"


class NotAskedError(CallboardError):
    """The run that is to publish does not wait for leave."""

    code = "demo_not_asked"
    default_hint = "see the worker's log beside the report"


@dataclass(frozen=True)
class Publication:
    """What became of the question whether the report may be published.

    Attributes:
        asked: when it was asked, in unix seconds.
        decided: when it was decided.
        decided_by: by whom.
        stop_reason: how the run ended then.
    """

    asked: float
    decided: float
    decided_by: str
    stop_reason: str


@tool(approval=True)
async def publish_report(ctx: ToolContext[TrackerClient], modules: int) -> str:
    """Publish the report of the audit, for everyone to read."""
    await ctx.deps.publish(modules)
    return f"The report of {modules} modules is out."


def publisher(tracker: TrackerClient, modules: int) -> Agent[TrackerClient, str]:
    """The agent that publishes the report of so many audited modules."""

    def answer(request: ModelRequest) -> str | ToolCall:
        last = request.messages[-1]
        return last.text if last.role == "tool" else ToolCall(name="publish_report", arguments={"modules": modules})

    return Agent("publisher", model=ScriptedModel(answer), tools=[publish_report], deps=tracker)


async def ask_for_leave(runtime: Runtime) -> None:
    """Have the question on disk, in whichever process it is asked first. Nobody waits for the answer.

    Raises:
        NotAskedError: the run does not wait for leave.
    """
    handle = await runtime.submit("publisher", "Publish the report", session_id=REPORT, run_id=REPORT)
    result = await handle.result()
    if result.stop_reason != "suspended":
        raise NotAskedError(f"the report was to wait for leave, and its run ended as {result.stop_reason!r}")


async def allow(data: Path, tracker: TrackerClient, modules: int) -> Publication:
    """Answer the question that the last worker left, and see the report published.

    Args:
        data: the directory of the batch.
        tracker: where it is published.
        modules: how many modules were audited.

    Raises:
        NotAskedError: there is no such question.
    """
    async with Runtime([publisher(tracker, modules)], store=data / "store") as runtime:
        for call in (await runtime.wait(REPORT)).pending:
            await runtime.decide(call.call_id, Allow(), by=DECIDED_BY)
        result = await runtime.wait(REPORT)
        told = [event async for event in runtime.events(REPORT)]
    asked = next((event for event in told if isinstance(event, ToolApprovalNeeded)), None)
    decided = next((event for event in told if isinstance(event, ToolDecided)), None)
    if asked is None or decided is None:
        raise NotAskedError(f"nobody was asked for leave to publish: the run ended as {result.stop_reason!r}")
    return Publication(asked.timestamp.timestamp(), decided.timestamp.timestamp(), decided.by, result.stop_reason)
