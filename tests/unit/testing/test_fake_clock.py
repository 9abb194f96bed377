"""The clock that stands still: what happens when it is moved, and what does not before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from callboard import (
    Agent,
    ModelError,
    ReceiveTimeoutError,
    Retry,
    RunBudget,
    RunContext,
    Runtime,
    RuntimeLimits,
    ScriptedModel,
    ToolCall,
    ToolDeniedError,
    UsageError,
    tool,
)
from callboard.testing import FakeClock

pytestmark = pytest.mark.anyio

A_YEAR = timedelta(days=365)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (the condition is the runtime's own state: nobody sets an event for it)
            await asyncio.sleep(0)


# ---- the clock by itself


async def test_it_stands_still_until_it_is_advanced(fake_clock: FakeClock) -> None:
    before = fake_clock.time(), fake_clock.monotonic()
    await asyncio.sleep(0.01)
    assert (fake_clock.time(), fake_clock.monotonic()) == before
    fake_clock.advance(timedelta(minutes=1))
    assert (fake_clock.time(), fake_clock.monotonic()) == (before[0] + 60, before[1] + 60)


async def test_what_is_due_happens_in_the_order_in_which_it_was_due(fake_clock: FakeClock) -> None:
    happened: list[str] = []
    for delay, name in ((3, "c"), (1, "a"), (2, "b"), (2, "b too"), (5, "later")):
        fake_clock.call_later(delay, happened.append, name)
    fake_clock.advance(4)
    await asyncio.sleep(0)
    assert happened == ["a", "b", "b too", "c"]
    assert fake_clock.next_due == 1


async def test_what_was_cancelled_does_not_happen_even_if_it_was_due_already(fake_clock: FakeClock) -> None:
    happened: list[str] = []
    early = fake_clock.call_later(1, happened.append, "early")
    late = fake_clock.call_later(1, happened.append, "late")
    early.cancel()
    fake_clock.advance(1)
    late.cancel()
    await asyncio.sleep(0)
    assert happened == []
    assert fake_clock.next_due is None


async def test_a_sleep_that_is_cancelled_is_waited_for_no_more(fake_clock: FakeClock) -> None:
    sleeper = asyncio.create_task(fake_clock.sleep(10))
    await fake_clock.until_sleeping()
    sleeper.cancel()
    await asyncio.wait([sleeper])
    assert fake_clock.sleepers == 0


async def test_no_delay_needs_no_advance(fake_clock: FakeClock) -> None:
    await asyncio.wait_for(fake_clock.sleep(0), 5)


async def test_it_may_be_advanced_from_another_thread(fake_clock: FakeClock) -> None:
    sleeper = asyncio.create_task(fake_clock.sleep(10))
    await fake_clock.until_sleeping()
    await asyncio.to_thread(fake_clock.advance, 10)
    await asyncio.wait_for(sleeper, 5)


async def test_waiting_for_sleepers_that_do_not_come_says_how_many_came(fake_clock: FakeClock) -> None:
    with pytest.raises(TimeoutError, match="0 of 2 came"):
        await fake_clock.until_sleeping(2, patience=0.01)


@pytest.mark.parametrize("duration", [-1, float("nan"), "soon"])
def test_it_goes_forward_only(duration: Any, fake_clock: FakeClock) -> None:
    with pytest.raises(UsageError, match="makes no sense"):
        fake_clock.advance(duration)


def test_it_begins_at_an_instant_with_a_time_zone() -> None:
    assert FakeClock(datetime(2031, 5, 1, tzinfo=UTC)).time() == datetime(2031, 5, 1, tzinfo=UTC).timestamp()
    with pytest.raises(UsageError, match="time zone"):
        FakeClock(datetime(2031, 5, 1))  # noqa: DTZ001  (what is refused)


def test_what_tells_no_time_is_no_clock() -> None:
    with pytest.raises(UsageError, match="tells no time"):
        Runtime(clock=lambda: 0.0)  # type: ignore[arg-type]


# ---- what of the runtime it drives


async def test_a_run_sleeps_until_the_clock_is_advanced_and_reads_its_time(
    runtime: Runtime, fake_clock: FakeClock
) -> None:
    async def wait_a_year(ctx: RunContext[None]) -> str:
        before = ctx.now()
        await ctx.sleep(A_YEAR)
        return str(ctx.now() - before)

    async with runtime:
        runtime.agents.register(Agent("a", pattern=wait_a_year))
        handle = await runtime.submit("a", "go")
        await fake_clock.until_sleeping()
        assert (await runtime.runs.get(handle.run_id)).submitted_at == fake_clock.time()
        fake_clock.advance(A_YEAR)
        assert (await handle.result()).output == str(A_YEAR)


async def test_a_run_is_out_of_time_when_the_clock_says_so(runtime: Runtime, fake_clock: FakeClock) -> None:
    hanging = asyncio.Event()

    @tool(read_only=True, timeout=None)
    async def hang() -> str:
        """Hang."""
        hanging.set()
        await asyncio.Event().wait()
        return ""

    agent = Agent(
        "a", model=ScriptedModel([ToolCall(name="hang")]), tools=[hang], budget=RunBudget(max_duration=A_YEAR)
    )
    async with runtime:
        runtime.agents.register(agent)
        handle = await runtime.submit(agent, "go")
        await hanging.wait()
        fake_clock.advance(A_YEAR)
        assert (await handle.result()).stop_reason == "budget_exhausted"


async def test_a_step_runs_past_its_time_when_the_clock_says_so(runtime: Runtime, fake_clock: FakeClock) -> None:
    hanging = asyncio.Event()

    async def hang() -> None:
        hanging.set()
        await asyncio.Event().wait()

    async def pattern(ctx: RunContext[None]) -> str:
        await ctx.step("hang", hang)
        return ""

    async with runtime:
        runtime.agents.register(Agent("a", pattern=pattern, step_timeout=A_YEAR))
        handle = await runtime.submit("a", "go")
        await hanging.wait()
        fake_clock.advance(A_YEAR)
        assert (await handle.result()).stop_reason == "timeout"


async def test_a_tool_runs_past_its_timeout_when_the_clock_says_so(runtime: Runtime, fake_clock: FakeClock) -> None:
    hanging = asyncio.Event()

    @tool(read_only=True, timeout=A_YEAR)
    async def hang() -> str:
        """Hang."""
        hanging.set()
        await asyncio.Event().wait()
        return ""

    model = ScriptedModel(lambda request: request.messages[-1].text if hanging.is_set() else ToolCall(name="hang"))
    async with runtime:
        runtime.agents.register(Agent("a", model=model, tools=[hang]))
        handle = await runtime.submit("a", "go")
        await hanging.wait()
        fake_clock.advance(A_YEAR)
        assert "ran past its timeout" in (await handle.result()).output


async def pauses_between_attempts(agent: Agent[None, str], runtime: Runtime, fake_clock: FakeClock) -> str:
    async with runtime:
        runtime.agents.register(agent)
        handle = await runtime.submit(agent, "go")
        await fake_clock.until_sleeping()
        fake_clock.advance(A_YEAR)
        return (await handle.result()).output


async def test_a_model_is_asked_again_when_the_clock_says_so(runtime: Runtime, fake_clock: FakeClock) -> None:
    model = ScriptedModel([ModelError("busy", retryable=True, context={"retry_after": 3600}), "at last"])
    assert await pauses_between_attempts(Agent("a", model=model), runtime, fake_clock) == "at last"


async def test_a_tool_is_called_again_when_the_clock_says_so(runtime: Runtime, fake_clock: FakeClock) -> None:
    calls: list[int] = []

    @tool(read_only=True, retry=Retry(attempts=2, delay=3600))
    async def flaky() -> str:
        """Fail once."""
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("not yet")
        return "at last"

    model = ScriptedModel(lambda request: request.messages[-1].text if calls else ToolCall(name="flaky"))
    assert await pauses_between_attempts(Agent("a", model=model, tools=[flaky]), runtime, fake_clock) == "at last"


async def test_an_idle_session_is_parked_when_the_clock_says_so(fake_clock: FakeClock) -> None:
    agent = Agent("a", model=ScriptedModel(["done"]))
    async with Runtime([agent], limits=RuntimeLimits(session_idle=A_YEAR), clock=fake_clock) as runtime:
        await runtime.run(agent, "go")
        assert runtime.stats().active_sessions == 1
        fake_clock.advance(A_YEAR)
        await until(lambda: runtime.stats().active_sessions == 0)


@pytest.mark.parametrize(("before", "seconds"), [(0, 0.1), (0, 86_400.7), (8.4, 86_400.9)])
async def test_an_approval_and_a_receive_run_out_when_the_clock_says_so(
    runtime: Runtime, fake_clock: FakeClock, before: float, seconds: float
) -> None:
    """Also where floats make the instant that was computed a hair later than the one that has come."""
    fake_clock.advance(before)

    @tool(approval=True, approval_timeout=seconds)
    async def act() -> str:
        """Act."""
        return "acted"

    async def wait_for_people(ctx: RunContext[None]) -> str:
        with pytest.raises(ToolDeniedError):
            await ctx.call_tool("act")
        with pytest.raises(ReceiveTimeoutError):
            await ctx.receive("words", str, timeout=seconds)
        return "nobody came"

    async with runtime:
        runtime.agents.register(Agent("a", pattern=wait_for_people, tools=[act]))
        result = await runtime.run("a", "go", run_id="r")
        assert result.stop_reason == "suspended"
        fake_clock.advance(seconds)
        await fake_clock.until_sleeping()
        fake_clock.advance(seconds)
        assert (await runtime.wait("r")).output == "nobody came"


async def test_a_sleep_that_outlives_its_runtime_ends_at_the_instant_it_was_to_end(tmp_path: Any) -> None:
    clock = FakeClock()

    async def wait_a_year(ctx: RunContext[None]) -> str:
        await ctx.sleep(A_YEAR)
        return "slept"

    agent = Agent("a", pattern=wait_a_year)

    async def one_life(then: Callable[[Runtime], Awaitable[Any]]) -> Any:
        async with Runtime([agent], store=tmp_path / "data", clock=clock) as runtime:
            return await then(runtime)

    async def begin(runtime: Runtime) -> None:
        await runtime.submit(agent, "go", run_id="r")
        await clock.until_sleeping()

    await one_life(begin)
    clock.advance(A_YEAR)
    assert (await one_life(lambda runtime: runtime.wait("r"))).output == "slept"
