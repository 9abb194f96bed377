"""Runs recorded by yesterday's agents, replayed with today's."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from callboard import (
    Agent,
    CallboardError,
    Deny,
    ModelRequest,
    RunBudget,
    RunContext,
    RunInfo,
    Runtime,
    ScriptedModel,
    ToolCall,
    UsageError,
    WindowMemory,
    tool,
)
from callboard.testing import FakeClock, ReplayReport, replay
from callboard.testing.naming import name_of
from callboard_storage.upkeep import export_session

pytestmark = pytest.mark.anyio

acted: list[str] = []
"""What has acted; nothing may in a replay."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@tool
async def act(text: str) -> str:
    """Act."""
    acted.append(f"tool {text}")
    return f"acted: {text}"


def think(request: ModelRequest) -> Any:
    acted.append("model")
    last = request.messages[-1]
    return f"told: {last.text}" if last.role == "tool" else ToolCall(name="act", arguments={"text": last.text})


async def count(text: str) -> int:
    acted.append(f"step {text}")
    return len(text)


async def pattern(ctx: RunContext[Any]) -> str:
    """Yesterday's: a model, a tool, functions in turn and side by side, state, time, a sleep, an artifact, an event."""
    response = await ctx.generate()
    [result] = await ctx.call_tools(response.tool_calls)
    counted = await ctx.step("count", count, result.value)
    ctx.state["counted"] = ctx.state.get("counted", 0) + counted

    async def branch(below: RunContext[Any], text: str) -> int:
        return await below.step("count", count, text)

    mapped = await ctx.map(branch, {"a": "one", "b": "three"})
    before = ctx.now()
    await ctx.sleep(0.001)
    assert ctx.now() >= before
    await ctx.add_artifact("counted", mapped)
    await ctx.emit("counted", {"state": ctx.state["counted"]})
    return (await ctx.generate()).text


def agent(pattern: Callable[..., Any] | str = pattern, **options: Any) -> Agent[Any, Any]:
    given: dict[str, Any] = {"model": ScriptedModel(think), "tools": [act], "state_type": dict, **options}
    return Agent("worker", pattern=pattern, **given)


async def record(path: Path, made: Agent[Any, Any], *said: str, **options: Any) -> Path:
    """Runs of one session, one after the other; the data directory."""
    async with Runtime([made], store=path) as runtime:
        for number, text in enumerate(said):
            await runtime.run(made, text, run_id=f"r{number}", session_id="s", **options)
    acted.clear()
    return path


def verdicts(report: ReplayReport) -> list[tuple[str, str, str]]:
    assert acted == [], "something acted in a replay"
    return [(run.run_id, run.verdict, run.step) for run in report.runs]


# ---- what fits


async def test_the_code_that_recorded_runs_fits_them_and_calls_nothing(tmp_path: Path) -> None:
    history = await record(tmp_path / "data", agent(), "one", "two")
    report = await replay(agent(), history)
    assert verdicts(report) == [("r0", "fits", ""), ("r1", "fits", "")]
    report.check()
    assert str(report) == "2 runs: 2 fits"


async def test_an_export_is_replayed_like_the_directory_it_came_from(tmp_path: Path) -> None:
    history = await record(tmp_path / "data", agent(), "one")
    file = tmp_path / "session.jsonl"
    await asyncio.to_thread(export_session, history, "s", file)
    assert verdicts(await replay(agent(), [file, str(history)])) == [("r0", "fits", "")] * 2


async def test_a_directory_that_is_in_use_is_replayed_as_it_is(tmp_path: Path) -> None:
    async with Runtime([agent()], store=tmp_path / "data") as runtime:
        await runtime.run("worker", "one", run_id="r0", session_id="s")
        before = await runtime.runs.get("r0")
        acted.clear()
        assert verdicts(await replay(agent(), tmp_path / "data")) == [("r0", "fits", "")]
        assert await runtime.runs.get("r0") == before


async def test_what_is_never_compared_may_change(tmp_path: Path) -> None:
    """Instructions, model, tools, memory, budget, limits, version: a deploy of those kills no run in flight."""
    history = await record(tmp_path / "data", agent(), "one")

    def other(request: ModelRequest) -> Any:
        raise AssertionError("nobody asks")

    today = agent(
        model=ScriptedModel(other),
        instructions="Be brief.",
        tools=[],
        memory=WindowMemory(3),
        budget=RunBudget(max_duration=0.000001, max_steps=1),
        step_timeout=0.000001,
        version="2",
    )
    assert verdicts(await replay(today, history)) == [("r0", "fits", "")]


