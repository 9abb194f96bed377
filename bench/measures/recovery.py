"""Row ``recovery``: how soon runs go on after the process that ran them was killed.

The state on disk is made by a real crash: a process of its own fills the directory and kills itself in the middle of a
model call (``python -m bench.measures.recovery long|many|sessions STORE COUNT``).
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from bench.jobs import Job, Measurement
from bench.peers.callboard_peer import ScriptModel, bench_agent, roomy_limits
from bench.workload import Script, Work, user_input
from callboard import ModelRequest, ModelResponse, Runtime, RuntimeLimits

LONG_RUN = "long-run"
AT_ONCE = 500
"""Runs submitted together: their commits are shared, or the preparation would take minutes."""
PREPARATION_SECONDS = 240


async def long_run(job: Job) -> Measurement:
    """Milliseconds from `Runtime.start` to the first new model call of a run with many recorded steps."""
    work = Work(rounds=job.size.long_rounds)
    store = job.room("data") / "store"
    _crash("long", store, work.rounds)
    asked: list[float] = []
    agent = bench_agent(Script(work, observe=lambda _: asked.append(time.perf_counter())))
    runtime = Runtime([agent], store=store)
    began = time.perf_counter()
    await runtime.start()
    ready = time.perf_counter()
    result = await runtime.wait(LONG_RUN)
    await runtime.aclose()
    if result.final_output != work.answer or len(asked) != 1:
        message = f"the run answered {result.final_output!r} after {len(asked)} new model calls"
        raise AssertionError(message)
    return Measurement({"ready_ms": 1e3 * (ready - began), "resume_ms": 1e3 * (asked[0] - began)})


async def many_runs(job: Job) -> Measurement:
    """Milliseconds until a runtime has started that finds many unfinished runs, and until the last of them is done."""
    count, work = job.size.unfinished_runs, Work(rounds=0)
    store = job.room("data") / "store"
    _crash("many", store, count)
    agent = bench_agent(Script(work))
    runtime = Runtime([agent], store=store)
    began = time.perf_counter()
    await runtime.start()
    ready = time.perf_counter()
    recovered = runtime.stats().recovered
    results = await asyncio.gather(*(runtime.wait(f"run-{index}") for index in range(count)))
    finished = time.perf_counter()
    await runtime.aclose()
    wrong = sum(result.final_output != work.answer for result in results)
    if recovered != count or wrong:
        message = f"{recovered} of {count} runs were recovered, and {wrong} did not answer as they should"
        raise AssertionError(message)
    return Measurement({"ready_ms": 1e3 * (ready - began), "all_done_ms": 1e3 * (finished - began)})


async def many_sessions(job: Job) -> Measurement:
    """Milliseconds until a runtime has started on a directory of many sessions, none of which has anything to do."""
    count = job.size.sessions_on_disk
    store = job.room("data") / "store"
    _crash("sessions", store, count)
    runtime = Runtime([bench_agent(Script(Work(rounds=0)))], store=store)
    began = time.perf_counter()
    await runtime.start()
    ready = time.perf_counter()
    found = len(await runtime.sessions.list())
    await runtime.aclose()
    if found != count:
        message = f"{found} of {count} sessions are there"
        raise AssertionError(message)
    return Measurement({"ready_ms": 1e3 * (ready - began)})


def _crash(kind: str, store: Path, count: int) -> None:
    """Leave unfinished runs behind in ``store``."""
    command = [sys.executable, "-m", "bench.measures.recovery", kind, str(store), str(count)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PREPARATION_SECONDS)
    if done.returncode != -signal.SIGKILL:
        message = f"the preparing process ended with {done.returncode}: {done.stderr[-300:]}"
        raise RuntimeError(message)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


async def _leave_long_run(store: Path, rounds: int) -> None:
    """Die at the last model call of a run, with every step before it recorded."""
    calls = 0

    def observe(_said: str) -> None:
        nonlocal calls
        calls += 1
        if calls > rounds:
            _die()

    agent = bench_agent(Script(Work(rounds=rounds), observe))
    async with Runtime([agent], store=store, limits=roomy_limits()) as runtime:
        await runtime.run(agent, user_input(LONG_RUN), session_id=LONG_RUN, run_id=LONG_RUN)


class SilentModel(ScriptModel):
    """Never answers."""

    async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
        await asyncio.Event().wait()
        return await super().generate(request)


async def _leave_many_runs(store: Path, count: int) -> None:
    """Die with one run in the middle of its model call and the others in the queue behind it, all of them on disk."""
    script = Script(Work(rounds=0))
    agent = bench_agent(script, model=SilentModel(script))
    async with Runtime([agent], store=store, limits=RuntimeLimits(max_concurrent_runs=1)) as runtime:
        for start in range(0, count, AT_ONCE):
            await asyncio.gather(
                *(
                    runtime.submit(agent, user_input(f"s-{index}"), session_id=f"s-{index}", run_id=f"run-{index}")
                    for index in range(start, min(start + AT_ONCE, count))
                )
            )
        _die()


async def _leave_many_sessions(store: Path, count: int) -> None:
    """Die with many sessions on disk, each with a run that has ended."""
    agent = bench_agent(Script(Work(rounds=0)))
    async with Runtime([agent], store=store, limits=roomy_limits()) as runtime:
        for start in range(0, count, AT_ONCE):
            await asyncio.gather(
                *(
                    runtime.run(agent, user_input(f"s-{index}"), session_id=f"s-{index}")
                    for index in range(start, min(start + AT_ONCE, count))
                )
            )
        _die()


if __name__ == "__main__":
    leave = {"long": _leave_long_run, "many": _leave_many_runs, "sessions": _leave_many_sessions}[sys.argv[1]]
    asyncio.run(leave(Path(sys.argv[2]), int(sys.argv[3])))
