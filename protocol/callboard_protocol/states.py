"""The run's state machine: one literal table, and nothing else decides.

`advance` is the only way from one state to the next. A pair the table does not hold is an illegal move: it raises and
changes nothing. docs/RUN-STATES.md draws this table and says what each move means.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from callboard_protocol.errors import IllegalTransitionError, UsageError
from callboard_protocol.runs import StopReason


class RunState(StrEnum):
    """Where a run stands. What is written here is what is on disk, so a value never changes its spelling."""

    QUEUED = "queued"
    RUNNING = "running"
    SUSPENDED = "suspended"
    INTERRUPTED = "interrupted"
    PARKED = "parked"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    EXHAUSTED = "exhausted"


class RunInput(StrEnum):
    """What can happen to a run."""

    START = "start"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    TIME_OUT = "time_out"
    EXHAUST = "exhaust"
    SUSPEND = "suspend"
    WAKE = "wake"
    INTERRUPT = "interrupt"
    REQUEUE = "requeue"
    PARK = "park"
    UNPARK = "unpark"
    RESUME = "resume"


TRANSITIONS: Mapping[tuple[RunState, RunInput], RunState] = MappingProxyType(
    {
        (RunState.QUEUED, RunInput.START): RunState.RUNNING,
        (RunState.QUEUED, RunInput.PARK): RunState.PARKED,
        (RunState.QUEUED, RunInput.FAIL): RunState.FAILED,
        (RunState.QUEUED, RunInput.CANCEL): RunState.CANCELLED,
        (RunState.RUNNING, RunInput.COMPLETE): RunState.COMPLETED,
        (RunState.RUNNING, RunInput.FAIL): RunState.FAILED,
        (RunState.RUNNING, RunInput.CANCEL): RunState.CANCELLED,
        (RunState.RUNNING, RunInput.TIME_OUT): RunState.TIMED_OUT,
        (RunState.RUNNING, RunInput.EXHAUST): RunState.EXHAUSTED,
        (RunState.RUNNING, RunInput.SUSPEND): RunState.SUSPENDED,
        (RunState.RUNNING, RunInput.INTERRUPT): RunState.INTERRUPTED,
        (RunState.RUNNING, RunInput.PARK): RunState.PARKED,
        (RunState.SUSPENDED, RunInput.WAKE): RunState.RUNNING,
        (RunState.SUSPENDED, RunInput.REQUEUE): RunState.QUEUED,
        (RunState.SUSPENDED, RunInput.FAIL): RunState.FAILED,
        (RunState.SUSPENDED, RunInput.CANCEL): RunState.CANCELLED,
        (RunState.INTERRUPTED, RunInput.REQUEUE): RunState.QUEUED,
        (RunState.INTERRUPTED, RunInput.RESUME): RunState.QUEUED,
        (RunState.INTERRUPTED, RunInput.FAIL): RunState.FAILED,
        (RunState.INTERRUPTED, RunInput.CANCEL): RunState.CANCELLED,
        (RunState.PARKED, RunInput.UNPARK): RunState.QUEUED,
        (RunState.PARKED, RunInput.CANCEL): RunState.CANCELLED,
        (RunState.FAILED, RunInput.RESUME): RunState.QUEUED,
        (RunState.TIMED_OUT, RunInput.RESUME): RunState.QUEUED,
        (RunState.EXHAUSTED, RunInput.RESUME): RunState.QUEUED,
    }
)
"""Every legal move. A completed and a cancelled run have none: both are final for good."""

FINAL: frozenset[RunState] = frozenset(
    {RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED, RunState.TIMED_OUT, RunState.EXHAUSTED}
)
"""The run has its result, holds no session, and moves again only if someone resumes it."""

UNFINISHED: frozenset[RunState] = frozenset(RunState) - FINAL
"""The run still owes a result: recovery must find it."""

STOP_INPUTS: Mapping[StopReason, RunInput] = MappingProxyType(
    {
        "completed": RunInput.COMPLETE,
        "failed": RunInput.FAIL,
        "cancelled": RunInput.CANCEL,
        "timeout": RunInput.TIME_OUT,
        "max_steps": RunInput.EXHAUST,
        "budget_exhausted": RunInput.EXHAUST,
        "suspended": RunInput.SUSPEND,
        "interrupted": RunInput.INTERRUPT,
    }
)
"""What each stop reason is to a running run."""


def advance(state: RunState, event: RunInput) -> RunState:
    """The state that follows `state` when `event` happens to the run.

    Raises:
        IllegalTransitionError: the table has no such move; the error names the moves there are.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        legal = legal_inputs(state)
        raise IllegalTransitionError(
            f"a run that is {str(state)!r} cannot take the input {str(event)!r}",
            hint=f"legal here: {', '.join(legal)}" if legal else "nothing moves a run from here",
            context={"state": str(state), "input": str(event), "legal": [str(one) for one in legal]},
        ) from None


def legal_inputs(state: RunState) -> tuple[RunInput, ...]:
    """The inputs `state` accepts, in the table's order; none for a state nothing leads out of."""
    return tuple(event for source, event in TRANSITIONS if source == state)


def state_for(stop_reason: StopReason) -> RunState:
    """The state a running run is in once it stopped for `stop_reason`.

    Raises:
        UsageError: there is no such stop reason.
    """
    try:
        return TRANSITIONS[RunState.RUNNING, STOP_INPUTS[stop_reason]]
    except KeyError:
        raise UsageError(f"{stop_reason!r} is not a stop reason", hint=f"one of: {', '.join(STOP_INPUTS)}") from None
