"""D: the durable step: identity, replay, calls that act, the transcript."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from callboard import (
    Agent,
    Allow,
    CallboardError,
    ConcurrentStepError,
    Deny,
    Happened,
    InvalidArgumentsError,
    Message,
    ModelError,
    ModelRequest,
    ModelRetry,
    NonDeterministicRunError,
    NotHappened,
    OutputValidationError,
    RunBudget,
    RunContext,
    ScriptedModel,
    StepFailedError,
    ToolCall,
    ToolContext,
    ToolError,
    ToolFailedError,
    ToolTimeoutError,
    Unknown,
    UnknownToolError,
    UnpersistableValueError,
    UsageError,
    WindowMemory,
    tool,
)
from callboard_protocol.records import IntentRecorded, RunBegan, RunEnded, StepCompleted

pytestmark = pytest.mark.anyio


class Tally(BaseModel):
    count: int = 0


def last_said(request: ModelRequest) -> str:
    return request.messages[-1].text


def roles(messages: Sequence[Message]) -> list[str]:
    return [message.role for message in messages]


async def transcript_after(runtime: Any, run_id: str, session_id: str = "s") -> tuple[Any, list[Message]]:
    result = await runtime.wait(run_id)
    return result, await runtime.sessions.transcript(session_id)


# ---- identity and completion


@pytest.mark.semantics("D1")
def test_a_call_id_is_the_same_at_every_attempt_and_reaches_the_tool(place: Any, die: Any) -> None:
    @tool(read_only=True)
    async def look(ctx: ToolContext, name: str) -> str:
        """Look."""
        place.note(f"{name} {ctx.call_id} {ctx.idempotency_key}")
        if name == "last" and place.happens_first("killed"):
            die()
        return name

    async def in_branch(ctx: RunContext[Any], name: str) -> str:
        return await ctx.call_tool("look", name=name)

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.generate()
        await ctx.call_tool("look", name="own")
        await ctx.map(in_branch, {"a": "mapped"})
        await ctx.branch("side").call_tool("look", name="branched")
        calls = [ToolCall(name="look", arguments={"name": name}, id=name) for name in ("one", "last")]
        await ctx.call_tools(calls)
        return "done"

    agent = Agent("worker", pattern=pattern, tools=[look], model=ScriptedModel(["go"]))
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    assert place.carry_on([agent], "r").output == "done"
    expected = {"own": "r:1", "mapped": "r:2.a/0", "branched": "r:side/0", "one": "r:3.0", "last": "r:3.1"}
    seen = [line.split() for line in place.noted if line != "killed"]
    assert {name: call_id for name, call_id, _ in seen} == expected
    assert all(call_id == expected[name] == key for name, call_id, key in seen)
    assert [name for name, _, _ in seen].count("last") == 2


@pytest.mark.semantics("D2")
@pytest.mark.parametrize(("when", "times"), [("before", 2), ("after", 1)])
def test_a_pattern_sees_an_outcome_only_once_it_is_on_disk(
    place: Any, killed_by_commit: Any, when: str, times: int
) -> None:
    async def act() -> str:
        place.note("acted")
        return "outcome"

    async def pattern(ctx: RunContext[Any]) -> str:
        outcome = await ctx.step("act", act)
        place.note("seen")
        return outcome

    agent = Agent("worker", pattern=pattern)
    over_the_step = killed_by_commit(1, when)
    place.live_until_killed(
        [agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"), store=over_the_step
    )
    assert place.noted == ["acted"]
    completed = [record for record in asyncio.run(place.log("s")) if isinstance(record, StepCompleted)]
    assert len(completed) == (1 if when == "after" else 0)
    assert place.carry_on([agent], "r").output == "outcome"
    assert place.noted.count("acted") == times
    assert place.noted.count("seen") == 1


@pytest.mark.semantics("D3")
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_over_any_commit_a_run_comes_to_the_same_result(place: Any, killed_by_commit: Any, when: str) -> None:
    @tool(read_only=True)
    async def look(n: int) -> int:
        """Look."""
        return n * 2

    @tool
    async def act(ctx: ToolContext, n: int) -> int:
        """Act."""
        place.note(f"act {ctx.call_id}")
        return n + 1

    @act.reconcile
    async def _(ctx: ToolContext, n: int) -> Happened[int] | NotHappened | Unknown:
        return Happened(n + 1) if f"act {ctx.call_id}" in place.noted else NotHappened()

    async def judge(ctx: RunContext[Any], n: int) -> int:
        return int(await ctx.call_tool("act", n=n))

    async def pattern(ctx: RunContext[Any]) -> str:
        ctx.state.count += 1
        response = await ctx.generate()
        results = await ctx.call_tools(response.tool_calls)
        judged = await ctx.map(judge, {"a": 10, "b": 20})
        await ctx.add_artifact("sum", sum(judged.values()))
        return f"{[result.value for result in results]} {judged} {ctx.state.count}"

    calls = [ToolCall(name="look", arguments={"n": 1}), ToolCall(name="act", arguments={"n": 1})]
    agent = Agent("worker", pattern=pattern, tools=[look, act], model=ScriptedModel([calls]), state_type=Tally)
    commits = 11
    for number in range(commits):
        run_id = f"r{number}"
        start = lambda runtime, run_id=run_id: runtime.run(agent, "x", run_id=run_id, session_id=run_id)  # noqa: E731
        place.live_until_killed([agent], start, store=killed_by_commit(number, when))
        # Once more: over the first thing that the next attempt writes after it said that it resumes.
        place.live_until_killed([agent], start, store=killed_by_commit(1, when), surely=False)
        result = place.carry_on([agent], run_id)
        assert result.output == "[2, 2] {'a': 11, 'b': 21} 1"
        assert [artifact.payload for artifact in result.artifacts] == [32]
        effects = [line for line in place.noted if line.startswith(f"act {run_id}:")]
        assert sorted(effects) == [f"act {run_id}:{step}" for step in ("1.1", "2.a/0", "2.b/0")]


@pytest.mark.semantics("D4")
async def test_a_second_step_in_flight_in_one_scope_is_refused_and_the_first_goes_on(place: Any) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        begun.set()
        await gate.wait()
        return "slow"

    async def pattern(ctx: RunContext[Any]) -> str:
        first = asyncio.ensure_future(ctx.step("slow", slow))
        await begun.wait()
        for second in (ctx.generate, lambda: ctx.step("more", slow), lambda: ctx.emit("my.event")):
            with pytest.raises(ConcurrentStepError, match=r"ctx\.branch\(name\) or ctx\.map") as refused:
                await second()
            assert "slow" in refused.value.message
        with pytest.raises(ConcurrentStepError):
            ctx.random()
        beside = await ctx.branch("beside").generate()
        gate.set()
        return f"{await first} {beside.text} {(await ctx.generate()).text}"

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(["one", "two"]))
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", run_id="r")
        assert result.output == "slow one two"
        assert [step.step for step in await runtime.runs.steps("r")] == ["beside/0", "0", "1"]


# ---- replay


@pytest.mark.semantics("D5")
def test_a_resumed_run_takes_every_recorded_step_from_its_record(place: Any, die: Any) -> None:
    @tool(read_only=True)
    async def look() -> str:
        """Look."""
        place.note("looked")
        return "seen"

    def think(request: ModelRequest) -> str:
        place.note("thought")
        return f"thought of {last_said(request)}"

    async def act(n: int) -> int:
        place.note(f"acted {n}")
        return n

    async def pattern(ctx: RunContext[Any]) -> list[Any]:
        outcomes = [
            (await ctx.generate("a plan")).text,
            await ctx.call_tool("look"),
            (await ctx.call_tools([ToolCall(name="look", id="1")]))[0].value,
            await ctx.step("act", act, 1),
            await ctx.map(lambda branch, n: branch.step("act", act, n), {"two": 2, "three": 3}),
            (await ctx.add_artifact("report", {"n": 4})).payload,
        ]
        if place.happens_first("killed"):
            die()
        return outcomes

    agent = Agent("worker", pattern=pattern, tools=[look], model=ScriptedModel(think), output_type=list[Any])
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    result = place.carry_on([agent], "r")
    assert result.output == ["thought of a plan", "seen", "seen", 1, {"two": 2, "three": 3}, {"n": 4}]
    assert [artifact.name for artifact in result.artifacts] == ["report"]
    assert (result.usage.llm_calls, result.usage.tool_calls) == (1, 2)
    acts = place.noted[: place.noted.index("killed")]
    assert sorted(acts) == ["acted 1", "acted 2", "acted 3", "looked", "looked", "thought"]
    assert place.noted[len(acts) :] == ["killed", "killed"]


@pytest.mark.semantics("D6")
def test_replay_starts_from_what_the_session_held_when_the_run_began(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        place.note(f"{ctx.input_text} began with {ctx.state.count} and {[m.text for m in ctx.transcript]}")
        ctx.state.count += 5
        answer = (await ctx.generate("more")).text
        if ctx.input_text == "second" and place.happens_first("killed"):
            die()
        return answer

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(lambda _: "fine"), state_type=Tally)

    async def two_runs(runtime: Any) -> None:
        await runtime.run(agent, "first", session_id="s")
        await runtime.run(agent, "second", run_id="r", session_id="s")

    place.live_until_killed([agent], two_runs)
    assert place.carry_on([agent], "r").output == "fine"
    began = [line for line in place.noted if line.startswith("second began")]
    assert began == ["second began with 5 and ['first', 'more', 'fine', 'second']"] * 2


@pytest.mark.semantics("D7")
def test_a_change_of_state_is_part_of_its_step_and_applied_on_replay(place: Any, die: Any) -> None:
    gate = asyncio.Event()

    @tool(read_only=True)
    async def add(ctx: ToolContext) -> int:
        """Add one."""
        place.note("added")
        ctx.state.count += 1
        return int(ctx.state.count)

    @tool(read_only=True)
    async def replace(ctx: ToolContext) -> str:
        """Put another state in place."""
        ctx.state = Tally(count=ctx.state.count + 100)
        gate.set()
        return "replaced"

    @tool(read_only=True)
    async def look(ctx: ToolContext) -> str:
        """Look, while the state is replaced."""
        await gate.wait()
        return "looked"

    async def pattern(ctx: RunContext[Any]) -> str:
        seen = [ctx.state.count]
        await ctx.call_tool("add")
        seen.append(ctx.state.count)
        await ctx.call_tools([ToolCall(name="look", id="1"), ToolCall(name="replace", id="2")])
        seen.append(ctx.state.count)
        ctx.state.count += 1000
        await ctx.emit("my.event")
        seen.append(ctx.state.count)
        for make in (ctx.generate, lambda: ctx.step("nothing", asyncio.sleep, 0)):
            # What only this attempt could know counts as it was recorded.
            ctx.state.count += 10_000 * ctx.attempt
            await make()
            seen.append(ctx.state.count)
        if place.happens_first("killed"):
            die()
        return str(seen)

    agent = Agent(
        "worker", pattern=pattern, tools=[add, look, replace], state_type=Tally, model=ScriptedModel(["thought"])
    )
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    assert place.carry_on([agent], "r").output == "[0, 1, 101, 1101, 11101, 21101]"
    assert place.noted.count("added") == 1
    assert place.live([agent], lambda runtime: runtime.run(agent, "x", session_id="s")).output == (
        "[21101, 21102, 21202, 22202, 32202, 42202]"
    )


class Refused(ToolError):
    """An error of the user's own."""

    code = "test_refused"