async def test_a_run_that_has_not_ended_fits_as_far_as_it_went(tmp_path: Path) -> None:
    clock = FakeClock()

    async def sleeper(ctx: RunContext[Any]) -> str:
        await ctx.step("count", count, "one")
        await ctx.sleep(3600)
        await ctx.step("count", count, "two")
        return "woke"

    async with Runtime([agent(sleeper)], store=tmp_path / "data", clock=clock) as runtime:
        await runtime.submit("worker", "go", run_id="r0", session_id="s")
        await clock.until_sleeping()
        acted.clear()
        assert verdicts(await replay(agent(sleeper), tmp_path / "data")) == [("r0", "fits", "")]
        assert verdicts(await replay(agent(), tmp_path / "data")) == [("r0", "misfit", "0")]


@pytest.mark.parametrize("end", ["max_steps", "failed", "suspended", "cancelled"])
async def test_a_run_that_did_not_complete_fits_where_it_stopped(tmp_path: Path, end: str) -> None:
    @tool(approval=end == "suspended")
    async def work() -> str:
        """Work."""
        if end == "failed":
            raise LookupError("nothing there")
        return "worked"

    async def working(ctx: RunContext[Any]) -> str:
        for _ in range(3):
            response = await ctx.generate()
            await ctx.call_tools(response.tool_calls)
            if end == "failed":
                raise CallboardError("it went wrong")
            if end == "cancelled":
                await ctx.sleep(3600)
        return "done"

    made = agent(working, model=ScriptedModel([ToolCall(name="work")] * 3), tools=[work])
    options = {"budget": RunBudget(max_steps=2)} if end == "max_steps" else {}
    async with Runtime([made], store=tmp_path / "data") as runtime:
        handle = await runtime.submit(made, "go", run_id="r0", session_id="s", **options)
        if end == "cancelled":
            async for event in handle.events():
                if event.name == "tool.succeeded":
                    await handle.cancel("enough")
                    break
        assert (await handle.result()).stop_reason == end
    assert verdicts(await replay(made, tmp_path / "data")) == [("r0", "fits", "")]


