"""Named moments at which a test may strike: around each effect and right after each commit.

In production nobody is armed, and a passage costs one comparison. `callboard.testing` arms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from callboard_protocol.records import (
    DecisionMade,
    IntentRecorded,
    LogRecord,
    OutcomeVoided,
    ReservationRecorded,
    RunBegan,
    RunEnded,
    RunResumed,
    RunSuspended,
    SleepBegan,
    StepCompleted,
)

POINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "run.entry_recorded": "a run that waits, or ended before it began, is on disk",
        "run.began": "a run's first record is on disk",
        "run.resumed": "the first record of a further attempt is on disk",
        "run.suspended": "it is on disk that a run waits for somebody",
        "run.ended": "a run's last record is on disk",
        "step.about_to_act": "a model, a tool, a function or a reconcile is about to be called, another agent to be "
        "given work, or a run to wait",
        "step.reservation_recorded": "it is on disk what a model call of a limited run may cost",
        "step.intent_recorded": "it is on disk that a tool is about to act",
        "step.outcome_received": "what came of a step is known, and not yet written",
        "step.recorded": "what came of a step is on disk",
        "step.voided": "it is on disk that an outcome counts no more",
        "sleep.recorded": "it is on disk when a sleep ends",
        "decision.recorded": "a run has taken in what somebody decided about a call, and that is on disk",
        "letter.posted": "a decision, a value or a cancellation for a run is on disk, and the run has not seen it",
        "account.recorded": "a named account was opened or given a budget, and that is on disk",
        "account.drawn": "what a run reserves or has settled is on disk with its account",
        "checkpoint.recorded": "a checkpoint under a caller's name is on disk",
        "fork.recorded": "a fork of a session is on disk",
    }
)
"""Each point, and what is true as it is passed."""

_RECORDED: Final[Mapping[type[LogRecord], str]] = MappingProxyType(
    {
        RunBegan: "run.began",
        RunResumed: "run.resumed",
        RunSuspended: "run.suspended",
        RunEnded: "run.ended",
        ReservationRecorded: "step.reservation_recorded",
        IntentRecorded: "step.intent_recorded",
        StepCompleted: "step.recorded",
        OutcomeVoided: "step.voided",
        SleepBegan: "sleep.recorded",
        DecisionMade: "decision.recorded",
    }
)

armed: Callable[[str, str], object] | None = None
"""What is called with each point that is passed and whom it is about: a call id, a run id, a session id or an account's
name."""


def reach(point: str, subject: str) -> None:
    """Pass a point.

    Args:
        point: one of `POINTS`.
        subject: whom it is about: a call id (``{run_id}:{step}``), a run id, a session id or an account's name.
    """
    if armed is not None:
        armed(point, subject)


def reach_recorded(records: Sequence[LogRecord]) -> None:
    """Pass the point of each of these records, which have come to disk together."""
    for record in records:
        point = _RECORDED.get(type(record))
        if point is not None:
            step = getattr(record, "step", None)
            reach(point, record.run_id if step is None else f"{record.run_id}:{step}")
