"""G: runs that give work to other agents, and wait for them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from callboard import (
    Agent,
    Allow,
    InvalidIdentifierError,
    ModelError,
    ModelRequest,
    NotImplementedYetError,
    RunBudget,
    RunContext,
    RunNotResumableError,
    RunRequest,
    RunResult,
    RuntimeLimits,
    ScriptedModel,
    SessionHeldByAncestorError,
    ToolCall,
    ToolContext,
    UnknownAgentError,
    UsageError,
    tool,
)
from callboard_protocol.errors import DelegationDepthError
from callboard_protocol.records import RunBegan, RunEnded, StepCompleted
from callboard_protocol.states import FINAL, RunState

pytestmark = pytest.mark.anyio

EIGHT = {f"item{n}": n for n in range(8)}


def answering(text: str = "done") -> Agent[None, str]:
    return Agent("worker", model=ScriptedModel(lambda request: f"{text} {request.messages[-1].text}"))


def delegating(worker: Agent[Any, Any] | str, **options: Any) -> Agent[None, str]:
    async def pattern(ctx: RunContext[None]) -> str:
        return (await ctx.delegate(worker, ctx.input_text, **options)).output

    return Agent("boss", pattern=pattern)


async def one_item(branch: RunContext[Any], n: int) -> RunResult[Any]:
    return await branch.delegate("worker", f"item {n}")


# ---- what comes of it


@pytest.mark.semantics("G1")
async def test_a_delegated_run_is_a_run_of_its_own_under_the_calls_id(place: Any) -> None:
    async def pattern(ctx: RunContext[None]) -> str:
        result = await ctx.delegate(worker, "dig", metadata={"depth": 2})
        assert (result.run_id, result.stop_reason, result.metadata) == ("r:0", "completed", {"depth": 2})
        return result.output

    worker, boss = answering(), Agent("boss", pattern=pattern)
    async with place.runtime(worker, boss) as runtime:
        result = await runtime.run(boss, "go", run_id="r", session_id="s", metadata={"mine": True})
        assert result.output == "done dig"
        entry = await runtime.runs.get("r:0")
        assert (entry.request.parent_run_id, entry.request.agent_id, entry.state) == ("r", "worker", RunState.COMPLETED)
        assert entry.session_id != "s"
        assert [message.text for message in await runtime.sessions.transcript("s")] == ["go", "done dig"]
        assert [message.text for message in await runtime.sessions.transcript(entry.session_id)] == ["dig", "done dig"]
        assert [step.kind for step in await runtime.runs.steps("r")] == ["delegate"]


@pytest.mark.semantics("G2")
async def test_a_child_that_does_not_complete_returns_a_result_that_says_so(place: Any) -> None:
    async def fail(ctx: RunContext[None]) -> str:
        raise ValueError("no way")

    async def pattern(ctx: RunContext[None]) -> str:
        failed = await ctx.delegate("failing", "x")
        assert failed.error_details is not None
        assert "no way" in failed.error_details.message
        exhausted = await ctx.delegate("asking", "x", budget=RunBudget(max_steps=0))
        late = await ctx.delegate("hanging", "x", budget=RunBudget(max_duration=0.01))
        return f"{failed.stop_reason} {exhausted.stop_reason} {late.stop_reason}"

    async def hang(ctx: RunContext[None]) -> str:
        await asyncio.Event().wait()
        return "never"

    agents = [
        Agent("failing", pattern=fail),
        Agent("asking", model=ScriptedModel(lambda _: "never")),
        Agent("hanging", pattern=hang),
        Agent("boss", pattern=pattern),
    ]
    async with place.runtime(*agents) as runtime:
        assert (await runtime.run("boss", "go")).output == "failed max_steps budget_exhausted"


@pytest.mark.semantics("G3")
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_on_disk_of_a_tree_is_not_done_again(place: Any, killed_by_commit: Any, when: str) -> None:
    async def act(name: str) -> str:
        place.note(f"acted {name}")
        return name

    async def work(ctx: RunContext[Any]) -> str:
        ctx.state["worked"] = ctx.state.get("worked", 0) + 1
        await ctx.step("first", act, f"{ctx.run_id} first")
        await ctx.generate("well?")
        return await ctx.step("second", act, f"{ctx.run_id} second")

    async def lead(ctx: RunContext[Any]) -> str:
        ctx.state["led"] = 1
        own = await ctx.delegate("worker", "alone")
        shared = await ctx.delegate("worker", "together", session="shared")
        assert ctx.state == {"led": 1, "worked": 1}
        both = await ctx.map(lambda branch, n: branch.delegate("worker", str(n)), {"a": 1, "b": 2})
        return f"{[result.output for result in (own, shared, *both.values())]} {ctx.state}"

    agents = [
        Agent("worker", pattern=work, model=ScriptedModel(lambda _: "go on"), state_type=dict),
        Agent("boss", pattern=lead, state_type=dict),
    ]

    def go(run_id: str) -> Any:
        return lambda runtime: runtime.run("boss", "go", run_id=run_id, session_id=f"s-{run_id}")

    undisturbed = place.live(agents, go("r")).output
    commits = len(place.noted) * 3
    for number in range(0, commits, 3):
        run_id = f"r{number}"
        place.live_until_killed(agents, go(run_id), store=killed_by_commit(number, when), surely=False)
        assert place.live(agents, go(run_id)).output == undisturbed.replace("r:", f"{run_id}:")
        acted = Counter(note for note in place.noted if note.startswith(f"acted {run_id}:"))
        # Four children, two acts each; what was in flight at the kill and not on disk is done again.
        assert len(acted) == 8
        assert sum(acted.values()) <= 8 + 2


@pytest.mark.semantics("G4")
async def test_a_shared_child_sees_its_parents_session_and_changes_its_state_alone(place: Any) -> None:
    shown: list[list[str]] = []

    def think(request: ModelRequest) -> str:
        if request.agent_id == "worker":
            shown.append([message.text for message in request.messages])
        return f"{request.agent_id} says"

    async def work(ctx: RunContext[Any]) -> str:
        assert ctx.state == {"count": 1}
        ctx.state["count"] += 1
        await ctx.generate()
        ctx.state["count"] += 1
        await ctx.add_artifact("note", "kept")
        return "worked"

    async def lead(ctx: RunContext[Any]) -> str:
        ctx.state["count"] = 1
        await ctx.generate()
        result = await ctx.delegate("worker", "help", session="shared")
        assert (result.session_id, result.artifacts[0].payload) == ("s", "kept")
        assert ctx.state == {"count": 3}
        return (await ctx.generate("so?")).text

    options: Any = {"model": ScriptedModel(think), "state_type": dict}
    worker = Agent("worker", pattern=work, instructions="You work.", **options)
    boss = Agent("boss", pattern=lead, instructions="You lead.", **options)
    async with place.runtime(worker, boss) as runtime:
        await runtime.run(boss, "go", run_id="r", session_id="s")
        assert shown == [["You work.", "go", "boss says", "help"]]
        transcript = [message.text for message in await runtime.sessions.transcript("s")]
        assert transcript == ["go", "boss says", "so?", "boss says"]
        checkpoints = await runtime.sessions.checkpoints("s")
        assert checkpoints[-1].state == {"count": 3}
        head = await runtime.sessions.get("s")
        assert (head.active_run, head.artifact_count, head.transcript_length) == (None, 1, 4)
        assert (await runtime.run(boss, "again", session_id="s", run_id="r2")).output == "boss says"
    began = [record for record in await place.log("s") if isinstance(record, RunBegan)]
    assert [(record.run_id, record.nested) for record in began] == [
        ("r", False),
        ("r:1", True),
        ("r2", False),
        ("r2:1", True),
    ]


# ---- slots


@pytest.mark.semantics("G5")
@pytest.mark.parametrize("session", ["isolated", "shared"])
async def test_a_tree_of_runs_comes_to_its_end_on_one_slot(place: Any, session: Any) -> None:
    most = at_work = 0

    async def think(request: ModelRequest) -> str:
        nonlocal most, at_work
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        at_work -= 1
        return "fine"

    async def split(branch: RunContext[Any], n: int) -> str:
        result = await branch.delegate("middle", str(n), session=session)
        await branch.sleep(0.001)
        return result.output

    async def lead(ctx: RunContext[Any]) -> str:
        return " ".join((await ctx.map(split, EIGHT)).values())

    async def lead_on(ctx: RunContext[Any]) -> str:
        return (await ctx.delegate("worker", ctx.input_text)).output

    agents = [
        Agent("worker", model=ScriptedModel(think)),
        Agent("middle", pattern=lead_on),
        Agent("boss", pattern=lead),
    ]
    limits = RuntimeLimits(max_concurrent_runs=1, max_queued_runs=2, max_queued_per_session=1)
    async with place.runtime(*agents, limits=limits) as runtime, asyncio.timeout(30):
        handles = [await runtime.submit("boss", "go") for _ in range(3)]
        assert [(await handle.result()).output for handle in handles] == [" ".join(["fine"] * 8)] * 3
        assert most == 1
        assert runtime.stats().free_slots == 1


# ---- stopping


def hanging_tree(place: Any, width: int, depth: int) -> list[Agent[Any, Any]]:
    """An agent that delegates to itself, so many times side by side and so deep, and hangs at the bottom."""

    async def hang() -> None:
        place.note("hangs")
        try:
            await asyncio.Event().wait()
        finally:
            place.note("stopped")

    async def down(branch: RunContext[Any], level: int) -> None:
        await branch.delegate("node", str(level - 1))

    async def pattern(ctx: RunContext[Any]) -> str:
        level = int(ctx.input_text)
        if level:
            await ctx.map(down, dict.fromkeys(map(str, range(width)), level))
        await ctx.step("hang", hang)
        return "never"

    return [Agent("node", pattern=pattern)]


@pytest.mark.semantics("G6")
async def test_cancelling_a_run_stops_its_whole_tree_and_every_result_says_who_and_why(place: Any, until: Any) -> None:
    async with place.runtime(*hanging_tree(place, width=10, depth=2)) as runtime:
        handle = await runtime.submit("node", "2", run_id="r")
        await until(lambda: place.noted.count("hangs") == 100)
        began = time.monotonic()
        assert await runtime.cancel("r", reason="user left", by="ann")
        took = time.monotonic() - began
        assert place.noted.count("stopped") == 100
        entries = await runtime.runs.list()
        assert len(entries) == 1 + 10 + 100
        assert {entry.state for entry in entries} == {RunState.CANCELLED}
        assert max(entry.ended_at for entry in entries) == (await runtime.runs.get("r")).ended_at
        assert took < 2, took
        assert (await handle.result()).stop_reason == "cancelled"
        result = await runtime.wait("r:0.1/0:0.2/0")
        assert "user left" in result.error_details.message
        ended = [record for record in await place.log(result.session_id) if isinstance(record, RunEnded)]
        assert [(record.cancelled_by, record.reason) for record in ended] == [("ann", "user left")]


@pytest.mark.semantics("G7")
@pytest.mark.parametrize("how", ["deadline", "failure", "budget", "unawaited"])
async def test_whatever_ends_a_run_ends_its_tree_before_its_last_record(place: Any, until: Any, how: str) -> None:
    async def give_up(ctx: RunContext[Any]) -> str:
        if how == "unawaited":
            task = asyncio.create_task(ctx.branch("stray").delegate("node", "1"))
            await until(lambda: place.noted.count("hangs") == 2)
            assert not task.done()
            return "done"

        async def end(branch: RunContext[Any], what: str) -> None:
            if what == "delegate":
                await branch.delegate("node", "1")
            await until(lambda: place.noted.count("hangs") == 2)
            if how == "failure":
                raise ValueError("given up")
            if how == "budget":
                await branch.generate()
            await asyncio.Event().wait()

        await ctx.map(end, {"a": "delegate", "b": "end"})
        return "never"

    boss = Agent("boss", pattern=give_up, model=ScriptedModel(lambda _: "never"))
    budget = RunBudget(max_steps=0, max_duration=0.2 if how == "deadline" else None)
    async with place.runtime(boss, *hanging_tree(place, width=2, depth=1)) as runtime:
        result = await runtime.run(boss, "go", run_id="r", budget=budget)
        expected = {
            "deadline": "budget_exhausted",
            "failure": "failed",
            "budget": "max_steps",
            "unawaited": "completed",
        }
        assert result.stop_reason == expected[how]
        entries = {entry.run_id: entry for entry in await runtime.runs.list()}
        assert len(entries) == 4
        root = entries.pop("r")
        assert {entry.state for entry in entries.values()} == {RunState.CANCELLED}
        assert all(entry.ended_at <= root.ended_at for entry in entries.values())
        child = await runtime.wait(next(iter(entries)))
        assert "run r" in child.error_details.message
        assert runtime.stats().running == 0


@pytest.mark.semantics("G8")
async def test_a_child_can_be_cancelled_and_its_parent_goes_on(place: Any, until: Any) -> None:
    async def lead(ctx: RunContext[Any]) -> str:
        result = await ctx.delegate("node", "0")
        assert result.error_details is not None
        return f"{result.stop_reason}: {result.error_details.message}"

    async with place.runtime(Agent("boss", pattern=lead), *hanging_tree(place, 0, 0)) as runtime:
        handle = await runtime.submit("boss", "go", run_id="r")
        await until(lambda: "hangs" in place.noted)
        assert await runtime.cancel("r:0", reason="too slow")
        assert "too slow" in (await handle.result()).output


@pytest.mark.semantics("G9")
async def test_a_run_waits_for_a_suspended_child_without_a_slot(place: Any, until: Any) -> None:
    @tool(approval=True)
    async def pay() -> str:
        """Pay."""
        return "paid"

    worker = Agent("worker", model=ScriptedModel([ToolCall(name="pay"), "done", ToolCall(name="pay")]), tools=[pay])
    boss = delegating("worker")
    limits = RuntimeLimits(max_concurrent_runs=1)
    async with place.runtime(worker, boss, answering_agent("other"), limits=limits) as runtime:
        handle = await runtime.submit(boss, "go", run_id="r")
        assert (await runtime.run("other", "hello")).output == "fine"
        await until(lambda: runtime.stats().suspended == 1)
        assert (await runtime.run("other", "hello")).output == "fine"
        child = await runtime.wait("r:0")
        assert child.stop_reason == "suspended"
        assert (await runtime.runs.get("r")).state == RunState.RUNNING
        await runtime.decide(child.pending[0].call_id, Allow(), by="ann")
        assert (await handle.result()).output == "done"
        handle = await runtime.submit(boss, "go", run_id="r2")
        await until(lambda: runtime.stats().suspended == 1)
        await runtime.cancel("r2:0", reason="nobody decides")
        assert "nobody decides" in (await handle.result()).error_details.message


def answering_agent(name: str) -> Agent[None, str]:
    return Agent(name, model=ScriptedModel(lambda _: "fine"))


@pytest.mark.semantics("G10")
def test_a_child_whose_parent_has_ended_is_cancelled_at_the_next_start(place: Any, die: Any) -> None:
    async def act() -> None:
        if place.happens_first("killed"):
            die()

    async def work(ctx: RunContext[Any]) -> str:
        await ctx.step("act", act)
        return "never"

    agents = [Agent("worker", pattern=work), delegating("worker")]

    def request() -> RunRequest:
        return RunRequest(agent_id="boss", session_id="s", run_id="r", input_text="go", on_crash="fail")

    place.live_until_killed(agents, lambda runtime: runtime.run(request()))
    # This process takes only the parent over, which then fails; the child is nobody's.
    result = place.live(agents, lambda runtime: runtime.run(request()), recover=False)
    assert result.error_details.code == "interrupted_by_crash"
    child = place.carry_on(agents, "r:0")
    assert child.stop_reason == "cancelled"
    assert "run r, which delegated it, has ended" in child.error_details.message


# ---- rules at the door


@pytest.mark.semantics("G12")
async def test_runs_wait_for_each_other_only_so_deep(place: Any) -> None:
    async def deeper(ctx: RunContext[Any]) -> str:
        place.note("begun")
        return (await ctx.delegate("boss", "deeper")).output

    async with place.runtime(Agent("boss", pattern=deeper), limits=RuntimeLimits(max_delegation_depth=3)) as runtime:
        result = await runtime.run("boss", "go")
        assert result.stop_reason == "failed"
        assert "max_delegation_depth=3" in result.error_details.message
        assert place.noted.count("begun") == 4

    async def catch(ctx: RunContext[Any]) -> str:
        with pytest.raises(DelegationDepthError, match="max_delegation_depth=0"):
            await ctx.delegate("boss", "deeper")
        return "caught"

    async with place.runtime(Agent("boss", pattern=catch), limits=RuntimeLimits(max_delegation_depth=0)) as runtime:
        assert (await runtime.run("boss", "go")).output == "caught"


@pytest.mark.semantics("G13")
async def test_waiting_for_a_session_that_a_run_above_holds_is_an_error_at_once(place: Any) -> None:
    caught: list[str] = []

    async with place.runtime(answering()) as runtime:

        async def ask(ctx: RunContext[Any]) -> str:
            for session_id in (ctx.session_id, "s"):
                with pytest.raises(SessionHeldByAncestorError) as error:
                    await runtime.run("worker", "x", session_id=session_id)
                caught.append(error.value.message)
            return (await ctx.delegate("worker", "in the same session", session="shared")).output

        runtime.agents.register(Agent("middle", pattern=ask))
        runtime.agents.register(delegating("middle"))
        result = await asyncio.wait_for(runtime.run("boss", "go", run_id="r", session_id="s"), 10)
    assert result.output == "done in the same session"
    assert ["'r:0' holds" in caught[0], "'r' holds" in caught[1]] == [True, True]


@pytest.mark.semantics("G14")
async def test_a_child_has_the_deps_it_is_given_or_its_own_or_its_parents(place: Any) -> None:
    class Callable:
        """Deps that look like a factory."""

        def __call__(self, *_: object) -> str:
            raise AssertionError("opened twice")

    @tool(read_only=True)
    async def show(ctx: ToolContext[Any]) -> str:
        """Show the deps."""
        return type(ctx.deps).__name__

    async def reveal(ctx: RunContext[Any]) -> str:
        return str(await ctx.call_tool("show"))

    async def lead(ctx: RunContext[Any]) -> str:
        inherits = await ctx.delegate("bare", "x")
        own = await ctx.delegate("rich", "x")
        given = await ctx.delegate("rich", "x", deps=(1, 2))
        return " ".join(result.output for result in (inherits, own, given))

    bare: Agent[Any, str] = Agent("bare", pattern=reveal, tools=[show])
    rich: Agent[Any, str] = Agent("rich", pattern=reveal, tools=[show], deps=[1])
    boss: Agent[Any, str] = Agent("boss", pattern=lead)
    async with place.runtime(bare, rich, boss) as runtime:
        handed: Any = Holding(Callable())
        assert (await runtime.run(boss, "go", deps=handed.open)).output == "Callable list tuple"


class Holding:
    """A factory of deps."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def open(self, _: Any) -> Any:
        return self

    async def __aenter__(self) -> Any:
        return self._value

    async def __aexit__(self, *_: object) -> None: ...


