"""Closing a runtime with runs in every kind of flight: what is cut short, what is not, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from callboard import (
    Agent,
    ModelRequest,
    RunContext,
    Runtime,
    RuntimeClosedError,
    RuntimeClosingError,
    ScriptedModel,
    ToolCall,
    tool,
)
from callboard_protocol.records import RunResumed
from callboard_storage.lmdb_store import LmdbStore

pytestmark = pytest.mark.anyio

PATIENCE = 20.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class World:
    """What has happened, whichever runtime made it happen, and gates that hold it up."""

    def __init__(self, path: Path) -> None:
        self.path = path / "data"
        self.noted: list[str] = []
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.thread_gate = threading.Event()

    def runtime(self, *agents: Agent[Any, Any], **options: Any) -> Runtime:
        return Runtime(agents, store=LmdbStore(self.path, map_size=1 << 30), **options)

    def note(self, text: str) -> None:
        self.noted.append(text)
        self.begun.set()

    async def held_up(self, text: str) -> str:
        self.note(text)
        await self.gate.wait()
        return text


@pytest.fixture
async def world(tmp_path: Path) -> World:
    return World(tmp_path)


def in_a_model_call(world: World) -> Agent[Any, Any]:
    async def answer(request: ModelRequest) -> str:
        return await world.held_up("asked")

    return Agent("worker", model=ScriptedModel(answer))


def in_an_undeclared_tool(world: World) -> Agent[Any, Any]:
    @tool
    async def act() -> str:
        """Act."""
        return await world.held_up("acted")

    return Agent("worker", model=ScriptedModel(_one_call), tools=[act])


def in_a_thread_tool(world: World) -> Agent[Any, Any]:
    loop = asyncio.get_running_loop()

    @tool
    def act() -> str:
        """Act, and block."""
        loop.call_soon_threadsafe(world.note, "acted")
        assert world.thread_gate.wait(PATIENCE)
        return "acted"

    return Agent("worker", model=ScriptedModel(_one_call), tools=[act])


def in_a_batch_of_tools(world: World) -> Agent[Any, Any]:
    @tool
    async def act(n: int) -> str:
        """Act."""
        return await world.held_up(f"acted {n}")

    async def script(request: ModelRequest) -> Any:
        if request.messages[-1].role == "tool":
            return "done"
        return [ToolCall(name="act", arguments={"n": n}) for n in range(3)]

    return Agent("worker", model=ScriptedModel(script), tools=[act])


def in_one_of_several_branches(world: World) -> Agent[Any, Any]:
    async def quick() -> str:
        return "quick"

    async def slow() -> str:
        return await world.held_up("acted")

    async def one(ctx: RunContext[Any], name: str) -> str:
        await ctx.step("first", slow if name == "slow" else quick)
        await ctx.step("second", quick)
        return name

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.map(one, {"slow": "slow", "quick": "quick"})
        return "done"

    return Agent("worker", pattern=pattern)


def in_a_round_of_validation(world: World) -> Agent[Any, Any]:
    async def script(request: ModelRequest) -> str:
        if request.messages[-1].role == "user" and len(request.messages) == 1:
            return "no number"
        await world.held_up("asked again")
        return "7"

    return Agent("worker", model=ScriptedModel(script), output_type=int)


def _one_call(request: ModelRequest) -> Any:
    return "done" if request.messages[-1].role == "tool" else ToolCall(name="act", arguments={})


FLIGHTS: list[Callable[[World], Agent[Any, Any]]] = [
    in_a_model_call,
    in_an_undeclared_tool,
    in_a_thread_tool,
    in_a_batch_of_tools,
    in_one_of_several_branches,
    in_a_round_of_validation,
]


@pytest.mark.parametrize("flight", FLIGHTS, ids=lambda flight: flight.__name__)
async def test_a_step_in_flight_ends_before_the_runtime_closes_and_is_not_made_again(
    world: World, flight: Callable[[World], Agent[Any, Any]]
) -> None:
    agent = flight(world)
    runtime = world.runtime(agent, drain_timeout=PATIENCE)
    await runtime.start()
    handle = await runtime.submit(agent, "go", run_id="r", session_id="s")
    await asyncio.wait_for(world.begun.wait(), PATIENCE)
    closing = asyncio.ensure_future(runtime.aclose())
    await asyncio.sleep(0)
    world.gate.set()
    world.thread_gate.set()
    await asyncio.wait_for(closing, PATIENCE)
    result = await handle.result()
    assert result.stop_reason in ("interrupted", "completed")  # a model's last answer is the run's end
    acted = list(world.noted)
    async with world.runtime(agent) as again:
        carried_on = await asyncio.wait_for(again.wait("r"), PATIENCE)
        assert carried_on.stop_reason == "completed"
        assert world.noted == acted
        assert len(set(acted)) == len(acted)
        log = [stored.record for stored in await again.sessions._store.read_log("s")]
    assert [record.strikes for record in log if isinstance(record, RunResumed)] == [0] * (
        result.stop_reason == "interrupted"
    )


@pytest.mark.parametrize("flight", FLIGHTS[:1] + FLIGHTS[-1:], ids=lambda flight: flight.__name__)
async def test_a_model_call_that_outlasts_the_drain_timeout_is_cut_short_and_made_again(
    world: World, flight: Callable[[World], Agent[Any, Any]]
) -> None:
    agent = flight(world)
    async with world.runtime(agent, drain_timeout=0.05) as runtime:
        handle = await runtime.submit(agent, "go", run_id="r")
        await asyncio.wait_for(world.begun.wait(), PATIENCE)
    assert (await handle.result()).stop_reason == "interrupted"
    world.gate.set()
    async with world.runtime(agent) as again:
        assert (await asyncio.wait_for(again.wait("r"), PATIENCE)).stop_reason == "completed"
    assert len(world.noted) == 2


@pytest.mark.semantics("R17")
async def test_runs_that_wait_sleep_or_are_suspended_do_not_hold_up_the_closing(world: World) -> None:
    @tool(approval=True)
    async def act() -> str:
        """Act."""
        return "acted"

    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.input_text == "sleep":
            await ctx.sleep(3600)
        if ctx.input_text == "ask":
            await ctx.call_tool("act")
        return "done"

    agent = Agent("worker", pattern=pattern, tools=[act])
    async with world.runtime(agent, drain_timeout=3600) as runtime:
        told = await runtime.subscribe(names=["runtime.shutdown_requested", "runtime.shutdown_completed"])
        asleep = await runtime.submit(agent, "sleep", run_id="asleep", session_id="a")
        queued = await runtime.submit(agent, "go", run_id="queued", session_id="a")
        suspended = await runtime.submit(agent, "ask", run_id="suspended", session_id="b")
        await suspended.result()
        while (await runtime.runs.get("asleep")).state != "running":  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.wait_for(runtime.aclose(), PATIENCE)
        requested, completed = [event async for event in told]
    assert (await asleep.result()).stop_reason == (await queued.result()).stop_reason == "interrupted"
    assert (requested.reason, requested.active_runs, requested.queued_runs, requested.suspended_runs) == (
        "aclose",
        1,
        1,
        1,
    )
    assert completed.interrupted_runs == 2
    async with world.runtime(agent) as again:
        assert (await again.runs.get("suspended")).state == "suspended"
        assert await again.cancel("asleep")
        assert (await asyncio.wait_for(again.wait("queued"), PATIENCE)).output == "done"


@pytest.mark.semantics("R16")
async def test_a_run_that_is_being_taken_in_is_on_disk_or_refused(world: World) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await asyncio.Event().wait()
        return "never"

    agent = Agent("worker", pattern=pattern)
    taken: set[str] = set()
    refused = 0
    for turns in range(12):
        runtime = world.runtime(agent, recover=False, drain_timeout=0)
        await runtime.start()
        submitting = [
            asyncio.ensure_future(runtime.submit(agent, "go", run_id=f"{turns}-{n}", session_id=f"{turns}-{n % 2}"))
            for n in range(4)
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(runtime.aclose(), PATIENCE)
        for submitted in await asyncio.gather(*submitting, return_exceptions=True):
            if isinstance(submitted, BaseException):
                assert isinstance(submitted, RuntimeClosedError), submitted
                assert isinstance(submitted, RuntimeClosingError) or not turns
                refused += 1
            else:
                taken.add(submitted.run_id)
                assert (await asyncio.wait_for(submitted.result(), PATIENCE)).stop_reason == "interrupted"
    store = LmdbStore(world.path, map_size=1 << 30)
    await store.open()
    on_disk = {entry.run_id for entry in await store.read_unfinished()}
    await store.close()
    assert on_disk == taken
    assert refused
    assert taken


async def test_a_second_aclose_waits_for_the_first(world: World) -> None:
    agent = in_an_undeclared_tool(world)
    runtime = world.runtime(agent, drain_timeout=PATIENCE)
    await runtime.start()
    await runtime.submit(agent, "go")
    await asyncio.wait_for(world.begun.wait(), PATIENCE)
    closings = [asyncio.ensure_future(runtime.aclose()) for _ in range(3)]
    await asyncio.sleep(0.02)
    assert not any(closing.done() for closing in closings)
    assert runtime.health().status == "draining"
    assert runtime.stats().running == 1
    world.gate.set()
    await asyncio.wait_for(asyncio.gather(*closings), PATIENCE)
    with pytest.raises(RuntimeClosedError):
        runtime.health()
    await runtime.aclose()


@pytest.mark.semantics("R18")
async def test_a_cancelled_aclose_stops_the_runs_at_once_and_closes_the_store_behind_the_actors(world: World) -> None:
    order: list[str] = []

    class Watched(LmdbStore):
        async def close(self) -> None:
            order.append("the store closes")
            await super().close()

    @tool(read_only=True)
    async def look() -> str:
        """Look."""
        world.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            order.append("the tool ends")
        return "never"

    agent = Agent("worker", model=ScriptedModel([ToolCall(name="look", arguments={})]), tools=[look])
    runtime = Runtime([agent], store=Watched(world.path, map_size=1 << 30), drain_timeout=3600)
    await runtime.start()
    handle = await runtime.submit(agent, "go", run_id="r")
    await asyncio.wait_for(world.begun.wait(), PATIENCE)
    closing = asyncio.ensure_future(runtime.aclose())
    await asyncio.sleep(0.01)
    closing.cancel()
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(closing), PATIENCE)
    assert order == ["the tool ends", "the store closes"]
    assert (await handle.result()).stop_reason == "interrupted"
    with pytest.raises(RuntimeClosedError):
        runtime.stats()
    async with world.runtime(recover=False) as again:
        assert (await again.runs.get("r")).state == "interrupted"


FORGETS_TO_CLOSE = """
import asyncio, sys
from callboard import Agent, Runtime

