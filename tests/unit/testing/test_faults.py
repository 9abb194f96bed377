"""Fault points: which are passed, and how they are struck at."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import timeit
from pathlib import Path
from typing import Any

import pytest

from callboard import (
    Agent,
    CallboardError,
    RunContext,
    Runtime,
    ScriptedModel,
    ToolCall,
    UsageError,
    fault_points,
    tool,
)
from callboard.testing import FAULT_POINTS, Passage, environment_to_die_at, raise_at, told_to_die_at, watch_passages

pytestmark = pytest.mark.anyio

ACTORS = Path(fault_points.__file__).parent


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@tool
async def act() -> str:
    """Act."""
    return "acted"


def actor() -> Agent[None, str]:
    return Agent("actor", model=ScriptedModel([ToolCall(name="act"), "done"]), tools=[act])


def test_every_point_is_passed_somewhere_and_every_place_passes_one_that_exists() -> None:
    reached = {
        name
        for path in ACTORS.rglob("*.py")
        for name in re.findall(r'fault_points\.reach\(\s*"([^"]+)"', path.read_text())
    }
    assert reached | set(fault_points._RECORDED.values()) == set(FAULT_POINTS)
    code = "".join(path.read_text() for path in ACTORS.rglob("*.py"))
    for record in fault_points._RECORDED:
        assert re.search(rf"\b{record.__name__}(\(|,\n +run_id=)", code), f"nothing writes a {record.__name__}"


def test_every_passage_in_the_code_is_guarded_or_cheap() -> None:
    """Outside of rare moments, a passage must not even make its subject up while nobody is armed."""
    rare = {"account_keeping.py", "correspondence.py", "entries.py", "fault_points.py", "forking.py", "session.py"}
    for path in ACTORS.rglob("*.py"):
        if path.name in rare or "testing" in path.parts:
            continue
        tree = ast.parse(path.read_text())
        guarded = {
            id(call)
            for branch in ast.walk(tree)
            if isinstance(branch, ast.If) and ast.unparse(branch.test).startswith("fault_points.armed is not None")
            for call in ast.walk(branch)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("fault_points.reach"):
                assert id(call) in guarded, f"{path.name}, line {call.lineno}"


def test_a_guarded_passage_that_nobody_watches_costs_next_to_nothing() -> None:
    ways = {"fault_points": fault_points}
    times = min(timeit.repeat("if fault_points.armed is not None: fault_points.reach('run.began', 'r')", globals=ways))
    assert times < 1.0, f"{times:.3f} µs a passage"


async def test_a_run_passes_them_in_the_order_of_what_happens(runtime: Runtime) -> None:
    seen: list[str] = []
    with watch_passages(lambda passage: seen.append(passage.written())):
        async with runtime:
            runtime.agents.register(actor())
            await runtime.run("actor", "go", run_id="r")
            await runtime.sessions.checkpoint("session-r", "here")
            await runtime.sessions.fork("session-r", "fork")
    assert seen == [
        "run.began 1 r",
        "step.about_to_act 1 r:0",
        "step.outcome_received 1 r:0",
        "step.recorded 1 r:0",
        "step.intent_recorded 1 r:1.0",
        "step.about_to_act 1 r:1.0",
        "step.outcome_received 1 r:1.0",
        "step.recorded 1 r:1.0",
        "step.about_to_act 1 r:2",
        "step.outcome_received 1 r:2",
        "step.recorded 1 r:2",
        "run.ended 1 r",
        "checkpoint.recorded 1 session-r",
        "fork.recorded 1 fork",
    ]


async def test_an_error_is_raised_at_the_passage_it_was_meant_for_and_at_no_other(runtime: Runtime) -> None:
    caught: list[str] = []

    async def say(text: str) -> str:
        return text

    async def pattern(ctx: RunContext[None]) -> str:
        for text in ("one", "two", "three"):
            try:
                await ctx.step("say", say, text)
            except CallboardError as error:
                caught.append(f"{text}: {error.message}")
        return "done"

    async with runtime:
        runtime.agents.register(Agent("a", pattern=pattern))
        with raise_at(Passage("step.about_to_act", number=2), CallboardError("struck")):
            result = await runtime.run("a", "go")
    assert result.output == "done"
    assert caught == ["two: struck"]


async def test_nothing_is_armed_once_the_block_is_left() -> None:
    with pytest.raises(ZeroDivisionError), watch_passages(print):
        raise ZeroDivisionError
    assert fault_points.armed is None


def test_two_watches_at_once_are_refused() -> None:
    with watch_passages(print), pytest.raises(UsageError, match="watched already"), watch_passages(print):
        pass


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Passage("step.recorde"), "did you mean 'step.recorded'"),
        (lambda: Passage("elsewhere"), "one of: run.entry_recorded"),
        (lambda: Passage("step.recorded", number=0), "count from 1"),
        (lambda: Passage.parse("step.recorded"), "names no passage"),
    ],
)
def test_a_passage_that_cannot_come_is_refused(make: Any, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        make()
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "passage", [Passage("run.began"), Passage("*", number=7), Passage("step.recorded", "a b:1", 2)]
)
def test_a_passage_survives_the_environment(passage: Passage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_to_die_at(passage).items():
        monkeypatch.setenv(name, value)
    assert told_to_die_at() == passage


def test_a_process_dies_where_its_environment_says(tmp_path: Path) -> None:
    script = """
import asyncio, pathlib
from callboard import Agent, Runtime, ScriptedModel
from callboard.testing import die_at, told_to_die_at

async def main():
    async with Runtime([Agent("a", model=ScriptedModel(["done"]))]) as runtime:
        with die_at(told_to_die_at()):
            await runtime.run("a", "go", run_id="first")
            pathlib.Path("first").touch()
            await runtime.run("a", "go", run_id="second")
            pathlib.Path("second").touch()

asyncio.run(main())
"""
    passage = Passage("step.recorded", number=2)
    died = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env={**os.environ, **environment_to_die_at(passage)}, check=False, timeout=60,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
