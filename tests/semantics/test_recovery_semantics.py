"""R: what the next start does with what an earlier process left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import BaseModel

from callboard import (
    Agent,
    ModelRequest,
    RunBudget,
    RunContext,
    RunInfo,
    RuntimeClosedError,
    RuntimeClosingError,
    ScriptedModel,
    ToolCall,
    UnknownAgentError,
    Usage,
    UsageError,
    tool,
)
from callboard_protocol.records import RunBegan, RunResumed
from callboard_protocol.states import RunState

pytestmark = pytest.mark.anyio


@tool(approval=True)
async def pay(amount: int) -> str:
    """Pay."""
    return "paid"


async def act() -> None: ...


@pytest.mark.semantics("R1")
def test_a_start_carries_every_unfinished_run_on_unless_told_not_to(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        place.note(ctx.run_id)
        if ctx.attempt == 1 and ctx.input_text == "stay":
            await asyncio.Event().wait()
        return "done"

    agent = Agent("worker", pattern=pattern)

    async def leave_four(runtime: Any) -> None:
        await runtime.run(agent, "end", run_id="ended")
        for n in range(4):
            await runtime.submit(agent, "stay" if n < 2 else "go", run_id=f"r{n}", session_id=f"s{n % 2}")
        die()

    async def leave_alone(runtime: Any) -> None:
        assert runtime.stats().recovered == 0
        assert {(await runtime.runs.get(f"r{n}")).state for n in range(4)} == {RunState.RUNNING, RunState.QUEUED}
        with pytest.raises(UsageError, match="nobody carries it on"):
            await runtime.wait("r0")

    async def carry_on(runtime: Any) -> None:
        assert runtime.stats().recovered == 4
        # Not asked for, they go on all the same.
        assert [(await runtime.wait(f"r{n}")).output for n in range(4)] == ["done"] * 4

    place.live_until_killed([agent], leave_four)
    begun = place.noted
    assert set(begun) <= {"ended", "r0", "r1"}
    place.live([agent], leave_alone, recover=False)
    assert place.noted == begun
    place.live([agent], carry_on)
    assert sorted(place.noted[len(begun) :]) == ["r0", "r1", "r2", "r3"]


@pytest.mark.semantics("R2")
def test_each_attempt_has_its_own_deps_and_is_told_which_it_is(place: Any, die: Any) -> None:
    @asynccontextmanager
    async def open_deps(info: RunInfo) -> AsyncIterator[str]:
        place.note(f"open {info.run_id} {info.session_id} {info.agent_id} {info.attempt} {info.metadata}")
        yield f"deps of attempt {info.attempt}"
        place.note("close")

    async def pattern(ctx: RunContext[str]) -> str:
        await ctx.emit("my.event")
        if ctx.attempt < 3:
            die()
        return ctx.deps

    agent = Agent("worker", pattern=pattern, deps=open_deps)

    async def start(runtime: Any) -> None:
        await runtime.run(agent, "x", run_id="r", session_id="s", metadata={"job": 7})

    place.live_until_killed([agent], start)
    place.live_until_killed([agent], lambda runtime: runtime.wait("r"))
    assert place.carry_on([agent], "r").output == "deps of attempt 3"
    assert place.noted == [*(f"open r s worker {attempt} {{'job': 7}}" for attempt in (1, 2, 3)), "close"]


class Verdict(BaseModel):
    due: tuple[int, ...]
    by: set[str]


@pytest.mark.semantics("R3")
def test_the_result_of_a_run_is_there_in_any_later_process(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> Verdict:
        await ctx.generate("one")
        await ctx.add_artifact("early", 1)
        if place.happens_first("killed"):
            die()
        await ctx.generate("two")
        await ctx.add_artifact("late", 2)
        return Verdict(due=(1, 2), by={"ann"})

    usage = Usage(input_tokens=10, output_tokens=5, cost_usd=0.25)
    model = ScriptedModel(lambda _: "fine", usage=usage)
    agent = Agent("worker", pattern=pattern, model=model, output_type=Verdict)
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", metadata={"job": 7}))
    at_the_end = place.carry_on([agent], "r")
    later = place.carry_on([agent], "r")
    assert later.output == at_the_end.output == Verdict(due=(1, 2), by={"ann"})
    assert [artifact.name for artifact in later.artifacts] == ["early", "late"]
    assert (later.usage.llm_calls, later.usage.total_tokens, later.usage.cost_usd) == (2, 30, 0.5)
    assert later.metadata == {"job": 7}
    assert later == at_the_end
    plain = place.carry_on([], "r")
    assert plain.final_output == {"due": [1, 2], "by": ["ann"]}


@pytest.mark.semantics("R4")
async def test_closing_stops_runs_at_their_last_completed_step_and_the_next_start_carries_them_on(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.step("act", note_it)
        if ctx.attempt < 4:
            begun.set()
            await asyncio.Event().wait()
        return "done"

    async def note_it() -> None:
        place.note("acted")

    begun = asyncio.Event()
    agent = Agent("worker", pattern=pattern, budget=RunBudget(max_resume_attempts=1))
    for attempt in (1, 2, 3):
        begun.clear()
        async with place.runtime(agent) as runtime:
            if attempt == 1:
                handle = await runtime.submit(agent, "x", run_id="r", session_id="s", on_crash="fail")
                waiting = await runtime.submit(agent, "x", run_id="waiting", session_id="s")
            await begun.wait()
        if attempt == 1:
            assert (await handle.result()).stop_reason == "interrupted"
            assert (await waiting.result()).stop_reason == "interrupted"
    async with place.runtime(agent) as runtime:
        assert (await runtime.wait("r")).output == "done"
        assert [record.strikes for record in await place.log("s") if isinstance(record, RunResumed)] == [0, 0, 0]
        await runtime.cancel("waiting")
    assert place.noted.count("acted") <= 2


@pytest.mark.semantics("R5")
async def test_closing_waits_for_the_end_of_a_step_begins_no_other_and_takes_nothing_in(place: Any, until: Any) -> None:
    gate = asyncio.Event()

    @tool
    async def pay() -> str:
        """Pay: what is cut short here is in doubt."""
        place.note("pay")
        await gate.wait()
        return "paid"

    async def pattern(ctx: RunContext[Any]) -> str:
        paid = await ctx.call_tool("pay")
        await ctx.step("book", book)
        return str(paid)

    async def book() -> None:
        place.note("book")

    agent = Agent("worker", pattern=pattern, tools=[pay])
    async with place.runtime(agent, drain_timeout=20) as runtime:
        kept = await runtime.submit(agent, "x", run_id="kept")
        lost = await runtime.submit(agent, "x", run_id="lost", durable=False)
        await until(lambda: place.noted == ["pay", "pay"])
        closing = asyncio.ensure_future(runtime.aclose())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeClosingError):
            await runtime.submit(agent, "x")
        assert runtime.health().draining
        assert not closing.done()
        gate.set()
        await closing
        assert (await kept.result()).stop_reason == "interrupted"
        assert (await lost.result()).output == "paid"
        with pytest.raises(RuntimeClosedError):
            runtime.stats()
    assert place.noted == ["pay", "pay", "book"]
    async with place.runtime(agent) as runtime:
        assert (await runtime.wait("kept")).output == "paid"
    assert place.noted == ["pay", "pay", "book", "book"]


@pytest.mark.semantics("R6")
def test_on_crash_fail_fails_what_was_in_flight_and_carries_on_what_waited(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.input_text == "die":
            await ctx.generate()
            await ctx.add_artifact("made", 1)
            die()
        return "done"

    agent = Agent("worker", pattern=pattern, model=ScriptedModel([ToolCall(name="pay", arguments={"amount": 1})]))

    async def start(runtime: Any) -> None:
        first = asyncio.ensure_future(runtime.run(agent, "die", run_id="first", session_id="s", on_crash="fail"))
        await asyncio.sleep(0)
        await runtime.submit(agent, "wait", run_id="second", session_id="s", on_crash="fail")
        await first

    async def look(runtime: Any) -> None:
        failed = await runtime.wait("first")
        assert (failed.stop_reason, failed.error_details.code) == ("failed", "interrupted_by_crash")
        assert failed.error_details.retryable
        assert [artifact.name for artifact in failed.artifacts] == ["made"]
        assert failed.usage.llm_calls == 1
        assert (await runtime.wait("second")).output == "done"
        transcript = await runtime.sessions.transcript("s")
        assert [message.role for message in transcript] == ["user", "assistant", "tool", "user", "assistant"]

    place.live_until_killed([agent], start)
    place.live([agent], look)


@pytest.mark.semantics("R7")
def test_a_run_that_only_ever_crashes_fails_as_poisonous_and_one_that_gets_further_does_not(
    place: Any, die: Any
) -> None:
    async def poisonous(ctx: RunContext[Any]) -> str:
        await ctx.generate()
        await ctx.step("die", act_and_die)
        return "never"

    async def act_and_die() -> None:
        die()

    async def slow(ctx: RunContext[Any]) -> str:
        for n in range(6):
            await ctx.step(f"step {n}", act)
            if ctx.attempt == n + 1:
                die()
        return f"done at attempt {ctx.attempt}"

    bad = Agent("bad", pattern=poisonous, model=ScriptedModel(["thought"]))
    good = Agent("good", pattern=slow)
    budget = RunBudget(max_resume_attempts=3)

    async def start_bad(runtime: Any) -> None:
        await runtime.run(bad, "x", run_id="bad", session_id="b", budget=budget)

    place.live_until_killed([bad], start_bad)
    # The first crash came after progress: a step that completed. The next three came without.
    for _ in range(3):
        place.live_until_killed([bad], lambda runtime: runtime.wait("bad"))

    async def look(runtime: Any) -> Any:
        healthy = Agent("healthy", model=ScriptedModel(["fine"]))
        runtime.agents.register(healthy)
        assert (await runtime.run(healthy, "x", session_id="h")).output == "fine"
        return await runtime.wait("bad")

    failed = place.live([bad], look)
    assert (failed.stop_reason, failed.error_details.code) == ("failed", "poisonous_run")
    assert failed.error_details.context["strikes"] == 3
    assert failed.usage.llm_calls == 1

    async def start_good(runtime: Any) -> None:
        await runtime.run(good, "x", run_id="good", session_id="g", budget=RunBudget(max_resume_attempts=1))

    place.live_until_killed([good], start_good)
    for _ in range(5):
        place.live_until_killed([good], lambda runtime: runtime.wait("good"))
    assert place.carry_on([good], "good").output == "done at attempt 7"


@pytest.mark.semantics("R8")
def test_a_run_without_its_agent_is_parked_and_goes_on_when_it_is_there(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.step("act", act)
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return f"done at attempt {ctx.attempt}"

    def worker() -> Agent[None, str]:
        return Agent("worker", pattern=pattern)

    async def start(runtime: Any) -> None:
        for run_id in ("r", "waiting"):
            await runtime.submit("worker", "x", run_id=run_id, session_id="s")
        die()

    async def find_parked(runtime: Any) -> None:
        assert runtime.stats().parked == 2
        with pytest.raises(UnknownAgentError):
            await runtime.submit("worker", "x", run_id="r", session_id="s")
        waiting = asyncio.ensure_future(runtime.wait("r"))
        runtime.agents.register(Agent("unrelated"))
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()

    async def register(runtime: Any) -> list[Any]:
        assert runtime.stats().parked == 2
        runtime.agents.register(worker())
        assert (await runtime.wait("r")).output == "done at attempt 2"
        await runtime.cancel("waiting")
        return [event.name async for event in runtime.events("r")]

    async def watch_parking() -> list[Any]:
        # Parking happens while the runtime opens: the entry that a result would show says it.
        async with place.runtime() as runtime:
            ticket = await runtime._open.supervisor.ask(_find("r"))
            return [(one.reason, one.message) for one in ticket.entry.pending]

    place.live_until_killed([worker()], start)
    place.live([], find_parked)
    assert asyncio.run(watch_parking()) == [("parked", "agent 'worker' is not registered")]
    names = place.live([], register)
    assert names.count("run.resume_attempted") == 1


def _find(run_id: str) -> Any:
    from callboard_protocol.commands import FindTicket

    return FindTicket(run_id=run_id)


@pytest.mark.semantics("R9")
def test_a_parked_run_that_had_begun_keeps_its_session(place: Any, die: Any) -> None:
    def think(request: ModelRequest) -> str:
        return f"about {request.messages[-1].text}"

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.generate("first")
        if place.happens_first("killed"):
            die()
        return (await ctx.generate("second")).text

    def parked() -> Agent[None, str]:
        return Agent("parked", pattern=pattern, model=ScriptedModel(think))

    other = Agent("other", model=ScriptedModel(think))

    async def look(runtime: Any) -> list[str]:
        later = await runtime.submit(other, "later", run_id="later", session_id="s")
        assert (await runtime.run(other, "elsewhere", session_id="t")).output == "about elsewhere"
        assert runtime.stats().queued == 1
        runtime.agents.register(parked())
        assert (await later.result()).output == "about later"
        return [message.text for message in await runtime.sessions.transcript("s")]

    place.live_until_killed([parked()], lambda runtime: runtime.run("parked", "x", run_id="r", session_id="s"))
    assert place.live([other], look) == [
        "x",
        "first",
        "about first",
        "second",
        "about second",
        "later",
        "about later",
    ]


@pytest.mark.semantics("R10")
def test_a_suspended_run_is_still_suspended_after_a_restart(place: Any, die: Any) -> None:
    payer = Agent("payer", model=ScriptedModel([ToolCall(name="pay", arguments={"amount": 7})]), tools=[pay])
    other = Agent("other", model=ScriptedModel(["fine"]))

    async def suspend(runtime: Any) -> Any:
        result = await runtime.run(payer, "x", run_id="r", session_id="s")
        await runtime.submit(other, "later", run_id="later", session_id="s")
        return result

    async def suspend_and_die(runtime: Any) -> None:
        await suspend(runtime)
        die()

    async def look(runtime: Any) -> Any:
        assert (runtime.stats().suspended, runtime.stats().queued, runtime.stats().running) == (1, 1, 0)
        result = await runtime.wait("r")
        assert (await runtime.runs.get("r")).state == RunState.SUSPENDED
        return result

    place.live_until_killed([payer, other], suspend_and_die)
    for _ in range(2):
        result = place.live([payer, other], look)
        assert result.stop_reason == "suspended"
        [pending] = result.pending
        assert (pending.call_id, pending.tool, pending.arguments) == ("r:1.0", "pay", {"amount": 7})


@pytest.mark.semantics("R11")
def test_runs_keep_their_agent_in_a_process_and_take_the_registered_one_after_a_restart(place: Any, die: Any) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    def worker(version: str) -> Agent[None, str]:
        async def pattern(ctx: RunContext[Any]) -> str:
            begun.set()
            if ctx.input_text == "wait":
                await gate.wait()
            await ctx.step("act", act)
            if ctx.input_text == "die" and version == "1":
                die()
            return f"by version {version}"

        return Agent("worker", pattern=pattern, version=version)

    async def replace(runtime: Any) -> None:
        handle = await runtime.submit("worker", "wait", session_id="s")
        queued = await runtime.submit("worker", "wait", session_id="s")
        await begun.wait()
        runtime.agents.unregister("worker")
        with pytest.raises(UnknownAgentError):
            await runtime.submit("worker", "wait")
        runtime.agents.register(worker("2"))
        gate.set()
        assert (await handle.result()).output == "by version 1"
        assert (await queued.result()).output == "by version 1"
        assert (await runtime.run("worker", "go")).output == "by version 2"

    place.live([worker("1")], replace)
    place.live_until_killed([worker("1")], lambda runtime: runtime.run("worker", "die", run_id="r", session_id="t"))
    assert place.carry_on([worker("2")], "r").output == "by version 2"
    records = [record for record in asyncio.run(place.log("t")) if isinstance(record, RunBegan | RunResumed)]
    assert [record.agent.version for record in records] == ["1", "2"]
