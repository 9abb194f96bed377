"""How a run goes wrong."""

from typing import ClassVar

from callboard_protocol.errors.base import CallboardError, Fault


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
