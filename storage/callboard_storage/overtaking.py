"""Whether whoever writes a run's entry still knows how the run stands: the rule, the same for every backend.

Batches that follow one another in a session's log are held by their fences. An entry that is written without a log to
stand on, of a run that waits or ends before it has begun, and one that comes with a run's first record, have no such
hold: another open store may have taken in, begun or ended the same run since. So they say how the run stood when they
were decided on, and that is looked at in the transaction that writes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from callboard_protocol.errors import CallboardError, DamagedRecordError, RunOvertakenError
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import FINAL
from callboard_storage import reading
from callboard_storage.batch import FrameBatch
from callboard_storage.reading import Snapshot


class _Progress(NamedTuple):
    """How far a run has come. What waits does not: a run is queued, parked and queued again without getting further."""

    attempts: int = 0
    began_sequence: int | None = None
    has_ended: bool = False


def refusal(batch: FrameBatch, snapshot: Snapshot, is_alive: Callable[[bytes], bool]) -> CallboardError | None:
    """Why the entries of a batch are not written; None if they are.

    Args:
        batch: the batch.
        snapshot: what is stored.
        is_alive: whether an owner lives.
    """
    for key, seen in batch.seen.items():
        owner = snapshot.get("unfinished", key)
        if owner == batch.owner:
            continue  # nobody else writes it while this one lives
        if owner is not None and is_alive(owner):
            return _overtaken(seen, "another open store carries it")
        try:
            stored = reading.run(snapshot, seen.run_id)
        except DamagedRecordError as damaged:
            return damaged
        if stored is not None and stored.request_digest != seen.request_digest:
            return _overtaken(seen, "somebody has submitted another request under its id")
        if _progress(stored) != _progress(seen):
            return _overtaken(seen, "somebody has begun or ended it since it was read")
    return None


def _progress(entry: RunEntry | None) -> _Progress:
    return _Progress() if entry is None else _Progress(entry.attempts, entry.began_sequence, entry.state in FINAL)


def _overtaken(seen: RunEntry, why: str) -> RunOvertakenError:
    return RunOvertakenError(
        f"the entry of run {seen.run_id!r} was not written: {why}", context={"run_id": seen.run_id}
    )
