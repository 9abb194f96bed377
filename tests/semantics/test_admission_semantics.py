"""S: taking runs in, their order, and what a session keeps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from callboard import (
    Agent,
    InvalidIdentifierError,
    RunConflictError,
    RunContext,
    RuntimeBusyError,
    RuntimeLimits,
    ScriptedModel,
    SyncRuntime,
    ToolCall,
    UnknownAccountError,
    UnknownAgentError,
    UnknownRunError,
    UnknownSessionError,
    UsageError,
    tool,
)
from callboard_protocol.states import RunState
from callboard_storage.store_values import Deletion

pytestmark = pytest.mark.anyio


class Gate:
    """Runs that pass one by one, in the order in which the test lets them."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._open = asyncio.Event()

    async def pattern(self, ctx: RunContext[Any]) -> str:
        self.begun.append(ctx.run_id)
        await self._open.wait()
        return ctx.run_id

    def open(self) -> None:
        self._open.set()


def gated() -> tuple[Gate, Agent[None, str]]:
    gate = Gate()
    return gate, Agent("gated", pattern=gate.pattern)


def echo(agent_id: str = "echo") -> Agent[None, str]:
    """Says what its model was shown."""
    return Agent(agent_id, model=ScriptedModel(lambda request: "|".join(one.text for one in request.messages)))


# ---- taking runs in


@pytest.mark.semantics("S1")
@pytest.mark.parametrize("waits", [False, True])
def test_a_run_is_on_disk_once_submit_has_returned(place: Any, die: Any, waits: bool) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.run_id == "first" and ctx.attempt == 1:
            await asyncio.Event().wait()
        return f"done at attempt {ctx.attempt}"

    agent = Agent("worker", pattern=pattern)

    async def submit(runtime: Any) -> None:
        await runtime.submit(agent, "go", run_id="first", session_id="s")
        if waits:
            await runtime.submit(agent, "go", run_id="second", session_id="s")
        die()

    place.live_until_killed([agent], submit)
    assert place.carry_on([agent], "second" if waits else "first").output == f"done at attempt {1 if waits else 2}"


@pytest.mark.semantics("S2")
def test_the_same_request_under_the_same_run_id_runs_once(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        place.note(ctx.run_id)
        await gate.wait()
        return "done"

    agent = Agent("worker", pattern=pattern)
    gate = asyncio.Event()

    async def submit_often(runtime: Any) -> list[Any]:
        async def submit(run_id: str) -> Any:
            return await runtime.submit(agent, "go", run_id=run_id, session_id="s", metadata={"job": 7})

        running = [*await asyncio.gather(submit("job"), submit("job")), await submit("job")]
        waiting = [await submit("later"), await submit("later")]
        gate.set()
        results = [await handle.result() for handle in (*running, *waiting)]
        ended = [await (await submit(run_id)).result() for run_id in ("job", "later")]
        return [result.output for result in (*results, *ended)]

    assert place.live([agent], submit_often) == ["done"] * 7
    assert place.live([agent], submit_often) == ["done"] * 7
    assert place.noted == ["job", "later"]


@pytest.mark.semantics("S3")
async def test_another_request_under_a_known_run_id_is_a_conflict_and_disturbs_nothing(place: Any) -> None:
    gate, agent = gated()
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "go", run_id="job", session_id="s")
        for changed in ({"session_id": "t"}, {"session_id": "s", "metadata": {"a": 1}}):
            with pytest.raises(RunConflictError, match="job"):
                await runtime.submit(agent, "go", run_id="job", **changed)
        with pytest.raises(RunConflictError, match="job"):
            await runtime.run(agent, "go away", run_id="job", session_id="s")
        gate.open()
        assert (await handle.result()).output == "job"
        with pytest.raises(RunConflictError, match="job"):
            await runtime.submit(agent, "something else", run_id="job", session_id="s")
        assert (await runtime.wait("job")).output == "job"
        assert gate.begun == ["job"]


