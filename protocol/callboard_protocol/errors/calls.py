"""How calls of tools and models go wrong."""

from typing import ClassVar

from callboard_protocol.errors.base import CallboardError, Fault


class ToolError(CallboardError):
    """A tool call did not succeed."""

    code = "tool"
    fault: ClassVar[Fault] = "tool"


class ModelRetry(ToolError):
    """Raised by a tool to send the model its mistake, so that it tries again with better arguments."""

    code = "model_retry"
    fault: ClassVar[Fault] = "model"


class UnknownToolError(ToolError, LookupError):
    """No such tool on this agent."""

    code = "unknown_tool"
    fault: ClassVar[Fault] = "model"


class InvalidArgumentsError(ModelRetry):
    """The arguments do not fit the tool's schema."""

    code = "invalid_arguments"


class ToolFailedError(ToolError):
    """The tool raised."""

    code = "tool_failed"
    default_hint = "the cause says what the tool raised; raise ModelRetry to have the model try again"


class ToolTimeoutError(ToolError, TimeoutError):
    """The tool ran past its own timeout."""

    code = "tool_timeout"
    default_hint = "raise @tool(timeout=...), or have the tool look at ctx.cancelled"


class ToolCrashedError(ToolError):
    """The process that ran the tool died in the middle of the call; the message says by which signal or exit code."""

    code = "tool_crashed"
    default_hint = "whether it took effect is unknown; call the function in a fresh interpreter to see what ends it"


class ToolDeniedError(ToolError):
    """The call was not approved; it was not made."""

    code = "tool_denied"
    default_hint = "allow it in `approvals`, by call id, by tool or by '*'"
    fault: ClassVar[Fault] = "caller"


class CallInDoubtError(ToolError):
    """A call began and its outcome is unknown."""

    code = "call_in_doubt"
    default_hint = "give the tool a `reconcile`, or choose on_in_doubt='tell' | 'retry' | 'fail'"


class ModelError(CallboardError):
    """A model call did not succeed."""

    code = "model"
    fault: ClassVar[Fault] = "model"


class RealModelRefusedError(ModelError):
    """A test would have asked a model that answers from outside this process."""

    code = "real_model_refused"
    fault: ClassVar[Fault] = "caller"
    default_hint = (
        "give the agent a ScriptedModel (`with agent.override(model=...)`); a double of your own says "
        "`is_offline = True`; to ask the real one, mark the test `allow_real_models`, or run pytest with "
        "--allow-real-models"
    )


class ScriptExhaustedError(ModelError):
    """A `ScriptedModel` was asked for more items than its script holds."""

    code = "script_exhausted"
    default_hint = "add items to the script, or use a function of the request"
