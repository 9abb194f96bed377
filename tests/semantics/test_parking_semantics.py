"""R: runs that cannot go on yet, and runs that may be why a process died."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from callboard import Agent, RunBudget, RunContext, RunInfo, RuntimeLimits, ScriptedModel, tool
from callboard.supervision import waiting_runs
from callboard_protocol.records import RunResumed
from callboard_protocol.states import RunState

pytestmark = pytest.mark.anyio

OUTAGE = "the database is down"


def dependent(place: Any, pattern: Any) -> Agent[Any, str]:
    """An agent whose deps cannot be had while the notebook's last word on them is that they are down."""

    @asynccontextmanager
    async def deps(info: RunInfo) -> AsyncIterator[str]:
        place.note("opening")
        if [word for word in place.noted if word in {"up", "down"}][-1:] == ["down"]:
            raise ConnectionError(OUTAGE)
        yield "deps"

    return Agent("dependent", pattern=pattern, deps=deps)


async def parked(runtime: Any, run_id: str) -> Any:
    """The run's entry, once it is parked."""
    async with asyncio.timeout(20):
        while (entry := await runtime.runs.get(run_id)).state != RunState.PARKED:  # noqa: ASYNC110  (as another process would see it)
            await asyncio.sleep(0)
    return entry


@pytest.mark.semantics("R22")
def test_a_run_whose_deps_cannot_be_had_at_a_restart_is_parked_and_tried_again_after_growing_pauses(
    place: Any, die: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pattern(ctx: RunContext[str]) -> str:
        await ctx.step("act", act)
        if place.happens_first("killed"):
            await until(lambda: "taken in" in place.noted)
            place.note("down")
            die()
        return f"{ctx.deps} at attempt {ctx.attempt}"

    async def act() -> None: ...

    agent = dependent(place, pattern)
    later = Agent("later", model=ScriptedModel(["fine", "fine"]))

    async def start(runtime: Any) -> None:
        await runtime.submit(agent, "x", run_id="r", session_id="s")
        await runtime.submit(agent, "x", run_id="waiting", session_id="t")
        place.note("taken in")
        await runtime.wait("r")

    async def wait_for_deps(runtime: Any) -> list[str]:
        handle = await runtime.submit(later, "x", run_id="later", session_id="s")
        entry = await parked(runtime, "r")
        assert [(one.reason, OUTAGE in one.message) for one in entry.pending] == [("parked", True)]
        # It holds no slot, but its session.
        assert (await runtime.run(later, "x", session_id="u")).output == "fine"
        monkeypatch.setattr(waiting_runs.GrowingPauses, "begin", no_longer_than_a_turn)
        for pauses, ticket in begun:
            wake(pauses, ticket)
        seen = place.noted.count("opening")
        await until(lambda: place.noted.count("opening") >= seen + 5)
        assert (await runtime.runs.get("later")).state == RunState.QUEUED
        place.note("up")
        results = [await runtime.wait(run_id) for run_id in ("r", "waiting")]
        assert (await handle.result()).output == "fine"
        return [result.output for result in results]

    lengths: dict[str, list[float]] = {}
    begun: list[tuple[Any, Any]] = []
    begin = waiting_runs.GrowingPauses.begin

    def remember(self: Any, ticket: Any) -> None:
        begin(self, ticket)
        lengths.setdefault(ticket.run_id, []).append(self._lengths[ticket.run_id])
        begun.append((self, ticket))

    def no_longer_than_a_turn(self: Any, ticket: Any) -> None:
        remember(self, ticket)
        asyncio.get_running_loop().call_soon(wake, self, ticket)

    def wake(pauses: Any, ticket: Any) -> None:
        pauses.cut_short(ticket.run_id)
        pauses._over(ticket)

    monkeypatch.setattr(waiting_runs.GrowingPauses, "begin", remember)
    place.live_until_killed([agent, later], start, limits=RuntimeLimits(max_concurrent_runs=1))
    outputs = place.live([agent, later], wait_for_deps, limits=RuntimeLimits(max_concurrent_runs=1))
    assert outputs == ["deps at attempt 3", "deps at attempt 1"]
    # Trying in vain leaves no trace but the one that said what had ended the process before.
    attempts = [one.attempt for one in asyncio.run(place.log("s")) if isinstance(one, RunResumed)]
    assert attempts == [2, 3]
    assert lengths["r"][0] == 1.0
    assert all(1.5 * one <= following <= 60 for one, following in pairwise(lengths["r"][:5]))


@pytest.mark.semantics("R23")
async def test_deps_that_cannot_be_had_at_the_first_start_fail_the_run_at_once(place: Any) -> None:
    async def pattern(ctx: RunContext[str]) -> str:
        return "never"

    place.note("down")
    agent = dependent(place, pattern)
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", run_id="r")
        assert (result.stop_reason, result.error_details.code) == ("failed", "step_failed")
        assert OUTAGE in result.error_details.message


@pytest.mark.semantics("R24")
def test_registering_its_agent_lets_a_parked_run_go_on_at_once(place: Any, until: Any) -> None:
    async def pattern(ctx: RunContext[str]) -> str:
        place.note("begun")
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return "done"

    old = dependent(place, pattern)

    async def begin(runtime: Any) -> None:
        await runtime.submit(old, "x", run_id="r", session_id="s")
        await until(lambda: "begun" in place.noted)

    async def replace(runtime: Any) -> Any:
        await parked(runtime, "r")
        runtime.agents.unregister("dependent")
        runtime.agents.register(Agent("dependent", pattern=pattern, deps="other deps"))
        async with asyncio.timeout(0.9):  # sooner than the first pause is over
            return await runtime.wait("r")

    place.live([old], begin)
    place.note("down")
    assert place.live([old], replace).output == "done"


@pytest.mark.semantics("R25")
def test_what_a_crash_says_of_a_run_is_not_forgotten_while_it_is_parked(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        place.note(ctx.run_id)
        if len(place.noted) == 2:
            die()
        return await asyncio.Future()

    def worker() -> Agent[Any, str]:
        return Agent("worker", pattern=pattern, budget=RunBudget(max_resume_attempts=1))

    async def start(runtime: Any) -> None:
        await runtime.submit("worker", "x", run_id="r", on_crash="fail")
        await runtime.run("worker", "x", run_id="s")

    async def look(runtime: Any) -> None:
        assert [(await parked(runtime, run_id)).crashed for run_id in ("r", "s")] == [True, True]
        assert [one.run_id for one in await runtime.runs.list(state="parked")] == ["r", "s"]

    place.live_until_killed([worker()], start)
    for _ in range(2):
        place.live([], look)
    ended = [place.carry_on([worker()], run_id) for run_id in ("r", "s")]
    assert [one.error_details.code for one in ended] == ["interrupted_by_crash", "poisonous_run"]


@pytest.mark.semantics("R26")
def test_runs_that_may_have_caused_a_crash_go_on_one_at_a_time_so_that_only_the_culprit_fails(
    place: Any, until: Any
) -> None:
    count, culprit, slots = 30, 17, 8
    budget = RunBudget(max_resume_attempts=3)

    @tool
    async def explode() -> str:
        """End the process."""
        os._exit(1)

    async def innocent(ctx: RunContext[Any]) -> str:
        place.note(f"+ {ctx.run_id}")
        # Nothing of it is on disk yet when the process dies for the first time.
        if ctx.attempt == 1 and ctx.input_text == "first":
            await asyncio.Event().wait()
        await ctx.step("work", act)
        place.note(f"- {ctx.run_id}")
        return "done"

    async def act() -> None:
        await asyncio.sleep(0)

    async def guilty(ctx: RunContext[Any]) -> str:
        await until(lambda: ctx.attempt > 1 or sum(one.startswith("+") for one in place.noted) == count - 1)
        await ctx.call_tool("explode")
        return "never"

    agents = [
        Agent("innocent", pattern=innocent, budget=budget),
        Agent("guilty", pattern=guilty, budget=budget, tools=[explode], on_in_doubt="retry"),
    ]

    async def start(runtime: Any) -> None:
        for n in range(count):
            await runtime.submit("guilty" if n == culprit else "innocent", "first", run_id=f"r{n:02}")
        await runtime.wait(f"r{culprit:02}")

    async def go_on(runtime: Any) -> None:
        # One that has not been in flight at a crash is not held up by those that have.
        assert (await runtime.run("innocent", "new")).output == "done"
        await runtime.wait(f"r{culprit:02}")

    async def look(runtime: Any) -> list[Any]:
        return [await runtime.wait(f"r{n:02}") for n in range(count)]

    limits = RuntimeLimits(max_concurrent_runs=count + 1)
    place.live_until_killed([*agents], start, exits=1, limits=limits)
    for _ in range(2):
        place.live_until_killed([*agents], go_on, exits=1, limits=RuntimeLimits(max_concurrent_runs=slots))
    noted = [one for one in place.noted[count - 1 :] if one[2:].startswith("r")]
    # Side by side they would all have begun before the first of them ended.
    assert noted == [mark + one[2:] for one in noted[::2] for mark in ("+ ", "- ")]
    results = place.live(agents, look)
    assert {one.run_id: one.error_details.code for one in results if one.stop_reason != "completed"} == {
        f"r{culprit:02}": "poisonous_run"
    }


@pytest.mark.semantics("R27")
@pytest.mark.parametrize("way", ["sleep", "receive"])
def test_waiting_through_crashes_is_no_strike(place: Any, die: Any, until: Any, way: str) -> None:
    async def sleepy(ctx: RunContext[Any]) -> str:
        place.note(f"attempt {ctx.attempt}")
        if way == "sleep":
            await ctx.sleep(3600)
        return await ctx.receive("bell", str)

    agent = Agent("sleepy", pattern=sleepy, budget=RunBudget(max_resume_attempts=1))

    def fall_asleep_and_die(attempt: int) -> Any:
        async def live(runtime: Any) -> None:
            if attempt == 1:
                await runtime.submit(agent, "x", run_id="r")
            await until(lambda: f"attempt {attempt}" in place.noted and runtime.stats().free_slots == 1)
            die()

        return live

    limits = RuntimeLimits(max_concurrent_runs=1)
    for attempt in range(1, 5):
        place.live_until_killed([agent], fall_asleep_and_die(attempt), limits=limits)
    entry = place.live([agent], lambda runtime: runtime.runs.get("r"), recover=False)
    assert (entry.attempts, entry.strikes) == (4, 0)
