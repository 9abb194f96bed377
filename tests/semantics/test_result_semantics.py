"""E: results and events."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel

from callboard import (
    Agent,
    ModelRequest,
    RunContext,
    RunFailedError,
    ScriptedModel,
    ToolCall,
    ToolContext,
    UnknownRunError,
    UnpersistableValueError,
    UsageError,
    tool,
)
from callboard.events.subscription import Subscription
from callboard.models.base import Model
from callboard_protocol.model_calls import ModelDelta, ModelResponse
from callboard_protocol.records import RunBegan, RunEnded, RunResumed
from callboard_protocol.states import RunState
from callboard_storage.lmdb_store import LmdbStore

pytestmark = pytest.mark.anyio

T = TypeVar("T")


async def act() -> None: ...


# ---- results


@pytest.mark.semantics("E1")
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("bad luck"), "ValueError"),
        (UsageError("misused"), "usage"),
        (SystemExit(3), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError("not ours"), "step_failed"),
        (BaseExceptionGroup("several", [ValueError("one"), SystemExit()]), "BaseExceptionGroup"),
    ],
)
async def test_a_run_that_does_not_complete_returns_a_result_all_the_same(
    place: Any, error: BaseException, code: str
) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        raise error

    agent = Agent("worker", pattern=pattern)
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", run_id="r", session_id="s")
        assert (result.stop_reason, result.final_output) == ("failed", None)
        assert result.error_details.code == code
        with pytest.raises(RunFailedError, match="ended as 'failed'"):
            _ = result.output
        assert (await runtime.runs.get("r")).state == RunState.FAILED
        again = await runtime.wait("r")
        assert (again.stop_reason, again.error_details) == (result.stop_reason, result.error_details)
        assert runtime.stats().running == 0


class Answer(BaseModel):
    words: tuple[str, ...]
    marks: set[int]


@pytest.mark.semantics("E2")
@pytest.mark.parametrize(
    ("output_type", "said", "output"),
    [
        (str, "plain words", "plain words"),
        (int, "42", 42),
        (Answer, '```json\n{"words": ["a"], "marks": [1, 1]}\n```', Answer(words=("a",), marks={1})),
        (dict[int, list[bool]], '{"1": [true]}', {1: [True]}),
        (bool | None, "null", None),
    ],
)
async def test_the_output_has_the_agents_type_here_and_elsewhere(
    place: Any, output_type: Any, said: str, output: Any
) -> None:
    agent = Agent("worker", model=ScriptedModel([said]), output_type=output_type)
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "x", run_id="r")).output == output
    async with place.runtime(agent) as runtime:
        assert (await runtime.wait("r")).output == output
        assert (await runtime.run(agent, "x", run_id="r")).output == output


class Vault(BaseModel):
    password: str = "hunter2"  # noqa: S105  (a secret for the snapshot to leave out)
    opened: int = 0


@pytest.mark.semantics("E3")
async def test_a_failed_run_shows_what_it_looked_like_without_secrets(place: Any) -> None:
    @tool(read_only=True)
    async def login(user: str, api_key: str) -> str:
        """Log in."""
        return "welcome"

    async def pattern(ctx: RunContext[Any]) -> str:
        ctx.state.opened += 1
        response = await ctx.generate()
        await ctx.call_tools(response.tool_calls)
        raise ConnectionError("the line is dead")

    call = ToolCall(name="login", arguments={"user": "ann", "api_key": "s3cr3t"})
    agent = Agent("worker", pattern=pattern, model=ScriptedModel([call]), tools=[login], state_type=Vault)
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", run_id="r")
        snapshot = result.error_snapshot
        assert snapshot == (await runtime.wait("r")).error_snapshot
    assert (snapshot.type, snapshot.message) == ("ConnectionError", "the line is dead")
    assert 'raise ConnectionError("the line is dead")' in snapshot.traceback
    assert snapshot.tool_calls == ("login(r:1.0)",)
    assert [message.role for message in snapshot.last_messages] == ["user", "assistant", "tool"]
    assert snapshot.last_messages[1].tool_calls[0].arguments == {"user": "ann", "api_key": "[redacted]"}
    assert snapshot.state == {"password": "[redacted]", "opened": 1}
    assert snapshot.usage.llm_calls == 1
    assert "s3cr3t" not in snapshot.model_dump_json()
    assert "hunter2" not in snapshot.model_dump_json()


@pytest.mark.semantics("E4")
async def test_an_output_that_cannot_be_stored_fails_the_run_and_nothing_else(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> Any:
        if ctx.input_text == "bad":
            return object()
        return {"lone": "lone \ud800", "number": 7}.get(ctx.input_text, "fine")

    anything = Agent("anything", pattern=pattern, output_type=object)
    text = Agent("text", pattern=pattern)
    async with place.runtime(anything, text) as runtime:
        for agent, said, good, output in ((anything, "bad", "number", 7), (text, "lone", "text", "fine")):
            result = await runtime.run(agent, said, run_id=said, session_id="s")
            assert (result.stop_reason, result.error_details.code) == ("failed", "unpersistable_value")
            assert (await runtime.runs.get(said)).state == RunState.FAILED
            assert (await runtime.run(agent, good, session_id="s")).output == output
        log = await place.log("s")
        assert [record.stop_reason for record in log if isinstance(record, RunEnded)] == ["failed", "completed"] * 2


@pytest.mark.semantics("E5")
async def test_the_end_of_a_run_and_a_caller_leave_checkpoints(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        ctx.state.opened += 1
        await ctx.step("act", act)
        await ctx.add_artifact("made", ctx.state.opened)
        return (await ctx.generate()).text

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(["fine"]), state_type=Vault)
    async with place.runtime(agent) as runtime:
        await runtime.run(agent, "x", run_id="a", session_id="s")
        named = await runtime.sessions.checkpoint("s", "before-b")
        await runtime.run(agent, "y", run_id="b", session_id="s")
        kept = await runtime.sessions.checkpoints("s")
        head = await runtime.sessions.get("s")
    assert [(one.checkpoint_id, one.transcript_length, one.artifact_count) for one in kept if one.step_index == 3] == [
        ("a:step:3", 2, 1),
        ("before-b", 2, 1),
        ("b:step:3", 4, 2),
    ]
    at_a, at_name, at_b = [one for one in kept if one.step_index == 3]
    assert at_name == named
    assert [one.state["opened"] for one in (at_a, at_name, at_b)] == [1, 1, 2]
    assert at_a.log_position == at_name.log_position < at_b.log_position == head.next_sequence - 1


@pytest.mark.semantics("E6")
def test_the_steps_of_a_run_are_listed_in_the_order_they_completed(place: Any, die: Any) -> None:
    @tool(read_only=True)
    async def look(n: int) -> int:
        """Look."""
        if n == 0:
            await second.wait()
        second.set()
        return n

    second = asyncio.Event()

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.generate()
        await ctx.call_tools([ToolCall(name="look", arguments={"n": n}, id=str(n)) for n in (0, 1)])
        if place.happens_first("killed"):
            die()
        await ctx.step("act", act)
        return "done"

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(["go"]), tools=[look])

    async def look_at(runtime: Any) -> list[Any]:
        await runtime.wait("r")
        return [(step.step, step.kind, step.name, step.attempt) for step in await runtime.runs.steps("r")]

    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r"))
    assert place.live([agent], look_at) == [
        ("0", "generate", "", 1),
        ("1.1", "tool", "look", 1),
        ("1.0", "tool", "look", 1),
        ("2", "step", "act", 2),
    ]


# ---- events


def busy(place: Any) -> Agent[None, str]:
    """An agent whose runs publish events of many kinds."""

    @tool
    async def work(ctx: ToolContext, n: int) -> str:
        """Work."""
        await ctx.progress(1, 2, "half way")
        if n == 2:
            raise ValueError("two fails")
        return "\ud800" if n == 3 else "worked"

    async def item(branch: RunContext[Any], n: int) -> None:
        await branch.emit("my.item", {"n": n})

    async def pattern(ctx: RunContext[Any]) -> str:
        began = ctx.now()
        await ctx.branch("early").step("act", act)
        await ctx.generate("go on")
        calls = [ToolCall(name="work", arguments={"n": n}, id=str(n)) for n in (1, 2)]
        await ctx.call_tools([*calls, ToolCall(name="work", id="none"), ToolCall(name="nowhere", id="4")])
        with pytest.raises(UnpersistableValueError):
            await ctx.call_tool("work", n=3)
        await ctx.map(item, {"a": 1, "b": 2})
        await ctx.sleep(0)
        await ctx.add_artifact("when", began)
        return "done"

    return Agent("busy", pattern=pattern, model=ScriptedModel(["fine"]), tools=[work])


def at_once(reading: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        reading.send(None)
    except StopIteration as answer:
        return answer.value
    raise AssertionError("it waits")


class Announcing(LmdbStore):
    """A store that says when it is handed a commit to a log."""

    commits = 0
    told: Any = None

    def commit(self, batch: Any, fence: Any, loop: Any, acknowledge: Any) -> None:
        super().commit(batch, fence, loop, acknowledge)
        if fence is not None and batch.log:
            self.commits += 1
            if self.told is not None:
                self.told(self.commits)

    async def ordinals(self, session_id: str, run_id: str) -> set[int]:
        return {one.record.ordinal for one in await self.read_log(session_id) if one.record.run_id == run_id}


@pytest.mark.semantics("E7")
@pytest.mark.parametrize("number", [None, *range(1, 12)])
async def test_a_recorded_event_is_published_after_its_record_is_on_disk(place: Any, number: int | None) -> None:
    agent = busy(place)
    store = Announcing(place.data, map_size=1 << 30)
    offered: list[tuple[int | None, set[int]]] = []
    plain_offer = Subscription.offer

    def offer(self: Subscription, raw: Any) -> None:
        # In the bus's own turn: no reader could look earlier.
        offered.append((raw[5], at_once(store.ordinals("s", "r"))))
        plain_offer(self, raw)

    async with place.runtime(agent, store=store) as runtime:
        cancelling: list[Any] = []

        def told(commits: int) -> None:
            # A cancellation in mid-commit must not make anything known before its time.
            if commits == number:
                cancelling.append(asyncio.ensure_future(runtime.cancel("r")))

        store.told = told
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Subscription, "offer", offer)
            async with runtime.stream(agent, "x", run_id="r", session_id="s") as stream:
                seen = len([event async for event in stream])
                result = await stream.result()
        await asyncio.gather(*cancelling)
    assert result.stop_reason == ("completed" if number is None else "cancelled")
    assert len(offered) == seen
    recorded = [(sequence, on_disk) for sequence, on_disk in offered if sequence is not None]
    assert len({sequence for sequence, _ in recorded}) > (10 if number is None else 1)
    assert all(sequence in on_disk for sequence, on_disk in recorded)


@pytest.mark.semantics("E8")
@pytest.mark.parametrize("how", ["completes", "is resumed", "is cancelled"])
def test_sequences_of_a_run_have_no_gaps(place: Any, killed_by_commit: Any, how: str) -> None:
    agent = busy(place)

    async def follow(runtime: Any, start: Any) -> list[int]:
        subscription = await runtime.subscribe("r")
        await start()
        runtime.unsubscribe(subscription)
        return [event.sequence async for event in subscription if event.sequence is not None]

    async def run(runtime: Any) -> list[int]:
        return await follow(runtime, lambda: runtime.run(agent, "x", run_id="r", session_id="s"))

    if how == "completes":
        sequences = place.live([agent], run)
    elif how == "is resumed":
        place.live_until_killed([agent], run, store=killed_by_commit(7, "after"))
        sequences = place.live([agent], lambda runtime: follow(runtime, lambda: runtime.wait("r")))
        first = [record.ordinal for record in asyncio.run(place.log("s")) if isinstance(record, RunResumed)]
        assert [sequences[0]] == first
    else:
        # Over each commit in turn: whatever the store was just handed.
        for number in range(1, 12):
            run_id, store = f"r{number}", Announcing(place.data, map_size=1 << 30)

            async def cancel_over(runtime: Any, number: int = number, run_id: str = run_id, store: Any = store) -> Any:
                cancelling: list[Any] = []

                def told(commits: int) -> None:
                    if commits == number:
                        cancelling.append(asyncio.ensure_future(runtime.cancel(run_id)))

                store.told = told
                async with runtime.stream(agent, "x", run_id=run_id, session_id=run_id) as stream:
                    sequences = [event.sequence async for event in stream if event.sequence is not None]
                    assert (await stream.result()).stop_reason == "cancelled"
                await asyncio.gather(*cancelling)
                return sequences

            sequences = place.live([agent], cancel_over, store=store)
            assert sorted(set(sequences)) == [*range(max(sequences) + 1)], number
        return
    ordinals = [record.ordinal for record in asyncio.run(place.log("s"))]
    assert ordinals == [*range(len(ordinals))]
    assert sequences == sorted(sequences)
    assert sorted(set(sequences)) == [*range(sequences[0], len(ordinals))]


@pytest.mark.semantics("E9")
async def test_a_stream_sees_its_own_run_from_the_first_event_to_the_last(place: Any) -> None:
    agent = busy(place)
    async with place.runtime(agent) as runtime:

        async def watch(n: int) -> list[Any]:
            async with runtime.stream(agent, "x", run_id=f"r{n}", session_id=f"s{n % 3}") as stream:
                events = [event async for event in stream]
                assert (await stream.result()).output == "done"
                return events

        streams = await asyncio.gather(*(watch(n) for n in range(8)))
        for n, events in enumerate(streams):
            assert {event.run_id for event in events} == {f"r{n}"}
            recorded = [event for event in events if event.sequence is not None]
            assert [event async for event in runtime.events(f"r{n}")] == recorded
            names = [event.name for event in recorded]
            assert (names[0], names[-1]) == ("run.started", "run.completed")
            assert {"llm.succeeded", "tool.failed", "tool.retry_requested", "my.item", "artifact.emitted"} <= {*names}


@pytest.mark.semantics("E10")
def test_events_of_a_run_are_told_again_in_any_process_and_each_once(place: Any) -> None:
    reached = {n: asyncio.Event() for n in (0, 5, *range(20, 200, 12))}
    gate = asyncio.Event()

    async def pattern(ctx: RunContext[Any]) -> str:
        for n in range(200):
            if n in reached:
                reached[n].set()
            if n == 5:
                await gate.wait()
            await ctx.emit("my.event", {"n": n})
        return "done"

    agent = Agent("worker", pattern=pattern)

    async def attach(runtime: Any) -> list[Any]:
        handle = await runtime.submit(agent, "x", run_id="r")

        async def follow(n: int) -> list[Any]:
            await reached[n].wait()
            told: list[Any] = []
            async for event in handle.events():
                told.append(event)
                if event.name == "my.event" and event.payload == {"n": 4}:
                    gate.set()
            return [event for event in told if event.sequence is not None]

        told, *others = await asyncio.gather(*(follow(n) for n in reached))
        assert all(other == told for other in others)
        assert [event.name for event in told if event.sequence is not None][-1] == "run.completed"
        with pytest.raises(UnknownRunError):
            await anext(runtime.events("nobody"))
        return told

    async def look(runtime: Any) -> list[Any]:
        return [event async for event in runtime.events("r")]

    told = place.live([agent], attach)
    assert [event.payload["n"] for event in told if event.name == "my.event"] == [*range(200)]
    assert told == place.live([], look)


@pytest.mark.semantics("E11")
async def test_a_cursor_takes_up_behind_its_event_also_within_a_record(place: Any) -> None:
    agent = busy(place)
    async with place.runtime(agent) as runtime:
        async with runtime.stream(agent, "x", run_id="r") as stream:
            live = [event async for event in stream if event.sequence is None]
        assert live
        assert {event.cursor for event in live} == {None}
        events = [event async for event in runtime.events("r")]
        assert any(one.sequence == other.sequence for one, other in itertools.pairwise(events))
        for place_in_order, event in enumerate(events):
            rest = [one async for one in runtime.events("r", after=event.cursor)]
            assert rest == events[place_in_order + 1 :]
        for bad in ("", "7", "r-1", "r1", "r1.", "r1.x", "rx", "r1.0 "):
            with pytest.raises(UsageError, match="no cursor"):
                await anext(runtime.events("r", after=bad))


@pytest.mark.semantics("E12")
async def test_a_reader_that_does_not_read_holds_up_nobody_and_loses_live_events_first(place: Any) -> None:
    @tool(read_only=True)
    async def report(ctx: ToolContext) -> str:
        """Report often."""
        for n in range(3000):
            await ctx.progress(n)
        return "done"

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.emit("my.first")
        await ctx.call_tool("report")
        await ctx.emit("my.last")
        return "done"

    agent = Agent("worker", pattern=pattern, tools=[report])
    async with place.runtime(agent) as runtime:
        subscription = await runtime.subscribe("r")
        assert (await runtime.run(agent, "x", run_id="r")).output == "done"
        runtime.unsubscribe(subscription)
        # The bus answers this once it has handed on all that was published before.
        await runtime.subscribe("another")
        events = [event async for event in subscription]
        recorded = [event for event in events if event.sequence is not None]
        assert recorded == [event async for event in runtime.events("r")]
        progress = [event for event in events if event.name == "tool.progress"]
        [lagged] = [event for event in events if event.name == "subscriber.lagged"]
        called = [event for event in events if event.name == "tool.called"]
        assert lagged.missed + len(progress) + len(called) == 3001
        assert lagged.missed > 1000
        assert [event.done for event in progress] == [*range(3000 - len(progress), 3000)]


@pytest.mark.semantics("E13")
async def test_a_users_event_may_not_be_named_like_a_built_in_one(place: Any) -> None:
    def think(request: ModelRequest) -> str:
        return "fine"

    async def pattern(ctx: RunContext[Any]) -> str:
        for name in ("run.completed", "tool.mine", "llm.thought", "session.x", ""):
            with pytest.raises(UsageError):
                await ctx.emit(name)
        await ctx.emit("mytool.event")
        await ctx.emit("event")
        return "done"

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(think))
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "x", run_id="r", session_id="s")).output == "done"
        assert [(step.step, step.name) for step in await runtime.runs.steps("r")] == [
            ("0", "mytool.event"),
            ("1", "event"),
        ]
    assert isinstance((await place.log("s"))[0], RunBegan)


@pytest.mark.semantics("E17")
async def test_who_attaches_in_mid_answer_gets_the_text_so_far_and_then_the_rest(place: Any) -> None:
    pieces = ["It is ", "on its ", "way", "."]
    may_go_on = asyncio.Event()

    class Slow(Model):
        name = "slow"
        is_offline = True

        async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
            raise AssertionError("it is watched, so it streams")

        async def stream(self, request: ModelRequest) -> AsyncIterator[ModelDelta]:
            for number, piece in enumerate(pieces):
                if number == 2:
                    await may_go_on.wait()
                yield ModelDelta(text=piece)
            yield ModelDelta(text="", response=ModelResponse(text="".join(pieces), model="slow"))

    agent = Agent("worker", model=Slow())
    async with place.runtime(agent) as runtime:
        first = await runtime.subscribe("r", names=["llm.delta"])
        handle = await runtime.submit(agent, "go", run_id="r")
        reading = first.__aiter__()
        for _ in range(2):
            await asyncio.wait_for(anext(reading), 30)
        seen = []
        async for event in runtime.events("r"):
            if event.name in ("llm.partial", "llm.delta"):
                seen.append((event.name, event.offset, event.text))
                may_go_on.set()
        assert (await handle.result()).output == "It is on its way."
    assert seen == [("llm.partial", 0, "It is on its "), ("llm.delta", 13, "way"), ("llm.delta", 16, ".")]


@pytest.mark.semantics("E18")
def test_a_step_that_runs_again_after_a_crash_says_so(place: Any, die: Any) -> None:
    def think(request: ModelRequest) -> str:
        if request.messages[-1].text == "again" and place.happens_first("died"):
            die()
        return "fine"

    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.generate()
        await ctx.generate("again")
        return (await ctx.generate("and again")).text

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(think))

    async def go(runtime: Any) -> None:
        await runtime.run(agent, "x", run_id="r")

    async def carry_on() -> list[tuple[str, int]]:
        async with place.runtime(agent, recover=False) as runtime:
            watching = await runtime.subscribe("r", names=["step.restarted", "run.completed"])
            await runtime.resume("r")
            told = []
            async for event in watching:
                if event.name == "run.completed":
                    return told
                told.append((event.step, event.attempt))
        raise AssertionError("it never completed")

    place.live_until_killed([agent], go)
    assert asyncio.run(carry_on()) == [("1", 2)]
