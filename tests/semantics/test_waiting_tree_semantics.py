"""G: children that cannot go on for now, and what that means for those that wait for them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from pydantic import BaseModel

from callboard import (
    Agent,
    Allow,
    RunBudget,
    RunContext,
    RunEndedError,
    RuntimeLimits,
    ScriptedModel,
    UnknownAgentError,
    tool,
)
from callboard.testing import FakeClock
from callboard_protocol.states import RunState

pytestmark = pytest.mark.anyio

ONE_SLOT = RuntimeLimits(max_concurrent_runs=1)
DAY = 24 * 3600


class Count(BaseModel):
    """What a worker counts."""

    n: int


def working(place: Any, die: Any) -> Agent[Any, Count]:
    async def act() -> None:
        if place.happens_first("acted"):
            die()

    async def work(ctx: RunContext[Any]) -> Count:
        await ctx.step("before", asyncio.sleep, 0)
        await ctx.step("act", act)
        return Count(n=len(place.noted))

    return Agent("worker", pattern=work, output_type=Count, deps={"own": True})


def delegating(worker: Any, **options: Any) -> Agent[Any, str]:
    async def lead(ctx: RunContext[Any]) -> str:
        result = await ctx.delegate(worker, "go", **options)
        assert isinstance(result.output, Count)
        return f"counted {result.output.n}"

    return Agent("boss", pattern=lead)


def paying(place: Any) -> Agent[Any, str]:
    @tool(approval=True)
    async def pay() -> str:
        """Pay."""
        place.note("paid")
        return "paid"

    async def work(ctx: RunContext[Any]) -> str:
        return str(await ctx.call_tool("pay"))

    return Agent("worker", pattern=work, tools=[pay])


def telling(worker: str, agent_id: str = "boss") -> Agent[Any, str]:
    """Delegates, and tells what came of it."""

    async def lead(ctx: RunContext[Any]) -> str:
        result = await ctx.delegate(worker, "go")
        return result.final_output or result.stop_reason

    return Agent(agent_id, pattern=lead)


def other() -> Agent[Any, str]:
    return Agent("other", model=ScriptedModel(lambda _: "fine"))


async def state_of(runtime: Any, run_id: str, state: RunState) -> Any:
    """The run's entry, once it is in that state."""
    async with asyncio.timeout(20):
        while True:
            for entry in await runtime.runs.list(state=state):
                if entry.run_id == run_id:
                    return entry
            await asyncio.sleep(0.005)


# ---- for want of an agent


@pytest.mark.semantics("G24")
@pytest.mark.parametrize("session", ["isolated", "shared"])
@pytest.mark.parametrize("by_id", [True, False])
def test_a_child_whose_agent_is_gone_is_parked_until_it_is_there_and_its_parent_waits(
    place: Any, die: Any, session: Any, by_id: bool
) -> None:
    worker = working(place, die)
    boss = delegating("worker" if by_id else worker, session=session)

    async def start(runtime: Any) -> None:
        await runtime.run("boss", "go", run_id="r", session_id="s")

    async def finish(runtime: Any) -> str:
        entry = await state_of(runtime, "r:0", RunState.PARKED)
        assert [(one.reason, one.message) for one in entry.pending] == [
            ("parked", "agent 'worker' is not registered"),
        ]
        assert (await runtime.runs.get("r")).state == RunState.RUNNING
        # It holds no slot meanwhile.
        assert (await runtime.run("other", "hello")).output == "fine"
        assert runtime.stats().parked == 1
        runtime.agents.register(worker)
        result = await runtime.wait("r")
        assert runtime.stats().free_slots == 1
        return str(result.output)

    place.live_until_killed([boss, worker], start)
    assert place.live([boss, other()], finish, limits=ONE_SLOT) == "counted 2"


def test_a_parent_goes_on_with_a_child_that_had_ended_though_its_agent_is_gone(
    place: Any, die: Any, killed_by_commit: Any
) -> None:
    async def lead(ctx: RunContext[Any]) -> str:
        return str((await ctx.delegate("worker", "go")).output)

    place.happens_first("acted")
    boss, worker = Agent("boss", pattern=lead), working(place, die)
    # The boss begins, its child begins, takes two steps and ends.
    ended = killed_by_commit(4, "after")
    place.live_until_killed([boss, worker], lambda runtime: runtime.run("boss", "go", run_id="r"), store=ended)
    assert place.carry_on([boss], "r").output == "{'n': 2}"


def test_a_first_call_of_an_agent_that_is_not_registered_is_an_error_also_in_a_run_that_is_carried_on(
    place: Any, die: Any
) -> None:
    async def act() -> None:
        if place.happens_first("acted"):
            die()

    async def lead(ctx: RunContext[Any]) -> str:
        await ctx.step("act", act)
        with pytest.raises(UnknownAgentError, match="did you mean 'other'"):
            await ctx.delegate("othr", "go")
        return "told"

    boss = Agent("boss", pattern=lead)
    place.live_until_killed([boss, other()], lambda runtime: runtime.run("boss", "go", run_id="r"))
    assert place.carry_on([boss, other()], "r").output == "told"


