"""S20: runs that are submitted to several processes at the same moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from callboard import Agent, RunContext, Runtime, RuntimeLimits
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import RunState
from callboard_storage.lmdb_store import LmdbStore

pytestmark = pytest.mark.anyio

MAP_SIZE = 1 << 30


class Slow(LmdbStore):
    """A store between whose look at a run and its reader's next turn others can do anything."""

    def __init__(self, path: Any) -> None:
        super().__init__(path, map_size=MAP_SIZE)
        self.has_looked = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def read_run(self, run_id: str) -> RunEntry | None:
        entry = await super().read_run(run_id)
        if run_id == "r" and not self.has_looked.is_set():
            self.has_looked.set()
            await self.goes_on.wait()
        return entry


def carrier(name: str, noted: list[str], holds: asyncio.Event | None = None) -> Agent[None, str]:
    async def hold() -> None:
        noted.append(name)
        if holds is not None:
            await holds.wait()

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.step("hold", hold)
        return f"by {name}"

    return Agent("worker", pattern=pattern)


async def as_the_store_has_it(runtime: Runtime, run_id: str) -> str:
    """The run's state, which must be that of its last record."""
    entry = await runtime.runs.get(run_id)
    log = await runtime._open.store.read_log(entry.session_id)
    own = [one.record for one in log if getattr(one.record, "run_id", "") == run_id]
    if entry.began_sequence is None:
        assert own == []
    else:
        assert own[-1].stop_reason == entry.stop_reason
    return entry.state


@pytest.mark.semantics("S20")
@pytest.mark.parametrize("cancelled_in", ["neither", "the one that has it", "the one that follows"])
@pytest.mark.parametrize("first", ["waits", "has begun"])
async def test_a_run_submitted_twice_at_a_moment_is_carried_once_and_cancelled_wherever_it_is(
    place: Any, cancelled_in: str, first: str
) -> None:
    noted: list[str] = []
    held = asyncio.Event()
    one_slot = RuntimeLimits(max_concurrent_runs=1)
    quick = Runtime([carrier("quick", noted, held)], store=LmdbStore(place.data, map_size=MAP_SIZE), limits=one_slot)
    store = Slow(place.data)
    async with quick, Runtime([carrier("slow", noted)], store=store, drain_timeout=0) as slow, asyncio.timeout(30):
        if first == "waits":
            await quick.submit("worker", "before it", session_id="other")
        submitting = asyncio.create_task(slow.submit("worker", "go", run_id="r", session_id="s"))
        await store.has_looked.wait()
        carried = await quick.submit("worker", "go", run_id="r", session_id="s")
        store.goes_on.set()
        followed = await submitting
        if cancelled_in != "neither":
            runtime = quick if cancelled_in == "the one that has it" else slow
            assert await runtime.cancel("r", reason="no more") is True
        held.set()
        results = [await handle.result() for handle in (carried, followed)]
        wanted = "completed" if cancelled_in == "neither" else "cancelled"
        assert [result.stop_reason for result in results] == [wanted] * 2
        assert await as_the_store_has_it(quick, "r") == wanted
    assert "slow" not in noted


async def test_a_run_cancelled_while_it_is_taken_in_is_stopped_in_the_process_that_has_begun_it(place: Any) -> None:
    noted: list[str] = []
    held = asyncio.Event()
    quick = Runtime([carrier("quick", noted, held)], store=LmdbStore(place.data, map_size=MAP_SIZE), drain_timeout=0)
    store = Slow(place.data)
    async with quick, Runtime([carrier("slow", noted)], store=store, drain_timeout=0) as slow, asyncio.timeout(30):
        submitting = asyncio.create_task(slow.submit("worker", "go", run_id="r", session_id="s"))
        await store.has_looked.wait()
        carried = await quick.submit("worker", "go", run_id="r", session_id="s")
        assert await slow.cancel("r", reason="no more") is True
        store.goes_on.set()
        assert (await (await submitting).result()).stop_reason == "cancelled"
        assert (await carried.result()).stop_reason == "cancelled"
        assert await as_the_store_has_it(slow, "r") == RunState.CANCELLED


async def test_a_run_that_two_processes_resume_at_the_same_moment_is_carried_by_one(place: Any) -> None:
    noted: list[str] = []

    def flaky(name: str) -> Agent[None, str]:
        async def pattern(ctx: RunContext[Any]) -> str:
            noted.append(name)
            if len(noted) == 1:
                raise RuntimeError("not yet")
            return f"by {name}"

        return Agent("worker", pattern=pattern)

    runtimes = [Runtime([flaky(name)], store=LmdbStore(place.data, map_size=MAP_SIZE)) for name in ("one", "other")]
    async with runtimes[0] as one, runtimes[1] as other, asyncio.timeout(30):
        assert (await one.run("worker", "go", run_id="r", session_id="s")).stop_reason == "failed"
        handles = await asyncio.gather(*(runtime.resume("r") for runtime in (one, other)))
        outputs = {(await handle.result()).output for handle in handles}
        assert len(outputs) == 1
        assert await as_the_store_has_it(one, "r") == RunState.COMPLETED
    assert len(noted) == 2


async def test_whoever_asks_for_a_run_of_another_process_at_the_same_moment_is_answered(place: Any) -> None:
    held = asyncio.Event()
    one = Runtime([carrier("one", [], held)], store=LmdbStore(place.data, map_size=MAP_SIZE), drain_timeout=0)
    other = Runtime([carrier("other", [])], store=LmdbStore(place.data, map_size=MAP_SIZE))
    async with one, other, asyncio.timeout(30):
        await one.submit("worker", "go", run_id="r", session_id="s")
        waiting = [asyncio.create_task(other.wait("r")) for _ in range(3)]
        assert await other.cancel("r") is True
        assert {(await result).stop_reason for result in waiting} == {"cancelled"}