@pytest.mark.semantics("G15")
async def test_what_cannot_be_delegated_raises_at_once_and_begins_nothing(place: Any) -> None:
    async def lead(ctx: RunContext[Any]) -> str:
        for wrong, error, says in (
            ({"agent": "worke"}, UnknownAgentError, "worke"),
            ({"agent": 7}, UsageError, "neither"),
            ({"input": 7}, UsageError, "int"),
            ({"budget": {"max_steps": 1}}, UsageError, "no budget"),
            ({"session": "forked"}, NotImplementedYetError, "forked"),
            ({"session": "own"}, UsageError, "own"),
            ({"on_crash": "again"}, UsageError, "again"),
            ({"on_crash": "restart", "session": "shared"}, UsageError, "not the child's own"),
            ({"metadata": [1]}, UsageError, "no dict"),
        ):
            options: Any = {"agent": "worker", "input": "x", **wrong}
            with pytest.raises(error, match=says):
                await ctx.delegate(**options)
        with pytest.raises(InvalidIdentifierError) as long:
            await ctx.branch("b" * 200).delegate("worker", "x")
        assert "shorter names" in long.value.hint
        return "refused"

    async with place.runtime(answering(), Agent("boss", pattern=lead)) as runtime:
        assert (await runtime.run("boss", "go")).output == "refused"
        assert len(await runtime.runs.list()) == 1
        request = RunRequest(agent_id="worker", session_id="s", run_id="x:0", parent_run_id="x")
        with pytest.raises(UsageError, match="parent_run_id"):
            await runtime.run(request)


