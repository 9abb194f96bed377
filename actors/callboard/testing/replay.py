"""Today's code against yesterday's runs: would they still fit, if they had to be carried on with it?"""

from __future__ import annotations

import asyncio
import copy
import math
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from callboard.agents import Agent
from callboard.runs.stops import StopRun
from callboard.runtime import Runtime
from callboard.testing.fake_clock import FakeClock
from callboard.testing.faults import Passage, watch_passages
from callboard_protocol.errors import Fault, NonDeterministicRunError, RunError, UsageError
from callboard_protocol.records import LogRecord, RunEnded, SleepBegan
from callboard_protocol.runs import ErrorDetails, RunBudget, RunResult, StopReason
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import RunState
from callboard_storage.committing import commit
from callboard_storage.memory_store import MemoryStore
from callboard_storage.store_values import Fence
from callboard_storage.upkeep import ExportedSession, export_page, read_session

Verdict = Literal["fits", "misfit", "past its end"]

_ACTING: Final = frozenset({"step.about_to_act", "step.intent_recorded", "step.outcome_received"})
"""Points that a replay never passes while it keeps to what is recorded."""

_DECIDED_OUTSIDE: Final = frozenset({None, "cancelled", "timeout", "max_steps", "budget_exhausted", "suspended"})
"""Ends that do not follow from what the pattern did; None for a run that had not ended."""

_PAGE: Final = 200
"""Sessions of a data directory that are exported at a time."""

_LONGEST_REPLAY: Final = 20.0
"""Seconds. A replay calls nothing, so one that takes longer waits for something that is not in its history."""


class EndOfHistoryError(RunError):
    """A replayed run has come to the end of what is recorded of it, and wants to go on."""

    code: ClassVar[str] = "end_of_history"
    fault: ClassVar[Fault] = "agent"
    default_hint: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one run.

    Attributes:
        run_id: the run.
        session_id: its session.
        verdict: ``fits`` where today's code asks for what is recorded, to the end; ``misfit`` where it asks for
            something else, or ends differently; ``past its end`` where the run had ended and today's code would go on.
        step: where that was; empty where it was at the run's end.
        message: what is recorded there and what today's code wants.
    """

    run_id: str
    session_id: str
    verdict: Verdict
    step: str = ""
    message: str = ""

    def __str__(self) -> str:
        where = f" at step {self.step}" if self.step else ""
        return f"{self.run_id} (session {self.session_id}): {self.verdict}{where}: {self.message}"


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What `replay` found.

    Attributes:
        runs: what became of each run of the agent that had begun.
    """

    runs: tuple[Replayed, ...]

    @property
    def bad(self) -> tuple[Replayed, ...]:
        """The runs that today's code does not fit."""
        return tuple(run for run in self.runs if run.verdict != "fits")

    def check(self) -> None:
        """Nothing, where every run fits.

        Raises:
            AssertionError: one does not; the message says which and where.
        """
        if self.bad:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        told = ", ".join(f"{times} {verdict}" for verdict, times in Counter(run.verdict for run in self.runs).items())
        return "\n".join([f"{len(self.runs)} runs: {told or 'none of this agent'}", *map(str, self.bad)])


async def replay(
    agent: Agent[Any, Any],
    histories: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    deps: object = None,
) -> ReplayReport:
    """Replay recorded runs with today's agent, and say where it would not fit them. Nothing is called: no model, no
    tool, no function of a step; and nothing is written.

    Args:
        agent: as it is today. Runs of other agents are left out.
        histories: files that ``callboard store export`` wrote; data directories or backups, which may be in use; one of
            these or several.
        deps: stands in for the agent's `deps`, which are not opened; what a pattern reads of them outside steps.

    Returns:
        What became of each run.

    Raises:
        UsageError: a file is no export.
        StoreError: a data directory cannot be read.
    """
    if not isinstance(agent, Agent):
        raise UsageError(f"{agent!r:.80} is no agent", hint="replay(agent, 'session.jsonl')")
    places = [histories] if isinstance(histories, str | os.PathLike) else [*histories]
    replayed: list[Replayed] = []
    async for session in _sessions([Path(place) for place in places]):
        own = [entry for entry in session.runs if entry.request.agent_id == agent.id]
        replayed += [
            await _replayed(_disarmed(agent, deps), session, entry) for entry in own if entry.began_sequence is not None
        ]
    return ReplayReport(tuple(replayed))


async def _sessions(places: Sequence[Path]) -> AsyncIterator[ExportedSession]:
    for place in places:
        if not place.is_dir():
            yield await asyncio.to_thread(read_session, place)
            continue
        last: str | None = None
        while True:
            with tempfile.TemporaryDirectory(prefix="callboard-replay-") as folder:
                page = await asyncio.to_thread(export_page, place, Path(folder), after=last, limit=_PAGE)
                for file in page.values():
                    yield await asyncio.to_thread(read_session, file)
            if len(page) < _PAGE:
                break
            last = [*page][-1]


class _NotOpened:
    """Stands for deps that a replay does not open."""

    def __getattr__(self, name: str) -> Any:
        raise UsageError(
            f"a replay does not open the agent's deps, and its pattern reads .{name} of them outside a step",
            hint="replay(..., deps=...) gives it a double",
        )


