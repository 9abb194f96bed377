"""Misuse: raised at the door, before anything happened."""

from typing import ClassVar

from callboard_protocol.errors.base import CallboardError, Fault


class UsageError(CallboardError, ValueError):
    """The call itself is wrong; nothing was done."""

    code = "usage"
    fault: ClassVar[Fault] = "caller"


class InvalidIdentifierError(UsageError):
    """An id cannot be stored: empty, too long, or not encodable."""

    code = "invalid_identifier"
    default_hint = "use 1 to 200 bytes of UTF-8 without NUL, control characters or lone surrogates"


class UnknownAgentError(UsageError, LookupError):
    """No agent is registered under that id."""

    code = "unknown_agent"
    default_hint = "register it: Runtime([agent]) or runtime.agents.register(agent)"


class DuplicateAgentError(UsageError):
    """Two different agents under one id."""

    code = "duplicate_agent"
    default_hint = "give each agent an id of its own, or unregister the first"


class ToolDefinitionError(UsageError):
    """A tool cannot be offered to a model: its signature or options do not say enough."""

    code = "tool_definition"


class AgentDefinitionError(UsageError):
    """An agent is put together in a way that cannot run."""

    code = "agent_definition"


class RunConflictError(UsageError):
    """A known run id came with a different request."""

    code = "run_conflict"
    default_hint = "submit the same request to get the same run, or choose a new run id"


class UnknownRunError(UsageError, LookupError):
    """No run under that id."""

    code = "unknown_run"
    default_hint = "runtime.runs.list() names them; a run that was not durable is known only while it runs"


class UnknownSessionError(UsageError, LookupError):
    """No session under that id."""

    code = "unknown_session"
    default_hint = "runtime.sessions.list() names them"


class UnknownCheckpointError(UsageError, LookupError):
    """No checkpoint under that id."""

    code = "unknown_checkpoint"


class SessionExistsError(UsageError):
    """A session was to be made under an id that has one."""

    code = "session_exists"
    default_hint = "choose another id, or delete that session first"


class SessionHeldByAncestorError(UsageError):
    """A run asked for a session that one of its ancestors holds: waiting would never end."""

    code = "session_held_by_ancestor"
    default_hint = "run the child in a session of its own (session='isolated')"


class DelegationDepthError(UsageError):
    """A run delegates, whose parents have delegated as often as the runtime allows."""

    code = "delegation_depth"
    default_hint = "let fewer agents delegate to each other, or raise RuntimeLimits(max_delegation_depth=...)"


class RunNotResumableError(UsageError):
    """The run cannot be resumed as it stands; nothing changed."""

    code = "run_not_resumable"


class AlreadyDecidedError(UsageError):
    """A decision was made before, and stands."""

    code = "already_decided"


class UnknownCallError(UsageError, LookupError):
    """No call of that id waits for a decision."""

    code = "unknown_call"
    default_hint = "the calls that wait are in `pending` of the run's result, and of runtime.runs.get(run_id)"


class RunEndedError(UsageError):
    """The run has ended: nothing reaches it any more."""

    code = "run_ended"
    default_hint = "look at its result: runtime.wait(run_id)"


class NotImplementedYetError(UsageError):
    """A documented name whose work is not part of this release."""

    code = "not_in_this_release"


class IllegalTransitionError(UsageError):
    """The run's state machine has no such move; nothing changed."""

    code = "illegal_transition"


class MissingExtraError(UsageError, ImportError):
    """An optional dependency is not installed."""

    code = "missing_extra"
