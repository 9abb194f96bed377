"""Row ``latency``: how long a step takes at several numbers of concurrent sessions."""

import asyncio
import time
from collections import defaultdict
from dataclasses import replace
from typing import cast

from bench.child import load
from bench.jobs import Job, Measurement
from bench.workload import Peer, Script, Setup

MIN_SAMPLES = 500
"""Rounds to see at each level before its 99th percentile is worth reading."""


class StepClock:
    """Collects, per session, the time from one model call to the next."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._level = 0
        self.seconds: defaultdict[int, list[float]] = defaultdict(list)

    def start_level(self, level: int) -> None:
        """Begin a new number of concurrent sessions."""
        self._level = level
        self._last.clear()

    def __call__(self, said: str) -> None:
        """Note a model call of the session that began with ``said``."""
        now = time.perf_counter()
        last = self._last.get(said)
        if last is not None:
            # A model step and a tool step lie between two model calls.
            self.seconds[self._level].append((now - last) / 2)
        self._last[said] = now


async def percentiles(job: Job) -> Measurement:
    """Microseconds per step, median and 99th percentile, at each level."""
    clock = StepClock()
    work = replace(job.size.work, rounds=job.size.latency_rounds)
    peer = cast("Peer", load(str(job.peer)))
    async with peer(Setup(Script(work, clock), job.room("data"))) as run_session:
        await run_session("warm")
        for level in job.size.levels:
            clock.start_level(level)
            waves = max(1, MIN_SAMPLES // (level * work.rounds))
            for wave in range(waves):
                await asyncio.gather(*(run_session(f"s-{level}-{wave}-{index}") for index in range(level)))
    metrics = {}
    for level, seconds in clock.seconds.items():
        if level:
            metrics[f"p50_us_at_{level}"] = 1e6 * percentile(seconds, 0.50)
            metrics[f"p99_us_at_{level}"] = 1e6 * percentile(seconds, 0.99)
    return Measurement(metrics)


def percentile(values: list[float], share: float) -> float:
    """The value that ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