async def pattern(ctx):
    await asyncio.Event().wait()

async def main():
    runtime = Runtime([Agent("worker", pattern=pattern)], store=sys.argv[1])
    await runtime.start()
    await runtime.submit("worker", "go", run_id="r")

asyncio.run(main())
"""


@pytest.mark.semantics("R21")
async def test_a_loop_that_ends_without_closing_leaves_its_runs_to_the_next_start(tmp_path: Path) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        return "done"

    # In a process of its own: what was never closed stays open.
    script = await asyncio.create_subprocess_exec(sys.executable, "-c", FORGETS_TO_CLOSE, tmp_path / "data")
    assert await script.wait() == 0
    agent = Agent("worker", pattern=pattern)
    async with Runtime([agent], store=LmdbStore(tmp_path / "data", map_size=1 << 30), recover=False) as runtime:
        assert (await runtime.runs.get("r")).state == "interrupted"
        result = await (await runtime.resume("r")).result()
        assert (result.output, (await runtime.runs.get("r")).strikes) == ("done", 0)


async def test_a_pattern_that_resists_being_stopped_does_not_keep_the_runtime_open(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("callboard.supervision.draining.PATIENCE", 0.05)
    give_up = asyncio.Event()

    async def pattern(ctx: RunContext[Any]) -> str:
        world.begun.set()
        while not give_up.is_set():
            try:
                await give_up.wait()
            except asyncio.CancelledError:
                continue
        return "at last"

    agent = Agent("worker", pattern=pattern)
    async with world.runtime(agent, drain_timeout=0) as runtime:
        handle = await runtime.submit(agent, "go", run_id="stubborn")
        await asyncio.wait_for(world.begun.wait(), PATIENCE)
        await asyncio.wait_for(runtime.aclose(), PATIENCE)
    assert "after they were stopped: run stubborn" in caplog.text
    assert (await asyncio.wait_for(handle.result(), PATIENCE)).stop_reason == "interrupted"
    give_up.set()
    await asyncio.sleep(0)


def _slots(path: Path) -> int:
    """Reader slots in use, as the engine's own table says, looked at by a process of its own."""
    environment = lmdb.open(str(path), readonly=True, lock=True, max_dbs=64)
    try:
        table = environment.readers()
    finally:
        environment.close()
    return 0 if table.startswith("(no active readers)") else len(table.splitlines()) - 1