@pytest.mark.semantics("G16")
async def test_a_stream_tells_that_its_run_delegated_and_nothing_of_the_child(place: Any) -> None:
    async with place.runtime(answering(), delegating("worker")) as runtime:
        everything = await runtime.subscribe()
        async with runtime.stream("boss", "dig", run_id="r") as stream:
            events = [event async for event in stream]
            await stream.result()
        assert {event.run_id for event in events} == {"r"}
        [delegated] = [event for event in events if event.name == "agent.delegated"]
        assert (delegated.call_id, delegated.child_agent_id, delegated.session) == ("r:0", "worker", "isolated")
        runtime.unsubscribe(everything)
        theirs = [event.name async for event in everything if event.run_id == "r:0"]
        assert theirs[0] == "run.requested"
        assert {"run.started", "llm.succeeded", "run.completed"} <= set(theirs)


@pytest.mark.semantics("G17")
@pytest.mark.parametrize("session", ["isolated", "shared"])
async def test_children_of_a_run_that_is_not_durable_are_not_either(place: Any, session: Any) -> None:
    seen: list[int] = []

    async with place.runtime() as runtime:

        async def lead(ctx: RunContext[Any]) -> str:
            ctx.state["led"] = True
            result = await ctx.delegate("worker", ctx.input_text, session=session)
            if session == "isolated":
                seen.append(len(await runtime.sessions.list()))
            return f"{result.output} {ctx.state}"

        async def work(ctx: RunContext[Any]) -> str:
            await ctx.generate()
            seen.append(len(await runtime.runs.list()))
            ctx.state["worked"] = True
            return f"{sorted(ctx.state)}"

        model = ScriptedModel(lambda _: "fine")
        runtime.agents.register(Agent("worker", pattern=work, model=model, state_type=dict))
        runtime.agents.register(Agent("boss", pattern=lead, state_type=dict))
        result = await runtime.run("boss", "go", run_id="r", session_id="s", durable=False)
        expected = "['led', 'worked'] {'led': True, 'worked': True}"
        assert result.output == (expected if session == "shared" else "['worked'] {'led': True}")
        assert seen[0] == 0
        assert {entry.run_id for entry in await runtime.runs.list()} == {"r", "r:0"}
        assert not (await runtime.runs.get("r:0")).request.durable
        assert (await runtime.sessions.get("s")).active_run is None
        assert (await runtime.run("boss", "go", session_id="s", durable=False)).stop_reason == "completed"