@pytest.mark.semantics("S4")
async def test_what_cannot_run_raises_at_once_and_leaves_nothing_on_disk(place: Any) -> None:
    agent = echo("helper")
    async with place.runtime(agent) as runtime:
        with pytest.raises(UnknownAgentError, match="did you mean 'helper'"):
            await runtime.submit("helpr", "go", run_id="job")
        for bad in ({"run_id": ""}, {"session_id": "a\0b"}, {"run_id": "x" * 201}):
            with pytest.raises(InvalidIdentifierError):
                await runtime.run(agent, "go", **bad)
        with pytest.raises(UsageError, match="did you mean 'session_id'"):
            await runtime.run(agent, "go", sesion_id="s")
        with pytest.raises(UnknownAccountError, match="'team'"):
            await runtime.run(agent, "go", account="team")
        assert await runtime.runs.list() == []
        assert await runtime.sessions.list() == []


@pytest.mark.semantics("S5")
@pytest.mark.parametrize(
    "limits",
    [
        RuntimeLimits(max_concurrent_runs=1, max_queued_runs=1),
        RuntimeLimits(max_queued_per_session=1),
    ],
)
async def test_past_a_limit_a_submission_is_refused_at_once_and_nothing_of_it_is_kept(place: Any, limits: Any) -> None:
    gate, agent = gated()
    async with place.runtime(agent, limits=limits) as runtime:
        handles = [await runtime.submit(agent, "go", run_id=run_id, session_id="s") for run_id in ("a", "b")]
        with pytest.raises(RuntimeBusyError, match="max_queued"):
            await runtime.submit(agent, "go", run_id="c", session_id="s")
        with pytest.raises(UnknownRunError):
            await runtime.runs.get("c")
        handles.append(await runtime.submit(agent, "go", run_id="b", session_id="s"))
        gate.open()
        assert [(await handle.result()).output for handle in handles] == ["a", "b", "b"]
        assert (await runtime.run(agent, "something else", run_id="c", session_id="s")).output == "c"


@pytest.mark.semantics("S6")
async def test_on_busy_reject_refuses_a_run_while_its_session_has_another(place: Any) -> None:
    gate, agent = gated()
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "go", run_id="a", session_id="s", on_busy="reject")
        with pytest.raises(RuntimeBusyError, match="another run"):
            await runtime.submit(agent, "go", session_id="s", on_busy="reject")
        elsewhere = await runtime.submit(agent, "go", run_id="b", session_id="t", on_busy="reject")
        gate.open()
        assert [(await one.result()).output for one in (handle, elsewhere)] == ["a", "b"]
        assert (await runtime.run(agent, "go", run_id="c", session_id="s", on_busy="reject")).output == "c"


# ---- order


@pytest.mark.semantics("S7")
async def test_a_session_has_one_run_at_a_time_in_the_order_they_were_submitted(place: Any) -> None:
    at_work: list[str] = []
    most = 0

    async def pattern(ctx: RunContext[Any]) -> str:
        nonlocal most
        at_work.append(ctx.run_id)
        most = max(most, len(at_work))
        await ctx.generate()
        at_work.remove(ctx.run_id)
        place.note(ctx.run_id)
        return "done"

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(["thought"]))
    async with place.runtime(agent) as runtime:
        handles = [await runtime.submit(agent, "go", run_id=f"r{n}", session_id="s") for n in range(8)]
        assert [(await handle.result()).output for handle in handles] == ["done"] * 8
    assert most == 1
    assert place.noted == [f"r{n}" for n in range(8)]


