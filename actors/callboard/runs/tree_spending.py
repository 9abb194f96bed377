"""What the runs below a run have spent, from what is on disk: so that a tree's limits hold across crashes.

A run's own records say what each run cost that it waited for to the end. Whatever else it began is found by its id: a
child's is its parent's, a colon and the step, so all runs below a run lie behind it in the table of runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final

from callboard.runs.results import records_of
from callboard_protocol.amounts import Amount, total
from callboard_protocol.meter import RunMeter
from callboard_protocol.records import LogRecord, StepCompleted, call_id_of
from callboard_protocol.runs import DelegatedOutcome
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import FINAL
from callboard_storage.store import Store
from callboard_storage.store_values import StoredRecord

_PAGE: Final = 64


def outcome_of(record: StepCompleted) -> DelegatedOutcome:
    """What a step that delegated has recorded."""
    return DelegatedOutcome.model_validate(record.value)


def recorded_below(record: LogRecord) -> Mapping[str, Amount]:
    """What a record of the parent's says of what a child spent, by the child's run id."""
    if not isinstance(record, StepCompleted) or record.kind != "delegate" or record.value is None:
        return {}
    return {call_id_of(record): Amount(*outcome_of(record).spent)}


def spent_in(records: Iterable[StoredRecord]) -> Amount:
    """What a run spent itself, by these records of it."""
    meter = RunMeter()
    for stored in records:
        meter.count(stored.record)
    return meter.spent()


async def spent_below(store: Store, run_id: str, recorded: Mapping[str, Amount]) -> dict[str, Amount]:
    """What each run that a run delegated has spent, with everything below it, by run id.

    Args:
        store: where they last.
        run_id: who delegated.
        recorded: what its own records say of those it waited for to the end.

    Raises:
        DamagedRecordError: a record of an unfinished one cannot be read.
    """
    below = dict(recorded)
    async for child in children_of(store, run_id):
        if child.run_id not in below:
            below[child.run_id] = await spent_by(store, child)
    return below


async def spent_by(store: Store, entry: RunEntry) -> Amount:
    """What a run has spent, with everything below it.

    Raises:
        DamagedRecordError: a record of an unfinished one cannot be read.
    """
    if entry.state in FINAL:
        return Amount(*entry.spent)
    meter = RunMeter()
    recorded: dict[str, Amount] = {}
    async for record in records_of(store, entry):
        meter.count(record)
        recorded.update(recorded_below(record))
    below = await spent_below(store, entry.run_id, recorded)
    return total([meter.spent(), *below.values()])


async def children_of(store: Store, run_id: str) -> AsyncIterator[RunEntry]:
    """The runs that a run has delegated in whichever of its attempts, ended or not.

    Args:
        store: where they last.
        run_id: who delegated.
    """
    prefix = after = f"{run_id}:"
    # Most runs have delegated nothing, and what lies behind them is none of theirs: one look tells.
    limit = 1
    while True:
        page = await store.list_runs(after=after, limit=limit)
        for entry in page:
            if not entry.run_id.startswith(prefix):
                return
            if entry.request.parent_run_id == run_id:
                yield entry
        if len(page) < limit:
            return
        after, limit = page[-1].run_id, _PAGE