@pytest.mark.semantics("G11")
async def test_children_of_a_run_that_is_suspended_are_left_and_carried_on_with_it(place: Any, until: Any) -> None:
    gate = asyncio.Event()

    @tool(approval=True)
    async def pay() -> str:
        """Pay."""
        return "paid"

    async def act(name: str) -> str:
        place.note(name)
        if name == "second":
            await gate.wait()
        return name

    async def work(ctx: RunContext[Any]) -> str:
        return f"{await ctx.step('first', act, 'first')} {await ctx.step('second', act, 'second')}"

    async def spend(branch: RunContext[Any]) -> str:
        await until(lambda: "second" in place.noted)
        return str(await branch.call_tool("pay"))

    async def lead(ctx: RunContext[Any]) -> str:
        async with asyncio.TaskGroup() as group:
            worked = group.create_task(ctx.branch("a").delegate("worker", "x"))
            paid = group.create_task(spend(ctx.branch("b")))
        return f"{worked.result().output} {paid.result()}"

    agents = [Agent("worker", pattern=work), Agent("boss", pattern=lead, tools=[pay])]
    async with place.runtime(*agents) as runtime:
        result = await runtime.run("boss", "go", run_id="r")
        assert result.stop_reason == "suspended"
        assert (await runtime.runs.get("r:a/0")).state == RunState.INTERRUPTED
        assert runtime.stats().running == 0
        gate.set()
        await runtime.decide("r:b/0", Allow(), by="ann")
        assert (await runtime.wait("r")).output == "first second paid"
    assert place.noted == ["first", "second", "second"]


