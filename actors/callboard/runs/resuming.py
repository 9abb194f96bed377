"""What a run that is resumed leaves behind: its end, and the outcome it failed over."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from callboard_protocol.errors import (
    BudgetExhaustedError,
    CallboardError,
    CallInDoubtError,
    InterruptedByCrashError,
    OutputValidationError,
    RunCancelledError,
    RunNotResumableError,
    StoreError,
    ToolDeniedError,
)
from callboard_protocol.records import LogRecord, OutcomeVoided, RunBegan, RunEnded, SessionRewound, StepCompleted
from callboard_protocol.runs import ErrorDetails, RunBudget
from callboard_protocol.session_fold import SessionFold
from callboard_protocol.sessions import RunEntry, SessionHead
from callboard_protocol.states import RunState
from callboard_storage.store_values import StoredRecord

if TYPE_CHECKING:
    from callboard.live.journal import RunJournal
    from callboard.session import OpenedSession

_NEVER_VOIDED = frozenset({CallInDoubtError.code, ToolDeniedError.code})
"""Outcomes that somebody decided, or would have to."""

_NOT_BY_ITSELF = (BudgetExhaustedError, InterruptedByCrashError, OutputValidationError, RunCancelledError, StoreError)
"""Errors that the same run meets again, that say what somebody wants, or after which nothing can be written."""

_BEGIN_ANOTHER = "begin a new run with resume_from_checkpoint=..., which can go back to any of its steps"
_REFUSED: Final[Mapping[RunState, str]] = MappingProxyType(
    {
        RunState.COMPLETED: f"it has its result; {_BEGIN_ANOTHER}",
        RunState.CANCELLED: f"it was stopped on purpose; {_BEGIN_ANOTHER}",
        RunState.SUSPENDED: "it waits for decisions and goes on with the last of them: runtime.decide(call_id, ...)",
    }
)
"""Why runs in these states are not resumed, and what to do instead."""

_LIFECYCLE = "/"
"""What the identities of the runtime's own steps begin with; they are steps of the root scope."""


class WayBack(NamedTuple):
    """How a run goes back within itself before it goes on.

    Attributes:
        back_to: the sequence of the last record that counts; None where all of them do.
        voided: the step whose outcome no longer counts, so that it is made again.
    """

    back_to: int | None = None
    voided: str | None = None


def way_back(log: Sequence[StoredRecord], own: Sequence[StoredRecord], failure: ErrorDetails | None) -> WayBack:
    """What a further attempt of a run leaves behind.

    Args:
        log: its session's records.
        own: the run's.
        failure: the error over which it is tried again, where that is not in its last record.

    Raises:
        RunNotResumableError: it had ended, and its session has moved on since.
    """
    end = own[-1]
    back_to: int | None = None
    if isinstance(end.record, RunEnded):
        if log[-1] is not end:
            raise moved_on(end.record.run_id)
        back_to, failure = end.sequence - 1, end.record.error_details
    culprit = None if failure is None else _culprit(own, failure)
    if culprit is None:
        return WayBack(back_to)
    # What the last one said, and what it changed in the session's state, is said and changed anew.
    return WayBack(culprit.sequence - 1 if culprit.is_last else back_to, culprit.step)


AS_IF_NOT_ENDED: Final[Mapping[str, Any]] = MappingProxyType(
    {"pending": (), "stop_reason": None, "problem": None, "ended_at": None, "crashed": False, "retries": 0}
)
"""What an entry says of a run's end, taken back."""


def resumed_with(entry: RunEntry, budget: RunBudget | None) -> RunEntry:
    """The entry of a run that goes on with other limits; with those it had where None are given."""
    return entry if budget is None else entry.model_copy(update={"budget": budget})


def refuse_unless_resumable(entry: RunEntry) -> None:
    """Let runs pass that can go on by being told so.

    Raises:
        RunNotResumableError: it is none of them.
    """
    parent_id = entry.request.parent_run_id
    if parent_id is not None:
        raise RunNotResumableError(
            f"run {entry.run_id!r} was delegated by run {parent_id!r}, which carries it on",
            hint=f"resume that one: runtime.resume({parent_id!r})",
        )
    hint = _REFUSED.get(entry.state)
    if hint is not None:
        raise RunNotResumableError(f"run {entry.run_id!r} is {entry.state.value!r}", hint=hint)