@pytest.mark.semantics("S8")
async def test_runs_of_different_sessions_go_side_by_side_up_to_the_limit_and_then_in_order(
    place: Any, until: Any
) -> None:
    gates = {f"r{n}": asyncio.Event() for n in range(6)}
    begun: list[str] = []

    async def pattern(ctx: RunContext[Any]) -> str:
        begun.append(ctx.run_id)
        await gates[ctx.run_id].wait()
        return "done"

    agent = Agent("worker", pattern=pattern)
    async with place.runtime(agent, limits=RuntimeLimits(max_concurrent_runs=2)) as runtime:
        handles = [await runtime.submit(agent, "go", run_id=run_id, session_id=run_id) for run_id in gates]
        await until(lambda: len(begun) == 2)
        for n in range(2, 6):
            assert runtime.stats().running == 2
            assert begun == [f"r{m}" for m in range(n)]
            gates[f"r{n - 1}"].set()
            await until(lambda n=n: len(begun) == n + 1)
        for gate in gates.values():
            gate.set()
        assert [(await handle.result()).output for handle in handles] == ["done"] * 6


@pytest.mark.semantics("S9")
def test_the_order_of_runs_survives_a_crash(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.run_id == "r0" and ctx.attempt == 1:
            await asyncio.Event().wait()
        place.note(ctx.run_id)
        return "done"

    agent = Agent("worker", pattern=pattern)
    limits = RuntimeLimits(max_concurrent_runs=1)

    async def submit(runtime: Any) -> None:
        for n in range(6):
            await runtime.submit(agent, "go", run_id=f"r{n}", session_id="s" if n % 2 == 0 else f"s{n}")
        die()

    async def wait_for_all(runtime: Any) -> None:
        for n in range(6):
            assert (await runtime.wait(f"r{n}")).output == "done"

    place.live_until_killed([agent], submit, limits=limits)
    place.live([agent], wait_for_all, limits=limits)
    assert place.noted == [f"r{n}" for n in range(6)]


@pytest.mark.semantics("S10")
async def test_a_run_that_sleeps_leaves_its_slot_and_keeps_its_session(place: Any, until: Any) -> None:
    async def nap(branch: RunContext[Any], seconds: float) -> None:
        await branch.sleep(seconds)

    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.input_text == "sleep":
            await ctx.map(nap, {"a": 0.05, "b": 0.1, "c": 0.1})
        place.note(ctx.run_id)
        return "done"

    agent = Agent("worker", pattern=pattern)
    async with place.runtime(agent, limits=RuntimeLimits(max_concurrent_runs=1)) as runtime:
        handles = [
            await runtime.submit(agent, "sleep", run_id="sleeper", session_id="s"),
            await runtime.submit(agent, "go", run_id="behind it", session_id="s"),
            await runtime.submit(agent, "go", run_id="beside it", session_id="t"),
        ]
        assert [(await handle.result()).output for handle in handles] == ["done"] * 3
        await until(lambda: runtime.stats().running == 0)
        assert runtime.stats().free_slots == 1
    assert place.noted == ["beside it", "sleeper", "behind it"]


@tool(approval=True)
async def pay() -> str:
    """Pay."""
    return "paid"


@pytest.mark.semantics("S11")
async def test_a_suspended_run_holds_no_slot_and_keeps_its_session(place: Any) -> None:
    payer = Agent("payer", model=ScriptedModel([ToolCall(name="pay"), "done"]), tools=[pay])
    agent = echo()
    async with place.runtime(payer, agent, limits=RuntimeLimits(max_concurrent_runs=1)) as runtime:
        suspended = await runtime.run(payer, "pay", run_id="suspended", session_id="s")
        assert suspended.stop_reason == "suspended"
        later = await runtime.submit(agent, "later", run_id="later", session_id="s")
        assert (await runtime.run(agent, "elsewhere", session_id="t")).output == "elsewhere"
        assert (await runtime.runs.get("later")).state == RunState.QUEUED
        with pytest.raises(RuntimeBusyError):
            await runtime.run(agent, "now", session_id="s", on_busy="reject")
        await runtime.cancel("suspended")
        assert (await later.result()).stop_reason == "completed"


# ---- what a session keeps


@pytest.mark.semantics("S12")
async def test_a_run_sees_what_earlier_runs_of_its_session_said(place: Any) -> None:
    agent = echo()
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "one", session_id="s")).output == "one"
        assert (await runtime.run(agent, "other", session_id="t")).output == "other"
        assert (await runtime.run(agent, "two", session_id="s")).output == "one|one|two"
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "three", session_id="s")).output == "one|one|two|one|one|two|three"


