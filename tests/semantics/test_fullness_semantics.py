"""F: what happens while the store is full, and afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from callboard import (
    Agent,
    ModelRequest,
    RunBudget,
    RunContext,
    Runtime,
    RuntimeLimits,
    ScriptedModel,
    StoreFullError,
    ToolCall,
    tool,
)
from callboard.testing import FakeClock
from callboard_protocol.errors import SessionLockedError
from callboard_protocol.records import StepCompleted
from callboard_protocol.states import RunState
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.memory_store import MemoryStore
from callboard_storage.room import MIB
from callboard_storage.store_values import Fence

pytestmark = pytest.mark.anyio

PATIENCE = 30


class FullStore:
    """A store with a quota, and what a test fills it with."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self._written = 0

    async def _write(self, size: int) -> bool:
        batch = self.store.batch("filler")
        batch.append(
            self._written,
            StepCompleted(run_id="f", ordinal=self._written, at=1.0, step="0", kind="tool", value="x" * size),
        )
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()
        self.store.commit(batch, Fence(self._written - 1), loop, answered.set_result)
        is_written = await answered is None
        self._written += is_written
        return is_written

    async def fill_until_nothing_begins(self) -> None:
        while self.store.has_room:
            assert await self._write(9000)

    async def fill(self) -> None:
        """To the last byte."""
        size = 9000
        while size > 1:
            if not await self._write(size):
                size //= 4

    async def empty(self) -> None:
        await self.store.delete_session("filler")
        self._written = 0


class HeldBack:
    """What one session commits, kept from the store until it is let through."""

    def __init__(self, store: Any, session_id: str) -> None:
        self._commit = store.commit
        self._session_id = session_id
        self.commits: list[tuple[Any, ...]] = []
        store.commit = self._keep

    def _keep(self, batch: Any, *how: Any) -> None:
        if batch.session_id == self._session_id:
            self.commits.append((batch, *how))
        else:
            self._commit(batch, *how)

    def let_through(self) -> None:
        """The oldest of them."""
        self._commit(*self.commits.pop(0))

    def let_all_through(self) -> None:
        """These, and all that follow."""
        self._session_id = ""
        while self.commits:
            self.let_through()


@pytest.fixture(params=["memory", "disk"])
def full(request: pytest.FixtureRequest, place: Any) -> FullStore:
    if request.param == "memory":
        return FullStore(MemoryStore(max_bytes=MIB))
    return FullStore(LmdbStore(place.data, map_size=1 << 30, max_bytes=MIB))


def caller(*names: str) -> ScriptedModel:
    """Calls these tools in turn, then answers."""

    def play(request: ModelRequest) -> Any:
        answered = sum(message.role == "tool" for message in request.messages)
        return ToolCall(name=names[answered], arguments={}) if answered < len(names) else "done"

    return ScriptedModel(play)


async def told(runtime: Runtime, name: str) -> Any:
    """The next event of that name; subscribe before it can happen."""
    subscription = await runtime.subscribe(names=[name])

    async def read() -> Any:
        return await anext(aiter(subscription))

    return asyncio.ensure_future(asyncio.wait_for(read(), PATIENCE))


@pytest.mark.semantics("F1")
async def test_without_room_a_new_run_is_refused_at_once_and_nothing_of_it_is_kept(full: FullStore) -> None:
    agent = Agent("a", model=ScriptedModel(lambda _: "done"))
    async with Runtime([agent], store=full.store) as runtime:
        before = await runtime.run(agent, "hello", run_id="before", session_id="s")
        await full.fill_until_nothing_begins()
        for options in ({}, {"session_id": "s"}, {"durable": False}):
            with pytest.raises(StoreFullError, match="'new' was not taken in"):
                await runtime.submit(agent, "hello", run_id="new", **options)
        assert [entry.run_id for entry in await runtime.runs.list()] == ["before"]
        again = await runtime.submit(agent, "hello", run_id="before", session_id="s")
        assert (await again.result()).output == before.output
        await full.empty()
        assert (await runtime.run(agent, "hello", run_id="new")).output == "done"
        assert runtime.stats().running == runtime.stats().queued == 0