def refuse_if_moved_on(entry: RunEntry, head: SessionHead | None, *, is_in_use: bool) -> None:
    """Let a run that has ended pass if nothing has happened in its session since.

    Args:
        entry: the run's.
        head: where its session stands.
        is_in_use: whether another run has the session, or waits for it.

    Raises:
        RunNotResumableError: something has, or is about to.
    """
    if entry.began_sequence is None:
        return
    if is_in_use or head is None or head.last_run != entry.run_id or head.active_run is not None:
        raise moved_on(entry.run_id)


def moved_on(run_id: str) -> RunNotResumableError:
    """The error of a run that has ended in a session that other runs have used since."""
    return RunNotResumableError(
        f"the session of run {run_id!r} has moved on since it ended",
        hint=_BEGIN_ANOTHER,
    )


def marker_within(at: SessionFold, own: Sequence[StoredRecord]) -> SessionRewound:
    """The record by which a run that has begun goes back to where `at` stands."""
    return at.marker(
        "", (), run_id=own[-1].record.run_id, at=time.time(), ordinal=max(one.record.ordinal for one in own) + 1
    )


def way_records(journal: RunJournal, opened: OpenedSession) -> Sequence[LogRecord]:
    """The records by which an attempt goes back before it begins; the journal takes them in."""
    records: list[LogRecord] = []
    if opened.rewind is not None:
        journal.claim_ordinal()
        records.append(opened.rewind)
    if opened.voided is not None:
        reason = "the run failed over it, and is resumed"
        ordinal = journal.claim_ordinal()
        journal.void(opened.voided)
        records.append(
            OutcomeVoided(run_id=journal.run_id, ordinal=ordinal, at=time.time(), step=opened.voided, reason=reason)
        )
    return records


def lives_of(own: Sequence[StoredRecord]) -> tuple[Sequence[StoredRecord], Sequence[StoredRecord]]:
    """A run's records from before it last began, afresh or at all, and those since."""
    began = max((place for place, stored in enumerate(own) if isinstance(stored.record, RunBegan)), default=len(own))
    return own[:began], own[began:]


def can_pass(error: BaseException) -> bool:
    """Whether the same run can succeed later without anyone's doing."""
    return isinstance(error, CallboardError) and error.retryable and not isinstance(error, _NOT_BY_ITSELF)


class _Culprit(NamedTuple):
    """The outcome a run failed over.

    Attributes:
        step: whose.
        sequence: where it is recorded.
        is_last: whether no other came behind it.
    """

    step: str
    sequence: int
    is_last: bool


def _culprit(own: Sequence[StoredRecord], failure: ErrorDetails) -> _Culprit | None:
    """The outcome a run failed over, if it is a step's. One behind which its own branch went on is not it: the pattern
    knew what to do about it. Branches beside it do not count.
    """
    causes = _chain(failure)
    behind: list[str] = []
    for stored in reversed(own):
        record = stored.record
        if isinstance(record, RunBegan):
            return None
        if not isinstance(record, StepCompleted) or record.kind == "patched":
            continue
        scope = record.step[: record.step.rfind("/") + 1].removeprefix(_LIFECYCLE)
        error = record.error
        if error is not None and (error.code, error.message) in causes and error.code not in _NEVER_VOIDED:
            if not behind:
                return _Culprit(record.step, stored.sequence, is_last=True)
            went_on = any(scope.startswith(other) or other.startswith(scope) for other in behind)
            is_counted = record.state_changed or record.in_transcript or record.messages
            return None if went_on or is_counted else _Culprit(record.step, stored.sequence, is_last=False)
        behind.append(scope)
    return None


def _chain(failure: ErrorDetails) -> set[tuple[str, str]]:
    causes = set()
    error: ErrorDetails | None = failure
    while error is not None:
        causes.add((error.code, error.message))
        error = error.cause
    return causes