class Tally(BaseModel):
    count: int = 0


@pytest.mark.semantics("S13")
async def test_the_state_of_a_session_carries_from_run_to_run(place: Any) -> None:
    async def nothing() -> None: ...

    async def pattern(ctx: RunContext[Any]) -> str:
        ctx.state.count += 1
        await ctx.step("nothing", nothing)
        ctx.state.count += 10
        if ctx.input_text == "fail":
            raise ValueError("no")
        return str(ctx.state.count)

    agent = Agent("counter", pattern=pattern, state_type=Tally)
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "go", session_id="s")).output == "11"
        assert (await runtime.run(agent, "go", session_id="s")).output == "22"
        assert (await runtime.run(agent, "fail", session_id="s")).stop_reason == "failed"
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "go", session_id="s")).output == "34"
        assert (await runtime.run(agent, "go", session_id="t")).output == "11"


@pytest.mark.semantics("S14")
async def test_past_the_limit_idle_sessions_are_parked_and_go_on_as_if_never_parked(place: Any, until: Any) -> None:
    agent = echo()
    async with place.runtime(agent, limits=RuntimeLimits(max_active_sessions=2)) as runtime:
        first = await asyncio.gather(*(runtime.run(agent, f"a{n}", session_id=f"s{n}") for n in range(9)))
        assert [result.output for result in first] == [f"a{n}" for n in range(9)]
        await until(lambda: runtime.stats().active_sessions <= 2)
        for n in range(9):
            result = await runtime.run(agent, "b", session_id=f"s{n}")
            assert result.output == f"a{n}|a{n}|b"
            await until(lambda: runtime.stats().active_sessions <= 2)
    async with place.runtime(agent, limits=RuntimeLimits(session_idle=0)) as runtime:
        await runtime.run(agent, "c", session_id="s0")
        await until(lambda: runtime.stats().active_sessions == 0)


@pytest.mark.semantics("S15")
async def test_release_and_delete_take_idle_sessions_only(place: Any) -> None:
    gate, agent = gated()
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "go", session_id="s")
        waiting = await runtime.submit(agent, "go", session_id="s")
        assert await runtime.sessions.release("s") is False
        with pytest.raises(RuntimeBusyError):
            await runtime.sessions.delete("s")
        gate.open()
        await waiting.result()
        await handle.result()
        assert runtime.stats().active_sessions == 1
        assert await runtime.sessions.release("s") is True
        assert runtime.stats().active_sessions == 0
        gone = await runtime.sessions.delete("s")
        assert gone == Deletion(records=4, heads=1, checkpoints=2, runs=2)
        for method in (runtime.sessions.get, runtime.sessions.release, runtime.sessions.delete):
            with pytest.raises(UnknownSessionError):
                await method("s")
        with pytest.raises(UnknownRunError):
            await runtime.runs.get(handle.run_id)


# ---- threads


@pytest.mark.semantics("S16")
def test_the_runtime_without_a_loop_is_the_same_runtime(place: Any) -> None:
    agent = echo()
    with SyncRuntime([agent], store=place.store()) as runtime:
        assert runtime.run(agent, "one", session_id="s").output == "one"
        handle = runtime.submit(agent, "two", run_id="job", session_id="s")
        assert handle.result().output == "one|one|two"
        assert runtime.wait("job").output == "one|one|two"
        names = [event.name for event in handle.events()]
        assert names[0] == "run.started"
        assert names[-1] == "run.completed"
        assert [event.name for event in runtime.events("job")] == names
        assert [message.text for message in runtime.sessions.transcript("s")][:2] == ["one", "one"]
        assert [entry.run_id for entry in runtime.runs.list()][-1:] == ["job"]
        assert runtime.cancel("job") is False
        with pytest.raises(UnknownAgentError):
            runtime.run("nobody", "go")