def _disarmed(agent: Agent[Any, Any], deps: object) -> Agent[Any, Any]:
    """The agent without what would act before its pattern does, and without limits of time."""
    twin = copy.copy(agent)
    twin.deps = _NotOpened() if deps is None and agent.deps is not None else deps
    twin.memory = None
    twin.step_timeout = None
    twin.budget = _without_limits(agent.budget)
    return twin


def _without_limits(budget: RunBudget) -> RunBudget:
    """A replay uses nothing up; only how often an answer may be corrected decides what the pattern sees."""
    return RunBudget(max_validation_retries=budget.max_validation_retries)


async def _replayed(agent: Agent[Any, Any], session: ExportedSession, entry: RunEntry) -> Replayed:
    history, ended = _history(session.log, entry.run_id)
    store = await _filled(session, entry, history)
    # Late enough for every sleep that is recorded to have ended.
    wakings = (record.wake_at for record in history if isinstance(record, SleepBegan) and math.isfinite(record.wake_at))
    furthest = max(*wakings, *(record.at for record in history), 0.0) + 1
    clock = FakeClock(datetime.fromtimestamp(furthest, UTC))
    async with Runtime(store=store, clock=clock) as runtime:
        with watch_passages(_stop_at_the_end(entry.run_id)):
            runtime.agents.register(agent)
            try:
                result = await asyncio.wait_for(runtime.wait(entry.run_id), _LONGEST_REPLAY)
            except TimeoutError:
                return _went_on(entry, ended, "", "waits for something that is not recorded")
    return _judged(agent, entry, ended, result)


def _history(log: Sequence[LogRecord], run_id: str) -> tuple[list[LogRecord], RunEnded | None]:
    """The session's log up to the run's end, and that end, if it has come to one."""
    for place, record in enumerate(log):
        if isinstance(record, RunEnded) and record.run_id == run_id:
            return [*log[:place]], record
    return [*log], None


async def _filled(session: ExportedSession, entry: RunEntry, history: Sequence[LogRecord]) -> MemoryStore:
    """A store in memory that holds the session as if the run had been interrupted at its last completed step."""
    store = MemoryStore()
    await store.open()
    batch = store.batch(session.id)
    for sequence, record in enumerate(history):
        batch.append(sequence, record)
    request = entry.request
    given = entry.budget or request.budget
    budget = None if given is None else _without_limits(given)
    request = request.model_copy(update={"budget": budget, "parent_run_id": None, "account": None, "durable": True})
    waiting = {"state": RunState.INTERRUPTED, "stop_reason": None, "ended_at": None, "pending": (), "problem": None}
    batch.put_run(entry.model_copy(update={"request": request, "budget": None, "crashed": False, **waiting}))
    await commit(store, batch, Fence(-1))
    return store


def _stop_at_the_end(run_id: str) -> Callable[[Passage], None]:
    """Stops the run where it would act, or write what is not recorded."""

    def passed(passage: Passage) -> None:
        whose, _, step = passage.subject.rpartition(":")
        if passage.point in _ACTING and whose == run_id:
            # Not an error that a pattern could catch, and go on.
            raise StopRun("failed", EndOfHistoryError(f"run {run_id} goes on", context={"step": step}))

    return passed


def _judged(agent: Agent[Any, Any], entry: RunEntry, ended: RunEnded | None, result: RunResult[Any]) -> Replayed:
    error = result.error_details
    code = None if error is None else error.code
    if error is not None and code == NonDeterministicRunError.code:
        return Replayed(entry.run_id, entry.session_id, "misfit", str(error.context.get("step", "")), error.message)
    if error is not None and code == EndOfHistoryError.code:
        return _went_on(entry, ended, str(error.context["step"]), "acts again")
    if result.stop_reason == "suspended":
        return _went_on(entry, ended, "", "waits for a decision")
    if ended is None or ended.stop_reason in _DECIDED_OUTSIDE:
        return Replayed(entry.run_id, entry.session_id, "fits")
    output = agent.output.dump(result.final_output) if result.stop_reason == "completed" else None
    was, now = _shown(ended.stop_reason, ended.output, ended.error_details), _shown(result.stop_reason, output, error)
    if was == now:
        return Replayed(entry.run_id, entry.session_id, "fits")
    message = f"recorded is that it {was}; today's code {now}"
    return Replayed(entry.run_id, entry.session_id, "misfit", message=message)


def _went_on(entry: RunEntry, ended: RunEnded | None, step: str, how: str) -> Replayed:
    """It keeps to what is recorded, and goes on behind that: as it should, unless the run had ended there."""
    if ended is None or ended.stop_reason in _DECIDED_OUTSIDE:
        return Replayed(entry.run_id, entry.session_id, "fits")
    message = f"recorded is that it {_shown(ended.stop_reason, ended.output, ended.error_details)}; today's code {how}"
    return Replayed(entry.run_id, entry.session_id, "past its end", step, message)


def _shown(stop_reason: StopReason, output: Any, error: ErrorDetails | None) -> str:
    if stop_reason == "completed":
        return f"completed with {output!r:.200}"
    return f"ended as {stop_reason}" if error is None else f"ended as {stop_reason} with {error.code}"
