"""A: accounts that many runs draw on together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from callboard import (
    Agent,
    ModelRequest,
    RunBudget,
    RunContext,
    RuntimeBusyError,
    ScriptedModel,
    UnknownAccountError,
    Usage,
    UsageError,
)

pytestmark = pytest.mark.anyio

TEAM = RunBudget(max_steps=9)


def asking(place: Any, times: int = 100, usage: Usage | None = None, **options: Any) -> Agent[None, str]:
    async def think(request: ModelRequest) -> str:
        place.note(f"asked {request.run_id}")
        await asyncio.sleep(0)
        return "fine"

    async def pattern(ctx: RunContext[None]) -> str:
        for _ in range(times):
            await ctx.generate()
        return "done"

    return Agent("worker", pattern=pattern, model=ScriptedModel(think, usage=usage), **options)


@pytest.mark.semantics("A1")
async def test_runs_of_one_account_never_spend_more_than_it_has(place: Any) -> None:
    agent = asking(place)
    async with place.runtime(agent) as runtime:
        await runtime.accounts.open("team", TEAM)
        handles = [await runtime.submit(agent, "go", account="team", run_id=f"r{n}") for n in range(5)]
        results = [await handle.result() for handle in handles]
        assert {result.stop_reason for result in results} == {"max_steps"}
        assert len(place.noted) == 9
        assert "account 'team'" in results[0].error_details.message
        assert results[0].error_details.context == {"limit": "max_steps"}
        account = await runtime.accounts.get("team")
        assert (account.spent.steps, account.reserved.steps, account.left.steps) == (9, 0, 0)
        assert (account.left.cost_usd, account.budget) == (None, TEAM)
        # Beside its account a run has its own budget.
        await runtime.accounts.set_budget("team", RunBudget(max_steps=20))
        own = await runtime.run(agent, "go", account="team", budget=RunBudget(max_steps=3))
        assert "account" not in own.error_details.message
        assert (await runtime.accounts.get("team")).spent.steps == 12


@pytest.mark.semantics("A2")
async def test_a_tree_draws_on_the_account_of_its_root(place: Any) -> None:
    async def split(branch: RunContext[Any], n: int) -> str:
        return (await branch.delegate("worker", str(n))).stop_reason

    async def lead(ctx: RunContext[Any]) -> str:
        return " ".join((await ctx.map(split, {str(n): n for n in range(4)})).values())

    async with place.runtime(asking(place), Agent("boss", pattern=lead)) as runtime:
        await runtime.accounts.open("team", TEAM)
        assert (await runtime.run("boss", "go", account="team")).output == " ".join(["max_steps"] * 4)
        assert len(place.noted) == 9
        assert (await runtime.accounts.get("team")).spent.steps == 9


@pytest.mark.semantics("A3")
def test_what_was_spent_of_an_account_outlives_processes(place: Any, killed_by_commit: Any) -> None:
    agent = asking(place, times=4, usage=Usage(input_tokens=10, cost_usd=0.25))

    async def spend(runtime: Any, run_id: str) -> None:
        await runtime.accounts.open("team", RunBudget(max_steps=1000, max_cost_usd=1000))
        await runtime.run(agent, "go", run_id=run_id, account="team")

    async def count(runtime: Any) -> tuple[int, ...]:
        for entry in await runtime.runs.list():
            await runtime.wait(entry.run_id)
        team = (await runtime.accounts.get("team")).spent
        ended = [entry.spent for entry in await runtime.runs.list()]
        steps, _, tokens, cost = (sum(figures) for figures in zip(*ended, strict=True))
        assert (team.steps, team.tokens, round(team.cost_usd * 1e9)) == (steps, tokens, cost)
        assert team.cost_usd >= len(ended)
        return len(ended), team.steps

    place.live([agent], lambda runtime: spend(runtime, "first"))
    killed = 0
    for number in range(10):
        for when in ("before", "after"):
            killed += 1
            place.live_until_killed(
                [agent],
                lambda runtime, run_id=f"{number}{when}": spend(runtime, run_id),
                store=killed_by_commit(number, when),
                surely=False,
            )
            runs, steps = place.live([agent], count)
            # Of a call that was in flight nobody knows what came: it counts, and is made again.
            assert 4 * runs <= steps <= 4 * runs + killed
    assert place.live([agent], count)[0] > 7


@pytest.mark.semantics("A4")
def test_unfinished_runs_count_before_anything_is_reserved_after_a_crash(place: Any, die: Any) -> None:
    def think(request: ModelRequest) -> str:
        place.note(f"asked {request.run_id}")
        return "fine"

    async def act() -> None:
        if place.happens_first("killed"):
            die()

    async def pattern(ctx: RunContext[Any]) -> str:
        for _ in range(5):
            await ctx.generate()
        if ctx.input_text == "die":
            await ctx.step("act", act)
            await ctx.sleep(0.2)
        while True:
            await ctx.generate()

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(think))

    async def begin(runtime: Any) -> None:
        await runtime.accounts.open("team", TEAM)
        await runtime.run(agent, "die", run_id="a", account="team")

    async def carry_on(runtime: Any) -> None:
        # The other run asks before the first one, which sleeps, has asked anything again.
        assert (await runtime.run(agent, "go", run_id="b", account="team")).stop_reason == "max_steps"
        assert (await runtime.accounts.get("team")).spent.steps == 9
        assert (await runtime.wait("a")).stop_reason == "max_steps"

    place.live_until_killed([agent], begin)
    place.live([agent], carry_on)
    assert [sum(note == f"asked {run}" for note in place.noted) for run in "ab"] == [5, 4]


@pytest.mark.semantics("A5")
async def test_an_account_nobody_opened_is_an_error_at_once_that_names_the_nearest(place: Any) -> None:
    agent = asking(place)
    async with place.runtime(agent) as runtime:
        await runtime.accounts.open("research", TEAM)
        for call in (
            runtime.run(agent, "go", account="reserch"),
            runtime.submit(agent, "go", account="reserch"),
            runtime.accounts.get("reserch"),
            runtime.accounts.set_budget("reserch", TEAM),
            runtime.accounts.close("reserch"),
        ):
            with pytest.raises(UnknownAccountError) as error:
                await call
            assert "'research'" in error.value.hint
        for wrong, says in (
            (RunBudget(max_steps=1, max_duration=60), "no time"),
            (RunBudget(), "limits nothing"),
            ({"max_steps": 1}, "no budget"),
        ):
            budget: Any = wrong
            with pytest.raises(UsageError, match=says):
                await runtime.accounts.open("x", budget)
        with pytest.raises(UsageError):
            await runtime.accounts.open("", TEAM)
        assert await runtime.runs.list() == []
        assert [account.name for account in await runtime.accounts.list()] == ["research"]


@pytest.mark.semantics("A6")
async def test_opening_an_account_again_changes_its_budget_alone_and_closing_forgets_it(place: Any) -> None:
    gate = asyncio.Event()

    async def wait(request: ModelRequest) -> str:
        await gate.wait()
        return "fine"

    agent = Agent("worker", model=ScriptedModel(wait))
    async with place.runtime(agent) as runtime:
        await runtime.accounts.open("team", TEAM)
        handle = await runtime.submit(agent, "go", account="team", run_id="r")
        with pytest.raises(RuntimeBusyError, match="'r' draws"):
            await runtime.accounts.close("team")
        gate.set()
        assert (await handle.result()).output == "fine"
        account = await runtime.accounts.open("team", RunBudget(max_steps=1))
        assert (account.spent.steps, account.left.steps) == (1, 0)
        assert (await runtime.run(agent, "go", account="team")).stop_reason == "max_steps"
        assert (await runtime.accounts.close("team")).spent.steps == 1
        assert await runtime.accounts.list() == []
        with pytest.raises(UnknownAccountError):
            await runtime.run(agent, "go", account="team")
        assert (await runtime.accounts.open("team", TEAM)).spent.steps == 0


@pytest.mark.semantics("A7")
async def test_the_runs_of_all_who_have_the_directory_open_share_the_limit(place: Any, until: Any) -> None:
    gate = asyncio.Event()

    async def think(request: ModelRequest) -> str:
        place.note("asked")
        await gate.wait()
        return "fine"

    async def pattern(ctx: RunContext[None]) -> str:
        for _ in range(4):
            await ctx.generate()
        return "done"

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(think, usage=Usage(output_tokens=10)))
    async with place.runtime(agent) as one, place.runtime(agent) as other:
        await one.accounts.open("team", TEAM)
        handles = [await runtime.submit(agent, "go", account="team") for runtime in (one, other, one, other)]
        await until(lambda: len(place.noted) == 4)
        for runtime in (one, other):
            account = await runtime.accounts.get("team")
            assert account.left.steps == 5
        gate.set()
        assert "max_steps" in {(await handle.result()).stop_reason for handle in handles}
        assert len(place.noted) == 9
        assert (await one.accounts.get("team")).spent.steps == 9
        await other.accounts.set_budget("team", RunBudget(max_steps=10))
        assert (await one.run(agent, "go", account="team")).stop_reason == "max_steps"
        assert len(place.noted) == 10


async def test_a_reservation_waits_for_one_of_another_process_to_settle(place: Any, until: Any) -> None:
    gate = asyncio.Event()

    async def think(request: ModelRequest) -> str:
        place.note(f"asked {request.run_id}")
        await gate.wait()
        return "fine"

    agent = Agent("worker", model=ScriptedModel(think, usage=Usage(output_tokens=10)))
    async with place.runtime(agent) as one, place.runtime(agent) as other:
        await one.accounts.open("team", RunBudget(max_total_tokens=4500))
        first = await one.submit(agent, "go", run_id="first", account="team")
        await until(lambda: place.noted == ["asked first"])
        second = await other.submit(agent, "go", run_id="second", account="team")
        async for event in second.events():
            if event.name == "run.started":
                break
        assert place.noted == ["asked first"]
        gate.set()
        assert [(await handle.result()).output for handle in (first, second)] == ["fine", "fine"]
        assert (await one.accounts.get("team")).spent.tokens == 20


async def test_a_run_that_waits_for_room_can_be_cancelled_and_left_at_once(place: Any, until: Any) -> None:
    async def think(request: ModelRequest) -> str:
        place.note(f"asked {request.run_id}")
        await asyncio.Event().wait()
        return "never"

    async def begun(handle: Any) -> None:
        async for event in handle.events():
            if event.name == "run.started":
                return

    agent = Agent("worker", model=ScriptedModel(think))
    async with place.runtime(agent) as one:
        await one.accounts.open("team", RunBudget(max_total_tokens=4200))
        holder = await one.submit(agent, "go", run_id="holder", account="team")
        await until(lambda: place.noted == ["asked holder"])
        async with place.runtime(agent, drain_timeout=60) as other:
            cancelled = await other.submit(agent, "go", run_id="cancelled", account="team")
            await begun(cancelled)
            await cancelled.cancel(reason="enough")
            assert (await cancelled.result()).stop_reason == "cancelled"
            left = await other.submit(agent, "go", run_id="left", account="team")
            await begun(left)
            # Closing does not wait for the budget: nothing of the run is in flight.
            async with asyncio.timeout(10):
                await other.aclose()
        assert (await left.result()).stop_reason == "interrupted"
        assert place.noted == ["asked holder"]
        await holder.cancel()


async def test_a_model_call_that_was_cut_short_is_charged_in_full(place: Any, until: Any) -> None:
    async def hang(request: ModelRequest) -> str:
        place.note("asked")
        await asyncio.Event().wait()
        return "never"

    agent = Agent("worker", model=ScriptedModel(hang))
    async with place.runtime(agent) as runtime:
        await runtime.accounts.open("team", RunBudget(max_total_tokens=5000))
        handle = await runtime.submit(agent, "go", account="team")
        await until(lambda: place.noted == ["asked"])
        assert (await runtime.accounts.get("team")).reserved.tokens > 4000
        await handle.cancel()
        account = await runtime.accounts.get("team")
        assert account.spent.tokens > 4000
        assert (account.reserved.tokens, account.left.tokens) == (0, 5000 - account.spent.tokens)
