"""Leaving the runtime for threads: by its end, an exception, an interrupt, from another thread, or several."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from callboard import (
    Agent,
    RunContext,
    RuntimeClosedError,
    RuntimeLimits,
    SyncRuntime,
    WouldDeadlockError,
    tool,
)
from callboard_protocol.event_base import Event
from callboard_storage.lmdb_store import LmdbStore

PATIENCE = 20.0


class World:
    """A tool that acts until it may end, and what it has done."""

    def __init__(self, path: Path) -> None:
        self._path = path / "data"
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.acted: list[str] = []

        @tool
        def act(run_id: str) -> str:
            """Act, in a thread."""
            self.begun.set()
            assert self.gate.wait(PATIENCE)
            self.acted.append(run_id)
            return "acted"

        async def pattern(ctx: RunContext[Any]) -> str:
            first = await ctx.call_tool("act", run_id=ctx.run_id)
            await ctx.step("last", _nothing)
            return str(first)

        self.agent = Agent("worker", pattern=pattern, tools=[act])

    def runtime(self, **options: Any) -> SyncRuntime:
        return SyncRuntime([self.agent], store=LmdbStore(self._path, map_size=1 << 30), **options)

    def carries_on(self, run_id: str = "r") -> str:
        with self.runtime() as runtime:
            return str(runtime.wait(run_id).output)


async def _nothing() -> None:
    pass


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _draining(runtime: SyncRuntime) -> bool:
    try:
        return runtime.health().draining
    except RuntimeClosedError:
        return False


def _calls(runtime: SyncRuntime) -> int:
    """How many calls of other threads it has to answer."""

    async def count() -> int:
        return sum(task.get_name().endswith("_call_func") for task in asyncio.all_tasks()) - 1

    portal = runtime._portal
    assert portal is not None
    return portal.call(count)


def _names(events: Iterator[Event], reading: threading.Event) -> list[str]:
    names = []
    for event in events:
        reading.set()
        names.append(event.name)
    return names


def test_leaving_by_an_exception_drains_and_raises_it(world: World) -> None:
    def leave() -> None:
        with world.runtime(drain_timeout=PATIENCE) as runtime:
            runtime.submit(world.agent, "go", run_id="r")
            assert world.begun.wait(PATIENCE)
            threading.Timer(0.05, world.gate.set).start()
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        leave()
    assert world.acted == ["r"]
    assert world.carries_on() == "acted"
    assert world.acted == ["r"]


def test_an_interrupt_while_runs_are_in_flight_drains(world: World) -> None:
    def leave() -> None:
        with world.runtime(drain_timeout=PATIENCE) as runtime:
            main = threading.main_thread().ident
            assert main is not None

            def interrupt() -> None:
                assert world.begun.wait(PATIENCE)
                signal.pthread_kill(main, signal.SIGINT)
                _until(lambda: _draining(runtime))
                world.gate.set()

            threading.Thread(target=interrupt).start()
            runtime.run(world.agent, "go", run_id="r")

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert world.acted == ["r"]
    assert world.carries_on() == "acted"
    assert world.acted == ["r"]


def test_a_second_interrupt_ends_the_patience_and_closes_all_the_same(world: World) -> None:
    def leave() -> None:
        with world.runtime(drain_timeout=3600) as runtime:
            runtime.submit(world.agent, "go", run_id="r")
            assert world.begun.wait(PATIENCE)
            main = threading.main_thread().ident
            assert main is not None

            def interrupt() -> None:
                _until(lambda: _draining(runtime))
                signal.pthread_kill(main, signal.SIGINT)

            threading.Thread(target=interrupt).start()

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("callboard-watchdog")]
    world.gate.set()
    with world.runtime() as runtime:
        # Its call was cut short, and may or may not have acted.
        assert runtime.wait("r").stop_reason == "suspended"


def test_another_thread_may_close_it_and_calls_that_wait_are_answered(world: World) -> None:
    with ThreadPoolExecutor(8) as threads:
        runtime = world.runtime(drain_timeout=PATIENCE)
        runtime.start()
        handle = runtime.submit(world.agent, "go", run_id="r")
        assert world.begun.wait(PATIENCE)
        waiting = [threads.submit(runtime.wait, "r"), threads.submit(handle.result)]
        _until(lambda: _calls(runtime) == len(waiting))
        reading = threading.Event()
        events = threads.submit(_names, handle.events(), reading)
        assert reading.wait(PATIENCE)
        closing = [threads.submit(runtime.close) for _ in range(3)]
        _until(lambda: _draining(runtime))
        assert not any(one.done() for one in closing)
        world.gate.set()
        for one in closing:
            one.result(PATIENCE)
        assert [one.result(PATIENCE).stop_reason for one in waiting] == ["interrupted", "interrupted"]
        assert "tool.succeeded" in events.result(PATIENCE)
        for call in (runtime.stats, runtime.health, lambda: runtime.wait("r")):
            with pytest.raises(RuntimeClosedError):
                call()
        runtime.close()
    assert world.carries_on() == "acted"


def test_closing_on_its_own_loops_thread_is_refused_and_leaves_it_open(world: World) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        with pytest.raises(WouldDeadlockError):
            runtime.close()
        return "still open"

    agent = Agent("closer", pattern=pattern)
    with SyncRuntime([agent]) as runtime:
        assert runtime.run(agent, "go").output == "still open"
        assert runtime.health().status == "healthy"


def test_health_answers_while_the_loop_is_blocked() -> None:
    may_end = threading.Event()

    async def pattern(ctx: RunContext[Any]) -> str:
        assert may_end.wait(PATIENCE)  # blocks the loop
        return "done"

    agent = Agent("blocker", pattern=pattern)
    with SyncRuntime([agent], limits=RuntimeLimits(loop_blocked_after=0.05)) as runtime, ThreadPoolExecutor(1) as other:
        running = other.submit(runtime.run, agent, "go", run_id="r")
        _until(lambda: runtime.health().loop_block is not None)
        block = runtime.health().loop_block
        assert block is not None
        assert (block.ended, block.run_id) == (False, "r")
        may_end.set()
        assert running.result(PATIENCE).output == "done"