@tool(read_only=True)
async def fail(how: str) -> str:
    """Fail."""
    match how:
        case "raise":
            raise ConnectionError("no line")
        case "retry":
            raise ModelRetry("say it again", context={"field": "how"})
        case "own":
            raise Refused("not today")
        case "unstorable":
            return "\ud800"
    return how


@tool(read_only=True, timeout=0.01)
async def hang() -> str:
    """Never answer."""
    await asyncio.Event().wait()
    return "never"


async def explode() -> None:
    raise ZeroDivisionError("by nothing")


async def return_junk() -> int:
    return "junk"  # type: ignore[return-value]


FAILING_STEPS: dict[str, tuple[type[CallboardError], Callable[[RunContext[Any]], Any]]] = {
    "a tool that raises": (ToolFailedError, lambda ctx: ctx.call_tool("fail", how="raise")),
    "a tool that asks for better arguments": (ModelRetry, lambda ctx: ctx.call_tool("fail", how="retry")),
    "a tool's own error": (Refused, lambda ctx: ctx.call_tool("fail", how="own")),
    "a tool's unstorable result": (UnpersistableValueError, lambda ctx: ctx.call_tool("fail", how="unstorable")),
    "arguments that do not fit": (InvalidArgumentsError, lambda ctx: ctx.call_tool("fail", wrong=1)),
    "a tool that is not there": (UnknownToolError, lambda ctx: ctx.call_tool("fial")),
    "a tool past its timeout": (ToolTimeoutError, lambda ctx: ctx.call_tool("hang")),
    "a function that raises": (StepFailedError, lambda ctx: ctx.step("explode", explode)),
    "a function that returns something else": (UnpersistableValueError, lambda ctx: ctx.step("junk", return_junk)),
    "a model that fails": (ModelError, lambda ctx: ctx.generate("fail")),
    "an answer that never fits": (OutputValidationError, lambda ctx: ctx.generate("number", output_type=int)),
}


