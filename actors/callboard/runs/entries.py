"""A run's entry in the table of runs: how it moves, how it is written alone, and the result it stands for."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from callboard import fault_points
from callboard_protocol.digests import fingerprint
from callboard_protocol.errors import CallboardError, RunConflictError
from callboard_protocol.failures import describe
from callboard_protocol.named_accounts import AccountCharge
from callboard_protocol.records import RunEnded
from callboard_protocol.runs import RunArtifact, RunRequest, RunResult, RunUsage, StopReason
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import FINAL, STOP_INPUTS, RunInput, RunState, advance
from callboard_protocol.tools import PendingCall
from callboard_protocol.trusted import trusted
from callboard_storage.committing import commit
from callboard_storage.store import Store

logger = logging.getLogger(__name__)


def moved(entry: RunEntry, event: RunInput, **changes: Any) -> RunEntry:
    """The entry after `event`.

    Raises:
        IllegalTransitionError: the state machine has no such move.
    """
    return trusted(RunEntry, **{**vars(entry), "state": advance(entry.state, event), **changes})


def parked(entry: RunEntry, reason: str) -> RunEntry:
    """The entry of a run that cannot go on for want of something."""
    pending = (PendingCall(reason="parked", message=reason),)
    if entry.state == RunState.PARKED:
        return entry.model_copy(update={"pending": pending})
    return moved(entry, RunInput.PARK, pending=pending)


def ended_early(entry: RunEntry, stop_reason: StopReason, error: BaseException | None, at: float) -> RunEntry:
    """The entry of a run that ended before its first record."""
    problem = None if error is None else describe(error)
    return moved(entry, STOP_INPUTS[stop_reason], stop_reason=stop_reason, problem=problem, ended_at=at)


async def write_entry(store: Store, entry: RunEntry, *, seen: RunEntry) -> None:
    """Write a run's entry alone.

    Args:
        store: where.
        entry: what to write.
        seen: how the run stood when that was decided.

    Raises:
        RunOvertakenError: somebody else has carried the run on since.
        StoreError: the store refused.
    """
    batch = store.batch(entry.session_id)
    batch.put_run(entry, seen=seen)
    await commit(store, batch)
    fault_points.reach("run.entry_recorded", entry.run_id)


def post_entry(store: Store, entry: RunEntry, *, seen: RunEntry) -> None:
    """As `write_entry`, without waiting. It says no more than what the next start would find out anyway."""

    def acknowledge(error: CallboardError | None) -> None:
        if error is not None:
            logger.warning("the entry of run %s was not written: %s", entry.run_id, error)

    batch = store.batch(entry.session_id)
    batch.put_run(entry, seen=seen)
    store.commit(batch, None, asyncio.get_running_loop(), acknowledge)


def result_of(
    entry: RunEntry, ended: RunEnded | None = None, artifacts: tuple[RunArtifact, ...] = (), output: Any = None
) -> RunResult[Any]:
    """The result of a run that has stopped.

    Args:
        entry: its entry.
        ended: its last record; None where it has none.
        artifacts: what it made.
        output: its output in the agent's type.
    """
    return RunResult(
        run_id=entry.run_id,
        session_id=entry.session_id,
        agent_id=entry.request.agent_id,
        stop_reason=entry.stop_reason or "interrupted",
        final_output=output,
        usage=RunUsage() if ended is None else ended.usage,
        artifacts=artifacts,
        error_details=entry.problem or (None if ended is None else ended.error_details),
        error_snapshot=None if ended is None else ended.error_snapshot,
        pending=entry.pending,
        metadata=entry.request.metadata,
    )


def interrupted(entry: RunEntry) -> RunResult[Any]:
    """The result of a run that this process lets go of and a later start carries on."""
    return result_of(RunEntry(**{**dict(entry), "stop_reason": "interrupted"}))


def request_digest(request: RunRequest) -> bytes:
    """By which a second submission under the same run id is recognised as the same request."""
    return fingerprint(request)


def refuse_other(request: RunRequest, known: RunEntry) -> None:
    """Let only the same request pass under a run id that is known.

    Raises:
        RunConflictError: it is another.
    """
    if request_digest(request) != known.request_digest:
        raise RunConflictError(
            f"run {request.run_id!r} was submitted before with a different request",
            context={"run_id": request.run_id},
        )


def charge_of(entry: RunEntry) -> AccountCharge | None:
    """What a run's end charges to its account, which ends what it has drawn there; None where it draws on none."""
    account = entry.request.account
    if account is None or entry.state not in FINAL:
        return None
    return AccountCharge(account=account, run_id=entry.run_id, attempt=entry.attempts, amount=entry.charged)