def test_a_child_that_is_parked_holds_up_no_closing_and_can_be_cancelled_with_its_parent(place: Any, die: Any) -> None:
    worker = working(place, die)
    boss = delegating("worker")

    async def close(runtime: Any) -> None:
        await state_of(runtime, "r:0", RunState.PARKED)
        began = time.monotonic()
        await runtime.aclose()
        assert time.monotonic() - began < 10

    async def cancel(runtime: Any) -> Any:
        await state_of(runtime, "r:0", RunState.PARKED)
        assert await runtime.cancel("r", reason="nobody has it")
        return await runtime.wait("r:0")

    place.live_until_killed([boss, worker], lambda runtime: runtime.run("boss", "go", run_id="r", session_id="s"))
    place.live([boss], close, drain_timeout=20)
    assert "nobody has it" in place.live([boss], cancel).error_details.message


def test_a_child_that_is_decided_while_its_agent_is_gone_goes_on_once_that_is_registered(place: Any) -> None:
    worker, boss = paying(place), telling("worker")

    async def start(runtime: Any) -> None:
        await runtime.submit("boss", "go", run_id="r", session_id="s")
        await state_of(runtime, "r:0", RunState.SUSPENDED)

    async def decide(runtime: Any) -> Any:
        await runtime.decide("r:0:0", Allow(), by="ann")
        await state_of(runtime, "r:0", RunState.PARKED)
        assert place.noted == []
        runtime.agents.register(worker)
        return await runtime.wait("r")

    place.live([boss, worker], start)
    assert place.live([boss], decide).output == "paid"


# ---- what a child waits for, its parent waits for


@pytest.mark.semantics("G25")
@pytest.mark.parametrize("wait", ["decision", "signal", "sleep"])
async def test_a_runs_time_stands_still_while_that_of_a_child_does_and_goes_on_with_it(
    place: Any, until: Any, wait: str
) -> None:
    clock = FakeClock()
    began, hangs = asyncio.Event(), asyncio.Event()

    @tool(approval=wait == "decision", read_only=True)
    async def act() -> str:
        """Act."""
        return "acted"

    async def hang() -> None:
        hangs.set()
        await asyncio.Event().wait()

    async def work(ctx: RunContext[Any]) -> str:
        began.set()
        if wait == "signal":
            await ctx.receive("go", str)
        elif wait == "sleep":
            await ctx.sleep(DAY)
        await ctx.call_tool("act")
        await ctx.step("hang", hang)
        return "never"

    agents = [Agent("worker", pattern=work, tools=[act]), telling("worker", "middle"), telling("middle")]
    async with place.runtime(*agents, clock=clock, limits=ONE_SLOT) as runtime:
        await runtime.submit("boss", "go", run_id="r", budget=RunBudget(max_duration=60))
        await until(lambda: began.is_set() and runtime.stats().free_slots == 1)
        clock.advance(DAY)
        if wait == "decision":
            await state_of(runtime, "r:0:0", RunState.SUSPENDED)
            await runtime.decide("r:0:0:0", Allow(), by="ann")
        elif wait == "signal":
            await runtime.send("r:0:0", "go", "now")
        await asyncio.wait_for(hangs.wait(), 20)
        assert (await runtime.runs.get("r")).state == RunState.RUNNING
        # Now it works, and that counts for all of them.
        clock.advance(61)
        result = await asyncio.wait_for(runtime.wait("r"), 20)
        assert (result.stop_reason, result.error_details.context["limit"]) == ("budget_exhausted", "max_duration")
        assert {entry.state for entry in await runtime.runs.list()} == {RunState.CANCELLED, RunState.EXHAUSTED}


async def test_a_runs_time_goes_on_while_one_of_its_children_is_at_work_though_others_wait(
    place: Any, until: Any
) -> None:
    clock, hangs = FakeClock(), asyncio.Event()

    async def hang(ctx: RunContext[Any]) -> str:
        await ctx.step("hang", event)
        return "never"

    async def event() -> None:
        hangs.set()
        await asyncio.Event().wait()

    async def hire(branch: RunContext[Any], whom: str) -> None:
        await branch.delegate(whom, "go")

    async def lead(ctx: RunContext[Any]) -> str:
        await ctx.map(hire, {"waits": "worker", "works": "hanging", "queued": "hanging"})
        return "never"

    agents = [paying(place), Agent("hanging", pattern=hang), Agent("boss", pattern=lead)]
    async with place.runtime(*agents, clock=clock, limits=ONE_SLOT) as runtime:
        await runtime.submit("boss", "go", run_id="r", budget=RunBudget(max_duration=60))
        await state_of(runtime, "r:0.waits/0", RunState.SUSPENDED)
        await asyncio.wait_for(hangs.wait(), 20)
        clock.advance(61)
        result = await asyncio.wait_for(runtime.wait("r"), 20)
        assert result.stop_reason == "budget_exhausted"
        assert runtime.stats().free_slots == 1


