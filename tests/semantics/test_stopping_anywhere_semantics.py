"""Runs that are cancelled, or out of time, wherever they are: in a step of whichever kind, or waiting for something."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import killable
import pytest

from callboard import (
    Agent,
    ModelError,
    ModelRequest,
    RunBudget,
    RunContext,
    Runtime,
    RuntimeLimits,
    ScriptedModel,
    ToolCall,
    tool,
)
from callboard_protocol.records import RunEnded
from callboard_protocol.states import FINAL, RunState

pytestmark = pytest.mark.anyio

PATIENCE = 30

AT_WORK = [
    "a model",
    "a model that is asked again",
    "a tool on the loop",
    "a tool that acts",
    "a tool in a thread",
    "a tool in a process",
    "a function",
    "functions in branches",
    "another agent",
    "another agent in this session",
]
"""Where the time of a run that is limited goes on."""

WAITING = [
    "a sleep",
    "a signal",
    "a signal that must come in time",
    "a decision",
    "its session",
    "a slot",
    "a slot again",
    "its agent",
]
"""Where it stands still."""

TOOLS = {
    "a tool on the loop": "read",
    "a tool that acts": "act",
    "a tool in a thread": "block",
    "a tool in a process": "held",
    "a decision": "publish",
}


class Stage:
    """Agents of which one comes to a moment and stays there.

    Args:
        place: where they run.
        moment: one of `AT_WORK` or `WAITING`.
        note: the file by which a tool in a process says that it is at work.
    """

    def __init__(self, place: Any, moment: str, note: Path) -> None:
        self.moment = moment
        self._place = place
        self._note = note
        self._begun = 0
        self._released = threading.Event()
        tools = [
            tool(read_only=True, timeout=None, name="read")(self._hang),
            tool(timeout=None, name="act")(self._hang),
            tool(read_only=True, timeout=None, name="block")(self._block),
            tool(approval=True, name="publish")(self._hang),
            killable.held,
        ]
        self._actor = Agent("actor", model=ScriptedModel(self._think), tools=tools, pattern=self._act)
        self._others = [
            Agent("helper", pattern=self._help),
            Agent("blocker", pattern=self._help),
            Agent("next", model=ScriptedModel(["done"])),
        ]

    @asynccontextmanager
    async def runtime(self, **options: Any) -> AsyncIterator[Runtime]:
        """A runtime in which three runs are to come to the moment; those that wait for their agent are there."""
        slots = 1 if self.moment in {"a slot", "a slot again"} else 4
        options["limits"] = RuntimeLimits(max_concurrent_runs=slots)
        agents = [self._actor, *self._others]
        if self.moment == "its agent":
            async with self._place.runtime(*agents) as runtime:
                for number in range(3):
                    await self._submit(runtime, number)
            agents = self._others
        try:
            async with self._place.runtime(*agents, **options) as runtime, asyncio.timeout(PATIENCE):
                yield runtime
        finally:
            self._released.set()

    async def bring(self, runtime: Runtime, number: int) -> str:
        """Have a run come to the moment; its id."""
        run_id = f"r{number}"
        slots, begun = runtime.stats().free_slots, self._begun
        if self.moment == "its agent":
            await self._until(lambda: runtime.stats().parked == 3 - number)
            return run_id
        if self.moment in {"its session", "a slot"}:
            session_id = f"s{number}" if self.moment == "its session" else "another"
            await runtime.submit("blocker", "x", run_id=f"blocker{number}", session_id=session_id)
            await self._until(lambda: self._begun > begun)
        await self._submit(runtime, number)
        if self.moment in {"its session", "a slot"}:
            assert runtime.stats().queued == 1
        elif self.moment == "a decision":
            await self._until(lambda: runtime.stats().suspended == 1)
        elif self.moment == "a tool in a process":
            await self._until(self._note.exists)
            self._note.unlink()
        elif self.moment in WAITING:
            await self._until(lambda: runtime.stats().running == 1 and runtime.stats().free_slots == slots)
        else:
            await self._until(lambda: self._begun > begun)
        if self.moment == "a slot again":
            await runtime.submit("blocker", "x", run_id=f"blocker{number}", session_id="another")
            await self._until(lambda: self._begun > begun)
            await runtime.send(run_id, "words", "go on")
            for _ in range(100):
                await asyncio.sleep(0)
        return run_id

    async def leave(self, runtime: Runtime, number: int) -> None:
        """See that the run has gone: another one has its session at once."""
        if self.moment in {"its session", "a slot", "a slot again"}:
            await runtime.cancel(f"blocker{number}")
        result = await runtime.run("next", "and now?", session_id=f"s{number}")
        assert result.output == "done"

    async def _submit(self, runtime: Runtime, number: int) -> None:
        budget = RunBudget(max_duration=60)
        await runtime.submit("actor", "go", run_id=f"r{number}", session_id=f"s{number}", budget=budget)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110  (threads and processes set no events here)
            await asyncio.sleep(0.001)

    # ---- what the agents do

    async def _act(self, ctx: RunContext[Any]) -> str:
        match self.moment:
            case "a sleep":
                await ctx.sleep(3600)
            case "a signal" | "a slot again" | "its agent":
                await ctx.receive("words")
            case "a signal that must come in time":
                await ctx.receive("words", timeout=3600)
            case "a function":
                await ctx.step("hang", self._hang)
            case "functions in branches":
                await ctx.map(self._branch, dict.fromkeys(["left", "right"]))
            case "another agent":
                await ctx.delegate("helper", "hang")
            case "another agent in this session":
                await ctx.delegate("helper", "hang", session="shared")
            case _:
                response = await ctx.generate()
                await ctx.call_tools(response.tool_calls)
        return "never"

    async def _branch(self, branch: RunContext[Any], _: Any) -> None:
        await branch.step("hang", self._hang)

    async def _help(self, ctx: RunContext[Any]) -> str:
        await ctx.step("hang", self._hang)
        return "never"

    async def _think(self, request: ModelRequest) -> ToolCall:
        if self.moment == "a model that is asked again":
            self._begun += 1
            raise ModelError("come back later", retryable=True, context={"retry_after": 3600})
        if self.moment == "a model":
            await self._hang()
        name = TOOLS[self.moment]
        return ToolCall(name=name, arguments={"path": str(self._note)} if name == "held" else {})

    async def _hang(self) -> str:
        self._begun += 1
        await asyncio.Event().wait()
        return "never"

    def _block(self) -> None:
        self._begun += 1
        self._released.wait()


@pytest.mark.semantics("P1")
@pytest.mark.parametrize("moment", [*AT_WORK, *WAITING])
async def test_wherever_a_run_is_a_cancellation_has_ended_it_within_a_tenth_of_a_second(
    place: Any, tmp_path: Path, well_formed: Any, moment: str
) -> None:
    stage, took = Stage(place, moment, tmp_path / "note"), list[float]()
    async with stage.runtime() as runtime:
        for number in range(3):
            run_id = await stage.bring(runtime, number)
            began = time.monotonic()
            both = await asyncio.gather(
                runtime.cancel(run_id, reason="the user left", by="ann"),
                runtime.cancel(run_id, reason="it takes too long", by="bob"),
            )
            took.append(time.monotonic() - began)
            assert both == [True, True]
            result = await runtime.wait(run_id)
            assert await runtime.cancel(run_id, reason="once more", by="eve") is False
            assert await runtime.wait(run_id) == result
            assert (result.stop_reason, result.pending) == ("cancelled", ())
            assert result.error_details is not None
            assert result.error_details.message == f"run {run_id} was cancelled: the user left"
            assert result.error_details.context == {"by": "ann"}
            tree = [entry for entry in await runtime.runs.list() if entry.run_id.split(":")[0] == run_id]
            assert {entry.state for entry in tree} == {RunState.CANCELLED}
            await stage.leave(runtime, number)
            assert well_formed(await runtime.sessions.transcript(f"s{number}"))
            for record in await place.log(f"s{number}"):
                if isinstance(record, RunEnded) and record.run_id == run_id:
                    assert (record.cancelled_by, record.reason) == ("ann", "the user left")
        assert runtime.stats().stopped == len([one for one in await runtime.runs.list() if one.state == "cancelled"])
    # Under load one of them may take longer.
    assert min(took) < 0.1, took


@pytest.mark.semantics("B7")
@pytest.mark.parametrize("moment", AT_WORK)
async def test_max_duration_ends_a_run_in_the_middle_of_a_step_of_whichever_kind(
    place: Any, tmp_path: Path, well_formed: Any, fake_clock: Any, moment: str
) -> None:
    stage, took = Stage(place, moment, tmp_path / "note"), list[float]()
    async with stage.runtime(clock=fake_clock) as runtime:
        for number in range(3):
            run_id = await stage.bring(runtime, number)
            fake_clock.advance(59)
            began = time.monotonic()
            fake_clock.advance(1)
            result = await runtime.wait(run_id)
            took.append(time.monotonic() - began)
            assert result.stop_reason == "budget_exhausted"
            assert result.error_details is not None
            assert result.error_details.context["limit"] == "max_duration"
            assert await runtime.cancel(run_id) is False
            tree = {entry.run_id: entry.state for entry in await runtime.runs.list() if entry.run_id[:2] == run_id}
            assert tree.pop(run_id) == RunState.EXHAUSTED
            assert {*tree.values()} <= {RunState.CANCELLED}
            await stage.leave(runtime, number)
            assert well_formed(await runtime.sessions.transcript(f"s{number}"))
    assert min(took) < 0.1, took


@pytest.mark.semantics("B10")
@pytest.mark.parametrize("moment", WAITING)
async def test_time_that_a_run_waits_is_no_time_running(
    place: Any, tmp_path: Path, fake_clock: Any, moment: str
) -> None:
    stage = Stage(place, moment, tmp_path / "note")
    async with stage.runtime(clock=fake_clock) as runtime:
        run_id = await stage.bring(runtime, 0)
        fake_clock.advance(120)
        for _ in range(100):
            await asyncio.sleep(0)
        assert (await runtime.runs.get(run_id)).state not in FINAL
        assert await runtime.cancel(run_id) is True


async def test_time_before_and_after_a_wait_adds_up_to_a_runs_duration(place: Any, until: Any, fake_clock: Any) -> None:
    begun, goes_on = list[str](), asyncio.Event()

    async def work(name: str) -> None:
        begun.append(name)
        await goes_on.wait()
        goes_on.clear()

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.step("work", work, "before")
        await ctx.sleep(3600)
        await ctx.step("work", work, "after")
        return "done"

    agent = Agent("worker", pattern=pattern, budget=RunBudget(max_duration=60))
    async with place.runtime(agent, clock=fake_clock) as runtime:
        handle = await runtime.submit(agent, "x", run_id="r")
        await until(lambda: begun == ["before"])
        fake_clock.advance(30)
        goes_on.set()
        await fake_clock.until_sleeping()
        fake_clock.advance(3600)
        await until(lambda: begun == ["before", "after"])
        fake_clock.advance(29)
        for _ in range(100):
            await asyncio.sleep(0)
        assert (await runtime.runs.get("r")).state == RunState.RUNNING
        fake_clock.advance(1)
        assert (await handle.result()).stop_reason == "budget_exhausted"