# ---- budgets


@pytest.mark.semantics("G18")
@pytest.mark.parametrize("limit", ["max_steps", "max_tool_calls", "max_total_tokens"])
async def test_no_tree_spends_more_than_its_root_may(place: Any, limit: str) -> None:
    @tool(read_only=True)
    async def look() -> str:
        """Look."""
        place.note("looked")
        return "seen"

    async def think(request: ModelRequest) -> str:
        place.note("asked")
        await asyncio.sleep(0)
        return "x" * 40

    async def work(ctx: RunContext[Any]) -> str:
        while True:
            await ctx.call_tool("look")
            await ctx.generate()

    async def split(branch: RunContext[Any], n: int) -> str:
        return (await branch.delegate("worker", str(n))).stop_reason

    async def lead(ctx: RunContext[Any]) -> str:
        return str(sorted((await ctx.map(split, EIGHT)).values()))

    budgets = {
        "max_steps": RunBudget(max_steps=9),
        "max_tool_calls": RunBudget(max_tool_calls=9),
        "max_total_tokens": RunBudget(max_total_tokens=9000),
    }
    options: Any = {"tools": [look], "model": ScriptedModel(think)}
    worker = Agent("worker", pattern=work, budget=RunBudget(max_steps=5), **options)
    async with place.runtime(worker, Agent("boss", pattern=lead)) as runtime, asyncio.timeout(60):
        result = await runtime.run("boss", "go", run_id="r", budget=budgets[limit])
        assert result.stop_reason == "completed"
        entries = await runtime.runs.list()
        steps, tool_calls, tokens, _ = (await runtime.runs.get("r")).spent
        assert (place.noted.count("asked"), place.noted.count("looked")) == (steps, tool_calls)
        if limit == "max_steps":
            assert steps == 9
        elif limit == "max_tool_calls":
            assert tool_calls == 9
        else:
            assert tokens <= 9000
        assert {entry.state for entry in entries} <= FINAL
        child = await runtime.wait("r:0.item7/0")
        assert child.error_details.context["limit"] == limit or limit == "max_total_tokens"


