"""G: runs that begin afresh after a crash, and what they had delegated before it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from callboard import (
    Agent,
    Allow,
    Message,
    ModelRequest,
    RunBudget,
    RunContext,
    RunResult,
    ScriptedModel,
    ToolCall,
    tool,
)
from callboard_protocol.letters import PostedCancellation
from callboard_protocol.records import RunBegan, RunEnded
from callboard_protocol.states import FINAL, RunState
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.posting import post

pytestmark = pytest.mark.anyio

SESSIONS = {"own": "isolated", "ours": "shared", "below": "below"}


class Tree:
    """A boss that gives work to three: in a session of its own, in the boss's, and one to a run below another.

    Each worker asks its model, acts, and asks again. In its first lives the process dies once all three act.

    Args:
        place: where it lives.
        die: ends the process.
        deaths: how many lives of the boss end so.
    """

    def __init__(self, place: Any, die: Any, deaths: int = 1) -> None:
        self._place = place
        self._die = die
        self._deaths = deaths
        model = ScriptedModel(self._think)
        self.agents: list[Agent[Any, Any]] = [
            Agent("worker", pattern=self._work, model=model, state_type=dict),
            Agent("middle", pattern=self._pass_on),
            Agent("boss", pattern=self._lead, model=model, state_type=dict),
        ]

    def _think(self, request: ModelRequest) -> str:
        self._place.note(f"asked {request.call_id}")
        return "fine"

    async def _act(self, run_id: str) -> str:
        place = self._place
        place.note(f"acted {run_id}")
        died = place.noted.count("died")
        if died < self._deaths:
            if sum(note.startswith("acted") for note in place.noted) == len(SESSIONS) * (died + 1):
                place.note("died")
                self._die()
            await asyncio.Event().wait()
        return run_id

    async def _work(self, ctx: RunContext[Any]) -> str:
        ctx.state["worked"] = ctx.state.get("worked", 0) + 1
        await ctx.generate()
        acted = await ctx.step("act", self._act, ctx.run_id)
        await ctx.generate()
        await ctx.add_artifact("acted", acted)
        return acted

    async def _pass_on(self, ctx: RunContext[Any]) -> str:
        return (await ctx.delegate("worker", ctx.input_text)).output

    async def _hire(self, branch: RunContext[Any], session: Any) -> RunResult[Any]:
        if session == "below":
            return await branch.delegate("middle", "go")
        return await branch.delegate("worker", "go", session=session)

    async def _lead(self, ctx: RunContext[Any]) -> str:
        await ctx.generate()
        hired = await ctx.map(self._hire, SESSIONS)
        return " ".join(result.final_output or result.stop_reason for result in hired.values())


@pytest.mark.semantics("G21")
@pytest.mark.parametrize("deaths", [1, 2])
def test_what_a_run_had_delegated_before_it_begins_afresh_is_cancelled_before_it_does_anything(
    place: Any, die: Any, deaths: int
) -> None:
    tree = Tree(place, die, deaths)

    async def start(runtime: Any) -> None:
        await runtime.run("boss", "go", run_id="r", session_id="s", on_crash="restart")

    async def finish(runtime: Any) -> tuple[Any, ...]:
        result = await runtime.wait("r")
        entries = {entry.run_id: entry for entry in await runtime.runs.list()}
        ended = {run_id: await runtime.wait(run_id) for run_id in entries}
        return result, entries, ended, await runtime.sessions.get("s"), await runtime.sessions.transcript("s")

    place.live_until_killed(tree.agents, start)
    for _ in range(deaths - 1):
        place.live_until_killed(tree.agents, lambda runtime: runtime.wait("r"))
    result, entries, ended, head, transcript = place.live(tree.agents, finish)
    last = f"{deaths + 1}-"
    below = [f"r:{last}1.own/{last}0", f"r:{last}1.ours/{last}0", f"r:{last}1.below/{last}0:0"]
    assert result.output.split() == below
    assert [one.payload for one in result.artifacts] == []
    assert [note for note in place.noted if note.startswith("acted")][-3:] == [f"acted {run_id}" for run_id in below]
    left_behind = {run_id for run_id in entries if run_id != "r" and not run_id.startswith(f"r:{last}")}
    assert len(left_behind) == 4 * deaths
    began = [one for one in asyncio.run(place.log("s")) if isinstance(one, RunBegan) and one.run_id == "r"]
    assert [one.attempt for one in began] == [*range(1, deaths + 2)]
    for run_id in left_behind:
        assert entries[run_id].state == RunState.CANCELLED
        assert "run r, which delegated it, begins afresh after a crash" in ended[run_id].error_details.message
        assert entries[run_id].ended_at <= began[-1].at
    assert {entry.state for entry in entries.values()} <= FINAL
    # The session knows nothing of the lives before: the shared child's state and artifact are those of the last one.
    assert (head.active_run, head.artifact_count) == (None, 1)
    assert [message.text for message in transcript] == ["go", "fine", result.output]
    assert asyncio.run(_state(place, tree.agents)) == {"worked": 1}


async def _state(place: Any, agents: Any) -> Any:
    async with place.runtime(*agents) as runtime:
        return (await runtime.sessions.checkpoints("s"))[-1].state


@pytest.mark.semantics("G22")
def test_what_was_spent_before_a_run_began_afresh_counts_for_whatever_it_drew_on(place: Any, die: Any) -> None:
    tree = Tree(place, die)
    budget = RunBudget(max_steps=8)

    async def start(runtime: Any) -> None:
        await runtime.accounts.open("team", RunBudget(max_steps=100))
        await runtime.run("boss", "go", run_id="r", session_id="s", on_crash="restart", account="team", budget=budget)

    async def finish(runtime: Any) -> tuple[Any, ...]:
        result = await runtime.wait("r")
        return result, (await runtime.runs.get("r")).spent, await runtime.accounts.get("team")

    place.live_until_killed(tree.agents, start)
    result, spent, account = place.live(tree.agents, finish)
    asked = sum(note.startswith("asked") for note in place.noted)
    # In its first life the boss asks once, which is its affair no more, and the workers three times: five are left.
    assert asked == 1 + 8
    assert result.stop_reason == "completed"
    assert [part.startswith("r:") for part in sorted(result.output.split())] == [False, False, True]
    assert result.usage.llm_calls == 1
    assert (spent[0], account.spent.steps, account.reserved.steps) == (asked, asked, 0)

    async def look(runtime: Any) -> Any:
        return await runtime.accounts.get("team")

    assert place.live(tree.agents, look).spent.steps == asked


@pytest.mark.semantics("G23")
@pytest.mark.parametrize("on_crash", ["resume", "restart", "fail"])
def test_a_child_is_carried_on_begins_afresh_or_fails_after_a_crash_as_its_parent_said(
    place: Any, die: Any, on_crash: Any
) -> None:
    async def act(ctx_id: str, n: int) -> None:
        place.note(f"acted {ctx_id} {n}")
        if n == 2 and place.happens_first("died"):
            die()

    async def deep(ctx: RunContext[Any]) -> str:
        await ctx.step("act", act, ctx.run_id, 0)
        return "deep"

    async def work(ctx: RunContext[Any]) -> str:
        await ctx.generate()
        await ctx.delegate("deep", "x")
        await ctx.step("act", act, ctx.run_id, 2)
        return f"worked at attempt {ctx.attempt}"

    async def lead(ctx: RunContext[Any]) -> str:
        await ctx.generate()
        result = await ctx.delegate("worker", "x", on_crash=on_crash)
        assert result.run_id == "r:1"
        return result.final_output or result.error_details.code

    def think(request: ModelRequest) -> str:
        place.note(f"asked {request.call_id}")
        return "fine"

    model = ScriptedModel(think)
    agents = [
        Agent("deep", pattern=deep),
        Agent("worker", pattern=work, model=model, budget=RunBudget(max_steps=1)),
        Agent("boss", pattern=lead, model=model, budget=RunBudget(max_steps=3)),
    ]

    async def start(runtime: Any) -> None:
        await runtime.accounts.open("team", RunBudget(max_steps=3))
        await runtime.run("boss", "go", run_id="r", session_id="s", account="team")

    async def finish(runtime: Any) -> Any:
        result = await runtime.wait("r")
        all_of_it = (await runtime.runs.get("r")).spent
        assert (await runtime.accounts.get("team")).spent.steps == all_of_it[0]
        return result.output, (await runtime.runs.get("r:1")).spent, all_of_it

    place.live_until_killed(agents, start)

    output, theirs, all_of_it = place.live(agents, finish)
    noted = [note for note in place.noted if note != "died"]
    before = ["asked r:0", "asked r:1:0", "acted r:1:1 0", "acted r:1 2"]
    if on_crash == "resume":
        assert (output, theirs[0], all_of_it[0]) == ("worked at attempt 2", 1, 2)
        assert noted == [*before, "acted r:1 2"]
    elif on_crash == "fail":
        assert (output, theirs[0], all_of_it[0]) == ("interrupted_by_crash", 1, 2)
        assert noted == before
    else:
        # Its own budget is as before its first life; whoever it draws on counts both.
        assert (output, theirs[0], all_of_it[0]) == ("worked at attempt 2", 2, 3)
        assert noted == [*before, "asked r:1:2-0", "acted r:1:2-1 0", "acted r:1 2"]


@pytest.mark.parametrize("kill", range(0, 32, 4))
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_tree_that_begins_afresh_survives_a_kill_over_any_commit_of_its_new_life(
    place: Any, die: Any, killed_by_commit: Any, kill: int, when: str
) -> None:
    tree = Tree(place, die)

    async def start(runtime: Any) -> None:
        await runtime.run("boss", "go", run_id="r", session_id="s", on_crash="restart")

    async def wait(runtime: Any) -> Any:
        return await runtime.wait("r")

    async def finish(runtime: Any) -> Any:
        return await runtime.wait("r"), {entry.state for entry in await runtime.runs.list()}

    place.live_until_killed(tree.agents, start)
    place.live_until_killed(tree.agents, wait, store=killed_by_commit(kill, when), surely=False)
    result, states = place.live(tree.agents, finish)
    assert [run_id.split(":")[0] for run_id in result.output.split()] == ["r"] * 3
    assert states == {RunState.CANCELLED, RunState.COMPLETED}
    logged = asyncio.run(place.log("s"))
    ordinals = [record.ordinal for record in logged if record.run_id == "r"]
    assert ordinals == [*range(len(ordinals))]
    assert sum(isinstance(record, RunEnded) and record.run_id == "r" for record in logged) == 1
    spent = place.live(tree.agents, lambda runtime: runtime.runs.get("r")).spent[0]
    asked = sum(note.startswith("asked") for note in place.noted)
    # Of three that work side by side, the kill may have cut off what they had asked.
    assert asked - 3 <= spent <= asked


def test_a_run_whose_child_ends_its_process_in_each_of_its_lives_fails_as_poisonous(place: Any, die: Any) -> None:
    async def explode() -> None:
        die()

    async def work(ctx: RunContext[Any]) -> str:
        await ctx.step("explode", explode)
        return "never"

    async def lead(ctx: RunContext[Any]) -> str:
        return (await ctx.delegate("worker", "x")).stop_reason

    agents = [Agent("worker", pattern=work), Agent("boss", pattern=lead)]
    for _ in range(3):
        place.live_until_killed(agents, lambda runtime: runtime.run("boss", "go", run_id="r", on_crash="restart"))
    assert place.carry_on(agents, "r").error_details.code == "poisonous_run"
    states = place.live(agents, lambda runtime: runtime.runs.list())
    assert {entry.run_id: entry.state.value for entry in states} == {
        "r": "failed",
        "r:0": "cancelled",
        "r:2-0": "cancelled",
        "r:3-0": "cancelled",
    }


def test_what_nobody_took_over_of_an_earlier_life_is_cancelled_too(place: Any, die: Any) -> None:
    tree = Tree(place, die)

    async def start(runtime: Any) -> None:
        await runtime.run("boss", "go", run_id="r", session_id="s", on_crash="restart")

    async def resume(runtime: Any) -> Any:
        result = await (await runtime.resume("r")).result()
        return result, await runtime.runs.list()

    place.live_until_killed(tree.agents, start)
    # This process takes only the boss over, and finds the others on disk.
    result, entries = place.live(tree.agents, resume, recover=False)
    assert result.stop_reason == "completed"
    assert sorted(entry.run_id for entry in entries if entry.state == RunState.CANCELLED) == [
        "r:1.below/0",
        "r:1.below/0:0",
        "r:1.ours/0",
        "r:1.own/0",
    ]


def test_a_child_that_waited_for_a_decision_is_left_behind_and_its_call_is_not_decided_any_more(
    place: Any, die: Any
) -> None:
    @tool(approval=True)
    async def pay() -> str:
        """Pay."""
        place.note("paid")
        return "paid"

    def think(request: ModelRequest) -> Any:
        return "done" if request.messages[-1].role == "tool" else ToolCall(name="pay")

    async def lead(ctx: RunContext[Any]) -> str:
        if ctx.attempt == 2:
            return "nobody pays"
        return (await ctx.delegate("worker", "x")).output

    agents = [Agent("worker", model=ScriptedModel(think), tools=[pay]), Agent("boss", pattern=lead)]

    async def start(runtime: Any) -> None:
        watching = await runtime.subscribe(names=["run.suspended"])
        await runtime.submit("boss", "go", run_id="r", on_crash="restart")
        async for _ in watching:
            die()

    async def finish(runtime: Any) -> Any:
        result = await runtime.wait("r")
        return result.output, await runtime.runs.get("r:0"), await runtime.sessions.transcript("session-r:0")

    place.live_until_killed(agents, start)
    # Nobody needs its agent to end it.
    output, entry, transcript = place.live(agents[1:], finish)
    assert (output, entry.state, entry.pending) == ("nobody pays", RunState.CANCELLED, ())
    assert [message.role for message in transcript] == ["user", "assistant", "tool"]
    assert place.noted == []


def test_a_run_that_is_to_be_cancelled_does_not_begin_afresh_and_ends_as_it_was(
    place: Any, die: Any, well_formed: Any
) -> None:
    @tool(read_only=True)
    async def look() -> str:
        """Look."""
        die()
        return "never"

    agent = Agent("worker", model=ScriptedModel([ToolCall(name="look")]), tools=[look])

    async def start(runtime: Any) -> None:
        await runtime.run(agent, "x", run_id="r", session_id="s", on_crash="restart")

    async def cancel() -> None:
        # As another process would that thinks the run is still being carried.
        store = place.store()
        await store.open()
        await post(store, "s", PostedCancellation(run_id="r", by="ann", reason="user left", at=1.0))
        await store.close()

    async def finish(runtime: Any) -> list[Message]:
        assert (await runtime.wait("r")).stop_reason == "cancelled"
        assert (await runtime.sessions.get("s")).active_run is None
        transcript: list[Message] = await runtime.sessions.transcript("s")
        return transcript

    place.live_until_killed([agent], start)
    asyncio.run(cancel())
    transcript = place.live([agent], finish)
    assert well_formed(transcript)
    assert [message.role for message in transcript] == ["user", "assistant", "tool"]


def test_a_run_that_is_cancelled_while_it_ends_its_earlier_life_ends_with_all_of_it(place: Any, die: Any) -> None:
    tree = Tree(place, die)
    cancelling: list[asyncio.Task[bool]] = []

    class Telling(LmdbStore):
        """Has the boss cancelled as its child in the same session writes that it has ended."""

        def commit(self, batch: Any, fence: Any, loop: Any, acknowledge: Any) -> None:
            if batch.session_id == "s" and not cancelling:
                cancelling.append(loop.create_task(runtimes[0].cancel("r", reason="user left")))
            super().commit(batch, fence, loop, acknowledge)

    runtimes: list[Any] = []

    async def start(runtime: Any) -> None:
        await runtime.run("boss", "go", run_id="r", session_id="s", on_crash="restart")

    async def finish(runtime: Any) -> Any:
        runtimes.append(runtime)
        result = await (await runtime.resume("r")).result()
        assert await cancelling[0]
        return result, await runtime.runs.list(), await runtime.sessions.get("s")

    place.live_until_killed(tree.agents, start)
    store = Telling(place.data, map_size=1 << 30)
    result, entries, head = place.live(tree.agents, finish, store=store, recover=False)
    assert "user left" in result.error_details.message
    assert {entry.state for entry in entries} == {RunState.CANCELLED}
    assert head.active_run is None
    assert "2-" not in " ".join(entry.run_id for entry in entries)


def test_what_was_decided_about_a_call_is_asked_anew_in_a_run_that_begins_afresh(place: Any, die: Any) -> None:
    @tool(approval=True)
    async def pay(amount: int) -> str:
        """Pay."""
        if place.happens_first("died"):
            die()
        return "paid"

    async def pattern(ctx: RunContext[None]) -> str:
        return str(await ctx.call_tool("pay", amount=70))

    agent = Agent("worker", pattern=pattern, tools=[pay])

    async def start(runtime: Any) -> None:
        await runtime.run(agent, "x", run_id="r", session_id="s", on_crash="restart")
        await runtime.decide("r:0", Allow(), by="ann")
        await runtime.wait("r")

    async def finish(runtime: Any) -> Any:
        asked = await runtime.wait("r")
        await runtime.decide(asked.pending[0].call_id, Allow(), by="ann")
        return asked, await runtime.wait("r")

    place.live_until_killed([agent], start)
    asked, result = place.live([agent], finish)
    assert [call.call_id for call in asked.pending] == ["r:3-0"]
    assert result.output == "paid"


def test_a_run_that_begins_afresh_tells_that_it_goes_back_and_of_no_step_that_runs_again(place: Any, die: Any) -> None:
    def think(request: ModelRequest) -> str:
        if place.happens_first("died"):
            die()
        return "fine"

    agent = Agent("worker", model=ScriptedModel(think))

    async def start(runtime: Any) -> None:
        await runtime.run(agent, "x", run_id="r", session_id="s", on_crash="restart")

    async def finish(runtime: Any) -> list[str]:
        names = ["session.rewound", "step.restarted", "llm.succeeded", "run.completed"]
        watching = await runtime.subscribe("r", names=names)
        await (await runtime.resume("r")).result()
        told = []
        async for event in watching:
            told.append(event.name)
            if event.name == "run.completed":
                break
        return told

    place.live_until_killed([agent], start)
    told = place.live([agent], finish, recover=False)
    assert told == ["session.rewound", "llm.succeeded", "run.completed"]


def test_two_processes_that_find_a_tree_begin_it_afresh_once(place: Any, die: Any) -> None:
    tree = Tree(place, die)

    async def start(runtime: Any) -> None:
        await runtime.run("boss", "go", run_id="r", session_id="s", on_crash="restart")

    async def finish() -> Any:
        async with place.runtime(*tree.agents) as one, place.runtime(*tree.agents) as other:
            results = await asyncio.gather(one.wait("r"), other.wait("r"))
            return results, await other.runs.list()

    place.live_until_killed(tree.agents, start)
    (result, same), entries = asyncio.run(asyncio.wait_for(finish(), 30))
    assert result.output == same.output
    assert Counter(entry.state for entry in entries) == {RunState.CANCELLED: 4, RunState.COMPLETED: 5}
    logs = [asyncio.run(place.log(session_id)) for session_id in {entry.session_id for entry in entries}]
    ended = Counter(record.run_id for log in logs for record in log if isinstance(record, RunEnded))
    assert ended == dict.fromkeys([entry.run_id for entry in entries], 1)