@pytest.mark.semantics("D8")
def test_errors_have_the_same_type_code_and_text_live_and_on_replay(place: Any, die: Any) -> None:
    def think(request: ModelRequest) -> str:
        if last_said(request) == "fail":
            raise ModelError("overloaded", context={"status": 529})
        return "not a number"

    async def pattern(ctx: RunContext[Any]) -> str:
        for name, (error_class, make) in FAILING_STEPS.items():
            with pytest.raises(CallboardError) as caught:
                await make(ctx)
            error = caught.value
            assert type(error) is error_class, name
            place.note(f"{name}: {error.code} {error} {error.context} {error.retryable}".replace("\n", " "))
        if place.happens_first("killed"):
            die()
        return "caught them all"

    agent = Agent("worker", pattern=pattern, tools=[fail, hang], model=ScriptedModel(think))
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    result = place.carry_on([agent], "r")
    assert result.stop_reason == "completed", result.error_details
    live, replayed = place.noted[: len(FAILING_STEPS)], place.noted[len(FAILING_STEPS) + 1 : -1]
    assert live == replayed


async def map_at(ctx: RunContext[Any], when: datetime) -> None:
    await ctx.map(lambda branch, item: branch.emit("my.item", {"when": str(item)}), {"a": when})


@pytest.mark.semantics("D9")
@pytest.mark.parametrize(
    ("first", "then", "shown"),
    [
        (lambda ctx: ctx.generate("a"), lambda ctx: ctx.generate("b"), ("generate with ['a']", "generate with ['b']")),
        (lambda ctx: ctx.generate(), lambda ctx: ctx.call_tool("fail", how="x"), ("generate", "tool 'fail'")),
        (
            lambda ctx: ctx.call_tool("fail", how="x"),
            lambda ctx: ctx.call_tool("fail", how="y"),
            ("tool 'fail' with", "tool 'fail' with"),
        ),
        (lambda ctx: ctx.step("a", asyncio.sleep, 0), lambda ctx: ctx.step("b", asyncio.sleep, 0), ("'a'", "'b'")),
        (lambda ctx: ctx.emit("my.a"), lambda ctx: ctx.add_artifact("my.a", {}), ("emit 'my.a'", "artifact 'my.a'")),
        (lambda ctx: map_at(ctx, ctx.now()), lambda ctx: ctx.generate(), ("map", "generate")),
    ],
    ids=["other words", "other kind", "other arguments", "other name", "other step", "nothing but another kind"],
)
def test_a_pattern_that_asks_for_something_else_is_told_what_is_recorded(
    place: Any, die: Any, first: Any, then: Any, shown: tuple[str, str]
) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        if place.happens_first("killed"):
            await first(ctx)
            die()
        try:
            await then(ctx)
        except NonDeterministicRunError:
            place.note("told")
            raise
        return "went on"

    agent = Agent("worker", pattern=pattern, tools=[fail], model=ScriptedModel(["thought"] * 2))
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    result = place.carry_on([agent], "r")
    assert result.stop_reason == "failed"
    assert result.error_details.code == "non_deterministic_run"
    recorded, asked = result.error_details.message.split("the pattern now asks for")
    assert shown[0] in recorded
    assert shown[1] in asked
    assert place.noted[-1] == "told"


@pytest.mark.semantics("D10")
def test_a_run_in_flight_goes_on_under_an_agent_in_which_nearly_all_differs(place: Any, die: Any) -> None:
    class OtherMemory(WindowMemory):
        pass

    @tool(name="look", read_only=True)
    async def old_look(place: str) -> str:
        """Look around."""
        return f"nothing in {place}"

    @tool(name="look", read_only=True)
    async def new_look(place: str, carefully: bool = True) -> str:
        """Look around, carefully."""
        return f"something in {place}"

    @tool(read_only=True)
    async def gone() -> str:
        """Gone after the deploy."""
        return "was here"

    async def pattern(ctx: RunContext[Any]) -> str:
        response = await ctx.generate()
        seen = [result.value for result in await ctx.call_tools(response.tool_calls)]
        seen.append(await ctx.call_tool("gone"))
        if place.happens_first("killed"):
            die()
        seen.append(await ctx.call_tool("look", place="the attic"))
        return f"{seen} {(await ctx.generate('so?')).text}"

    calls = [ToolCall(name="look", arguments={"place": "the cellar"}), ToolCall(name="gone")]
    before = Agent(
        "worker",
        pattern=pattern,
        model=ScriptedModel([calls], name="old"),
        instructions="Be brief.",
        tools=[old_look, gone],
        memory=WindowMemory(),
        version="1",
    )
    after = Agent(
        "worker",
        pattern=pattern,
        model=ScriptedModel(lambda request: request.messages[0].text, name="new"),
        instructions="Be thorough.",
        tools=[new_look],
        memory=OtherMemory(),
        version="2",
    )
    place.live_until_killed([before], lambda runtime: runtime.run(before, "x", run_id="r", session_id="s"))
    result = place.carry_on([after], "r")
    assert result.output == ("['nothing in the cellar', 'was here', 'was here', 'something in the attic'] Be thorough.")


# ---- calls that act


@tool(idempotent=True)
async def idempotent_act(ctx: ToolContext) -> str:
    """Act again and again, to one effect."""
    return ctx.call_id


@tool(read_only=True)
async def read(ctx: ToolContext) -> str:
    """Change nothing."""
    return ctx.call_id


@pytest.mark.semantics("D11")
async def test_the_intent_of_an_undeclared_call_is_on_disk_before_it_acts(place: Any) -> None:
    found: list[IntentRecorded] = []

    @tool
    async def act(ctx: ToolContext, amount: int) -> str:
        """Act."""
        found.extend(record for record in await place.log("s") if isinstance(record, IntentRecorded))
        return "acted"

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.call_tool("read")
        await ctx.call_tool("idempotent_act")
        return str(await ctx.call_tool("act", amount=7))

    agent = Agent("worker", pattern=pattern, tools=[act, read, idempotent_act])
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "x", run_id="r", session_id="s")).output == "acted"
    assert [(intent.step, intent.tool, intent.arguments, intent.attempt) for intent in found] == [
        ("2", "act", {"amount": 7}, 1)
    ]
    assert [record for record in await place.log("s") if isinstance(record, IntentRecorded)] == found


@pytest.mark.semantics("D12")
@pytest.mark.parametrize("declared", ["read_only", "idempotent"])
def test_a_declared_call_in_flight_at_a_crash_is_made_again(place: Any, die: Any, declared: str) -> None:
    @tool(**{declared: True})
    async def look(ctx: ToolContext) -> str:
        """Look."""
        place.note(f"looked {ctx.call_id}")
        if place.happens_first("killed"):
            die()
        return "seen"

    async def pattern(ctx: RunContext[Any]) -> str:
        return str(await ctx.call_tool("look"))

    agent = Agent("worker", pattern=pattern, tools=[look])
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    assert place.carry_on([agent], "r").output == "seen"
    assert [line for line in place.noted if line.startswith("looked")] == ["looked r:0"] * 2


