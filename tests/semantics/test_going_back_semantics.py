"""T: checkpoints, going back to them, and forking at them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import pytest
from pydantic import BaseModel

from callboard import (
    Agent,
    DamagedRecordError,
    Message,
    ModelRequest,
    RunBudget,
    RunContext,
    RuntimeBusyError,
    ScriptedModel,
    SessionExistsError,
    ToolCall,
    ToolContext,
    UnknownCheckpointError,
    UnknownRunError,
    UnknownSessionError,
    tool,
)
from callboard.memory import Exchange
from callboard_storage import keys

pytestmark = pytest.mark.anyio


class Ledger(BaseModel):
    entries: list[str] = []


async def write(ctx: RunContext[Any]) -> str:
    """Says its input, keeps it in the session's state and as an artifact, and answers."""
    ctx.state.entries.append(ctx.input_text)
    await ctx.add_artifact(ctx.input_text, len(ctx.state.entries))
    return (await ctx.generate()).text


def writer(model: Any = None) -> Agent[Any, str]:
    return Agent("writer", pattern=write, state_type=Ledger, model=model or ScriptedModel(shown))


def shown(request: ModelRequest) -> str:
    """What the model was shown, in short."""
    return "-".join(message.text for message in request.messages if message.role == "user")


async def looks_like(runtime: Any, session_id: str) -> tuple[list[str], Any, list[str], int]:
    """A session as its users see it: what was said, its last state, its artifacts, its model calls."""
    transcript = [message.text for message in await runtime.sessions.transcript(session_id)]
    artifacts = [one.artifact.name for one in await runtime.sessions.artifacts(session_id)]
    head = await runtime.sessions.get(session_id)
    assert (head.transcript_length, head.artifact_count) == (len(transcript), len(artifacts))
    last = await runtime.sessions.checkpoint(session_id, "now")
    assert (last.transcript_length, last.artifact_count) == (len(transcript), len(artifacts))
    return transcript, last.state, artifacts, last.usage.llm_calls


def ids(checkpoints: Sequence[Any]) -> list[str]:
    return [one.checkpoint_id for one in checkpoints]


# ---- checkpoints


@pytest.mark.semantics("T1")
def test_every_completed_step_of_every_run_leaves_one_checkpoint_whatever_befalls_its_process(
    place: Any, die: Callable[[], Any]
) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.sleep(0)
        for number in range(3):
            await ctx.step("count", count, number)
        await ctx.call_tool("act")
        return "done"

    async def count(number: int) -> int:
        if number == 2 and place.happens_first("died"):
            die()
        return number

    @tool
    async def act() -> str:
        """Act, with an intent on disk before it."""
        return "acted"

    agent = Agent("counter", pattern=pattern, tools=[act])

    async def begin(runtime: Any) -> None:
        await runtime.run(agent, "go", run_id="a", session_id="s")

    async def listed(runtime: Any) -> list[str]:
        return ids(await runtime.sessions.checkpoints("s"))

    async def told(runtime: Any) -> list[str]:
        return [event.checkpoint_id async for event in runtime.events("a") if event.name == "run.checkpoint_saved"]

    place.live_until_killed([agent], begin)
    assert place.live([agent], listed, recover=False) == ["a:step:0", "a:step:1", "a:step:2"]
    place.carry_on([agent], "a")
    assert place.live([agent], listed) == ["a:step:0", "a:step:1", "a:step:2", "a:step:3", "a:step:4"]
    assert place.live([agent], told) == place.live([agent], listed)


