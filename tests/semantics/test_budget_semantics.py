"""B: budgets that hold, and runs that are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from callboard import (
    Agent,
    BudgetExhaustedError,
    Exchange,
    Message,
    ModelError,
    ModelRequest,
    RunBudget,
    RunContext,
    RunFailedError,
    RuntimeLimits,
    ScriptedModel,
    ToolCall,
    ToolContext,
    ToolError,
    UnknownRunError,
    Usage,
    WindowMemory,
    tool,
)
from callboard_protocol.records import RunBegan, RunEnded
from callboard_protocol.states import RunState
from callboard_storage.lmdb_store import LmdbStore

pytestmark = pytest.mark.anyio

BRANCHES = {f"branch {n}": n for n in range(20)}


@tool(read_only=True)
async def look(n: int) -> int:
    """Look."""
    return n


@tool(approval=True)
async def pay() -> str:
    """Pay."""
    return "paid"


class Counting:
    """A model that counts its calls, and how many it answers at a time."""

    def __init__(self, answer: Any = "fine") -> None:
        self.calls = 0
        self.asked: list[ModelRequest] = []
        self._answer = answer

    async def __call__(self, request: ModelRequest) -> Any:
        self.calls += 1
        self.asked.append(request)
        await asyncio.sleep(0)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


# ---- budgets


@pytest.mark.semantics("B1")
@pytest.mark.parametrize("shape", ["in turn", "side by side", "failing"])
async def test_no_more_model_calls_are_made_than_max_steps(place: Any, shape: str) -> None:
    model = Counting(ModelError("no") if shape == "failing" else "fine")

    async def ask(branch: RunContext[Any], n: int) -> None:
        await branch.generate(str(n))

    async def pattern(ctx: RunContext[Any]) -> str:
        if shape == "side by side":
            await ctx.map(ask, BRANCHES)
        while True:
            try:
                await ctx.generate()
            except ModelError:
                continue

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(model))
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", budget=RunBudget(max_steps=7))
    assert result.stop_reason == "max_steps"
    assert model.calls == 7


@pytest.mark.semantics("B2")
@pytest.mark.parametrize("shape", ["in turn", "side by side", "one batch", "in a task group"])
async def test_no_more_tool_calls_are_made_than_max_tool_calls(place: Any, shape: str) -> None:
    @tool(idempotent=True)
    async def act(n: int) -> int:
        """Act."""
        place.note(n)
        return n

    async def call(branch: RunContext[Any], n: int) -> None:
        await branch.call_tool("act", n=n)

    async def pattern(ctx: RunContext[Any]) -> str:
        if shape == "side by side":
            await ctx.map(call, BRANCHES)
        elif shape == "in a task group":
            async with asyncio.TaskGroup() as group:
                for name, n in BRANCHES.items():
                    group.create_task(call(ctx.branch(name), n))
        elif shape == "one batch":
            await ctx.call_tools([ToolCall(name="act", arguments={"n": n}, id=str(n)) for n in range(20)])
        while True:
            await ctx.call_tool("act", n=0)

    agent = Agent("worker", pattern=pattern, tools=[act])
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", budget=RunBudget(max_tool_calls=7))
    assert result.stop_reason == "max_steps"
    assert result.error_details.context["limit"] == "max_tool_calls"
    assert len(place.noted) == 7


@pytest.mark.semantics("B3")
async def test_a_call_that_is_not_made_does_not_count(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        for make in (
            lambda: ctx.call_tool("lok", n=1),
            lambda: ctx.call_tool("look", n="many"),
            lambda: ctx.call_tool("pay"),
        ):
            with pytest.raises(ToolError):
                await make()
        return str(await ctx.call_tool("look", n=1))

    agent = Agent("worker", pattern=pattern, tools=[look, pay])
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", budget=RunBudget(max_tool_calls=1), durable=False)
    assert result.output == "1"
    assert result.usage.tool_calls == 1


@pytest.mark.semantics("B4")
async def test_a_model_call_that_does_not_fit_is_told_to_write_less_or_is_not_made(place: Any) -> None:
    model = Counting("x" * 4 * 256)

    async def pattern(ctx: RunContext[Any]) -> str:
        while True:
            await ctx.generate()

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(model, usage=Usage(output_tokens=256)))
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", budget=RunBudget(max_total_tokens=1200))
        # 4096 were reserved otherwise; the history of 256 tokens an answer is part of what has to fit.
        caps = [request.settings.max_tokens for request in model.asked]
        assert caps[0] == 1200
        assert all(256 <= cap <= 1200 for cap in caps)
        assert caps == sorted(caps, reverse=True)
        assert result.stop_reason == "budget_exhausted"
        assert result.error_details.context["limit"] == "max_total_tokens"
        assert result.usage.total_tokens <= 1200
        model.asked.clear()
        await runtime.run(agent, "x", budget=RunBudget(max_total_tokens=255))
        assert model.asked == []
        await runtime.run(agent, "x", budget=RunBudget(max_total_tokens=100_000, max_steps=1))
        assert model.asked[0].settings.max_tokens is None


@pytest.mark.semantics("B5")
async def test_a_reservation_waits_for_those_beside_it_and_a_cancelled_one_takes_nothing(place: Any) -> None:
    at_work = 0
    most = 0
    hanging = asyncio.Event()

    async def think(request: ModelRequest) -> str:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        said = request.messages[-1].text
        if said == "fail":
            hanging.set()
            raise ModelError("no")
        await asyncio.sleep(0)
        at_work -= 1
        return "fine"

    async def ask(branch: RunContext[Any], said: str) -> str:
        return (await branch.generate(said)).text

    async def give_up(branch: RunContext[Any], said: str) -> str:
        if said == "give up":
            await hanging.wait()
            raise ValueError("given up")
        return await ask(branch, said)

    async def pattern(ctx: RunContext[Any]) -> str:
        answers = await ctx.map(ask, {str(n): str(n) for n in range(5)})
        assert most == 1
        # "fail" has the budget's room, the others wait for it, and "give up" cancels them all at about the time that
        # room comes back.
        with pytest.raises((ValueError, ModelError)):
            await ctx.map(give_up, {"a": "fail", "b": "wait", "c": "wait", "d": "give up"})
        return f"{len(answers)} {(await ctx.generate('again')).text}"

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(think, usage=Usage(output_tokens=1)))
    async with place.runtime(agent) as runtime:
        result = await asyncio.wait_for(runtime.run(agent, "x", budget=RunBudget(max_total_tokens=4200)), 20)
    assert result.output == "5 fine"


@pytest.mark.semantics("B6")
async def test_money_spent_ends_the_run_at_the_next_model_call(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        while True:
            await ctx.generate()

    priced = Agent("priced", pattern=pattern, model=ScriptedModel(Counting(), usage=Usage(cost_usd=0.4)))
    unpriced = Agent("unpriced", pattern=pattern, model=ScriptedModel(Counting()))
    async with place.runtime(priced, unpriced) as runtime:
        result = await runtime.run(priced, "x", budget=RunBudget(max_cost_usd=1.0))
        assert result.stop_reason == "budget_exhausted"
        assert result.error_details.context["limit"] == "max_cost_usd"
        assert (result.usage.llm_calls, result.usage.cost_usd) == (3, pytest.approx(1.2))
        async with runtime.stream(unpriced, "x", budget=RunBudget(max_cost_usd=1.0, max_steps=5)) as stream:
            skipped = [event.model async for event in stream if event.name == "budget.cost_skipped"]
            assert (await stream.result()).stop_reason == "max_steps"
        assert skipped == ["scripted"]


@pytest.mark.semantics("B8")
@pytest.mark.parametrize("kind", ["model", "tool", "step"])
async def test_a_step_past_the_step_timeout_ends_the_run_as_timeout(place: Any, kind: str, fake_clock: Any) -> None:
    hangs = asyncio.Event()

    async def hang(*_: Any) -> str:
        hangs.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            place.note("cancelled")
            raise
        return "never"

    @tool(name="hang", read_only=True, timeout=None)
    async def hanging_tool() -> str:
        """Hang."""
        return await hang()

    async def pattern(ctx: RunContext[Any]) -> str:
        for _ in range(3):
            await ctx.step("quick", asyncio.sleep, 0)
        if kind == "model":
            await ctx.generate()
        elif kind == "tool":
            await ctx.call_tool("hang")
        await ctx.step("hang", hang)
        return "never"

    agent = Agent("worker", pattern=pattern, tools=[hanging_tool], model=ScriptedModel(hang), step_timeout=60)
    async with place.runtime(agent, clock=fake_clock) as runtime:
        handle = await runtime.submit(agent, "x")
        await hangs.wait()
        fake_clock.advance(60)
        result = await handle.result()
        assert (result.stop_reason, result.error_details.code) == ("timeout", "step_timeout")
        assert result.error_details.context["step"] == "3"
        assert (await runtime.runs.get(result.run_id)).state == RunState.TIMED_OUT
    assert place.noted == ["cancelled"]


@pytest.mark.semantics("B9")
@pytest.mark.parametrize("limit", ["max_steps", "max_tool_calls", "max_total_tokens"])
def test_a_resumed_run_has_spent_what_its_earlier_attempts_spent(place: Any, die: Any, limit: str) -> None:
    @tool(on_in_doubt="retry")
    async def act(ctx: ToolContext) -> str:
        """Act."""
        place.note("called")
        if place.happens_first("killed"):
            die()
        return "acted"

    def think(request: ModelRequest) -> str:
        place.note("asked")
        if request.messages[-1].text == "fail":
            raise ModelError("no")
        return "fine"

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.generate()
        with pytest.raises(ModelError):
            await ctx.branch("side").generate("fail")
        for _ in range(10):
            await ctx.call_tool("act")
            await ctx.generate()
        return "never"

    budgets = {
        "max_steps": RunBudget(max_steps=4),
        "max_tool_calls": RunBudget(max_tool_calls=3),
        "max_total_tokens": RunBudget(max_total_tokens=100),
    }
    usage = Usage(input_tokens=40, output_tokens=0)
    agent = Agent("worker", pattern=pattern, tools=[act], model=ScriptedModel(think, usage=usage))
    if limit == "max_total_tokens":
        budgets[limit] = RunBudget(max_total_tokens=400)
    place.live_until_killed(
        [agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s", budget=budgets[limit])
    )
    result = place.carry_on([agent], "r")
    assert result.error_details.context["limit"] == limit
    if limit == "max_steps":
        # One answered, one failed, then two more: the second attempt had two left.
        assert place.noted.count("asked") == 4
    elif limit == "max_tool_calls":
        # The call in doubt was made, and so it counts.
        assert place.noted.count("called") == 3
    else:
        assert result.usage.total_tokens <= 400
        assert place.noted.count("asked") == 1 + result.usage.llm_calls


@pytest.mark.semantics("B21")
def test_a_model_call_that_was_in_flight_at_a_crash_counts_in_full(place: Any, die: Any) -> None:
    async def think(request: ModelRequest) -> str:
        place.note("asked")
        if place.noted.count("asked") <= 2:
            await asyncio.Event().wait()
        return "fine"

    # Each call reserves what its longest answer takes: room for two of them, and not for the shortest third.
    agent = Agent("worker", model=ScriptedModel(think), budget=RunBudget(max_total_tokens=2 * 4096 + 200))

    async def crash_while_it_thinks(runtime: Any) -> None:
        watching = await runtime.subscribe("r", names=["run.record_saved"])
        await runtime.submit(agent, "x", run_id="r", session_id="s")
        async for event in watching:
            if event.kind == "reservation":
                die()

    for _ in range(2):
        place.live_until_killed([agent], crash_while_it_thinks)
    result = place.carry_on([agent], "r")
    assert (result.stop_reason, result.error_details.context["limit"]) == ("budget_exhausted", "max_total_tokens")
    assert place.noted == ["asked", "asked"]
    assert result.usage.total_tokens == 0


async def test_time_that_branches_sleep_together_counts_once(place: Any) -> None:
    async def nap(branch: RunContext[Any], n: int) -> None:
        await branch.sleep(0.05)

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.map(nap, BRANCHES)
        await ctx.step("after", asyncio.sleep, 0)
        return "done"

    agent = Agent("worker", pattern=pattern)
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "x", run_id="r")).output == "done"
        assert [step.running >= 0 for step in await runtime.runs.steps("r")] == [True]


@pytest.mark.semantics("B11")
async def test_a_runs_own_budget_stands_in_for_the_agents_as_a_whole(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        for n in range(3):
            await ctx.call_tool("look", n=n)
            await ctx.generate()
        return "done"

    model = ScriptedModel(lambda _: "fine")
    agent = Agent("worker", pattern=pattern, model=model, tools=[look], budget=RunBudget(max_steps=1))
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "x")).stop_reason == "max_steps"
        own = await runtime.run(agent, "x", budget=RunBudget(max_tool_calls=2))
        assert own.error_details.context["limit"] == "max_tool_calls"
        assert own.usage.llm_calls == 2
        assert (await runtime.run(agent, "x", budget=RunBudget())).output == "done"


@pytest.mark.semantics("B12")
async def test_a_run_out_of_budget_returns_a_result_and_leaves_its_session_in_order(
    place: Any, well_formed: Any
) -> None:
    calls = [ToolCall(name="look", arguments={"n": n}) for n in range(3)]
    agent = Agent("worker", model=ScriptedModel([calls, "done"]), tools=[look])
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", session_id="s", budget=RunBudget(max_tool_calls=2))
        assert result.stop_reason == "max_steps"
        assert result.final_output is None
        assert (result.error_details.code, result.error_details.context) == (
            BudgetExhaustedError.code,
            {"limit": "max_tool_calls"},
        )
        assert result.usage.llm_calls == 1
        with pytest.raises(RunFailedError, match="max_tool_calls"):
            _ = result.output
        assert well_formed(await runtime.sessions.transcript("s"))
        assert (await runtime.sessions.get("s")).active_run is None
        assert (await runtime.run(agent, "again", session_id="s")).output == "done"


# ---- cancelling


def hanging(place: Any) -> tuple[asyncio.Event, Agent[None, str]]:
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            place.note("step cancelled")
            raise

    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.input_text != "x":
            return "done"
        await ctx.step("hang", hang)
        return "never"

    return begun, Agent("worker", pattern=pattern)


@pytest.mark.semantics("B13")
async def test_cancel_stops_a_run_in_mid_step_and_returns_once_it_has(place: Any) -> None:
    begun, agent = hanging(place)
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "x", run_id="r", session_id="s")
        await begun.wait()
        assert await runtime.cancel("r", reason="the user left", by="ann") is True
        assert place.noted == ["step cancelled"]
        assert (await runtime.runs.get("r")).state == RunState.CANCELLED
        assert runtime.stats().running == 0
        result = await handle.result()
        assert (result.stop_reason, result.error_details.code) == ("cancelled", "run_cancelled")
        assert "the user left" in result.error_details.message
        assert result.error_details.context == {"by": "ann"}
        assert (await runtime.run(agent, "next", session_id="s")).output == "done"


@pytest.mark.parametrize("stop_reason", ["suspended", "cancelled", "failed"])
async def test_what_stops_a_run_inside_a_task_group_stops_it_as_anywhere(place: Any, stop_reason: str) -> None:
    begun = asyncio.Event()

    @tool(read_only=True)
    async def hang() -> str:
        """Hang."""
        begun.set()
        await asyncio.Event().wait()
        return "never"

    async def pattern(ctx: RunContext[Any]) -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.branch("a").call_tool("hang"))
            if stop_reason == "suspended":
                group.create_task(ctx.branch("b").call_tool("pay"))
            elif stop_reason == "failed":
                group.create_task(ctx.branch("b").call_tool("nowhere"))
        return "never"

    agent = Agent("worker", pattern=pattern, tools=[hang, pay])
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "x", run_id="r", session_id="s")
        if stop_reason == "cancelled":
            await begun.wait()
            await handle.cancel()
        assert (await handle.result()).stop_reason == stop_reason
        assert (await runtime.runs.get("r")).state == stop_reason


@pytest.mark.semantics("B14")
@pytest.mark.parametrize("turns", range(6))
async def test_a_run_cancelled_before_it_began_never_begins(place: Any, turns: int) -> None:
    _, agent = hanging(place)

    async def note(ctx: RunContext[Any]) -> str:
        place.note(ctx.run_id)
        return "done"

    noting = Agent("noting", pattern=note)
    async with place.runtime(agent, noting) as runtime:
        first = await runtime.submit(agent, "x", run_id="first", session_id="s")
        waiting = [await runtime.submit(noting, "x", run_id=f"w{n}", session_id="s") for n in range(3)]
        await runtime.cancel("w0")
        await runtime.cancel("w2")
        await first.cancel()
        assert [(await handle.result()).stop_reason for handle in waiting] == ["cancelled", "completed", "cancelled"]
        assert [entry.run_id for entry in await runtime.runs.list(state="cancelled")] == ["first", "w0", "w2"]
        # One that is about to begin, however near.
        submitting = asyncio.ensure_future(runtime.submit(noting, "x", run_id="near", session_id="t"))
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled = await runtime.cancel("near") if runtime.stats().running else None
        result = await (await submitting).result()
        assert result.stop_reason == ("cancelled" if cancelled else "completed")
    assert [line for line in place.noted if line.startswith("w")] == ["w1"]
    log = await place.log("s")
    assert {record.run_id for record in log if isinstance(record, RunBegan)} == {"first", "w1"}


@pytest.mark.semantics("B15")
@pytest.mark.parametrize("waits", ["suspended", "parked", "queued"])
def test_a_run_that_waits_can_be_cancelled_and_its_transcript_is_closed(
    place: Any, die: Any, well_formed: Any, waits: str
) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        response = await ctx.generate()
        await ctx.add_artifact("made", 1)
        if waits == "suspended":
            await ctx.call_tools(response.tool_calls)
        die()
        return "never"

    def worker() -> Agent[None, str]:
        calls = [ToolCall(name="pay"), ToolCall(name="pay")]
        return Agent("worker", pattern=pattern, model=ScriptedModel([calls]), tools=[pay])

    async def take_slot(ctx: RunContext[Any]) -> str:
        await asyncio.Event().wait()
        return "never"

    other = Agent("other", pattern=take_slot)
    next_one = Agent("next", model=ScriptedModel(["fine"]))
    limits = RuntimeLimits(max_concurrent_runs=1)

    async def start_both(runtime: Any) -> None:
        await runtime.submit(other, "x", run_id="a-other", session_id="o")
        await runtime.submit("worker", "x", run_id="r", session_id="s")
        await asyncio.Event().wait()

    async def start_one(runtime: Any) -> None:
        await runtime.run("worker", "x", run_id="r", session_id="s")
        die()

    async def cancel(runtime: Any) -> None:
        if waits == "queued":
            assert (runtime.stats().running, runtime.stats().queued) == (1, 1)
        handle = await runtime.submit(next_one, "y", session_id="s", run_id="next")
        assert await runtime.cancel("r", reason="enough") is True
        result = await runtime.wait("r")
        assert result.stop_reason == "cancelled"
        assert (result.usage.llm_calls, [one.name for one in result.artifacts]) == (1, ["made"])
        if waits == "queued":
            await runtime.cancel("a-other")
        assert (await handle.result()).output == "fine"
        transcript = await runtime.sessions.transcript("s")
        assert [message.role for message in transcript] == ["user", "assistant", "tool", "tool", "user", "assistant"]
        assert well_formed(transcript)

    if waits == "queued":
        place.live_until_killed([other, worker()], start_both, limits=RuntimeLimits(max_concurrent_runs=2))
        place.live([other, worker(), next_one], cancel, limits=limits)
    else:
        agents = [next_one, worker()] if waits == "suspended" else [next_one]
        place.live_until_killed([worker()], start_one)
        place.live(agents, cancel)
    ended = [record for record in asyncio.run(place.log("s")) if isinstance(record, RunEnded)]
    assert [record.stop_reason for record in ended] == ["cancelled", "completed"]


@pytest.mark.semantics("B16")
async def test_cancelling_a_run_that_has_ended_changes_nothing(place: Any) -> None:
    agent = Agent("worker", model=ScriptedModel(["fine"]))
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "x", run_id="r", session_id="s")
        result = await handle.result()
        before = await place.log("s")
        assert await runtime.cancel("r") is False
        await handle.cancel()
        assert await handle.result() == result
        assert (await runtime.wait("r")).output == "fine"
        assert await place.log("s") == before
        with pytest.raises(UnknownRunError):
            await runtime.cancel("nobody")


@pytest.mark.semantics("B17")
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 30])
async def test_cancelling_the_task_that_awaits_run_cancels_the_run_at_whatever_moment(place: Any, turns: int) -> None:
    _, agent = hanging(place)
    async with place.runtime(agent) as runtime:
        running = asyncio.ensure_future(runtime.run(agent, "x", run_id="r"))
        submitting = asyncio.ensure_future(runtime.submit(agent, "x", run_id="submitted"))
        handle = await submitting if turns > 20 else None
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        handle = handle or await submitting
        assert runtime.stats().running == 1
        waiting = asyncio.ensure_future(handle.result())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert runtime.stats().running == 1
        states = {entry.run_id: entry.state for entry in await runtime.runs.list()}
        assert states.get("r", RunState.CANCELLED) == RunState.CANCELLED
        assert states["submitted"] in {RunState.RUNNING, RunState.QUEUED}


@pytest.mark.semantics("B18")
async def test_leaving_a_stream_before_its_run_has_ended_cancels_the_run(place: Any) -> None:
    _, agent = hanging(place)
    async with place.runtime(agent) as runtime:
        async with runtime.stream(agent, "x", run_id="r") as stream:
            async for event in stream:
                if event.name == "run.started":
                    break
        assert (await runtime.wait("r")).stop_reason == "cancelled"
        with pytest.raises(KeyError):
            async with runtime.stream(agent, "x", run_id="q"):
                raise KeyError("the caller's own")
        assert (await runtime.wait("q")).stop_reason == "cancelled"
        async with runtime.stream(agent, "y", run_id="ends") as stream:
            assert (await stream.result()).output == "done"
        assert (await runtime.wait("ends")).output == "done"


@pytest.mark.semantics("B19")
@pytest.mark.parametrize("goes_on", ["model", "tool", "step", "returns", "raises"])
async def test_a_pattern_that_swallows_its_cancellation_begins_no_further_step(place: Any, goes_on: str) -> None:
    begun = asyncio.Event()

    async def act() -> None:
        place.note("acted")

    @tool(read_only=True)
    async def act_as_tool() -> str:
        """Act."""
        place.note("acted")
        return "acted"

    async def pattern(ctx: RunContext[Any]) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            place.note("swallowed")
        if goes_on == "model":
            return (await ctx.generate()).text
        if goes_on == "tool":
            await ctx.call_tool("act_as_tool")
        elif goes_on == "step":
            await ctx.step("act", act)
        elif goes_on == "raises":
            raise ValueError("an error of its own")
        return "went on"

    def think(request: ModelRequest) -> str:
        place.note("acted")
        return "thought"

    agent = Agent("worker", pattern=pattern, tools=[act_as_tool], model=ScriptedModel(think))
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "x", run_id="r", session_id="s")
        await begun.wait()
        assert await runtime.cancel("r") is True
        assert (await handle.result()).stop_reason == "cancelled"
    assert place.noted == ["swallowed"]


class Announcing(LmdbStore):
    """A store that says when it is handed a commit to a log."""

    commits = 0
    told: Any = None

    def commit(self, batch: Any, fence: Any, loop: Any, acknowledge: Any) -> None:
        super().commit(batch, fence, loop, acknowledge)
        if fence is not None and batch.log:
            self.commits += 1
            if self.told is not None:
                self.told(self.commits)


@pytest.mark.semantics("B20")
async def test_a_cancellation_that_comes_over_the_last_record_comes_too_late(place: Any) -> None:
    agent = Agent("worker", model=ScriptedModel(["fine"]))
    store = Announcing(place.data, map_size=1 << 30)
    cancelling: list[asyncio.Task[bool]] = []
    async with place.runtime(agent, store=store) as runtime:

        def told(commits: int) -> None:
            if commits == 3:
                cancelling.append(asyncio.ensure_future(runtime.cancel("r")))

        store.told = told
        result = await runtime.run(agent, "x", run_id="r", session_id="s")
        assert result.output == "fine"
        assert [await task for task in cancelling] == [False]
        assert (await runtime.runs.get("r")).state == RunState.COMPLETED
        assert (await runtime.wait("r")).output == "fine"


async def test_a_cancellation_that_comes_while_a_run_is_being_suspended_cancels_it(
    place: Any, well_formed: Any
) -> None:
    agent = Agent("worker", model=ScriptedModel([ToolCall(name="pay")]), tools=[pay])
    store = Announcing(place.data, map_size=1 << 30)
    cancelling: list[asyncio.Task[bool]] = []
    async with place.runtime(agent, store=store) as runtime:

        def told(commits: int) -> None:
            if commits == 3:
                cancelling.append(asyncio.ensure_future(runtime.cancel("r")))

        store.told = told
        handle = await runtime.submit(agent, "x", run_id="r", session_id="s")
        await handle.result()
        assert [await task for task in cancelling] == [True]
        assert (await handle.result()).stop_reason == "cancelled"
        assert (await runtime.runs.get("r")).state == RunState.CANCELLED
        assert well_formed(await runtime.sessions.transcript("s"))


class HangingMemory(WindowMemory):
    """Hangs where it is told to, as long as the run says so, and says when it begins and when it is cancelled."""

    def __init__(self, hangs_in: str, *, resists: bool = False) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.released = asyncio.Event()
        self._hangs_in = hangs_in
        self._resists = resists

    async def inject(self, held: Any, message: Message) -> Sequence[str]:
        await self._hang("inject", message.text)
        return await super().inject(held, message)

    async def writeback(self, held: Any, exchange: Exchange) -> Mapping[str, Any]:
        await self._hang("writeback", exchange.asked)
        return await super().writeback(held, exchange)

    async def _hang(self, where: str, asked: str) -> None:
        if where != self._hangs_in or asked != "hang":
            return
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            if not self._resists:
                raise
            await self.released.wait()


@pytest.mark.semantics("B22")
@pytest.mark.parametrize("hangs_in", ["inject", "writeback"])
@pytest.mark.parametrize("resists", [False, True])
@pytest.mark.parametrize("stopped_by", ["cancelled", "budget_exhausted"])
async def test_a_memory_that_hangs_is_cancelled_with_its_run_and_keeps_no_later_run_waiting(
    place: Any, hangs_in: str, resists: bool, stopped_by: str
) -> None:
    memory = HangingMemory(hangs_in, resists=resists)
    agent = Agent("worker", model=ScriptedModel(lambda request: "fine"), memory=memory)
    budget = RunBudget(max_duration=0.2) if stopped_by == "budget_exhausted" else None
    loop = asyncio.get_running_loop()
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "hang", session_id="s", budget=budget)
        following = await runtime.submit(agent, "next", session_id="s")
        await memory.begun.wait()
        begun = loop.time()
        if stopped_by == "cancelled":
            await handle.cancel()
        assert (await handle.result()).stop_reason == stopped_by
        assert loop.time() - begun < 0.1 + (0.2 if budget else 0)
        await asyncio.wait_for(memory.cancelled.wait(), 0.1)
        assert (await following.result()).output == "fine"
        closing = loop.time()
    assert loop.time() - closing < 1
    memory.released.set()


async def test_closing_the_runtime_cancels_a_memory_that_hangs_and_a_restart_asks_it_anew(place: Any) -> None:
    memory = HangingMemory("inject")
    agent = Agent("worker", model=ScriptedModel(["fine"]), memory=memory)
    async with place.runtime(agent, drain_timeout=0.05) as runtime:
        handle = await runtime.submit(agent, "hang", run_id="r", session_id="s")
        await memory.begun.wait()
        closing = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - closing < 0.5
    assert memory.cancelled.is_set()
    assert (await handle.result()).stop_reason == "interrupted"
    agent = Agent("worker", model=ScriptedModel(["fine"]), memory=WindowMemory())
    async with place.runtime(agent) as runtime:
        assert (await runtime.wait("r")).output == "fine"