@pytest.mark.semantics("D13")
@pytest.mark.parametrize(
    ("verdict", "output", "acted"),
    [
        (Happened("found"), "found", ["r:0 1"]),
        (NotHappened(), "acted", ["r:0 1", "r:0 2"]),
        (Unknown(), "call_in_doubt", ["r:0 1"]),
    ],
)
def test_reconcile_is_asked_first_about_a_call_in_doubt(
    place: Any, die: Any, verdict: Any, output: str, acted: list[str]
) -> None:
    @tool(on_in_doubt="tell")
    async def act(ctx: ToolContext, amount: int) -> str:
        """Act."""
        place.note(f"acted {ctx.call_id} {ctx.attempt}")
        if place.happens_first("killed"):
            die()
        return "acted"

    @act.reconcile
    async def _(ctx: ToolContext, amount: int) -> Happened[str] | NotHappened | Unknown:
        place.note(f"asked {ctx.call_id} {amount}")
        return verdict

    async def pattern(ctx: RunContext[Any]) -> str:
        try:
            return str(await ctx.call_tool("act", amount=7))
        except ToolError as error:
            return error.code

    agent = Agent("worker", pattern=pattern, tools=[act])
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    assert place.carry_on([agent], "r").output == output
    assert [line.removeprefix("acted ") for line in place.noted if line.startswith("acted")] == acted
    assert [line for line in place.noted if line.startswith("asked")] == ["asked r:0 7"]


@pytest.mark.semantics("D14")
@pytest.mark.parametrize(
    ("of_the_tool", "of_the_agent", "heeded"),
    [("tell", "fail", "tell"), (None, "tell", "tell"), ("retry", "ask", "retry"), ("fail", "tell", "fail")],
)
def test_on_in_doubt_tells_retries_or_fails(
    place: Any, die: Any, of_the_tool: Any, of_the_agent: Any, heeded: str
) -> None:
    @tool(on_in_doubt=of_the_tool)
    async def act() -> str:
        """Act."""
        place.note("acted")
        if place.happens_first("killed"):
            die()
        return "acted"

    agent = Agent(
        "worker",
        tools=[act],
        model=ScriptedModel(lambda request: last_said(request) if request.messages[1:] else ToolCall(name="act")),
        on_in_doubt=of_the_agent,
    )
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    result = place.carry_on([agent], "r")
    assert place.noted.count("acted") == (2 if heeded == "retry" else 1)
    if heeded == "fail":
        assert (result.stop_reason, result.error_details.code) == ("failed", "call_in_doubt")
    elif heeded == "retry":
        assert result.output == "acted"
    else:
        assert "hid whether it took effect" in result.output
        assert place.carry_on([agent], "r").output == result.output


@pytest.mark.parametrize("policy", ["tell", "retry", "fail", "ask"])
@pytest.mark.parametrize("now", ["gone", "takes something else"])
def test_a_call_in_doubt_stays_in_doubt_when_its_tool_has_changed(place: Any, die: Any, policy: Any, now: str) -> None:
    @tool(name="act")
    async def old(amount: int) -> str:
        """Act."""
        place.note("acted")
        die()
        return "acted"

    @tool(name="act")
    async def new(account: str) -> str:
        """Act in another way."""
        place.note("acted anew")
        return "acted"

    async def pattern(ctx: RunContext[Any]) -> str:
        [result] = await ctx.call_tools([ToolCall(name="act", arguments={"amount": 7}, id="1")])
        return result.content

    def worker(*tools: Any) -> Agent[None, str]:
        return Agent("worker", pattern=pattern, tools=tools, on_in_doubt=policy)

    place.live_until_killed([worker(old)], lambda runtime: runtime.run("worker", "x", run_id="r", session_id="s"))
    result = place.carry_on([worker() if now == "gone" else worker(new)], "r")
    if policy == "ask":
        assert (result.stop_reason, result.pending[0].reason) == ("suspended", "in_doubt")
    elif policy == "fail":
        assert (result.stop_reason, result.error_details.code) == ("failed", "call_in_doubt")
    else:
        assert "hid whether it took effect" in result.output
    assert place.noted == ["acted"]


@pytest.mark.semantics("D15")
def test_on_in_doubt_ask_suspends_the_run_and_shows_the_call(place: Any, die: Any) -> None:
    @tool
    async def act(amount: int) -> str:
        """Act."""
        place.note("acted")
        die()
        return "acted"

    agent = Agent("worker", tools=[act], model=ScriptedModel([ToolCall(name="act", arguments={"amount": 7})]))
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    result = place.carry_on([agent], "r")
    assert result.stop_reason == "suspended"
    [pending] = result.pending
    assert (pending.reason, pending.call_id, pending.tool) == ("in_doubt", "r:1.0", "act")
    assert pending.arguments == {"amount": 7}
    assert "crash" in pending.message
    assert place.noted == ["acted"]


@pytest.mark.semantics("D16")
async def test_a_timeout_leaves_an_undeclared_call_in_doubt_and_fails_a_declared_one(place: Any) -> None:
    @tool(timeout=0.01)
    async def act(ctx: ToolContext) -> str:
        """Act, and take too long to say so."""
        place.note(f"acted {ctx.attempt}")
        await asyncio.Event().wait()
        return "never"

    @act.reconcile
    async def _(ctx: ToolContext) -> Happened[str] | NotHappened | Unknown:
        place.note("asked")
        return NotHappened() if place.happens_first("doubted") else Happened("found")

    async def pattern(ctx: RunContext[Any]) -> str:
        with pytest.raises(ToolTimeoutError):
            await ctx.call_tool("hang")
        return str(await ctx.call_tool("act"))

    agent = Agent("worker", pattern=pattern, tools=[act, hang])
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "x")).output == "found"
    assert place.noted == ["acted 1", "asked", "doubted", "acted 2", "asked", "doubted"]


@pytest.mark.semantics("D17")
def test_the_warning_about_undeclared_tools_comes_once_in_a_run(place: Any, die: Any) -> None:
    @tool
    async def act(n: int) -> str:
        """Act."""
        return "acted"

    @tool
    async def act_too() -> str:
        """Act, too."""
        return "acted"

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.call_tool("read")
        await ctx.call_tool("act", n=1)
        await ctx.call_tool("act", n=2)
        if ctx.attempt == 1 and ctx.run_id == "r":
            die()
        await ctx.call_tool("act", n=3)
        await ctx.call_tool("act_too")
        return "done"

    agent = Agent("worker", pattern=pattern, tools=[act, act_too, read])
    warning = "run.durable_idempotency_warning"

    async def warned(runtime: Any, start: Any) -> list[str]:
        subscription = await runtime.subscribe(names=[warning])
        await start()
        runtime.unsubscribe(subscription)
        return [event.tool async for event in subscription]

    async def first_attempt(runtime: Any) -> None:
        # Nobody can tell what a killed process has published: whether it warned is told by the attempt behind it.
        await runtime.run(agent, "x", run_id="r", session_id="s")

    async def carry_on(runtime: Any) -> list[str]:
        return await warned(runtime, lambda: runtime.wait("r"))

    async def start_another(runtime: Any) -> list[str]:
        durable = await warned(runtime, lambda: runtime.run(agent, "x"))
        assert await warned(runtime, lambda: runtime.run(agent, "x", durable=False)) == []
        return durable

    place.live_until_killed([agent], first_attempt)
    assert place.live([agent], carry_on) == ["act_too"]
    assert place.live([agent], start_another) == ["act", "act_too"]


