"""The error tree: what was wrong, where, and what to do next.

Every error Callboard raises is a `CallboardError`. Each class carries a stable `code` for programs, a `hint` for
people, whether trying the same thing again can help (`retryable`), and whose fault it is (`fault`).
"""

from typing import Any, ClassVar, Literal, Self

Fault = Literal["caller", "agent", "tool", "model", "store", "runtime"]
"""Who can mend it: the calling code, the agent's pattern, a tool, a model provider, the disk, or Callboard itself."""


class CallboardError(Exception):
    """The root of everything Callboard raises.

    Args:
        message: what was wrong and where, in one sentence.
        hint: what to do next; the class's own hint where none is given.
        context: small, plain values that help a program to react (ids, limits, figures).
        retryable: overrides the class's answer to "can the same call succeed later?".
    """

    code: ClassVar[str] = "callboard_error"
    fault: ClassVar[Fault] = "runtime"
    default_hint: ClassVar[str] = ""
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        context: dict[str, Any] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.context: dict[str, Any] = {} if context is None else context
        self.retryable = self.default_retryable if retryable is None else retryable

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def fresh(self) -> Self:
        """An equal error of the same class, for a second receiver: tracebacks must not be shared between tasks."""
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)
        twin.args = self.args
        twin.__cause__ = self.__cause__
        return twin


# ---- misuse: raised at the door, before anything happened


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


# ---- the actors


class ActorError(CallboardError):
    """Something between actors went wrong."""

    code = "actor"


class MailboxFull(ActorError):
    """The actor has as many messages waiting as it may.

    Attributes:
        unsent: the message that was not delivered; it was not handled, so sending it again is safe.
    """

    code = "mailbox_full"
    default_hint = "the message was not delivered: send it again when the actor has caught up"
    default_retryable = True
    unsent: object = None

    def __init__(self, message: str, *, unsent: object) -> None:
        super().__init__(message)
        self.unsent = unsent


class ActorDied(ActorError):
    """The actor ended before it answered.

    Attributes:
        handled: ``"no"`` if the message was never begun, ``"maybe"`` if it was in hand when the actor ended.
    """

    code = "actor_died"
    handled: Literal["no", "maybe"]

    def __init__(self, message: str, *, handled: Literal["no", "maybe"]) -> None:
        super().__init__(
            message,
            hint="it was never handled: send it to the new actor"
            if handled == "no"
            else "it may have taken effect: check before sending it again",
            context={"handled": handled},
            retryable=handled == "no",
        )
        self.handled = handled


class AskTimeout(ActorError, TimeoutError):
    """No answer in time. The handler goes on: only the waiting ended."""

    code = "ask_timeout"
    default_hint = "the handler was not stopped; its effect may still come"


class WouldDeadlockError(ActorError):
    """A blocking call on the very thread that would have to answer it."""

    code = "would_deadlock"
    fault: ClassVar[Fault] = "caller"
    default_hint = "await it instead: `await ref.ask(...)`"


class WrongLoopError(ActorError):
    """A Runtime belongs to one process and one event loop."""

    code = "wrong_loop"
    fault: ClassVar[Fault] = "caller"
    default_hint = "open one Runtime per process and loop, or use SyncRuntime from other threads"


class ForkedError(ActorError):
    """Used in a child of the process that opened it."""

    code = "forked"
    fault: ClassVar[Fault] = "caller"
    default_hint = "spawn worker processes instead of forking, and open a Runtime in each"


class RuntimeClosedError(ActorError):
    """The runtime is not open."""

    code = "runtime_closed"
    fault: ClassVar[Fault] = "caller"
    default_hint = "use it inside `async with Runtime(...)`, or between start() and aclose()"


class RuntimeClosingError(RuntimeClosedError):
    """The runtime is about to close, and takes no more runs in."""

    code = "runtime_closing"
    fault: ClassVar[Fault] = "runtime"
    default_hint = "submit it to another process on the directory, or once this one has started again"
    default_retryable = True

    def __init__(self, message: str = "the runtime is closing: it takes no more runs in", **rest: Any) -> None:
        super().__init__(message, **rest)


class UnhealthyError(ActorError):
    """An actor failed more often than its restart limit allows."""

    code = "unhealthy"
    default_hint = "see runtime.health() for which one and why; restart the process once that is mended"


class RuntimeBusyError(CallboardError):
    """A limit of `RuntimeLimits` is reached; nothing was started."""

    code = "runtime_busy"
    fault: ClassVar[Fault] = "caller"
    default_hint = "submit again later, or raise the limit named here"
    default_retryable = True


# ---- a run


class RunError(CallboardError):
    """A run did not come to its end."""

    code = "run"
    fault: ClassVar[Fault] = "agent"