@pytest.mark.semantics("T2")
async def test_a_checkpoint_says_what_the_session_looked_like_then(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.generate("first")
        ctx.state.entries.append("changed")
        await ctx.add_artifact("made", 1)
        return (await ctx.generate("second")).text

    agent = Agent("worker", pattern=pattern, state_type=Ledger, model=ScriptedModel(shown))
    async with place.runtime(agent) as runtime:
        for run_id in ("a", "b"):
            await runtime.run(agent, "go", run_id=run_id, session_id="s")
        found = {one.checkpoint_id: one for one in await runtime.sessions.checkpoints("s")}
        assert [
            (
                one.run_id,
                one.step_index,
                one.transcript_length,
                (one.state or {"entries": []})["entries"],
                one.artifact_count,
                one.usage.llm_calls,
            )
            for one in found.values()
        ] == [
            ("a", 0, 1, [], 0, 0),
            ("a", 1, 3, [], 0, 1),
            ("a", 2, 3, ["changed"], 1, 1),
            ("a", 3, 5, ["changed"], 1, 2),
            ("b", 0, 6, ["changed"], 1, 2),
            ("b", 1, 8, ["changed"], 1, 3),
            ("b", 2, 8, ["changed"] * 2, 2, 3),
            ("b", 3, 10, ["changed"] * 2, 2, 4),
        ]
        for checkpoint_id, checkpoint in found.items():
            assert await runtime.sessions.get_checkpoint("s", checkpoint_id) == checkpoint


@pytest.mark.semantics("T3")
async def test_a_checkpoint_that_does_not_exist_is_refused_and_the_nearest_named(place: Any) -> None:
    agent = writer()
    async with place.runtime(agent) as runtime:
        await runtime.run(agent, "one", run_id="a", session_id="s")
        for ask in (
            runtime.run(agent, "two", run_id="b", session_id="s", resume_from_checkpoint="a:step:22"),
            runtime.submit(agent, "two", run_id="b", session_id="s", resume_from_checkpoint="a:step:3"),
            runtime.sessions.get_checkpoint("s", "a:stp:2"),
            runtime.sessions.fork("s", "t", "a:step:02"),
        ):
            with pytest.raises(UnknownCheckpointError, match="did you mean 'a:step:2'"):
                await ask
        with pytest.raises(UnknownCheckpointError, match="'elsewhere' has no checkpoint"):
            await runtime.run(agent, "two", run_id="b", session_id="elsewhere", resume_from_checkpoint="a:step:2")
        with pytest.raises(UnknownRunError):
            await runtime.runs.get("b")
        assert await runtime.sessions.list() == ["s"]
        assert (await runtime.run(agent, "two", run_id="b", session_id="s")).output == "one-two"


# ---- going back


@pytest.mark.semantics("T4")
async def test_a_run_that_goes_back_and_those_after_it_stand_on_the_checkpoint(place: Any) -> None:
    agent = writer()
    async with place.runtime(agent) as runtime:
        await runtime.run(agent, "one", run_id="a", session_id="s")
        was = await looks_like(runtime, "s")
        await runtime.run(agent, "two", run_id="b", session_id="s")
        back = await runtime.run(agent, "three", run_id="c", session_id="s", resume_from_checkpoint="a:step:2")
        assert back.output == "one-three"
        assert await looks_like(runtime, "s") == (
            [*was[0], "three", "one-three"],
            {"entries": ["one", "three"]},
            ["one", "three"],
            2,
        )
        assert (await runtime.run(agent, "four", session_id="s")).output == "one-three-four"
        assert (await runtime.sessions.get("s")).usage.llm_calls == 3
        assert len(await runtime.runs.steps("b")) == 2


@pytest.mark.semantics("T5")
async def test_a_run_that_goes_back_is_a_run_of_its_own(place: Any) -> None:
    @tool(read_only=True)
    async def look(ctx: ToolContext[Any]) -> str:
        """Look."""
        place.note(ctx.call_id)
        return "seen"

    def think(request: ModelRequest) -> Any:
        return "fine" if request.messages[-1].role == "tool" else ToolCall(name="look")

    agent = Agent("clerk", model=ScriptedModel(think), tools=[look], budget=RunBudget(max_steps=2))
    async with place.runtime(agent) as runtime:
        first = await runtime.run(agent, "go", run_id="a", session_id="s")
        second = await runtime.run(agent, "go", run_id="b", session_id="s", resume_from_checkpoint="a:step:1")
        again = await runtime.run(agent, "go", run_id="b", session_id="s", resume_from_checkpoint="a:step:1")
        assert (first.stop_reason, second.stop_reason) == ("completed", "completed")
        assert (second.usage.llm_calls, second.usage.tool_calls) == (2, 1)
        assert again.usage == second.usage
        assert place.noted == ["a:1.0", "b:1.0"]
        assert [step.step for step in await runtime.runs.steps("b")] == ["0", "1.0", "2"]


@pytest.mark.semantics("T6")
async def test_a_call_that_was_open_at_the_checkpoint_is_answered(place: Any) -> None:
    @tool(read_only=True, concurrency_safe=False)
    async def look(n: int) -> int:
        """Look."""
        return n * 10

    def think(request: ModelRequest) -> Any:
        if request.messages[-1].text == "look":
            return [ToolCall(name="look", arguments={"n": n}, id=f"call-{n}") for n in (1, 2, 3)]
        return "fine"

    agent = Agent("clerk", model=ScriptedModel(think), tools=[look])
    async with place.runtime(agent) as runtime:
        await runtime.run(agent, "look", run_id="a", session_id="s")
        await runtime.run(agent, "go on", run_id="b", session_id="s", resume_from_checkpoint="a:step:2")
        transcript = [(one.role, one.text, one.tool_call_id) for one in await runtime.sessions.transcript("s")]
    why = "not answered: the session went back to checkpoint a:step:2"
    assert transcript == [
        ("user", "look", None),
        ("assistant", "", None),
        ("tool", "10", "call-1"),
        ("tool", why, "call-2"),
        ("tool", why, "call-3"),
        ("user", "go on", None),
        ("assistant", "fine", None),
    ]


class Counting:
    """Says how often it was asked, and keeps what was said."""

    on_error = "fail"

    def __init__(self) -> None:
        self.asked = 0

    async def inject(self, held: Mapping[str, Any], message: Message) -> Sequence[str]:
        self.asked += 1
        return [f"asked {self.asked} times"]

    async def writeback(self, held: Mapping[str, Any], exchange: Exchange) -> Mapping[str, Any]:
        return {exchange.run_id: exchange.asked}


@pytest.mark.semantics("T7")
async def test_memory_is_not_asked_again_by_a_run_that_goes_back(place: Any) -> None:
    memory = Counting()
    systems: list[str] = []

    def note(request: ModelRequest) -> str:
        systems.append(request.messages[0].text)
        return "fine"

    agent = Agent("keeper", instructions="Be brief.", model=ScriptedModel(note), memory=memory)
    async with place.runtime(agent) as runtime:
        await runtime.run(agent, "one", run_id="a", session_id="s")
        await runtime.run(agent, "two", run_id="b", session_id="s")
        for run_id, checkpoint_id in (("c", "a:step:2"), ("d", "c:step:1")):
            await runtime.run(agent, "go", run_id=run_id, session_id="s", resume_from_checkpoint=checkpoint_id)
        held = {entry.name for entry in await runtime.sessions._store.read_memory("s")}
    said = ["Be brief.\n\nasked 1 times", "Be brief.\n\nasked 2 times"]
    assert systems == [*said, said[0], said[0]]
    assert memory.asked == 2
    assert held == {"a", "b", "c", "d"}


@pytest.mark.semantics("T8")
async def test_any_checkpoint_can_be_gone_back_to_again_and_again(place: Any) -> None:
    agent = writer()
    async with place.runtime(agent) as runtime:

        async def go(said: str, checkpoint_id: str | None = None) -> str:
            result = await runtime.run(agent, said, run_id=said, session_id="s", resume_from_checkpoint=checkpoint_id)
            assert await looks_like(runtime, "s") == expected(result.output.split("-"))
            return result.output

        def expected(said: list[str]) -> Any:
            talk = [text for n, one in enumerate(said, 1) for text in (one, "-".join(said[:n]))]
            return talk, {"entries": said}, said, len(said)

        assert await go("a") == "a"
        assert await go("b") == "a-b"
        assert await go("c") == "a-b-c"
        assert await go("d", "a:step:2") == "a-d"
        assert await go("e", "c:step:2") == "a-b-c-e", "one that counts no more"
        assert await go("f", "d:step:2") == "a-d-f", "one behind a point the session went back to"
        assert await go("g", "d:step:2") == "a-d-g", "the same again"
        assert await go("h", "b:step:2") == "a-b-h"
        assert await go("i") == "a-b-h-i"
        assert len(await runtime.sessions.checkpoints("s")) == 9 * 3 + 1


@pytest.mark.semantics("T9")
@pytest.mark.parametrize(("number", "when"), [(0, "before"), (0, "after"), (1, "after"), (2, "before"), (2, "after")])
def test_a_process_killed_as_a_run_goes_back_leaves_all_of_it_or_nothing(
    place: Any, killed_by_commit: Any, number: int, when: str
) -> None:
    agent = writer()

    async def before(runtime: Any) -> Any:
        for said in ("a", "b"):
            await runtime.run(agent, said, run_id=said, session_id="s")
        return await looks_like(runtime, "s")

    async def go_back(runtime: Any) -> str:
        result = await runtime.run(agent, "c", run_id="c", session_id="s", resume_from_checkpoint="a:step:2")
        return result.output

    async def see(runtime: Any) -> Any:
        return await looks_like(runtime, "s"), [entry.run_id for entry in await runtime.runs.list()]

    was = place.live([agent], before)
    place.live_until_killed([agent], go_back, store=killed_by_commit(number, when))
    found, runs = place.live([agent], see, recover=False)
    if (number, when) == (0, "before"):
        assert (found, runs) == (was, ["a", "b"])
    else:
        assert found[0][:3] == ["a", "a", "c"]
        assert runs == ["a", "b", "c"]
    assert place.live([agent], go_back) == "a-c"
    (transcript, state, artifacts, calls), runs = place.live([agent], see)
    assert (transcript, state, artifacts, calls) == (["a", "a", "c", "a-c"], {"entries": ["a", "c"]}, ["a", "c"], 2)
    assert runs == ["a", "b", "c"]


@pytest.mark.semantics("T10")
async def test_a_run_that_goes_back_waits_its_turn(place: Any) -> None:
    opened = asyncio.Event()

    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.input_text == "wait":
            await opened.wait()
        return (await ctx.generate()).text

    agent = Agent("patient", pattern=pattern, model=ScriptedModel(shown))
    async with place.runtime(agent) as runtime:
        await runtime.run(agent, "one", run_id="a", session_id="s")
        await runtime.sessions.checkpoint("s", "mine")
        first = await runtime.submit(agent, "wait", run_id="b", session_id="s")
        with pytest.raises(RuntimeBusyError):
            await runtime.run(agent, "x", session_id="s", resume_from_checkpoint="a:step:1", on_busy="reject")
        second = await runtime.submit(agent, "back", run_id="c", session_id="s", resume_from_checkpoint="a:step:1")
        third = await runtime.submit(agent, "named", run_id="d", session_id="s", resume_from_checkpoint="mine")
        twin = await runtime.submit(agent, "named", run_id="d", session_id="s", resume_from_checkpoint="mine")
        await runtime.sessions.checkpoint("s", "mine")
        opened.set()
        assert (await first.result()).output == "one-wait"
        assert (await second.result()).output == "one-back"
        assert (await third.result()).output == (await twin.result()).output == "one-wait-named"


# ---- forking


@pytest.mark.semantics("T11")
async def test_a_fork_is_what_its_source_was_and_shares_nothing_with_it(place: Any) -> None:
    agent = Agent("writer", pattern=write, state_type=Ledger, model=ScriptedModel(shown), memory=Counting())
    async with place.runtime(agent) as runtime:
        for said in ("a", "b"):
            await runtime.run(agent, said, run_id=said, session_id="s")
        await runtime.sessions.checkpoint("s", "mine")
        was = await looks_like(runtime, "s")
        listed = ids(await runtime.sessions.checkpoints("s"))
        await runtime.run(agent, "c", run_id="c", session_id="s")

        head = await runtime.sessions.fork("s", "t", "mine")
        assert head == await runtime.sessions.get("t")
        assert head.active_run is None
        assert ids(await runtime.sessions.checkpoints("t")) == listed
        assert await looks_like(runtime, "t") == was
        store = runtime.sessions._store
        assert {entry.name for entry in await store.read_memory("t")} == {"a", "b", "c"}

        later = await looks_like(runtime, "s")
        assert (await runtime.run(agent, "x", session_id="t")).output == "a-b-x"
        assert (await runtime.run(agent, "y", session_id="t", resume_from_checkpoint="a:step:3")).output == "a-y"
        assert await looks_like(runtime, "s") == later
        assert {entry.name for entry in await store.read_memory("s")} == {"a", "b", "c"}
        await runtime.sessions.delete("s")
        assert (await runtime.run(agent, "z", run_id="a", session_id="t")).output == "a-y-z", "the run id was free"
        assert (await looks_like(runtime, "t"))[1] == {"entries": ["a", "y", "z"]}


@pytest.mark.semantics("T12")
async def test_a_session_with_a_run_in_progress_is_forked_at_its_last_checkpoint(place: Any) -> None:
    reached, opened = asyncio.Event(), asyncio.Event()

    @tool
    async def act() -> str:
        """Act, with an intent on disk before it."""
        reached.set()
        await opened.wait()
        return "acted"

    def think(request: ModelRequest) -> Any:
        return ToolCall(name="act", id="call-1") if request.messages[-1].text == "go" else "fine"

    agent = Agent("clerk", model=ScriptedModel(think), tools=[act])
    async with place.runtime(agent) as runtime:
        handle = await runtime.submit(agent, "go", run_id="a", session_id="s")
        await reached.wait()
        head = await runtime.sessions.fork("s", "t")
        assert (head.active_run, head.usage.llm_calls) == (None, 1)
        assert [message.text for message in await runtime.sessions.transcript("t")] == [
            "go",
            "",
            "not answered: the session was forked at checkpoint a:step:1",
        ]
        assert (await runtime.run(agent, "more", session_id="t")).output == "fine"
        opened.set()
        assert (await handle.result()).output == "fine"
        assert (await runtime.runs.get("a")).session_id == "s"
        assert [message.text for message in await runtime.sessions.transcript("s")] == ["go", "", "acted", "fine"]


@pytest.mark.semantics("T13")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_killed_as_it_forks_leaves_the_whole_fork_or_nothing(
    place: Any, killed_by_commit: Any, when: str
) -> None:
    agent = writer()

    async def before(runtime: Any) -> Any:
        for said in ("a", "b"):
            await runtime.run(agent, said, run_id=said, session_id="s")
        return await looks_like(runtime, "s")

    async def fork(runtime: Any) -> None:
        await runtime.sessions.fork("s", "t")

    async def see(runtime: Any) -> list[str]:
        listed: list[str] = await runtime.sessions.list()
        figures = await runtime.sessions._store.figures()
        assert figures.sessions == len(listed)
        return listed

    async def look(runtime: Any) -> Any:
        with pytest.raises(SessionExistsError):
            await fork(runtime)
        return await looks_like(runtime, "t"), await looks_like(runtime, "s")

    was = place.live([agent], before)
    place.live_until_killed([agent], fork, store=killed_by_commit(0, when))
    found = place.live([agent], see, recover=False)
    assert found == (["s"] if when == "before" else ["s", "t"])
    if when == "before":
        place.live([agent], fork)
    assert place.live([agent], look) == (was, was)


@pytest.mark.semantics("T14")
async def test_what_came_before_a_damaged_record_can_be_read_and_forked(place: Any) -> None:
    agent = writer()
    async with place.runtime(agent) as runtime:
        for said in ("a", "b", "c"):
            await runtime.run(agent, said, run_id=said, session_id="s")
        await runtime.sessions.fork("s", "whole", "b:step:1")
        was = await looks_like(runtime, "whole")
        damaged = (await runtime.sessions.get_checkpoint("s", "b:step:2")).log_position - 1
    damage(place.data, "s", damaged)
    async with place.runtime(agent) as runtime:
        for ask in (
            runtime.sessions.checkpoints("s"),
            runtime.sessions.fork("s", "t"),
            runtime.sessions.fork("s", "t", "c:step:1"),
        ):
            with pytest.raises(DamagedRecordError, match="'b:step:1'"):
                await ask
        with pytest.raises(UnknownSessionError):
            await runtime.sessions.get("t")
        assert (await runtime.sessions.get_checkpoint("s", "b:step:1")).artifact_count == 2
        await runtime.sessions.fork("s", "t", "b:step:1")
        assert await looks_like(runtime, "t") == was
        assert (await runtime.run(agent, "d", session_id="t")).output == "a-b-d"
        assert (await runtime.sessions.delete("s")).records == 12


def damage(data: Path, session_id: str, sequence: int) -> None:
    """Have a record's bytes change behind the store's back."""
    key = keys.session_prefix(session_id) + keys.pack_sequence(sequence)
    environment = lmdb.open(str(data), map_size=1 << 30, max_dbs=16)
    log = environment.open_db(b"log")
    with environment.begin(write=True, db=log) as transaction:
        frame = transaction.get(key)
        transaction.put(key, frame[:-1] + bytes([frame[-1] ^ 1]))
    environment.close()