@pytest.mark.semantics("D18")
@pytest.mark.parametrize(
    ("approvals", "says"),
    [
        (None, "suspended"),
        ({"act": Allow()}, "acted"),
        ({"r:1.0": Allow(), "act": Deny("by name")}, "acted"),
        ({"*": Deny("not today")}, "the call of 'act' was denied: not today"),
        ({"other": Allow()}, "suspended"),
    ],
)
async def test_a_call_that_needs_an_approval_is_not_made_without_one(place: Any, approvals: Any, says: str) -> None:
    @tool(approval=lambda amount: amount > 50)
    async def act(amount: int) -> str:
        """Act."""
        place.note(f"acted {amount}")
        return "acted"

    def think(request: ModelRequest) -> Any:
        amounts = {"x": 50, "acted": 51}
        if roles(request.messages).count("tool") < 2:
            return ToolCall(name="act", arguments={"amount": amounts[last_said(request)]})
        return last_said(request)

    agent = Agent("worker", tools=[act], model=ScriptedModel(think))
    allowed = None if approvals is None else {key.replace("r:1.0", "r:3.0"): value for key, value in approvals.items()}
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", run_id="r", approvals=allowed)
    if says == "suspended":
        [pending] = result.pending
        assert result.stop_reason == "suspended"
        assert (pending.reason, pending.call_id, pending.arguments) == ("approval", "r:3.0", {"amount": 51})
    else:
        assert result.output == says
    assert place.noted == (["acted 50", "acted 51"] if says == "acted" else ["acted 50"])


# ---- the transcript


