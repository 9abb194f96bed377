"""G: children that cannot go on for now, and what that means for those that wait for them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from pydantic import BaseModel

from callboard import Agent, Allow, RunContext, RuntimeLimits, ScriptedModel, UnknownAgentError, tool
from callboard_protocol.states import RunState

pytestmark = pytest.mark.anyio

ONE_SLOT = RuntimeLimits(max_concurrent_runs=1)


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