@pytest.mark.semantics("G19")
@pytest.mark.parametrize("kill", range(1, 9, 2))
def test_what_a_tree_spent_counts_once_after_a_crash(place: Any, die: Any, kill: int) -> None:
    def think(request: ModelRequest) -> str:
        place.note(f"asked {request.run_id}")
        return "fine"

    async def act() -> None:
        # Each child asks twice: this kills one that has asked once or twice, and those before it have ended.
        if len(place.noted) == kill and place.happens_first("killed"):
            die()

    async def work(ctx: RunContext[Any]) -> str:
        await ctx.generate()
        await ctx.step("act", act)
        await ctx.generate()
        await ctx.step("act", act)
        return "worked"

    async def lead(ctx: RunContext[Any]) -> str:
        return " ".join([(await ctx.delegate("worker", str(n))).stop_reason for n in range(8)])

    agents = [Agent("worker", pattern=work, model=ScriptedModel(think)), Agent("boss", pattern=lead)]
    budget = RunBudget(max_steps=9)
    place.live_until_killed(agents, lambda runtime: runtime.run("boss", "go", run_id="r", budget=budget))
    result = place.carry_on(agents, "r")
    assert result.output == " ".join(["completed"] * 4 + ["max_steps"] * 4)
    # The answer of a model that is on disk is not asked for again, and those asked for are all there may be.
    assert sum(note.startswith("asked") for note in place.noted) == 9


