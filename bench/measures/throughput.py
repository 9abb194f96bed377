"""Rows ``durable``, ``memory`` and ``alone``: steps per second."""

import asyncio
import struct
import time
from contextlib import closing
from dataclasses import replace
from typing import cast

import lmdb

from bench.child import load
from bench.jobs import Job, Measurement
from bench.workload import Peer, RunSession, Script, Setup, Work, bare_step_seconds

WARM_UP_SESSIONS = 3
COMMIT_BYTES = 300
"""The value of one bare commit: about what one step's record comes to."""


async def concurrent(job: Job) -> Measurement:
    """Run whole batches of sessions, all of a batch at once, until the time is up."""
    work = job.size.work
    seconds, sessions = await _run_for(job, work, batch=work.sessions)
    rate = sessions * work.steps_per_session / seconds
    return Measurement(
        {"steps_per_s": rate, "us_per_step": 1e6 / rate, "own_us_per_step": 1e6 / rate - 1e6 * bare_step_seconds(work)}
    )


async def alone(job: Job) -> Measurement:
    """Run long sessions one after the other, so each step waits for its own commit."""
    work = replace(job.size.work, rounds=min(100, job.size.long_rounds))
    seconds, sessions = await _run_for(job, work, batch=1)
    return Measurement({"per_s": sessions * work.steps_per_session / seconds})


async def bare_commits(job: Job) -> Measurement:
    """Commit one small put at a time to LMDB with its default, fully synced, settings."""
    value = b"x" * COMMIT_BYTES
    commits = 0
    with closing(lmdb.open(str(job.room("bare")), map_size=1 << 32)) as environment:
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < job.size.seconds:
            with environment.begin(write=True) as transaction:
                transaction.put(struct.pack(">Q", commits), value)
            commits += 1
    return Measurement({"per_s": commits / elapsed})


async def _run_for(job: Job, work: Work, *, batch: int) -> tuple[float, int]:
    """Run batches of sessions for the job's seconds; return the time taken and the sessions run."""
    peer = cast("Peer", load(str(job.peer)))
    async with peer(Setup(Script(work), job.room("data"))) as run_session:
        for index in range(WARM_UP_SESSIONS):
            await _run_checked(run_session, f"warm-{index}", work)
        done = 0
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < job.size.seconds:
            await asyncio.gather(*(_run_checked(run_session, f"s-{done + index}", work) for index in range(batch)))
            done += batch
    return elapsed, done


async def _run_checked(run_session: RunSession, session: str, work: Work) -> None:
    answer = await run_session(session)
    if answer != work.answer:
        message = f"session {session} answered {answer!r}"
        raise AssertionError(message)
