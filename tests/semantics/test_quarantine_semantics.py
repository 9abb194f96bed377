"""R and E: what a record that cannot be read costs, and what it does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from callboard import (
    Agent,
    DamagedRecordError,
    RunContext,
    ScriptedModel,
    UnknownSessionError,
    WindowMemory,
)
from callboard_protocol.records import RunResumed
from callboard_protocol.states import RunState
from callboard_storage import upkeep

pytestmark = pytest.mark.anyio


def record(session_id: str, sequence: int) -> bytes:
    return session_id.encode() + b"\0" + sequence.to_bytes(8, "big")


@pytest.fixture
def worker(place: Any, die: Any) -> Agent[None, str]:
    """It takes a step, is killed in its first attempt where its input says so, and takes another."""

    async def act(name: str) -> str:
        place.note(name)
        return name

    async def pattern(ctx: RunContext[Any]) -> str:
        first = await ctx.step("first", act, f"first of {ctx.run_id}")
        if ctx.attempt == 1 and ctx.input_text == "die":
            die()
        if ctx.attempt == 1 and ctx.input_text == "wait":
            await asyncio.Event().wait()
        await ctx.step("second", act, f"second of {ctx.run_id}")
        return f"{first}, then the rest at attempt {ctx.attempt}"

    return Agent("worker", pattern=pattern)


@pytest.mark.semantics("R12")
def test_a_run_whose_session_cannot_be_read_is_parked_until_it_can(place: Any, worker: Any) -> None:
    async def look(runtime: Any) -> None:
        result = await runtime.wait("r")
        assert (result.stop_reason, result.error_details.code) == ("interrupted", "damaged_record")
        assert result.error_details.context["session_id"] == "s"
        assert result.error_details.context["sequence"] == 1
        assert "fork" in result.error_details.hint
        assert [one.reason for one in result.pending] == ["parked"]
        assert "record 1 of session 's' fails its checksum" in result.pending[0].message
        assert runtime.stats().parked == 1
        assert (await runtime.runs.get("r")).state == RunState.RUNNING
        # Nobody is there to register, and registering somebody does not help.
        runtime.agents.register(Agent("another"))
        assert runtime.stats().parked == 1

    place.live_until_killed([worker], lambda runtime: runtime.run(worker, "die", run_id="r", session_id="s"))
    place.flip("log", record("s", 1))
    for _ in range(4):  # more often than a run may strike
        place.live([worker], look)
    place.flip("log", record("s", 1))
    assert place.carry_on([worker], "r").output == "first of r, then the rest at attempt 2"
    assert place.noted == ["first of r", "second of r"]
    (resumed,) = [one for one in asyncio.run(place.log("s")) if isinstance(one, RunResumed)]
    assert resumed.strikes == 0


@pytest.mark.semantics("R13")
def test_other_sessions_and_runs_go_on_and_are_listed(place: Any, worker: Any) -> None:
    async def leave_three(runtime: Any) -> None:
        await runtime.run(worker, "x", run_id="ended", session_id="old")
        await runtime.submit(worker, "wait", run_id="a", session_id="one")
        await runtime.submit(worker, "wait", run_id="b", session_id="two")
        await runtime.run(worker, "die", run_id="c", session_id="three")

    async def look(runtime: Any) -> None:
        for run_id in ("b", "c"):
            assert (await runtime.wait(run_id)).output.endswith("the rest at attempt 2")
        assert (await runtime.run(worker, "x", session_id="new")).stop_reason == "completed"
        assert await runtime.sessions.list() == ["new", "old", "one", "three", "two"]
        listed = {entry.run_id for entry in await runtime.runs.list()}
        assert {"a", "b", "c"} <= listed
        assert "ended" not in listed
        assert len(await runtime.sessions.transcript("two")) > 0
        with pytest.raises(DamagedRecordError, match="record 0 of session 'one'"):
            await runtime.sessions.transcript("one")
        with pytest.raises(DamagedRecordError, match="the entry of run 'ended'"):
            await runtime.runs.get("ended")
        assert runtime.health().healthy

    place.live_until_killed([worker], leave_three)
    place.flip("log", record("one", 0))
    place.flip("runs", b"ended")
    place.live([worker], look)


@pytest.mark.semantics("R14")
def test_a_new_run_of_a_session_that_cannot_be_read_is_kept_and_returns_at_once(place: Any, worker: Any) -> None:
    async def submit(runtime: Any) -> None:
        handle = await runtime.submit(worker, "x", run_id="new", session_id="s")
        assert (await handle.result()).stop_reason == "interrupted"
        assert (await runtime.run(worker, "x", run_id="newer", session_id="s")).stop_reason == "interrupted"
        forgotten = await runtime.run(worker, "x", run_id="fleeting", session_id="s", durable=False)
        assert (forgotten.stop_reason, forgotten.error_details.code) == ("failed", "damaged_record")
        assert (await runtime.runs.get("new")).state == RunState.QUEUED
        assert runtime.stats().parked == 2

    async def see_both(runtime: Any) -> list[str]:
        return [(await runtime.wait(run_id)).output for run_id in ("new", "newer")]

    place.live([worker], lambda runtime: runtime.run(worker, "x", run_id="old", session_id="s"))
    place.flip("log", record("s", 1))
    place.live([worker], submit)
    place.flip("log", record("s", 1))
    assert place.live([worker], see_both) == [
        f"first of {run_id}, then the rest at attempt 1" for run_id in ("new", "newer")
    ]


def test_a_memory_that_cannot_be_read_parks_a_run_without_a_strike(place: Any) -> None:
    agent = Agent("rememberer", model=ScriptedModel(lambda _: "fine"), memory=WindowMemory())

    async def look(runtime: Any) -> None:
        result = await (await runtime.submit(agent, "again", run_id="r", session_id="s")).result()
        assert (result.stop_reason, result.error_details.code) == ("interrupted", "damaged_record")
        assert "the memory entry" in result.error_details.message
        assert (await runtime.runs.get("r")).state == RunState.INTERRUPTED

    async def keys() -> list[bytes]:
        store = place.store()
        await store.open()
        try:
            return [b"s\0" + entry.name.encode() for entry in await store.read_memory("s")]
        finally:
            await store.close()

    place.live([agent], lambda runtime: runtime.run(agent, "once", session_id="s"))
    (key,) = asyncio.run(keys())
    place.flip("memory", key)
    for _ in range(4):
        place.live([agent], look)
    place.flip("memory", key)
    assert place.carry_on([agent], "r").output == "fine"


@pytest.mark.semantics("R15")
def test_a_run_whose_session_cannot_be_read_can_be_cancelled_and_the_session_deleted(place: Any, worker: Any) -> None:
    async def clear(runtime: Any) -> None:
        await runtime.wait("begun")
        await runtime.run(worker, "x", run_id="new", session_id="s")
        assert runtime.stats().parked == 2
        assert await runtime.cancel("begun", reason="hopeless")
        assert await runtime.cancel("new")
        assert runtime.stats().parked == 0
        assert {entry.state for entry in await runtime.runs.list()} == {RunState.CANCELLED}
        assert (await runtime.sessions.delete("s")).records == 2
        with pytest.raises(UnknownSessionError):
            await runtime.sessions.get("s")
        assert (await runtime.run(worker, "x", session_id="s")).stop_reason == "completed"
        assert not runtime.health().degraded

    place.live_until_killed([worker], lambda runtime: runtime.run(worker, "die", run_id="begun", session_id="s"))
    place.flip("log", record("s", 0))
    place.live([worker], clear)


@pytest.mark.semantics("E14")
def test_what_cannot_be_read_is_told_once_and_health_names_it_until_it_is_mended(place: Any, worker: Any) -> None:
    async def look(runtime: Any) -> None:
        assert runtime.health().status == "healthy"
        watching = await runtime.subscribe(names=["store.record_quarantined"])
        for _ in range(3):
            with pytest.raises(DamagedRecordError):
                await runtime.sessions.transcript("s")
            with pytest.raises(DamagedRecordError):
                await runtime.runs.get("r")
        runtime.unsubscribe(watching)
        of_log, of_run = [event async for event in watching]
        assert (of_log.session_id, of_log.run_id, of_log.table, of_log.key) == ("s", None, "log", "s#1")
        assert (of_run.session_id, of_run.run_id, of_run.table, of_run.key) == (None, "r", "runs", "r")
        assert "restore a backup" in of_run.hint
        health = runtime.health()
        assert (health.status, health.healthy, health.degraded) == ("degraded", True, True)
        assert [one.key for one in health.quarantined] == ["s#1", "r"]
        assert runtime.stats().quarantined == 2
        # The bytes are still there, and verification says the same of them.
        await runtime.sessions.delete("s")
        assert runtime.health().status == "healthy"

    place.live([worker], lambda runtime: runtime.run(worker, "x", run_id="r", session_id="s"))
    place.flip("log", record("s", 1))
    place.flip("runs", b"r")
    report = upkeep.verify(place.data)
    assert {(one.table, one.key) for one in report.problems} == {("log", "s#1"), ("runs", "r")}
    place.live([worker], look)


@pytest.mark.parametrize("is_mended", [True, False])
@pytest.mark.parametrize("on_crash", ["resume", "restart"])
def test_a_run_whose_childs_session_cannot_be_read_is_parked_until_that_is_mended_or_it_is_cancelled(
    place: Any, die: Any, on_crash: Any, is_mended: bool
) -> None:
    async def act() -> None:
        if place.happens_first("died"):
            die()

    async def work(ctx: RunContext[Any]) -> str:
        await ctx.step("act", act)
        return "worked"

    async def lead(ctx: RunContext[Any]) -> str:
        return (await ctx.delegate("worker", "go")).output

    agents = [Agent("worker", pattern=work), Agent("boss", pattern=lead)]

    async def start(runtime: Any) -> None:
        await runtime.run("boss", "go", run_id="r", session_id="s", on_crash=on_crash)

    async def look(runtime: Any) -> None:
        result = await runtime.wait("r")
        assert (result.stop_reason, result.error_details.code) == ("interrupted", "damaged_record")
        assert "record 0 of session 'session-r:0'" in result.pending[0].message

    async def cancel(runtime: Any) -> None:
        await look(runtime)
        assert await runtime.cancel("r", reason="hopeless")
        assert {entry.state for entry in await runtime.runs.list()} == {RunState.CANCELLED}
        assert runtime.stats().parked == 0
        await runtime.sessions.delete("session-r:0")

    place.live_until_killed(agents, start)
    place.flip("log", record("session-r:0", 0))
    for _ in range(4):  # more often than a run may strike
        place.live(agents, look)
    if is_mended:
        place.flip("log", record("session-r:0", 0))
        assert place.carry_on(agents, "r").output == "worked"
    else:
        place.live(agents, cancel)