@pytest.mark.semantics("G20")
async def test_usage_is_a_runs_own_and_spent_is_its_trees(place: Any) -> None:
    async def lead(ctx: RunContext[Any]) -> str:
        await ctx.generate()
        return (await ctx.delegate("middle", "x")).output

    async def lead_on(ctx: RunContext[Any]) -> str:
        await ctx.generate()
        result = await ctx.delegate("worker", "x", session="shared")
        assert result.usage.llm_calls == 1
        return result.output

    model = ScriptedModel(lambda _: "fine")
    agents = [
        Agent("worker", model=model),
        Agent("middle", model=model, pattern=lead_on),
        Agent("boss", model=model, pattern=lead),
    ]
    async with place.runtime(*agents) as runtime:
        result = await runtime.run("boss", "go", run_id="r")
        assert result.usage.llm_calls == 1
        spent = [(await runtime.runs.get(run_id)).spent[0] for run_id in ("r", "r:1", "r:1:1")]
        assert spent == [3, 2, 1]
        steps = await runtime.runs.steps("r")
        assert [step.kind for step in steps] == ["generate", "delegate"]
        assert isinstance(steps[1], StepCompleted)


def test_a_recorded_delegation_needs_its_agent_no_more(place: Any, die: Any) -> None:
    async def act() -> None:
        if place.happens_first("killed"):
            die()

    def boss(worker: Any) -> Agent[None, str]:
        async def lead(ctx: RunContext[Any]) -> str:
            done = await ctx.delegate(worker, "dig")
            await ctx.step("act", act)
            return done.output

        return Agent("boss", pattern=lead)

    worker = answering()
    for given, run_id in ((worker, "r1"), ("worker", "r2")):
        place.live_until_killed(
            [boss(given), worker], lambda runtime, run_id=run_id: runtime.run("boss", "go", run_id=run_id)
        )
        assert place.carry_on([boss(given)], run_id).output == "done dig"
        place.forget("killed")


@pytest.mark.parametrize("session", ["isolated", "shared"])
def test_a_run_is_not_blamed_for_crashes_of_a_child_that_gets_further(place: Any, die: Any, session: Any) -> None:
    async def act(n: int) -> int:
        if place.happens_first(f"killed at {n}"):
            die()
        place.note(f"acted {n}")
        return n

    async def work(ctx: RunContext[Any]) -> str:
        return str([await ctx.step("act", act, n) for n in range(5)])

    agents = [Agent("worker", pattern=work), delegating("worker", session=session)]
    for _ in range(5):
        place.live_until_killed(agents, lambda runtime: runtime.run("boss", "go", run_id="r"))
    assert place.carry_on(agents, "r").output == "[0, 1, 2, 3, 4]"
    assert [place.noted.count(f"acted {n}") for n in range(5)] == [1] * 5