@pytest.mark.semantics("F2")
@pytest.mark.parametrize("kind", ["generate", "read_only", "undeclared", "step"])
async def test_nothing_begins_whose_outcome_could_not_be_kept(full: FullStore, kind: str) -> None:
    acted: list[str] = []

    async def act() -> str:
        """Act."""
        acted.append(kind)
        return "acted"

    async def pattern(ctx: RunContext[Any]) -> str:
        await full.fill_until_nothing_begins()
        if kind == "generate":
            return (await ctx.generate("go")).text
        if kind == "step":
            return await ctx.step("act", act)
        return await ctx.call_tool("act")

    def answer(_: ModelRequest) -> str:
        acted.append(kind)
        return "acted"

    agent = Agent("a", model=ScriptedModel(answer), pattern=pattern, tools=[tool(read_only=kind == "read_only")(act)])
    limits = RuntimeLimits(max_concurrent_runs=1)
    async with Runtime([agent], store=full.store, limits=limits) as runtime:
        suspended = await told(runtime, "run.suspended")
        resumed = await told(runtime, "run.resume_succeeded")
        handle = await runtime.submit(agent, "go", run_id="r")
        assert (await suspended).pending[0].reason == "storage_full"
        assert acted == []
        seen = await runtime.runs.get("r")
        assert (seen.state, seen.pending[0].reason) == (RunState.SUSPENDED, "storage_full")
        stats = runtime.stats()
        assert (stats.running, stats.suspended, stats.free_slots) == (0, 1, 1)
        await full.empty()
        assert (await resumed).run_id == "r"
        assert (await asyncio.wait_for(handle.result(), PATIENCE)).output == "acted"
        assert acted == [kind]
        assert (await runtime.runs.get("r")).state == RunState.COMPLETED
        assert runtime.stats().suspended == 0


@pytest.mark.semantics("F3")
async def test_an_outcome_without_room_is_held_and_written_and_never_made_again(full: FullStore) -> None:
    paid: list[str] = []

    @tool
    async def pay() -> str:
        """Pay."""
        paid.append("once")
        await full.fill()
        return "x" * 20_000

    agent = Agent("a", model=caller("pay"), tools=[pay])
    async with Runtime([agent], store=full.store) as runtime:
        suspended = await told(runtime, "run.suspended")
        handle = await runtime.submit(agent, "go", run_id="r", session_id="s")
        assert "held" in (await suspended).pending[0].message
        await full.empty()
        assert (await asyncio.wait_for(handle.result(), PATIENCE)).output == "done"
        assert paid == ["once"]
        assert [message.role for message in await runtime.sessions.transcript("s")] == [
            "user", "assistant", "tool", "assistant",
        ]  # fmt: skip
        sequences = [event.sequence async for event in runtime.events("r") if event.sequence is not None]
        assert sorted(set(sequences)) == [*range(max(sequences) + 1)]


@pytest.mark.semantics("F4")
async def test_nothing_of_a_session_overtakes_what_is_held(full: FullStore) -> None:
    acted: list[int] = []
    all_began, is_full = asyncio.Barrier(8), asyncio.Event()

    async def act(n: int) -> str:
        acted.append(n)
        await all_began.wait()
        if n == 0:
            await full.fill()
            is_full.set()
        await is_full.wait()
        return "x" * 10_000

    async def pattern(ctx: RunContext[Any]) -> list[str]:
        async def branch(ctx: RunContext[Any], n: int) -> str:
            return await ctx.step("act", act, n)

        return [*(await ctx.map(branch, {str(n): n for n in range(8)})).values()]

    agent = Agent("a", pattern=pattern, output_type=list[str])
    async with Runtime([agent], store=full.store) as runtime:
        suspended = await told(runtime, "run.suspended")
        handle = await runtime.submit(agent, "go", run_id="r", session_id="s")
        await suspended
        await full.empty()
        assert (await asyncio.wait_for(handle.result(), PATIENCE)).output == ["x" * 10_000] * 8
        assert sorted(acted) == [*range(8)]
        ordinals = [stored.record.ordinal for stored in await full.store.read_log("s")]
        assert ordinals == [*range(len(ordinals))]