def test_a_runs_time_stands_still_while_a_child_is_parked(place: Any, die: Any) -> None:
    worker = working(place, die)
    boss, clock = delegating("worker"), FakeClock()

    async def start(runtime: Any) -> None:
        await runtime.run("boss", "go", run_id="r", session_id="s", budget=RunBudget(max_duration=60))

    async def finish(runtime: Any) -> Any:
        await state_of(runtime, "r:0", RunState.PARKED)
        clock.advance(DAY)
        runtime.agents.register(worker)
        return await runtime.wait("r")

    place.live_until_killed([boss, worker], start)
    assert place.live([boss], finish, clock=clock).output == "counted 2"


async def test_a_child_that_waits_for_a_decision_is_decided_and_stopped_from_any_process(place: Any) -> None:
    agents = [paying(place), telling("worker")]
    async with place.runtime(*agents) as carrier, place.runtime(*agents) as other:
        handle = await carrier.submit("boss", "go", run_id="r")
        suspended = await state_of(other, "r:0", RunState.SUSPENDED)
        assert (await other.wait("r:0")).pending == suspended.pending
        await other.decide(suspended.pending[0].call_id, Allow(), by="ann")
        assert (await asyncio.wait_for(handle.result(), 20)).output == "paid"

        handle = await carrier.submit("boss", "go", run_id="r2")
        await state_of(other, "r2:0", RunState.SUSPENDED)
        assert await asyncio.wait_for(other.cancel("r2:0", reason="not needed"), 20)
        assert (await asyncio.wait_for(handle.result(), 20)).output == "cancelled"

        handle = await carrier.submit("boss", "go", run_id="r3")
        await state_of(other, "r3:0", RunState.SUSPENDED)
        assert await asyncio.wait_for(other.cancel("r3", reason="user left", by="ann"), 20)
        for run_id in ("r3", "r3:0"):
            result = await asyncio.wait_for(other.wait(run_id), 20)
            assert (result.stop_reason, result.error_details.context["by"]) == ("cancelled", "ann")
            assert "user left" in result.error_details.message
        with pytest.raises(RunEndedError):
            await other.decide("r3:0:0", Allow(), by="ann")
        assert (await other.sessions.get("session-r3:0")).active_run is None
    assert place.noted == ["paid"]


@pytest.mark.parametrize("knows", [["worker", "boss"], ["worker"], ["boss"], []])
def test_a_child_that_nobody_carries_is_decided_by_a_process_that_carries_it_on_if_it_has_the_agents(
    place: Any, knows: list[str]
) -> None:
    agents = [paying(place), telling("worker")]

    async def start(runtime: Any) -> None:
        await runtime.submit("boss", "go", run_id="r", session_id="s")
        await state_of(runtime, "r:0", RunState.SUSPENDED)

    async def decide(runtime: Any) -> Any:
        await runtime.decide("r:0:0", Allow(), by="ann")
        if len(knows) == 2:
            assert (await runtime.wait("r")).output == "paid"
        return runtime.stats(), [(entry.run_id, entry.state) for entry in await runtime.runs.list()]

    place.live(agents, start)
    stats, entries = place.live([one for one in agents if one.id in knows], decide, recover=False)
    if len(knows) < 2:
        # It is left to one that has both.
        assert (stats.running, stats.parked, place.noted) == (0, 0, [])
        assert dict(entries) == {"r": RunState.INTERRUPTED, "r:0": RunState.SUSPENDED}
    assert place.carry_on(agents, "r").output == "paid"
    assert place.noted == ["paid"]


async def test_a_child_that_waits_for_a_decision_is_stopped_by_whatever_ends_its_parent(
    place: Any, well_formed: Any
) -> None:
    async def lead(ctx: RunContext[Any]) -> str:
        async def fail(branch: RunContext[Any], what: str) -> None:
            if what == "delegate":
                await branch.delegate("worker", "go")
            await state_of(runtime, "r:0.child/0", RunState.SUSPENDED)
            raise ValueError("given up")

        await ctx.map(fail, {"child": "delegate", "beside": "fail"})
        return "never"

    async with place.runtime(paying(place), Agent("boss", pattern=lead)) as runtime:
        result = await asyncio.wait_for(runtime.run("boss", "go", run_id="r"), 20)
        assert result.stop_reason == "failed"
        child = await runtime.wait("r:0.child/0")
        assert (child.stop_reason, child.pending) == ("cancelled", ())
        assert well_formed(await runtime.sessions.transcript(child.session_id))
        assert await runtime.runs.list(state="suspended") == []
        assert runtime.stats().suspended == 0
