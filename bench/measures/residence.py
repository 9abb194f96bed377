"""Row ``residence``: the memory of a session that is active but idle, and of one that is parked."""

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from bench.jobs import Job, Measurement
from bench.peers.callboard_peer import ScriptModel, bench_agent, roomy_limits
from bench.resident import resident_bytes
from bench.workload import Script, user_input
from callboard import ModelRequest, ModelResponse, Runtime

AT_ONCE = 100
FEW = 200


class FreshModel(ScriptModel):
    """Answers with objects of their own: prebuilt ones, shared by all sessions, would hide what a session keeps."""

    async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
        return (await super().generate(request)).model_copy(deep=True)


async def resident(job: Job) -> Measurement:
    """Bytes of private memory the process holds per session."""
    # Only a few sessions come first: the memory they free is used again and would not be counted.
    return await _callboard(job, resident_bytes, warm_up=FEW)


async def traced(job: Job) -> Measurement:
    """Bytes of live Python objects per session, without what the allocator keeps for itself."""
    tracemalloc.start()
    return await _callboard(job, _traced_bytes, warm_up=job.size.warm_sessions)


async def _callboard(job: Job, measure: Callable[[], int], warm_up: int) -> Measurement:
    """Run each session once, look, then park them all and look again."""
    script = Script(replace(job.size.work, rounds=2))
    agent = bench_agent(script, model=FreshModel(script))
    count = job.size.resident_sessions
    async with Runtime([agent], store=job.room("data") / "store", limits=roomy_limits()) as runtime:

        async def run(session: str) -> None:
            await runtime.run(agent, user_input(session), session_id=session)

        async def park(session: str) -> None:
            await runtime.sessions.release(session)

        warm = [f"warm-{index}" for index in range(warm_up)]
        sessions = [f"s-{index}" for index in range(count)]
        await _in_batches(run, warm)
        await _in_batches(park, warm)
        before = measure()
        await _in_batches(run, sessions)
        active = measure() - before
        await _in_batches(park, sessions)
        parked = measure() - before
    return Measurement({"active_bytes": active / count, "parked_bytes": parked / count})


async def _in_batches(act: Callable[[str], Awaitable[None]], sessions: list[str]) -> None:
    for start in range(0, len(sessions), AT_ONCE):
        await asyncio.gather(*(act(session) for session in sessions[start : start + AT_ONCE]))


def _traced_bytes() -> int:
    gc.collect()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