@pytest.mark.semantics("F5")
async def test_cancelling_answers_at_once_and_what_has_happened_is_still_written(full: FullStore) -> None:
    @tool
    async def pay() -> str:
        """Pay."""
        await full.fill()
        return "x" * 20_000

    agent = Agent("a", model=caller("pay"), tools=[pay])
    async with Runtime([agent], store=full.store) as runtime:
        suspended = await told(runtime, "run.suspended")
        handle = await runtime.submit(agent, "go", run_id="r", session_id="s")
        await suspended
        assert await asyncio.wait_for(runtime.cancel("r", reason="enough"), PATIENCE)
        result = await handle.result()
        assert (result.stop_reason, result.pending[0].reason) == ("cancelled", "storage_full")
        assert (await runtime.runs.get("r")).state == RunState.SUSPENDED
        cancelled = await told(runtime, "run.cancelled")
        await full.empty()
        await cancelled
        assert (await runtime.runs.get("r")).state == RunState.CANCELLED
        transcript = await runtime.sessions.transcript("s")
        assert [message.text[:5] for message in transcript if message.role == "tool"] == ["xxxxx"]
        after = Agent("b", model=ScriptedModel(lambda _: "and now?"))
        runtime.agents.register(after)
        assert (await asyncio.wait_for(runtime.run(after, "go", session_id="s"), PATIENCE)).output == "and now?"


async def test_a_run_that_only_waits_to_begin_something_is_cancelled_on_disk_at_once(full: FullStore) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await full.fill_until_nothing_begins()
        return (await ctx.generate("go")).text

    agent = Agent("a", model=ScriptedModel(lambda _: "done"), pattern=pattern)
    async with Runtime([agent], store=full.store) as runtime:
        suspended = await told(runtime, "run.suspended")
        await runtime.submit(agent, "go", run_id="r")
        await suspended
        assert await asyncio.wait_for(runtime.cancel("r"), PATIENCE)
        assert (await runtime.runs.get("r")).state == RunState.CANCELLED
        assert runtime.stats().suspended == 0


@pytest.mark.semantics("F6")
async def test_closing_gives_up_what_is_held_and_leaves_what_the_log_says(full: FullStore) -> None:
    paid: list[str] = []

    @tool(on_in_doubt="tell")
    async def pay() -> str:
        """Pay."""
        paid.append("once")
        await full.fill()
        return "x" * 20_000

    agent = Agent("a", model=caller("pay"), tools=[pay])
    runtime = Runtime([agent], store=full.store, drain_timeout=0.1)
    await runtime.start()
    suspended = await told(runtime, "run.suspended")
    handle = await runtime.submit(agent, "go", run_id="r", session_id="s")
    await suspended
    result = asyncio.ensure_future(handle.result())
    await asyncio.wait_for(runtime.aclose(), PATIENCE)
    assert (await result).stop_reason == "interrupted"
    assert (await result).error_details is not None
    assert (await result).error_details.code == "store_full"
    async with Runtime([agent], store=full.store) as later:
        await full.empty()
        again = await asyncio.wait_for(later.wait("r"), PATIENCE)
        assert again.output == "done"
        assert paid == ["once"]
        steps = await later.runs.steps("r")
        assert [step.error.code for step in steps if step.error is not None] == ["call_in_doubt"]


@pytest.mark.semantics("F7")
async def test_a_start_without_room_fails_no_run_and_carries_them_on_once_there_is_some(full: FullStore) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.attempt == 1 and ctx.run_id != "r2":
            await asyncio.Event().wait()
        return "done"

    agent = Agent("a", pattern=pattern)
    limits = RuntimeLimits(max_concurrent_runs=2)
    async with Runtime([agent], store=full.store, limits=limits, drain_timeout=0) as runtime:
        for n in range(3):
            await runtime.submit(agent, "go", run_id=f"r{n}", session_id=f"s{n}")
        await full.fill()
    async with Runtime([agent], store=full.store) as runtime:
        assert runtime.stats().recovered == 3
        assert (runtime.stats().running, runtime.stats().queued) == (0, 3)
        with pytest.raises(StoreFullError):
            await runtime.cancel("r2")
        await full.empty()
        for n in range(3):
            assert (await asyncio.wait_for(runtime.wait(f"r{n}"), PATIENCE)).output == "done"


