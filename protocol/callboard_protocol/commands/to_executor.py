"""What is said to the `ToolExecutor`."""

from typing import Any

from callboard_protocol.commands.base import Live, Request


class CallTool(Request[Any]):
    """Make one tool call, under its deadline, with its retries. The answer is a `ToolOutcome`.

    Attributes:
        tool: the `Tool`.
        arguments: validated arguments.
        context: the call's `ToolContext`.
    """

    tool: Live[Any]
    arguments: Live[dict[str, Any]]
    context: Live[Any]


class CancelCall(Request[Any]):
    """Stop a tool call. Answered with its `ToolOutcome` once it has ended; with None where it is not in flight.

    Attributes:
        call_id: which.
        reason: why.
    """

    call_id: str
    reason: str = ""


class ReconcileCall(Request[Any]):
    """Ask a tool what became of a call in doubt, under its deadline.

    The answer is `Happened`, `NotHappened` or `Unknown`; where the asking itself failed, an `Unknown` that says how.

    Attributes:
        tool: the `Tool`.
        arguments: validated arguments.
        context: the call's `ToolContext`.
    """

    tool: Live[Any]
    arguments: Live[dict[str, Any]]
    context: Live[Any]