DIES = """
import asyncio, pathlib, sys
from callboard import Agent, NotHappened, Runtime, ScriptedModel, ToolCall, tool
from callboard.testing import Passage, die_at

@tool
async def act(text: str) -> str:
    \"\"\"Act.\"\"\"
    return text

@act.reconcile
async def _(text: str) -> NotHappened:
    pathlib.Path("asked").touch()
    return NotHappened()

agent = Agent("worker", model=ScriptedModel([ToolCall(name="act", arguments={"text": "x"}), "done"]), tools=[act])

async def main():
    async with Runtime([agent], store="data") as runtime:
        with die_at(Passage("step.intent_recorded")):
            await runtime.run(agent, "go", run_id="r0", session_id="s")

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_a_call_in_flight_when_its_process_died_is_not_settled_by_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    died = await asyncio.to_thread(subprocess.run, [sys.executable, str(script)], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    today = name_of(f"{script}:agent").load()
    assert verdicts(await replay(today, tmp_path / "data")) == [("r0", "fits", "")]
    assert not (tmp_path / "asked").exists()


def _asking() -> Any:
    @tool(name="act", approval=True)
    async def act_with_approval(text: str) -> str:
        """Act."""
        acted.append(text)
        return text

    return act_with_approval


async def test_a_denial_is_replayed_as_the_answer_it_was(tmp_path: Path) -> None:
    history = await record(tmp_path / "data", agent("react", tools=[_asking()]), "one", approvals={"act": Deny("no")})
    assert verdicts(await replay(agent("react", tools=[_asking()]), history)) == [("r0", "fits", "")]


# ---- what does not


@pytest.mark.parametrize(
    ("changed", "verdict", "step", "says"),
    [
        ("another function", "misfit", "2", ("recorded is step 'count'", "now asks for step 'measure'")),
        ("another argument", "misfit", "2", ("recorded is step 'count' with", "now asks for step 'count' with")),
        ("another kind", "misfit", "2", ("recorded is step 'count'", "now asks for generate")),
        ("one more step", "past its end", "3", ("it completed with '4'", "today's code acts again")),
        ("one more artifact", "past its end", "3", ("it completed with '4'", "today's code acts again")),
        ("one more sleep", "past its end", "3", ("it completed with '4'", "today's code acts again")),
        ("another answer", "misfit", "", ("it completed with '4'", "today's code completed with '5'")),
        ("an error", "misfit", "", ("it completed with '4'", "today's code ended as failed with")),
    ],
)
async def test_changed_code_is_told_on_with_both_sides(
    tmp_path: Path, changed: str, verdict: str, step: str, says: tuple[str, ...]
) -> None:
    async def yesterday(ctx: RunContext[Any]) -> str:
        response = await ctx.generate()
        await ctx.call_tools(response.tool_calls)
        return str(await ctx.step("count", count, "four"))

    async def today(ctx: RunContext[Any]) -> str:
        response = await ctx.generate()
        await ctx.call_tools(response.tool_calls)
        if changed == "another function":
            await ctx.step("measure", count, "four")
        elif changed == "another argument":
            await ctx.step("count", count, "five")
        elif changed == "another kind":
            await ctx.generate()
        counted = await ctx.step("count", count, "four")
        if changed == "one more step":
            await ctx.step("count", count, "again")
        elif changed == "one more artifact":
            await ctx.add_artifact("more", 1)
        elif changed == "one more sleep":
            await ctx.sleep(3600)
        elif changed == "an error":
            raise LookupError
        return str(counted + (changed == "another answer"))

    history = await record(tmp_path / "data", agent(yesterday), "go")
    report = await replay(agent(today), history)
    assert verdicts(report) == [("r0", verdict, step)]
    [run] = report.bad
    assert all(one in run.message for one in says), run.message
    with pytest.raises(AssertionError, match=f"r0 .session s.: {verdict}"):
        report.check()


async def test_no_other_agent_is_given_work_by_a_replay(tmp_path: Path) -> None:
    def delegating(*parts: str) -> Agent[Any, Any]:
        async def share_out(ctx: RunContext[Any]) -> str:
            if ctx.input_text in parts:
                return str(await ctx.step("count", count, ctx.input_text))
            return " ".join([(await ctx.delegate("worker", part)).output for part in parts])

        return agent(share_out)

    history = await record(tmp_path / "data", delegating("one"), "all")
    assert sorted(verdicts(await replay(delegating("one"), history))) == [("r0", "fits", ""), ("r0:0", "fits", "")]
    assert ("r0", "past its end", "1") in verdicts(await replay(delegating("one", "two"), history))


async def test_a_misfit_in_one_run_says_nothing_of_the_others(tmp_path: Path) -> None:
    async def today(ctx: RunContext[Any]) -> str:
        if ctx.input_text == "two":
            await ctx.step("count", count, "two")
        return await pattern(ctx)

    history = await record(tmp_path / "data", agent(), "one", "two", "three")
    assert [verdict for _, verdict, _ in verdicts(await replay(agent(today), history))] == ["fits", "misfit", "fits"]


# ---- what a replay leaves alone, and what it refuses


async def test_deps_are_not_opened_and_a_double_stands_in_for_them(tmp_path: Path) -> None:
    @asynccontextmanager
    async def open_deps(info: RunInfo) -> Any:
        acted.append("deps")
        yield {"limit": 7}

    async def limited(ctx: RunContext[Any]) -> str:
        await ctx.step("count", count, "one")
        return str(ctx.deps.get("limit"))

    history = await record(tmp_path / "data", agent(limited, deps=open_deps), "go")
    assert verdicts(await replay(agent(limited, deps=open_deps), history, deps={"limit": 7})) == [("r0", "fits", "")]
    [run] = (await replay(agent(limited, deps=open_deps), history)).bad
    assert "ended as failed" in run.message


async def test_runs_of_other_agents_are_left_out(tmp_path: Path) -> None:
    history = await record(tmp_path / "data", agent(), "one")
    report = await replay(Agent("somebody else"), history)
    assert str(report) == "0 runs: none of this agent"


async def test_what_is_no_history_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("dear diary")
    for place, says in ((tmp_path / "notes.txt", "not a whole export"), (tmp_path / "nowhere", "cannot be read")):
        with pytest.raises(UsageError, match=says):
            await replay(agent(), place)
    with pytest.raises(CallboardError, match="holds no store"):
        await replay(agent(), tmp_path)
    with pytest.raises(UsageError, match="is no agent"):
        await replay("worker", tmp_path)  # type: ignore[arg-type]