@pytest.mark.semantics("R19")
async def test_nothing_outlives_a_runtime(tmp_path: Path) -> None:
    world = World(tmp_path)
    agent = in_an_undeclared_tool(world)
    world.gate.set()

    def left() -> tuple[set[asyncio.Task[Any]], set[threading.Thread], int]:
        return asyncio.all_tasks(), set(threading.enumerate()), len(os.listdir("/dev/fd"))

    async def live(turn: int) -> None:
        async with world.runtime(agent, drain_timeout=1) as runtime:
            await runtime.run(agent, "go", session_id=f"s{turn}")
            await runtime.submit(agent, "go", session_id=f"s{turn}")

    await live(0)  # whatever a first use leaves for good is there now
    gc.collect()
    tasks, threads, descriptors = left()
    for turn in range(20):
        await live(turn)
    gc.collect()

    def outlived() -> tuple[set[asyncio.Task[Any]], set[threading.Thread], int]:
        more_tasks, more_threads, more_descriptors = left()
        return more_tasks - tasks, more_threads - threads, max(0, more_descriptors - descriptors)

    deadline = time.monotonic() + PATIENCE
    while any(outlived()) and time.monotonic() < deadline:  # noqa: ASYNC110  (threads told to end still end)
        await asyncio.sleep(0.01)
    assert outlived() == (set(), set(), 0)
    slots = await asyncio.to_thread(_slots, world.path)
    assert slots == 0


async def test_a_run_at_work_can_be_waited_for_cancelled_and_followed_while_the_runtime_closes(world: World) -> None:
    agent = in_an_undeclared_tool(world)
    runtime = world.runtime(agent, drain_timeout=PATIENCE)
    await runtime.start()
    await runtime.submit(agent, "go", run_id="r")
    await runtime.submit(agent, "go", run_id="other")
    while len(world.noted) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    closing = asyncio.ensure_future(runtime.aclose())
    await asyncio.sleep(0.01)
    waiting = asyncio.ensure_future(runtime.wait("r"))
    events = asyncio.ensure_future(_names(runtime, "r"))
    assert await runtime.cancel("other")
    world.gate.set()
    assert (await asyncio.wait_for(waiting, PATIENCE)).stop_reason == "interrupted"
    assert "tool.succeeded" in await asyncio.wait_for(events, PATIENCE)
    await closing


async def _names(runtime: Runtime, run_id: str) -> list[str]:
    return [event.name async for event in runtime.events(run_id)]
