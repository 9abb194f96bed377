"""Row ``growth``: what a late step of one run costs against an early one, in time and in bytes."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

from bench.child import load
from bench.jobs import Job, Measurement
from bench.stored import Stored, probe
from bench.workload import Peer, Script, Setup, Work

EARLY_ROUND = 3
"""Rounds before this one still pay for caches and for the first pages of the file."""
WINDOW = 10
"""Rounds in the early and in the late window."""
POINTS = 25
"""Points on the plotted curve."""


@dataclass
class Probe:
    """Watches the model calls: each one comes after every earlier step is on disk."""

    directory: Path
    measure_bytes_at: frozenset[int]
    stamps: list[float] = field(default_factory=list)
    stored: dict[int, Stored] = field(default_factory=dict)

    def __call__(self, _said: str) -> None:
        """Take the time, and on a chosen round count the bytes on disk."""
        if len(self.stamps) in self.measure_bytes_at:
            self.stored[len(self.stamps)] = probe(self.directory)
        self.stamps.append(time.perf_counter())


async def to_1000_steps(job: Job) -> Measurement:
    """Follow long runs."""
    return await _follow(job, replace(job.size.work, rounds=job.size.long_rounds))


async def to_200_steps(job: Job) -> Measurement:
    """Follow runs of middling length."""
    return await _follow(job, replace(job.size.work, rounds=job.size.middling_rounds))


async def _follow(job: Job, work: Work) -> Measurement:
    """Run one session that stops to count bytes, which would spoil its timing but warms up; then time some more."""
    directory = job.room("data")
    last = work.rounds
    byte_rounds = (EARLY_ROUND, EARLY_ROUND + WINDOW, last - WINDOW, last)
    plans = [frozenset(byte_rounds)] + [frozenset[int]()] * job.size.long_sessions
    probes: list[Probe] = []

    def observe(said: str) -> None:
        probes[-1](said)

    peer = cast("Peer", load(str(job.peer)))
    async with peer(Setup(Script(work, observe), directory)) as run_session:
        for index, plan in enumerate(plans):
            probes.append(Probe(directory, plan))
            answer = await run_session(f"s-{index}")
            if answer != work.answer:
                message = f"session {index} answered {answer!r}"
                raise AssertionError(message)
        total = probe(directory)

    steps = [_seconds_per_step(one.stamps) for one in probes[1:]]
    early_us = 1e6 * statistics.median(value for one in steps for value in one[EARLY_ROUND : EARLY_ROUND + WINDOW])
    late_us = 1e6 * statistics.median(value for one in steps for value in one[-WINDOW:])
    content = [probes[0].stored[index].content for index in byte_rounds]
    early_bytes = (content[1] - content[0]) / (2 * WINDOW)
    late_bytes = (content[3] - content[2]) / (2 * WINDOW)
    return Measurement(
        {
            "early_us": early_us,
            "late_us": late_us,
            "early_bytes": early_bytes,
            "late_bytes": late_bytes,
            "live_bytes_per_step": total.compacted / (len(plans) * work.steps_per_session),
        },
        {"us_per_step": _curve(steps, statistics.median)},
    )


def _seconds_per_step(stamps: list[float]) -> list[float]:
    """From one model call to the next is a model step and a tool step."""
    return [(later - earlier) / 2 for earlier, later in pairwise(stamps)]


def _curve(runs: list[list[float]], middle: Callable[[list[float]], float]) -> list[float]:
    """Reduce the runs to ``POINTS`` points of microseconds per step, evenly spaced along the run."""
    rounds = len(runs[0])
    width = max(1, rounds // POINTS)
    return [
        1e6 * middle([value for run in runs for value in run[start : start + width]])
        for start in range(0, rounds, width)
    ]