@pytest.mark.semantics("D19")
async def test_the_transcript_is_what_the_model_was_shown_and_answered(place: Any) -> None:
    shown: list[list[Message]] = []

    @tool(read_only=True)
    async def double(n: int) -> int:
        """Double."""
        return n * 2

    def think(request: ModelRequest) -> Any:
        shown.append([*request.messages])
        answers = roles(request.messages).count("tool")
        calls = [[ToolCall(name="double", arguments={"n": n}) for n in (1, 2)], ToolCall(name="double", arguments={})]
        return calls[answers // 2] if answers < 3 else "the answer"

    agent = Agent("worker", tools=[double], model=ScriptedModel(think), instructions="Be brief.")
    async with place.runtime(agent) as runtime:
        await runtime.run(agent, "the question", session_id="s")
        transcript = await runtime.sessions.transcript("s")
    assert roles(transcript) == ["user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert [message.text for message in transcript][2:4] == ["2", "4"]
    assert "n" in transcript[5].text
    assert transcript[-1].text == "the answer"
    for request in shown:
        assert request == [Message.system("Be brief."), *transcript[: len(request) - 1]]


@pytest.mark.semantics("D20")
async def test_answers_stand_in_the_order_of_the_calls_however_they_finish(place: Any) -> None:
    finished: list[int] = []
    done = [asyncio.Event() for _ in range(4)]

    @tool(read_only=True)
    async def look(n: int) -> str:
        """Finish in the order 3, 2, 1, 0."""
        if n < 3:
            await done[n + 1].wait()
        finished.append(n)
        done[n].set()
        if n == 1:
            raise ValueError("one fails")
        return f"answer {n}"

    async def pattern(ctx: RunContext[Any]) -> str:
        response = await ctx.generate()
        results = await ctx.call_tools(response.tool_calls)
        return str([result.content for result in results])

    calls = [ToolCall(name="look", arguments={"n": n}, id=f"call-{n}") for n in range(4)]
    agent = Agent("worker", pattern=pattern, tools=[look], model=ScriptedModel([calls]))
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", session_id="s")
        transcript = await runtime.sessions.transcript("s")
    assert finished == [3, 2, 1, 0]
    answers = transcript[2:6]
    assert [message.tool_call_id for message in answers] == [f"call-{n}" for n in range(4)]
    assert [message.text for message in answers] == [
        "answer 0",
        "look failed: ValueError: one fails",
        "answer 2",
        "answer 3",
    ]
    assert result.output == str([message.text for message in answers])


@pytest.mark.semantics("D21")
async def test_calls_that_are_not_concurrency_safe_never_overlap_each_other(place: Any) -> None:
    at_work: list[str] = []
    overlaps: set[tuple[str, str]] = set()
    both_safe = asyncio.Barrier(2)

    async def work(name: str) -> None:
        overlaps.update((other, name) for other in at_work)
        at_work.append(name)
        await asyncio.sleep(0)
        at_work.remove(name)

    @tool(read_only=True, concurrency_safe=False)
    async def alone(n: int) -> str:
        """Not beside its like."""
        await work("alone")
        return "alone"

    @tool(read_only=True, concurrency_safe=False)
    async def alone_too(n: int) -> str:
        """Nor beside the other."""
        await work("alone too")
        return "alone"

    @tool(read_only=True)
    async def beside(n: int) -> str:
        """Waits until the other one is at work too."""
        await both_safe.wait()
        return "beside"

    async def pattern(ctx: RunContext[Any]) -> str:
        names = ["alone", "beside", "alone_too", "alone", "beside", "alone_too"]
        calls = [ToolCall(name=name, arguments={"n": n}, id=str(n)) for n, name in enumerate(names)]
        return ",".join(result.content for result in await ctx.call_tools(calls))

    agent = Agent("worker", pattern=pattern, tools=[alone, alone_too, beside])
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x")
    assert result.output == "alone,beside,alone,alone,beside,alone"
    assert overlaps == set()


@pytest.mark.semantics("D22")
@pytest.mark.parametrize("ends", ["completed", "failed", "cancelled", "max_steps", "asked again"])
async def test_no_call_stays_unanswered(place: Any, well_formed: Any, ends: str) -> None:
    begun = asyncio.Event()

    @tool(read_only=True)
    async def look() -> str:
        """Never answer."""
        begun.set()
        await asyncio.Event().wait()
        return "never"

    def think(request: ModelRequest) -> Any:
        assert well_formed(request.messages)
        return [ToolCall(name="look"), ToolCall(name="look")] if last_said(request) == "x" else "fine"

    async def pattern(ctx: RunContext[Any]) -> str:
        response = await ctx.generate()
        if ctx.input_text == "next":
            return response.text
        match ends:
            case "failed":
                raise ValueError("no")
            case "cancelled":
                await ctx.call_tools(response.tool_calls)
            case "max_steps":
                await ctx.generate("more")
            case "asked again":
                return (await ctx.generate("never mind")).text
        return "done"

    budget = RunBudget(max_steps=1) if ends == "max_steps" else None
    agent = Agent("worker", pattern=pattern, tools=[look], model=ScriptedModel(think))
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "x", session_id="s", budget=budget)
        if ends == "cancelled":
            await begun.wait()
            await handle.cancel()
        result = await handle.result()
        assert result.stop_reason == {"asked again": "completed"}.get(ends, ends)
        transcript = await runtime.sessions.transcript("s")
        assert well_formed(transcript)
        assert [message.text.startswith("not answered") for message in transcript[2:4]] == [True, True]
        if ends == "completed":
            assert [message.text for message in transcript[4:]] == ["done"]
        assert (await runtime.run(agent, "next", session_id="s")).output == "fine"


@pytest.mark.semantics("D23")
async def test_what_is_said_in_a_branch_stays_there(place: Any) -> None:
    async def judge(branch: RunContext[Any], name: str) -> str:
        response = await branch.generate(f"judge {name}")
        await branch.call_tools([ToolCall(name="read", id="1")])
        return response.text

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.generate("plan")
        judged = await ctx.map(judge, {"a": "a", "b": "b"})
        side = await ctx.branch("side").generate("aside")
        final = await ctx.generate("conclude")
        return f"{judged} {side.text} {final.text}"

    def think(request: ModelRequest) -> str:
        return f"{last_said(request)} ({len(request.messages)})"

    agent = Agent("worker", pattern=pattern, tools=[read], model=ScriptedModel(think))
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", session_id="s")
        transcript = await runtime.sessions.transcript("s")
    assert result.output == "{'a': 'judge a (4)', 'b': 'judge b (4)'} aside (4) conclude (4)"
    assert [message.text for message in transcript] == [
        "x",
        "plan",
        "plan (2)",
        "conclude",
        "conclude (4)",
        result.output,
    ]


@pytest.mark.semantics("D24")
def test_a_history_of_the_patterns_own_enters_the_transcript_once_and_in_order(place: Any, die: Any) -> None:
    shown: list[list[str]] = []

    def think(request: ModelRequest) -> Any:
        shown.append([message.text for message in request.messages])
        return ToolCall(name="read") if last_said(request) == "look" else f"about {last_said(request)}"

    async def pattern(ctx: RunContext[Any]) -> str:
        history = [Message.system("My own rules."), Message.user(ctx.input_text), Message.user("x")]
        response = await ctx.generate(history)
        history += [response.as_message(), Message.user("look")]
        response = await ctx.generate(history)
        [result] = await ctx.call_tools(response.tool_calls)
        history += [
            response.as_message(),
            Message.tool(result.content, tool_call_id=result.call.id, name="read"),
            Message.user("look"),
        ]
        response = await ctx.generate(history)
        by_hand = Message.tool("by hand", tool_call_id=response.tool_calls[0].id, name="read")
        await ctx.generate([*history, response.as_message(), by_hand])
        await ctx.generate("again")
        await ctx.generate([*ctx.transcript, Message.user("again")])
        if place.happens_first("killed"):
            die()
        return (await ctx.generate("really")).text

    agent = Agent("worker", pattern=pattern, tools=[read], model=ScriptedModel(think))
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    result, transcript = place.live([agent], lambda runtime: transcript_after(runtime, "r"))
    assert result.output == "about really"
    said = ["x", "x", "about x", "look", "", "r:2.0", "look", "", "by hand", "about by hand"]
    said += ["again", "about again"] * 2 + ["really", "about really"]
    assert [message.text for message in transcript] == said
    assert shown == [said[:-1]]
    assert len([message for message in transcript if message.role == "tool"]) == 2


# ---- results of steps


class Plan(BaseModel):
    due: date
    parts: tuple[str, ...]


@pytest.mark.semantics("D25")
def test_the_result_of_a_step_passes_through_its_annotation_live_and_on_replay(place: Any, die: Any) -> None:
    async def plan() -> Plan:
        return Plan(due=date(2026, 5, 1), parts=("a", "b"))

    async def numbers() -> dict[int, set[str]]:
        return {1: {"one"}}

    async def coerced() -> int:
        return "7"  # type: ignore[return-value]

    async def unannotated():  # type: ignore[no-untyped-def]
        return ("a", {"b": (1, 2)})

    async def pattern(ctx: RunContext[Any]) -> str:
        outcomes = [
            await ctx.step("plan", plan),
            await ctx.step("numbers", numbers),
            await ctx.step("coerced", coerced),
            await ctx.step("unannotated", unannotated),
        ]
        place.note(repr(outcomes))
        if place.happens_first("killed"):
            die()
        return "done"

    agent = Agent("worker", pattern=pattern)
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    assert place.carry_on([agent], "r").output == "done"
    live, _, replayed, _ = place.noted
    assert live == replayed
    assert live == ("[Plan(due=datetime.date(2026, 5, 1), parts=('a', 'b')), {1: {'one'}}, 7, ['a', {'b': [1, 2]}]]")


@pytest.mark.semantics("D26")
def test_an_outcome_that_cannot_be_stored_is_an_error_live_and_on_replay(
    place: Any, die: Any, killed_by_commit: Any
) -> None:
    begun = asyncio.Event()

    @tool(read_only=True)
    async def look(how: str) -> Any:
        """Look."""
        if how == "slow":
            await begun.wait()
            place.note("slow one was not cut short")
            return "slow"
        begun.set()
        return object() if how == "bad" else "lone \ud800"

    @tool
    async def undeclared(text: str) -> str:
        """Never called: its intent cannot be stored."""
        place.note("called")
        return text

    async def lone() -> str:
        return "lone \ud800"

    async def nested() -> Any:
        value: list[Any] = []
        for _ in range(100):
            value = [value]
        return value

    async def pattern(ctx: RunContext[Any]) -> str:
        caught = []
        calls = [ToolCall(name="look", arguments={"how": how}, id=how) for how in ("bad", "slow", "lone")]
        began = ctx.now()
        beside = ctx.branch("beside")
        inside = beside.now()
        ctx.state.count += 5
        for make in (
            lambda: beside.step("lone", lone),
            lambda: ctx.step("nested", nested),
            lambda: ctx.call_tool("undeclared", text="\ud800"),
            lambda: ctx.call_tools(calls),
            lambda: ctx.add_artifact("a", {"when": object()}),
            lambda: ctx.emit("my.event", {"lone": "\ud800"}),
        ):
            with pytest.raises(UnpersistableValueError) as unstorable:
                await make()
            caught.append(unstorable.value.message)
        answers = [message.text for message in ctx.transcript if message.role == "tool"]
        assert len(answers) == 3
        await beside.emit("my.event")
        place.note(f"{caught} {answers} {began} {inside}")
        if place.happens_first("killed"):
            die()
        return "went on"

    async def read_state(ctx: RunContext[Any]) -> str:
        return str(ctx.state.count)

    agent = Agent("worker", pattern=pattern, tools=[look, undeclared], state_type=Tally)
    reader = Agent("reader", pattern=read_state, state_type=Tally)
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    result, transcript = place.live([agent], lambda runtime: transcript_after(runtime, "r"))
    assert result.output == "went on"
    first, live, _, replayed, _ = place.noted
    assert first == "slow one was not cut short"
    assert live == replayed
    assert [message.tool_call_id for message in transcript if message.role == "tool"] == ["bad", "slow", "lone"]
    ordinals = [record.ordinal for record in asyncio.run(place.log("s"))]
    assert ordinals == [*range(len(ordinals))]
    assert place.live([reader], lambda runtime: runtime.run(reader, "x", session_id="s")).output == "5"
    # What the step changed before its outcome turned out to be unstorable is written with the step that follows.
    place.live_until_killed(
        [agent], lambda runtime: runtime.run(agent, "x", run_id="q", session_id="t"), store=killed_by_commit(3, "after")
    )
    states = [record.state for record in asyncio.run(place.log("t")) if getattr(record, "state_changed", False)]
    assert states == [{"count": 5}]


@pytest.mark.semantics("D27")
def test_now_and_random_are_the_same_at_every_attempt(place: Any, die: Any) -> None:
    async def use(*values: Any) -> None: ...

    async def in_branch(branch: RunContext[Any], began: datetime) -> datetime:
        inside = branch.now()
        await branch.step("use", use, began, inside)
        return inside

    async def pattern(ctx: RunContext[Any]) -> str:
        began = ctx.now()
        draws = [ctx.random(), ctx.random()]
        between = ctx.now()
        await ctx.step("use", use, began, draws, between)
        before_map = ctx.now()
        mapped = await ctx.map(in_branch, {"a": before_map, "b": before_map})
        before_branch = ctx.now()
        side = ctx.branch("side")
        await side.step("use", use, before_branch, side.random())
        before_sleep = ctx.now()
        await ctx.sleep(0)
        before_call = ctx.now()
        await ctx.call_tool("read")
        place.note(repr([began, draws, between, mapped, before_branch, before_sleep, before_call]))
        if place.happens_first("killed"):
            die()
        return "done"

    agent = Agent("worker", pattern=pattern, tools=[read])
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    result = place.carry_on([agent], "r")
    assert result.stop_reason == "completed", result.error_details
    live, _, replayed, _ = place.noted
    assert live == replayed
    other = place.live([agent], lambda runtime: runtime.run(agent, "x", run_id="other"))
    assert other.output == "done"
    assert place.noted[4] != live


@pytest.mark.semantics("D28")
def test_a_sleep_ends_at_the_instant_stored_when_it_began(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        place.note(ctx.now().timestamp())
        if ctx.attempt == 1:
            asyncio.get_running_loop().call_later(0.2, die)
        await ctx.sleep(0.5)
        place.note(ctx.now().timestamp())
        await ctx.sleep(0)
        return "woke"

    agent = Agent("worker", pattern=pattern)
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    assert place.carry_on([agent], "r").output == "woke"
    began, again, woke = map(float, place.noted)
    assert began == again
    [wake_at, _] = [record.wake_at for record in asyncio.run(place.log("s")) if hasattr(record, "wake_at")]
    assert wake_at == pytest.approx(began + 0.5, abs=0.1)
    assert woke >= wake_at


@pytest.mark.semantics("D29")
async def test_map_keeps_the_order_of_its_items_and_its_first_failure_cancels_the_rest(place: Any) -> None:
    done = {name: asyncio.Event() for name in "abc"}
    after = {"a": "b", "b": "c"}
    cancelled: list[str] = []

    async def in_reverse(branch: RunContext[Any], name: str) -> str:
        if name in after:
            await done[after[name]].wait()
        done[name].set()
        return (await branch.generate(name)).text

    async def one_fails(branch: RunContext[Any], name: str) -> str:
        if name == "b":
            await branch.generate("first")
            raise ValueError("b fails")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(name)
            raise
        return name

    async def pattern(ctx: RunContext[Any]) -> str:
        results = await ctx.map(in_reverse, {name: name for name in "abc"})
        with pytest.raises(ValueError, match="b fails"):
            await ctx.map(one_fails, {name: name for name in "abc"})
        with pytest.raises(UsageError, match="lets no item through"):
            await ctx.map(in_reverse, {"a": "a"}, limit=0)
        limited = await ctx.map(in_reverse, {"c": "c", "b": "b", "a": "a"}, limit=1)
        return f"{list(results.items())} {list(limited)}"

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(last_said))
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", run_id="r")
        steps = [step.step for step in await runtime.runs.steps("r")]
    assert result.output == "[('a', 'a'), ('b', 'b'), ('c', 'c')] ['c', 'b', 'a']"
    assert sorted(cancelled) == ["a", "c"]
    assert sorted(steps) == ["0.a/0", "0.b/0", "0.c/0", "1.b/0", "2.a/0", "2.b/0", "2.c/0"]


@pytest.mark.semantics("D30")
def test_artifacts_and_events_of_a_run_are_recorded_once(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.add_artifact("report", {"n": 1}, kind="text/plain", metadata={"by": "me"})
        await ctx.emit("billing.sent", {"amount": 12})
        await ctx.add_artifact("report", {"n": 2})
        if place.happens_first("killed") or place.happens_first("killed again"):
            die()
        return str([artifact.payload for artifact in ctx.artifacts])

    agent = Agent("worker", pattern=pattern)

    async def look(runtime: Any) -> Any:
        result = await runtime.wait("r")
        events = [event async for event in runtime.events("r")]
        return result, await runtime.sessions.artifacts("s"), events

    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r", session_id="s"))
    place.live_until_killed([agent], lambda runtime: runtime.wait("r"))
    result, kept, events = place.live([agent], look)
    assert result.output == "[{'n': 1}, {'n': 2}]"
    assert [artifact.payload for artifact in result.artifacts] == [{"n": 1}, {"n": 2}]
    assert [(one.run_id, one.artifact.kind, one.artifact.metadata) for one in kept] == [
        ("r", "text/plain", {"by": "me"}),
        ("r", "data", {}),
    ]
    assert [event.payload for event in events if event.name == "billing.sent"] == [{"amount": 12}]
    assert [event.artifact.payload for event in events if event.name == "artifact.emitted"] == [{"n": 1}, {"n": 2}]


@pytest.mark.semantics("D31")
async def test_generate_asks_again_until_the_answer_fits(place: Any) -> None:
    def think(request: ModelRequest) -> str:
        place.note(last_said(request))
        asked = sum(message.role == "assistant" for message in request.messages)
        return "42" if asked == 2 else '"many"'

    async def pattern(ctx: RunContext[Any]) -> int:
        return (await ctx.generate("how many?", output_type=int)).output

    agent = Agent("worker", pattern=pattern, output_type=int, model=ScriptedModel(think))
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "x", budget=RunBudget(max_validation_retries=2))).output == 42
        result = await runtime.run(agent, "x", budget=RunBudget(max_validation_retries=1))
    assert result.error_details.code == "output_validation"
    first, second, third, *others = place.noted
    assert first == "how many?"
    assert "valid integer" in second
    assert second == third
    assert len(others) == 2


