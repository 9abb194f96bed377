"""Row ``recovery``: how soon runs go on after the process that ran them was killed.

The state on disk is made by a real crash: a process of its own runs the agent and kills itself in the middle of a model
call (``python -m bench.measures.recovery long|many STORE COUNT``).
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from bench.jobs import Job, Measurement
from bench.peers.callboard_peer import bench_agent, model_function, roomy_limits
from bench.workload import Script, Work, expected_answer, user_input
from callboard import ModelRequest, Runtime, ScriptedModel, ToolCall

LONG_RUN = "long-run"
PREPARATION_SECONDS = 120


async def long_run(job: Job) -> Measurement:
    """Milliseconds from ``resume`` to the first new model call of a run with many recorded steps."""
    rounds = job.size.long_rounds
    store = job.room("data") / "store"
    _crash("long", store, rounds)
    asked: list[float] = []
    agent = bench_agent(Script(Work(rounds=rounds), observe=lambda _: asked.append(time.perf_counter())))
    async with Runtime([agent], store=store, recover=False, limits=roomy_limits()) as runtime:
        began = time.perf_counter()
        await runtime.resume(LONG_RUN)
        result = await runtime.wait(LONG_RUN)
    if result.final_output != expected_answer(LONG_RUN, rounds) or len(asked) != 1:
        message = f"the run answered {result.final_output!r} after {len(asked)} new model calls"
        raise AssertionError(message)
    return Measurement({"resume_ms": 1e3 * (asked[0] - began), "recorded_steps": 2 * rounds})


async def many_runs(job: Job) -> Measurement:
    """Milliseconds until a runtime is ready that finds many unfinished runs, and until the last of them is done."""
    count = job.size.unfinished_runs
    store = job.room("data") / "store"
    _crash("many", store, count)
    agent = bench_agent(Script(Work(rounds=1)))
    began = time.perf_counter()
    async with Runtime([agent], store=store, limits=roomy_limits()) as runtime:
        ready = time.perf_counter()
        await runtime.run(agent, user_input("new"), session_id="new")
        served = time.perf_counter()
        for index in range(count):
            result = await runtime.wait(f"run-{index}")
            if result.final_output != expected_answer(f"s-{index}", 1):
                message = f"run {index} answered {result.final_output!r}"
                raise AssertionError(message)
        finished = time.perf_counter()
    return Measurement(
        {
            "ready_ms": 1e3 * (ready - began),
            "first_new_run_ms": 1e3 * (served - ready),
            "all_resumed_ms": 1e3 * (finished - began),
            "unfinished_runs": count,
        }
    )


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

    def observe(_session: str) -> None:
        nonlocal calls
        calls += 1
        if calls > rounds:
            _die()

    agent = bench_agent(Script(Work(rounds=rounds), observe))
    async with Runtime([agent], store=store, limits=roomy_limits()) as runtime:
        await runtime.run(agent, user_input(LONG_RUN), session_id=LONG_RUN, run_id=LONG_RUN)


async def _leave_many_runs(store: Path, count: int) -> None:
    """Die when ``count`` runs have done one round and wait for their second model call."""
    script = Script(Work(rounds=1))
    respond = model_function(script)
    waiting = 0

    async def respond_once(request: ModelRequest) -> str | ToolCall:
        nonlocal waiting
        item = respond(request)
        if isinstance(item, str):
            waiting += 1
            if waiting == count:
                _die()
            await asyncio.Event().wait()
        return item

    agent = bench_agent(script, model=ScriptedModel(respond_once))
    async with Runtime([agent], store=store, limits=roomy_limits()) as runtime:
        for index in range(count):
            await runtime.submit(agent, user_input(f"s-{index}"), session_id=f"s-{index}", run_id=f"run-{index}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    leave = {"long": _leave_long_run, "many": _leave_many_runs}[sys.argv[1]]
    asyncio.run(leave(Path(sys.argv[2]), int(sys.argv[3])))
