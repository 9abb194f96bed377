"""D: code that changed while runs were in flight."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from callboard import Agent, RunContext, ScriptedModel, ToolCall, tool

pytestmark = pytest.mark.anyio

Pattern = Callable[[RunContext[Any]], Awaitable[str]]


@tool
async def charge(amount: int) -> str:
    """Charge."""
    return f"charged {amount}"


async def fetch(what: str) -> str:
    return what


def dying_before_its_last_step(place: Any, die: Any, pattern: Pattern) -> Pattern:
    """The pattern, whose first process dies where it comes to `last`."""

    async def last(ctx: RunContext[Any]) -> str:
        if place.happens_first(f"killed {ctx.run_id}"):
            die()
        return str(await ctx.step("last", fetch, "last"))

    async def whole(ctx: RunContext[Any]) -> str:
        return f"{await pattern(ctx)}, {await last(ctx)}"

    return whole


@pytest.mark.semantics("D37")
def test_a_pattern_that_was_changed_without_a_guard_is_shown_what_was_recorded_and_what_it_asks(
    place: Any, die: Any
) -> None:
    async def by_tool(ctx: RunContext[Any], amount: int) -> str:
        return str(await ctx.call_tool("charge", amount=amount))

    async def by_model(ctx: RunContext[Any], said: str) -> str:
        return (await ctx.generate(said)).text

    async def by_step(ctx: RunContext[Any], name: str, what: str) -> str:
        return str(await ctx.step(name, fetch, what))

    model = ScriptedModel(lambda _: "fine")
    for number, (pattern, old, new, recorded, asked) in enumerate(
        (
            (by_tool, (5,), (7,), "tool 'charge' with {'amount': 5}", "tool 'charge' with {'amount': 7}"),
            (by_model, ("before",), ("after",), "generate with ['before']", "generate with ['after']"),
            (by_step, ("look", "here"), ("seek", "here"), "step 'look'", "step 'seek' with (('here',), {})"),
            (by_step, ("look", "here"), ("look", "there"), "digest only", "step 'look' with (('there',), {})"),
        )
    ):

        def agent(arguments: Any, pattern: Any = pattern) -> Agent[Any, str]:
            async def bound(ctx: RunContext[Any]) -> str:
                return str(await pattern(ctx, *arguments))

            whole = dying_before_its_last_step(place, die, bound)
            return Agent("worker", pattern=whole, model=model, tools=[charge])

        run_id = f"r{number}"
        place.live_until_killed([agent(old)], lambda runtime, run_id=run_id: runtime.run("worker", "x", run_id=run_id))
        failed = place.carry_on([agent(new)], run_id)
        assert failed.error_details.code == "non_deterministic_run"
        assert "patched" in failed.error_details.hint
        before, after = failed.error_details.message.split("the pattern now asks for")
        assert recorded in before
        assert asked in after


@pytest.mark.semantics("D38")
def test_patched_lets_runs_from_before_a_change_and_from_after_it_both_complete(place: Any, die: Any) -> None:
    async def old(ctx: RunContext[Any]) -> str:
        return str(await ctx.step("ask once", fetch, "once"))

    async def new(ctx: RunContext[Any]) -> str:
        if ctx.patched("ask-twice"):
            place.note(f"{ctx.run_id} takes the new way")
            await ctx.step("ask", fetch, "first")
            return str(await ctx.step("ask again", fetch, "twice"))
        return await old(ctx)

    def agent(pattern: Pattern) -> Agent[Any, str]:
        return Agent("worker", pattern=dying_before_its_last_step(place, die, pattern))

    place.live_until_killed([agent(old)], lambda runtime: runtime.run("worker", "x", run_id="old"))
    place.live_until_killed([agent(new)], lambda runtime: runtime.run("worker", "x", run_id="new"))
    assert place.carry_on([agent(new)], "old").output == "once, last"
    assert place.carry_on([agent(new)], "new").output == "twice, last"
    assert {one for one in place.noted if "new way" in one} == {"new takes the new way"}


@pytest.mark.semantics("D39")
def test_the_first_answer_of_patched_stands_at_every_attempt_and_takes_no_ordinal(place: Any, die: Any) -> None:
    async def loop(ctx: RunContext[Any], is_changed: bool) -> str:
        ways = ""
        for n in range(4):
            ways += str(int(ctx.patched("a") if is_changed else False))
            await ctx.step(f"step {n}", fetch, "x")
            if place.happens_first(f"{ctx.run_id} killed at {n}"):
                die()
        return ways

    def agent(is_changed: bool) -> Agent[Any, str]:
        async def pattern(ctx: RunContext[Any]) -> str:
            return await loop(ctx, is_changed)

        return Agent("worker", pattern=pattern)

    for run_id, is_changed in (("old", False), ("new", True)):
        place.live_until_killed(
            [agent(is_changed)], lambda runtime, run_id=run_id: runtime.run("worker", "x", run_id=run_id)
        )
        for _ in range(3):
            place.live_until_killed([agent(True)], lambda runtime, run_id=run_id: runtime.wait(run_id))
    assert place.carry_on([agent(True)], "old").output == "0000"
    assert place.carry_on([agent(True)], "new").output == "1111"
    steps = place.live([], lambda runtime: runtime.runs.steps("new"))
    assert [(one.kind, one.name, one.step) for one in steps] == [
        ("patched", "a", "/patched.a"),
        *(("step", f"step {n}", str(n)) for n in range(4)),
    ]


@pytest.mark.semantics("D40")
def test_branches_of_a_run_from_before_a_change_all_keep_to_the_old_way(place: Any, die: Any, until: Any) -> None:
    async def branch(ctx: RunContext[Any], item: str, is_changed: bool) -> str:
        await ctx.step("begin", fetch, item)
        if is_changed and ctx.patched("a"):
            await ctx.step("in between", fetch, item)
        if item == "slow" and place.happens_first("killed"):
            await until(lambda: place.noted.count("fast is done") == 2)
            die()
        result = await ctx.step("end", fetch, item)
        place.note("fast is done")
        return str(result)

    def agent(is_changed: bool) -> Agent[Any, str]:
        async def pattern(ctx: RunContext[Any]) -> str:
            items = {one: one for one in ("slow", "fast", "faster")}
            return ",".join(await ctx.map(lambda ctx, item: branch(ctx, item, is_changed), items))

        return Agent("worker", pattern=pattern)

    place.live_until_killed([agent(False)], lambda runtime: runtime.run("worker", "x", run_id="r"))
    assert place.carry_on([agent(True)], "r").output == "slow,fast,faster"
    steps = place.live([], lambda runtime: runtime.runs.steps("r"))
    assert not [one for one in steps if one.name == "in between"]


@pytest.mark.semantics("D41")
def test_a_new_prompt_another_model_and_other_tool_schemas_do_not_stop_a_run_that_died_in_mid_step(
    place: Any, die: Any
) -> None:
    @tool(read_only=True)
    async def look(place: str, depth: int = 1) -> str:
        """Look."""
        return f"{place} at {depth}"

    @tool(name="look", read_only=True)
    async def look_anew(lens: str, place: str = "") -> str:
        """Look through something."""
        return f"{place} through {lens}"

    def agent(version: str, note: Any, tools: Any) -> Agent[Any, str]:
        def think(request: Any) -> Any:
            note(f"{version}: {request.messages[0].text}")
            if request.messages[-1].role == "tool":
                if version == "1":
                    die()
                return f"saw {request.messages[-1].text}"
            return ToolCall(name="look", arguments={"place": "here"})

        return Agent("worker", model=ScriptedModel(think), tools=tools, instructions=f"prompt {version}")

    place.live_until_killed([agent("1", place.note, [look])], lambda runtime: runtime.run("worker", "x", run_id="r"))
    assert place.carry_on([agent("2", place.note, [look_anew])], "r").output == "saw here at 1"
    assert place.noted == ["1: prompt 1", "1: prompt 1", "2: prompt 2"]
