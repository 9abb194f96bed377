"""One batch on one system: a tracker nobody kills, a worker that is killed on schedule, and what the books say."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from callboard.demo.books import Standing, key_of
from callboard.demo.publishing import Publication, allow
from callboard.demo.reference import Reference
from callboard.demo.sources import Sources
from callboard.demo.tracker_client import TrackerClient
from callboard.demo.worker import Assignment, System
from callboard_protocol.errors import CallboardError

MOST_KILLS = 7
SESSIONS_PER_KILL = 12
PATIENCE = 0.25
"""Seconds a due kill waits for a filing in flight."""
NO_PROGRESS = 45.0
"""Seconds without a new model call or finding after which the batch is given up."""
POLL = 0.1


class BatchFailedError(CallboardError):
    """A batch could not be carried to its end."""

    code = "demo_batch_failed"


@dataclass(frozen=True)
class Plan:
    """What both systems are put through.

    Attributes:
        sources: the audited files.
        reference: what an uncrashed pass over them does and files.
        out: the directory for logs, data and reports.
        kills: the worker is killed when that many different model calls are paid.
        model_latency: seconds the model takes to answer.
        interactive: the kills are the user's.
    """

    sources: Sources
    reference: Reference
    out: Path
    kills: tuple[int, ...] = ()
    model_latency: float = 0.0
    interactive: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one batch, by the tracker's books and the clock.

    Attributes:
        sessions: sessions that ended with the answer the uncrashed pass gives.
        kills: when the worker died by a signal, in unix seconds.
        lost: findings of the uncrashed pass that are not in the books.
        invented: findings in the books that the uncrashed pass does not file.
        seconds: from the first worker's start to the last one's end, restarts included.
        books: the tracker's figures.
        findings: every finding, with how often it was filed.
        publication: what became of the question whether the report may be published; None where nobody asked.
    """

    system: System
    sessions: int
    kills: tuple[float, ...]
    lost: tuple[str, ...]
    invented: tuple[str, ...]
    seconds: float
    steps: int
    books: Standing
    findings: list[dict[str, Any]] = field(repr=False)
    publication: Publication | None = None

    @property
    def steps_per_second(self) -> float:
        """Steps the batch needs, by the time it took: work done over is not counted twice."""
        return self.steps / self.seconds


class Watcher(Protocol):
    """Who is told how a batch goes."""

    def worker_started(self, system: System, pid: int) -> None:
        """A worker process runs."""
        ...

    def worker_killed(self, system: System, kills: int) -> None:
        """It died by a signal, the `kills`th of this batch."""
        ...

    def standing(self, system: System, standing: Standing, seconds: float) -> None:
        """The tracker's figures, several times a second."""
        ...

    def finished(self, outcome: Outcome) -> None:
        """The batch is done."""
        ...