class RunFailedError(RunError):
    """`RunResult.output` was read, but the run did not complete."""

    code = "run_failed"
    default_hint = "see result.stop_reason and result.error_details"


class ConcurrentStepError(RunError):
    """Two steps in flight in one scope: their order, and so their identity, would depend on timing."""

    code = "concurrent_step"
    default_hint = "give each its own scope: ctx.branch(name) or ctx.map(fn, {name: item})"


class NonDeterministicRunError(RunError):
    """On replay the pattern asked for something else than what is recorded."""

    code = "non_deterministic_run"
    default_hint = "guard changed code with `if ctx.patched('name'):`, or start a new run"


class BudgetExhaustedError(RunError):
    """A limit of the run's budget is used up.

    Attributes:
        limit: the `RunBudget` field that ran out.
    """

    code = "budget_exhausted"
    default_hint = "raise that limit in RunBudget, or give the run less to do"
    limit: str

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message, context={"limit": limit})
        self.limit = limit


class StepTimeoutError(RunError, TimeoutError):
    """A step ran past the agent's `step_timeout`."""

    code = "step_timeout"
    default_hint = "raise the agent's step_timeout, or split the step"


class RunCancelledError(RunError):
    """The run was cancelled."""

    code = "run_cancelled"


class PoisonousRunError(RunError):
    """The run was in flight at every one of several crashes in a row."""

    code = "poisonous_run"
    default_hint = "find what in its step ends the process; runtime.resume(run_id) tries once more"


class ReceiveTimeoutError(RunError, TimeoutError):
    """No signal came over the channel in time."""

    code = "receive_timeout"
    default_hint = "catch it where the pattern can go on without one"


class UnexpectedSignalError(RunError):
    """A signal is not of the type the pattern waits for. It counts as received."""

    code = "unexpected_signal"
    default_hint = "send what ctx.receive names as its type"


class UnpersistableValueError(RunError, TypeError):
    """A value that must go to disk cannot."""

    code = "unpersistable_value"
    default_hint = "use plain data: str, numbers, bool, None, bytes, datetime, Decimal, UUID, lists, dicts, models"


class OutputValidationError(RunError):
    """The final output does not fit the agent's `output_type`, after every retry."""

    code = "output_validation"
    default_hint = "the transcript shows each answer; widen the type, or raise RunBudget(max_validation_retries=...)"


class InterruptedByCrashError(RunError):
    """The run was in flight when its process ended, and asked not to be carried on (`on_crash="fail"`)."""

    code = "interrupted_by_crash"
    default_hint = "submit it again under a new run id, or with on_crash='resume'"
    fault: ClassVar[Fault] = "runtime"
    default_retryable = True


# ---- tools and models


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


# ---- the store


class StoreError(CallboardError):
    """The data directory could not do what was asked."""

    code = "store"
    fault: ClassVar[Fault] = "store"


class StoreOpenError(StoreError):
    """The data directory cannot be opened."""

    code = "store_open"
    default_hint = "give a directory of its own, on a local disk, that this process may write to"


class StoreVersionError(StoreOpenError):
    """The directory was written by a newer release, or by another engine."""

    code = "store_version"


class StoreInUseError(StoreOpenError):
    """Another process has the directory."""

    code = "store_in_use"
    default_retryable = True


class StoreClosedError(StoreError):
    """The store was closed."""

    code = "store_closed"
    default_hint = "open it first, and use it no longer than the Runtime that has it"


class StoreFullError(StoreError):
    """The byte quota, the disk or the map is full."""

    code = "store_full"
    default_hint = "free space (retention, delete sessions) or raise max_bytes"
    default_retryable = True


class FencedError(StoreError):
    """A write was refused: another owner has the session's lock, or its log moved on past what the writer followed."""

    code = "fenced"
    default_hint = "this writer's view is stale: reload the session"


class SessionLockedError(StoreError):
    """A session's lock is held by another open store, in this process or in another one on the same directory."""

    code = "session_locked"
    default_hint = "wait until the run that holds it has ended"
    default_retryable = True


class DamagedRecordError(StoreError):
    """A stored record fails its checksum or does not decode; it is quarantined, the rest goes on.

    The context says where it is: `table`, `key`, and `session_id`, `run_id` and `sequence` where it has them.
    """

    code = "damaged_record"
    default_hint = "run `callboard store verify`; restore a backup"

    @property
    def what(self) -> str:
        """What is wrong with it: the end of a sentence that begins with the record."""
        return str(self.context.get("what", self.message))


class UnknownSchemaError(DamagedRecordError):
    """A record names a schema, or a version of one, that this release does not know."""

    code = "unknown_schema"
    default_hint = "the release that wrote it reads it, and so does a newer one"