async def test_a_run_whose_turn_came_while_it_was_taken_in_waits_for_room_like_any_other(
    full: FullStore, until: Any
) -> None:
    may_end = asyncio.Event()

    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.run_id == "first":
            await may_end.wait()
        return "done"

    agent = Agent("a", pattern=pattern)
    async with Runtime([agent], store=full.store, limits=RuntimeLimits(max_concurrent_runs=1)) as runtime:
        suspended = await told(runtime, "run.suspended")
        first = await runtime.submit(agent, "go", run_id="first")
        held_back = HeldBack(full.store, "s")
        submitting = asyncio.ensure_future(runtime.submit(agent, "go", run_id="second", session_id="s"))
        await until(lambda: len(held_back.commits) == 1)  # its entry
        may_end.set()
        await first.result()
        await until(lambda: runtime.stats().running == 1)
        for _ in range(100):
            await asyncio.sleep(0)
        held_back.let_through()
        handle = await asyncio.wait_for(submitting, PATIENCE)
        await until(lambda: len(held_back.commits) == 1)  # its first record
        await full.fill_until_nothing_begins()
        held_back.let_all_through()
        assert (await suspended).run_id == "second"
        await full.empty()
        assert (await asyncio.wait_for(handle.result(), PATIENCE)).output == "done"


@pytest.mark.parametrize("ends", ["cancelled", "closing"])
async def test_a_run_that_is_stopped_while_it_is_taken_in_and_its_turn_has_come_is_what_the_disk_says(
    full: FullStore, until: Any, ends: str
) -> None:
    may_end = asyncio.Event()

    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.run_id == "first":
            await may_end.wait()
        return "done"

    agent = Agent("a", pattern=pattern)
    runtime = Runtime([agent], store=full.store, limits=RuntimeLimits(max_concurrent_runs=1))
    await runtime.start()
    first = await runtime.submit(agent, "go", run_id="first")
    held_back = HeldBack(full.store, "s")
    submitting = asyncio.ensure_future(runtime.submit(agent, "go", run_id="second", session_id="s"))
    await until(lambda: len(held_back.commits) == 1)
    may_end.set()
    await first.result()
    await until(lambda: runtime.stats().running == 1)
    stopping = asyncio.ensure_future(runtime.cancel("second") if ends == "cancelled" else runtime.aclose())
    for _ in range(100):
        await asyncio.sleep(0)
    held_back.let_all_through()
    handle = await asyncio.wait_for(submitting, PATIENCE)
    await asyncio.wait_for(stopping, PATIENCE)
    assert (await handle.result()).stop_reason == ("cancelled" if ends == "cancelled" else "interrupted")
    await runtime.aclose()
    async with Runtime([agent], store=full.store) as later:
        again = await asyncio.wait_for(later.wait("second"), PATIENCE)
        assert again.stop_reason == ("cancelled" if ends == "cancelled" else "completed")


async def test_a_run_that_has_to_wait_for_another_process_and_cannot_be_written_is_refused(until: Any) -> None:
    class Refusing(MemoryStore):
        """As where another process has the session, and has just taken the last of the room."""

        def commit(self, batch: Any, fence: Any, loop: Any, acknowledge: Any) -> None:
            refusal = StoreFullError("no room") if fence is None else SessionLockedError("another has it")
            loop.call_soon(acknowledge, refusal)

    agent = Agent("a", model=ScriptedModel(lambda _: "done"))
    async with Runtime([agent], store=Refusing()) as runtime:
        with pytest.raises(StoreFullError):
            await asyncio.wait_for(runtime.submit(agent, "go", run_id="r", session_id="s"), PATIENCE)
        await until(lambda: runtime.stats().running == runtime.stats().queued == 0)


@pytest.mark.semantics("F8")
async def test_time_that_a_run_waits_for_room_does_not_count(full: FullStore) -> None:
    async def act() -> str:
        await full.fill()
        return "x" * 20_000

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.step("act", act)
        return await ctx.step("again", quick)

    async def quick() -> str:
        return "done"

    agent = Agent("a", pattern=pattern, budget=RunBudget(max_duration=1.0), step_timeout=1.0)
    clock = FakeClock()
    async with Runtime([agent], store=full.store, clock=clock) as runtime:
        suspended = await told(runtime, "run.suspended")
        handle = await runtime.submit(agent, "go", run_id="r")
        await suspended
        clock.advance(1.5)
        await asyncio.sleep(0)
        assert runtime.stats().suspended == 1
        await full.empty()
        result = await asyncio.wait_for(handle.result(), PATIENCE)
        assert result.output == "done", result.error_details