def schedule_kills(model_calls: int, sessions: int) -> tuple[int, ...]:
    """When to kill: spread over the batch, off the beat by up to a third of a gap, the same for every run."""
    kills = min(MOST_KILLS, max(1, sessions // SESSIONS_PER_KILL))
    jitter = random.Random(20)  # noqa: S311 - no secret: both systems meet the same kills
    gap = model_calls / (kills + 1)
    return tuple(max(1, round(gap * (number + jitter.uniform(-0.33, 0.33)))) for number in range(1, kills + 1))


async def run_batch(system: System, plan: Plan, watcher: Watcher) -> Outcome:
    """Carry the batch to its end on one system, under the plan's kills.

    Raises:
        BatchFailedError: a worker gave up, the tracker is gone, or nothing moved any more.
    """
    try:
        outcome = await _run_batch(system, plan, watcher)
    except ConnectionError as error:
        raise BatchFailedError("the tracker is gone", hint=f"see {plan.out / f'tracker-{system}.log'}") from error
    watcher.finished(outcome)
    return outcome


async def _run_batch(system: System, plan: Plan, watcher: Watcher) -> Outcome:
    data = plan.out / "data" / system
    data.mkdir()
    answers = data / "answers.json"
    log = plan.out / f"tracker-{system}.log"
    async with _child("tracker", log, "--model-latency", str(plan.model_latency)) as child:
        port = await _port_of(child)
        assignment = Assignment(system, str(plan.sources.root), plan.sources.modules, port, str(data), str(answers))
        assignment.save(data / "assignment.json")
        async with TrackerClient(port) as tracker:
            started = time.monotonic()
            follow = asyncio.create_task(_follow(system, tracker, watcher, started))
            try:
                kills = await _keep_working(system, plan, tracker, watcher, follow)
            finally:
                follow.cancel()
                with suppress(asyncio.CancelledError, BatchFailedError, ConnectionError):
                    await follow
            seconds = time.monotonic() - started
            publication = None
            if system == "callboard":
                publication = await allow(data, tracker, len(plan.sources.modules))
            books, findings = await tracker.books()
    said: dict[str, str] = json.loads(answers.read_text(encoding="utf-8"))
    expected = plan.reference.findings.keys()
    filed = {key_of(finding["module"], finding["line"], finding["rule"]) for finding in findings}
    return Outcome(
        system=system,
        sessions=sum(1 for module, answer in plan.reference.answers.items() if said.get(module) == answer),
        kills=kills,
        lost=tuple(sorted(expected - filed)),
        invented=tuple(sorted(filed - expected)),
        seconds=seconds,
        steps=plan.reference.steps,
        books=books,
        findings=findings,
        publication=publication,
    )


async def _keep_working(
    system: System, plan: Plan, tracker: TrackerClient, watcher: Watcher, follow: asyncio.Task[None]
) -> tuple[float, ...]:
    """Start a worker as often as one dies by a signal; when that was."""
    log = plan.out / f"worker-{system}.log"
    due = list(plan.kills)
    kills: list[float] = []
    while True:
        async with _child("worker", log, str(plan.out / "data" / system / "assignment.json")) as worker:
            watcher.worker_started(system, worker.pid)
            end = asyncio.create_task(worker.wait())
            killer = asyncio.create_task(_kill_at(due[0], tracker, worker) if due else asyncio.sleep(0))
            try:
                await asyncio.wait({end, follow}, return_when=asyncio.FIRST_COMPLETED)
                if follow.done():
                    await follow
                code = await end
            finally:
                killer.cancel()
                end.cancel()
        if code == 0:
            return tuple(kills)
        if code > 0:
            raise BatchFailedError(
                f"the {system} worker gave up (exit code {code}): {_last_line(log)}", hint=f"see {log}"
            )
        kills.append(time.time())
        del due[:1]
        watcher.worker_killed(system, len(kills))


async def _kill_at(calls: int, tracker: TrackerClient, worker: asyncio.subprocess.Process) -> None:
    """Kill one worker, the moment a filing is in flight behind its `calls`th model call."""
    with suppress(ConnectionError, ProcessLookupError):
        await tracker.moment(calls, PATIENCE)
        worker.kill()


async def _follow(system: System, tracker: TrackerClient, watcher: Watcher, started: float) -> None:
    """Tell the watcher how it goes.

    Raises:
        BatchFailedError: nothing has moved for a long time.
    """
    last, moved = Standing(), time.monotonic()
    while True:
        now = await tracker.standing()
        if (now.model_calls, now.findings) != (last.model_calls, last.findings):
            last, moved = now, time.monotonic()
        elif time.monotonic() - moved > NO_PROGRESS:
            raise BatchFailedError(
                f"the {system} batch has not moved for {NO_PROGRESS:.0f} s, at {now.model_calls} model calls",
                hint="see the worker's log beside the report",
            )
        watcher.standing(system, now, time.monotonic() - started)
        await asyncio.sleep(POLL)


@asynccontextmanager
async def _child(name: str, log: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """One of the demo's own processes, dead when this ends.

    It is in a session of its own: Ctrl-C is for this process, which ends its children itself.
    """
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Nothing in the current directory may stand in for a module: it may be the code that is audited.
            "-P",
            "-m",
            f"callboard.demo.{name}",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE if name == "tracker" else asyncio.subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        # Shielded: a second Ctrl-C must not leave a process behind that nobody waits for.
        await asyncio.shield(process.wait())


async def _port_of(tracker: asyncio.subprocess.Process) -> int:
    if tracker.stdout is None:
        raise BatchFailedError("the tracker has no standard output")
    line = await tracker.stdout.readline()
    if not line:
        raise BatchFailedError("the tracker did not start", hint="see its log beside the report")
    return int(json.loads(line)["port"])


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"