# ---- what the runtime does around a pattern


class Diary(WindowMemory):
    """A memory that says in public what it is asked."""

    def __init__(self, place: Any) -> None:
        super().__init__()
        self._place = place

    async def inject(self, held: Any, message: Message) -> Sequence[str]:
        self._place.note(f"inject {message.text}")
        return await super().inject(held, message)

    async def writeback(self, held: Any, exchange: Any) -> Any:
        self._place.note(f"writeback {exchange.asked} {exchange.answered}")
        return await super().writeback(held, exchange)


@pytest.mark.semantics("D32")
def test_memory_is_asked_once_before_a_run_and_once_after_it(place: Any, die: Any, killed_by_commit: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        answer = (await ctx.generate()).text
        if ctx.input_text == "two" and place.happens_first("killed"):
            die()
        return f"{ctx.input_text}!" if "They said" not in answer else answer

    agent = Agent(
        "worker",
        pattern=pattern,
        model=ScriptedModel(lambda request: request.messages[0].text),
        memory=Diary(place),
        instructions="Remember.",
    )

    async def two_runs(runtime: Any) -> None:
        await runtime.run(agent, "one", session_id="s")
        await runtime.run(agent, "two", run_id="r", session_id="s")

    place.live_until_killed([agent], two_runs)
    # Killed once more, when what is to be remembered is on disk and the run's end is not.
    place.live_until_killed([agent], lambda runtime: runtime.wait("r"), store=killed_by_commit(1, "after"))
    result = place.carry_on([agent], "r")
    remembered = "- They said: one\n  You answered: one!"
    assert result.output == f"Remember.\n\nEarlier in this session:\n{remembered}"
    assert [line for line in place.noted if line.startswith("inject")] == ["inject one", "inject two"]
    assert len([line for line in place.noted if line.startswith("writeback two")]) == 1
    third = place.live([agent], lambda runtime: runtime.run(agent, "three", session_id="s"))
    assert third.output.count("They said: one") == 2
    assert third.output.count("They said: two") == 1


@pytest.mark.semantics("D33")
@pytest.mark.parametrize("on_error", ["continue", "fail"])
@pytest.mark.parametrize("when", ["inject", "writeback"])
@pytest.mark.parametrize("error", [ConnectionError("no line"), ModelError("overloaded"), UnpersistableValueError("no")])
async def test_on_error_says_whether_a_run_outlives_its_memory(
    place: Any, on_error: Any, when: str, error: Exception
) -> None:
    class Broken(WindowMemory):
        async def inject(self, held: Any, message: Message) -> Sequence[str]:
            if when == "inject":
                raise error
            return ()

        async def writeback(self, held: Any, exchange: Any) -> Any:
            if when == "writeback":
                raise error
            return {}

    agent = Agent("worker", model=ScriptedModel(["fine"]), memory=Broken(on_error=on_error))
    async with place.runtime(agent) as runtime, runtime.stream(agent, "x") as stream:
        names = [event.name async for event in stream]
        result = await stream.result()
    assert f"memory.{when}.failed" in names
    assert result.stop_reason == ("completed" if on_error == "continue" else "failed")


@pytest.mark.semantics("D34")
def test_an_output_that_does_not_fit_goes_back_to_the_pattern_and_those_rounds_are_recorded(
    place: Any, die: Any
) -> None:
    def think(request: ModelRequest) -> str:
        place.note(f"asked {last_said(request)}")
        return "7" if "Input should" in last_said(request) else '"seven"'

    async def pattern(ctx: RunContext[Any]) -> str:
        side = await ctx.branch("side").step("nothing", asyncio.sleep, 0)
        answer = (await ctx.generate()).text
        if answer == "7" and place.happens_first("killed"):
            die()
        return answer if side is None else "never"

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(think), output_type=int)
    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "how many?", run_id="r", session_id="s"))
    result, transcript = place.live([agent], lambda runtime: transcript_after(runtime, "r"))
    assert result.output == 7
    assert len([line for line in place.noted if line.startswith("asked")]) == 2
    assert roles(transcript) == ["user", "assistant", "user", "assistant"]
    assert "Input should be a valid integer" in transcript[2].text

    never = Agent("never", model=ScriptedModel(lambda _: '"seven"'), output_type=int)
    budget = RunBudget(max_validation_retries=1)
    result = place.live([never], lambda runtime: runtime.run(never, "how many?", budget=budget))
    assert (result.stop_reason, result.error_details.code) == ("failed", "output_validation")
    assert result.usage.llm_calls == 2


