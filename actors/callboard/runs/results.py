"""Results of runs that have stopped, read back from the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from callboard.agents import Agent
from callboard.runs.entries import result_of
from callboard_protocol.records import LogRecord, OutcomeVoided, RunBegan, RunEnded, StepCompleted
from callboard_protocol.runs import RunArtifact, RunResult
from callboard_protocol.sessions import RunEntry
from callboard_storage.store import Store
from callboard_storage.store_values import StoredRecord

_PAGE = 256


async def read_result(store: Store, entry: RunEntry, agent: Agent[Any, Any] | None) -> RunResult[Any]:
    """The result a stopped run had, from its records.

    Args:
        store: where it lasts.
        entry: the run's entry.
        agent: gives the output its type back; plain data without it.

    Raises:
        DamagedRecordError: a record of the run cannot be read.
    """
    if entry.began_sequence is None:
        return result_of(entry)
    ended: RunEnded | None = None
    artifacts: list[RunArtifact] = []
    async for record in records_of(store, entry):
        if isinstance(record, StepCompleted) and record.artifact is not None:
            artifacts.append(record.artifact)
        elif isinstance(record, RunBegan):
            artifacts.clear()
        elif isinstance(record, RunEnded):
            ended = record
    output = None if ended is None else ended.output
    if agent is not None and ended is not None and ended.stop_reason == "completed":
        output = agent.output.load(output)
    return result_of(entry, ended, tuple(artifacts), output)


async def steps_of(store: Store, entry: RunEntry) -> Sequence[StepCompleted]:
    """A run's completed steps that count, in the order they completed: without what it left behind to begin afresh, or
    to make a step again.

    Args:
        store: where it lasts.
        entry: the run's entry.

    Raises:
        DamagedRecordError: a record of the run cannot be read.
    """
    steps: dict[str, StepCompleted] = {}
    async for record in records_of(store, entry):
        if isinstance(record, StepCompleted):
            steps[record.step] = record
        elif isinstance(record, RunBegan):
            steps.clear()
        elif isinstance(record, OutcomeVoided):
            steps.pop(record.step, None)
    return [*steps.values()]


async def records_of(store: Store, entry: RunEntry) -> AsyncIterator[LogRecord]:
    """A run's records in order, up to the last there is.

    Args:
        store: where it lasts.
        entry: the run's entry.

    Raises:
        DamagedRecordError: one of them cannot be read.
    """
    async for stored in stored_records_of(store, entry):
        yield stored.record


async def stored_records_of(store: Store, entry: RunEntry, *, start: int | None = None) -> AsyncIterator[StoredRecord]:
    """A run's records and where they stand, in order, up to the last there is.

    Args:
        store: where it lasts.
        entry: the run's entry.
        start: the sequence to begin at; its first record where None.

    Raises:
        DamagedRecordError: one of them cannot be read.
    """
    if start is None:
        start = entry.began_sequence
    while start is not None:
        page = await store.read_log(entry.session_id, start=start, limit=_PAGE)
        for stored in page:
            if stored.record.run_id == entry.run_id:
                yield stored
                # One that was resumed has ended more than once.
                if isinstance(stored.record, RunEnded) and stored.record.at == entry.ended_at:
                    return
        start = page[-1].sequence + 1 if len(page) == _PAGE else None