def test_a_child_that_kills_its_process_is_the_one_that_fails(place: Any, die: Any) -> None:
    async def explode() -> None:
        die()

    async def work(ctx: RunContext[Any]) -> str:
        await ctx.step("explode", explode)
        return "never"

    async def lead(ctx: RunContext[Any]) -> str:
        result = await ctx.delegate("worker", "x")
        assert result.error_details is not None
        return result.error_details.code

    agents = [Agent("worker", pattern=work), Agent("boss", pattern=lead)]
    for _ in range(3):
        place.live_until_killed(agents, lambda runtime: runtime.run("boss", "go", run_id="r"))
    assert place.carry_on(agents, "r").output == "poisonous_run"


@pytest.mark.parametrize("session", ["isolated", "shared"])
async def test_a_child_is_tried_again_after_an_error_that_can_pass_and_its_parent_waits(
    place: Any, session: Any
) -> None:
    def think(request: ModelRequest) -> str:
        place.note("asked")
        if len(place.noted) == 1:
            raise ModelError("try again", retryable=True)
        return "fine"

    worker = Agent("worker", model=ScriptedModel(think))
    limits = RuntimeLimits(max_concurrent_runs=1)
    async with place.runtime(worker, delegating("worker", session=session), limits=limits) as runtime:
        assert (await asyncio.wait_for(runtime.run("boss", "go", run_id="r"), 30)).output == "fine"
        assert runtime.stats().free_slots == 1
        with pytest.raises(RunNotResumableError, match="delegated by run 'r'"):
            await runtime.resume("r:0")


# ---- closing


@pytest.mark.parametrize("session", ["isolated", "shared"])
def test_closing_leaves_a_tree_between_two_steps_of_each_of_its_runs(place: Any, until: Any, session: Any) -> None:
    gates: dict[str, asyncio.Event] = {}

    async def act(name: str) -> str:
        place.note(f"began {name}")
        if name in gates:
            await gates[name].wait()
        place.note(f"ended {name}")
        return name

    async def work(ctx: RunContext[Any]) -> str:
        first = await ctx.step("first", act, f"{ctx.input_text} first")
        return f"{first}, {await ctx.step('second', act, f'{ctx.input_text} second')}"

    async def split(branch: RunContext[Any], name: str) -> str:
        return (await branch.delegate("worker", name, session=session)).output

    async def lead(ctx: RunContext[Any]) -> str:
        return "; ".join((await ctx.map(split, {"a": "a", "b": "b"})).values())

    agents = [Agent("worker", pattern=work), Agent("boss", pattern=lead)]

    async def close(runtime: Any) -> None:
        gates.update({f"{name} first": asyncio.Event() for name in "ab"})
        handle = await runtime.submit("boss", "go", run_id="r")
        await until(lambda: len(place.noted) == 2)
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, gates["a first"].set)
        loop.call_later(0.15, gates["b first"].set)
        began = loop.time()
        await runtime.aclose()
        assert loop.time() - began < 10
        assert (await handle.result()).stop_reason == "interrupted"

    place.live(agents, close, drain_timeout=20)
    assert sorted(place.noted) == ["began a first", "began b first", "ended a first", "ended b first"]
    gates.clear()
    assert place.carry_on(agents, "r").output == "a first, a second; b first, b second"
    assert max(Counter(place.noted).values()) == 1


def test_closing_does_not_wait_for_a_tree_that_waits_for_a_decision(place: Any, until: Any) -> None:
    @tool(approval=True)
    async def pay() -> str:
        """Pay."""
        return "paid"

    async def work(ctx: RunContext[Any]) -> str:
        return str(await ctx.call_tool("pay"))

    agents = [
        Agent("worker", pattern=work, tools=[pay]),
        Agent("middle", pattern=delegating("worker").pattern.run),
        delegating("middle"),
    ]

    async def close(runtime: Any) -> None:
        await runtime.submit("boss", "go", run_id="r")
        await until(lambda: runtime.stats().suspended == 1)
        began = time.monotonic()
        await runtime.aclose()
        assert time.monotonic() - began < 10

    async def decide(runtime: Any) -> str:
        assert (await runtime.wait("r:0:0")).stop_reason == "suspended"
        await runtime.decide("r:0:0:0", Allow(), by="ann")
        return (await runtime.wait("r")).output

    place.live(agents, close, drain_timeout=20)
    assert place.live(agents, decide) == "paid"
