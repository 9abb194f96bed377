"""S: runs that take their session over from the run that has it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from callboard import Agent, RunContext, RunResult, RuntimeLimits, ScriptedModel, ToolCall, tool

pytestmark = pytest.mark.anyio


@tool(approval=True)
async def pay(amount: int) -> str:
    """Pay."""
    return "paid"


def assert_made_way(result: RunResult[Any], for_run: str) -> None:
    assert result.stop_reason == "cancelled"
    assert result.error_details is not None
    assert for_run in result.error_details.message
    assert "on_busy='interrupt'" in result.error_details.message
    assert result.error_details.context["by"] == for_run


def workers(place: Any) -> tuple[Agent[Any, Any], Agent[Any, Any]]:
    async def pattern(ctx: RunContext[Any]) -> str:
        place.note(ctx.run_id)
        if ctx.input_text == "stay":
            await ctx.step("stay", stay)
        return "done"

    async def stay() -> None:
        await asyncio.Event().wait()

    model = ScriptedModel(lambda _: ToolCall(name="pay", arguments={"amount": 1}))
    return Agent("worker", pattern=pattern), Agent("payer", model=model, tools=[pay])


@pytest.mark.semantics("S17")
async def test_on_busy_interrupt_cancels_whichever_run_has_the_session_and_begins(place: Any, until: Any) -> None:
    worker, payer = workers(place)
    async with place.runtime(worker, payer) as runtime:
        running = await runtime.submit(worker, "stay", run_id="running", session_id="s")
        await until(lambda: "running" in place.noted)
        result = await runtime.run(worker, "go", run_id="next", session_id="s", on_busy="interrupt")
        assert result.output == "done"
        assert_made_way(await running.result(), "next")

        assert (await runtime.run(payer, "x", run_id="suspended", session_id="s")).stop_reason == "suspended"
        result = await runtime.run(worker, "go", run_id="after", session_id="s", on_busy="interrupt")
        assert result.output == "done"
        assert_made_way(await runtime.wait("suspended"), "after")

        # A session that nobody has is begun in like any other.
        assert (await runtime.run(worker, "go", session_id="s", on_busy="interrupt")).output == "done"
        roles = [message.role for message in await runtime.sessions.transcript("s")]
        assert roles[:3] == ["user", "user", "assistant"]
        assert roles[3:] == ["user", "assistant", "tool", "user", "assistant", "user", "assistant"]


@pytest.mark.semantics("S18")
def test_runs_that_wait_keep_their_places_behind_the_one_that_interrupts_also_across_a_crash(
    place: Any, die: Any, until: Any
) -> None:
    worker, payer = workers(place)

    async def crowd(runtime: Any) -> None:
        await runtime.run(payer, "x", run_id="holder", session_id="s")
        await runtime.submit(worker, "stay", run_id="elsewhere", session_id="t")
        await until(lambda: place.noted == ["elsewhere"])
        for run_id in ("first", "second"):
            await runtime.submit(worker, "go", run_id=run_id, session_id="s")
        await runtime.submit(worker, "go", run_id="urgent", session_id="s", on_busy="interrupt")
        assert_made_way(await runtime.wait("holder"), "urgent")
        assert runtime.stats().queued == 3
        die()

    async def look(runtime: Any) -> None:
        for run_id in ("urgent", "first", "second"):
            assert (await runtime.wait(run_id)).output == "done"

    place.live_until_killed([worker, payer], crowd, limits=RuntimeLimits(max_concurrent_runs=1))
    assert place.noted == ["elsewhere"]
    place.live([worker, payer], look)
    assert [one for one in place.noted if one != "elsewhere"] == ["urgent", "first", "second"]


@pytest.mark.semantics("S19")
async def test_a_run_of_another_process_makes_way_as_well(place: Any, until: Any) -> None:
    worker, _ = workers(place)
    async with place.runtime(worker) as there, place.runtime(worker) as here:
        holder = await there.submit(worker, "stay", run_id="holder", session_id="s")
        await until(lambda: place.noted == ["holder"])
        result = await here.run(worker, "go", run_id="urgent", session_id="s", on_busy="interrupt")
        assert result.output == "done"
        assert_made_way(await holder.result(), "urgent")