@pytest.mark.semantics("D35")
def test_a_run_that_is_not_durable_writes_at_its_end_or_never(place: Any, die: Any) -> None:
    looked: list[int] = []

    @tool(approval=True)
    async def act() -> str:
        """Act."""
        place.note("acted")
        return "acted"

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.generate()
        [result] = await ctx.call_tools([ToolCall(name="act", id="1")])
        looked.append(len(await place.log("s")))
        if ctx.input_text == "die":
            die()
        return result.content

    agent = Agent("worker", pattern=pattern, tools=[act], model=ScriptedModel(["thought"]))

    async def start(runtime: Any, text: str) -> Any:
        return await runtime.run(agent, text, run_id=text, session_id="s", durable=False)

    place.live_until_killed([agent], lambda runtime: start(runtime, "die"))
    assert asyncio.run(place.log("s")) == []
    result = place.live([agent], lambda runtime: start(runtime, "live"))
    assert "needs an approval" in result.output
    assert looked == [0]
    log = asyncio.run(place.log("s"))
    assert [type(record) for record in log] == [RunBegan, StepCompleted, StepCompleted, RunEnded]
    assert [record.ordinal for record in log] == [0, 1, 2, 3]
    assert place.carry_on([agent], "live").output == result.output
    assert place.noted == []


@pytest.mark.semantics("D36")
async def test_memory_keeps_the_rules_of_the_disk(place: Any) -> None:
    async def unstorable() -> Any:
        return "\ud800"

    async def pattern(ctx: RunContext[Any]) -> str:
        with pytest.raises(UnpersistableValueError):
            await ctx.step("unstorable", unstorable)
        with pytest.raises(UnpersistableValueError):
            await ctx.call_tool("fail", how="unstorable")
        ctx.state.count += 1
        return str(ctx.state.count)

    agent = Agent("worker", pattern=pattern, tools=[fail], state_type=Tally)
    async with place.runtime(agent, store=place.in_memory()) as runtime:
        assert (await runtime.run(agent, "x", run_id="a", session_id="s")).output == "1"
        assert (await runtime.run(agent, "x", run_id="b", session_id="s")).output == "2"
        assert [entry.state for entry in await runtime.runs.list()] == ["completed", "completed"]
        assert (await runtime.run(agent, "x", run_id="a", session_id="s")).output == "1"
