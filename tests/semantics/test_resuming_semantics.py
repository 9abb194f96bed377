"""R: runs that are resumed after their end, tried again by themselves, or begun afresh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from callboard import (
    Agent,
    CallboardError,
    Deny,
    ModelRequest,
    NotHappened,
    RunBudget,
    RunContext,
    RunInfo,
    RunNotResumableError,
    ScriptedModel,
    ToolCall,
    ToolContext,
    UnknownAgentError,
    UnknownRunError,
    Usage,
    UsageError,
    tool,
)
from callboard.supervision import returning, waiting_runs
from callboard_protocol.records import OutcomeVoided, RunBegan, RunResumed, SessionRewound
from callboard_protocol.states import RunState

pytestmark = pytest.mark.anyio


class Outage(CallboardError):
    """What passes."""

    code = "outage"
    default_retryable = True


class Defect(CallboardError):
    """What does not."""

    code = "defect"


@tool(approval=True)
async def pay(amount: int) -> str:
    """Pay."""
    return "paid"


def texts(messages: Any) -> list[str]:
    return [message.text for message in messages]


async def events_of(runtime: Any, run_id: str) -> list[Any]:
    return [event async for event in runtime.events(run_id)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses last no longer than a turn of the loop; their lengths."""
    lengths: list[float] = []
    begin = waiting_runs.GrowingPauses.begin

    def no_longer_than_a_turn(self: Any, ticket: Any) -> None:
        begin(self, ticket)
        lengths.append(self._lengths[ticket.run_id])
        self.cut_short(ticket.run_id)
        asyncio.get_running_loop().call_soon(self._over, ticket)

    monkeypatch.setattr(waiting_runs.GrowingPauses, "begin", no_longer_than_a_turn)
    return lengths


# ---- beginning afresh


@pytest.mark.semantics("R28")
def test_on_crash_restart_begins_afresh_as_if_nothing_had_been(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        ctx.state["visits"] = ctx.state.get("visits", 0) + 1
        answer = await ctx.generate(f"attempt {ctx.attempt}")
        await ctx.add_artifact("made", ctx.attempt)
        await ctx.step("act", note_it, ctx.attempt)
        if ctx.attempt < 3:
            die()
        return f"{answer.text}: {ctx.state['visits']}"

    async def note_it(attempt: int) -> None:
        place.note(f"acted {attempt}")

    def think(request: ModelRequest) -> str:
        return " | ".join(texts(request.messages))

    before = Agent("before", model=ScriptedModel(["hello"]))
    model = ScriptedModel(think, usage=Usage(input_tokens=10, output_tokens=5))
    agent = Agent("worker", pattern=pattern, model=model, state_type=dict, budget=RunBudget(max_steps=1))

    async def start(runtime: Any) -> None:
        await runtime.run(before, "hi", run_id="before", session_id="s")
        await runtime.run(agent, "x", run_id="r", session_id="s", on_crash="restart")

    async def finish(runtime: Any) -> tuple[Any, ...]:
        result = await runtime.wait("r")
        return (
            result,
            await runtime.sessions.get("s"),
            texts(await runtime.sessions.transcript("s")),
            [one.artifact.payload for one in await runtime.sessions.artifacts("s")],
            await runtime.runs.steps("r"),
            await events_of(runtime, "r"),
        )

    place.live_until_killed([before, agent], start)
    place.live_until_killed([before, agent], lambda runtime: runtime.wait("r"))
    result, head, transcript, artifacts, steps, events = place.live([before, agent], finish)
    assert result.output == "hi | hello | x | attempt 3: 1"
    assert place.noted == ["acted 1", "acted 2", "acted 3"]
    answer = "hi | hello | x | attempt 3"
    assert transcript == ["hi", "hello", "x", "attempt 3", answer, f"{answer}: 1"]
    assert (artifacts, [one.payload for one in result.artifacts]) == ([3], [3])
    assert {(one.attempt, one.step) for one in steps} == {(3, "3-0"), (3, "3-1"), (3, "3-2")}
    assert (result.usage.llm_calls, result.usage.total_tokens) == (1, 15)
    assert (head.run_count, head.artifact_count, head.usage.llm_calls) == (2, 1, 2)
    sequences = sorted({event.sequence for event in events if event.sequence is not None})
    assert sequences == [*range(len(sequences))]
    assert [event.attempt for event in events if event.name == "run.resume_attempted"] == [2, 3]
    began = [one for one in asyncio.run(place.log("s")) if isinstance(one, RunBegan) and one.run_id == "r"]
    assert [(one.attempt, one.strikes) for one in began] == [(1, 0), (2, 0), (3, 1)]


@pytest.mark.semantics("R29")
def test_a_run_that_begins_afresh_and_never_gets_further_fails_as_poisonous(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.step("act", act)
        if ctx.input_text == "die":
            die()
        return "done"

    async def act() -> None: ...

    agent = Agent("worker", pattern=pattern, budget=RunBudget(max_resume_attempts=2))

    async def start(runtime: Any) -> None:
        await runtime.run(agent, "die", run_id="r", session_id="s", on_crash="restart")

    place.live_until_killed([agent], start)
    for _ in range(2):
        place.live_until_killed([agent], lambda runtime: runtime.wait("r"))
    failed = place.carry_on([agent], "r")
    assert (failed.stop_reason, failed.error_details.code) == ("failed", "poisonous_run")


# ---- resuming what has ended


@pytest.mark.semantics("R30")
def test_a_failed_run_is_resumed_and_makes_only_the_step_again_that_it_failed_over(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.generate("first")
        await ctx.add_artifact("made", 1)
        ctx.state["asked"] = ctx.state.get("asked", 0) + 1
        answer = await ctx.generate("second")
        return f"{answer.text}, asked {ctx.state['asked']} time"

    def think(request: ModelRequest) -> str:
        place.note(request.messages[-1].text)
        if request.messages[-1].text == "second" and place.noted.count("second") == 1:
            raise Defect("not now")
        return f"about {request.messages[-1].text}"

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(think, usage=Usage(input_tokens=3)), state_type=dict)

    async def fail(runtime: Any) -> None:
        failed = await runtime.run(agent, "x", run_id="r", session_id="s")
        assert (failed.stop_reason, failed.error_details.code) == ("failed", "defect")

    async def resume(runtime: Any) -> tuple[Any, ...]:
        handle = await runtime.resume("r")
        result = await handle.result()
        later = await runtime.run(afterwards, "later", session_id="s")
        assert later.output == "about later"
        return (
            result,
            await runtime.wait("r"),
            await runtime.sessions.get("s"),
            texts(await runtime.sessions.transcript("s")),
            await events_of(runtime, "r"),
            await runtime.sessions.checkpoints("s"),
        )

    afterwards = Agent("later", model=ScriptedModel(think, usage=Usage(input_tokens=3)))
    place.live([agent, afterwards], fail)
    result, again, head, transcript, events, checkpoints = place.live([agent, afterwards], resume)
    assert result.output == again.output == "about second, asked 1 time"
    assert place.noted == ["first", "second", "second", "later"]
    assert transcript == [
        *("x", "first", "about first", "second", "about second", "about second, asked 1 time"),
        *("later", "about later"),
    ]
    assert (result.usage.llm_calls, head.usage.llm_calls, head.usage.input_tokens) == (2, 3, 9)
    assert (head.run_count, head.active_run, head.artifact_count) == (2, None, 1)
    sequences = sorted({event.sequence for event in events if event.sequence is not None})
    assert sequences == [*range(len(sequences))]
    names = [event.name for event in events]
    assert names.index("run.failed") < names.index("run.resume_attempted") < names.index("run.completed")
    ids = [one.checkpoint_id for one in checkpoints if one.checkpoint_id.startswith("r:")]
    assert ids == [f"r:step:{n}" for n in range(len(ids))]
    by_id = {one.checkpoint_id: one for one in checkpoints}
    assert [by_id[f"r:step:{n}"].usage.llm_calls for n in range(5)] == [0, 1, 1, 1, 2]
    kinds = [type(one) for one in asyncio.run(place.log("s")) if one.run_id == "r"]
    resumed = kinds.index(RunResumed)
    assert kinds[resumed - 2 : resumed] == [SessionRewound, OutcomeVoided]


@pytest.mark.semantics("R31")
async def test_a_larger_budget_lets_a_run_go_on_that_was_out_of_it_and_holds_from_then_on(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        for n in range(4):
            await ctx.generate(f"question {n}")
        if ctx.attempt == 2:
            stopped.set()
            await asyncio.Event().wait()
        await ctx.generate("the last one")
        return "never"

    stopped = asyncio.Event()
    model = ScriptedModel(lambda request: place.note(request.messages[-1].text) or "fine")
    agent = Agent("worker", pattern=pattern, model=model, budget=RunBudget(max_steps=3))
    async with place.runtime(agent) as runtime:
        exhausted = await runtime.run(agent, "x", run_id="r", session_id="s")
        assert exhausted.stop_reason == "max_steps"
        # With what it has it gets no further.
        assert (await (await runtime.resume("r")).result()).stop_reason == "max_steps"
        assert (await runtime.resume("r", budget=RunBudget(max_steps=4))).run_id == "r"
    async with place.runtime(agent) as runtime:
        result = await runtime.wait("r")
    assert result.stop_reason == "max_steps"
    assert place.noted == [f"question {n}" for n in range(4)]
    assert result.usage.llm_calls == 4


@pytest.mark.semantics("R32")
async def test_what_cannot_be_resumed_says_so_and_stays_as_it_is(place: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.input_text == "fail":
            raise Defect("as asked")
        if ctx.input_text == "wait":
            await gate.wait()
        return "done"

    gate = asyncio.Event()
    agent = Agent("worker", pattern=pattern)
    payer = Agent("payer", model=ScriptedModel([ToolCall(name="pay", arguments={"amount": 1})]), tools=[pay])
    async with place.runtime(agent, payer) as runtime:
        await runtime.run(agent, "x", run_id="completed")
        waiting = await runtime.submit(agent, "wait", run_id="cancelled")
        await waiting.cancel()
        await runtime.run(payer, "x", run_id="suspended")
        await runtime.run(agent, "fail", run_id="left", session_id="s")
        await runtime.run(agent, "x", session_id="s")
        await runtime.run(agent, "fail", run_id="orphan", session_id="o")
        runtime.agents.unregister("worker")
        entries = {one.run_id: one for one in await runtime.runs.list()}
        for run_id, error, hint in (
            ("completed", RunNotResumableError, "resume_from_checkpoint"),
            ("cancelled", RunNotResumableError, "on purpose"),
            ("suspended", RunNotResumableError, r"runtime\.decide"),
            ("orphan", UnknownAgentError, "register"),
            ("nobody", UnknownRunError, "no run 'nobody'"),
        ):
            with pytest.raises(error, match=hint):
                await runtime.resume(run_id)
        runtime.agents.register(agent)
        with pytest.raises(RunNotResumableError, match=r"moved on .*resume_from_checkpoint"):
            await runtime.resume("left")
        with pytest.raises(UsageError, match="no budget"):
            await runtime.resume("orphan", budget=3)
        assert {one.run_id: one for one in await runtime.runs.list()} == entries
        # A run that waits, or is at work, goes on as it would have.
        first = await runtime.submit(agent, "wait", run_id="first", session_id="t")
        second = await runtime.submit(agent, "x", run_id="second", session_id="t")
        for handle in (first, second):
            assert (await runtime.resume(handle.run_id)).run_id == handle.run_id
        gate.set()
        assert [(await handle.result()).output for handle in (first, second)] == ["done", "done"]


@pytest.mark.semantics("R33")
def test_resume_carries_on_what_a_runtime_without_recovery_has_left_alone(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.attempt == 1:
            die()
        return f"done at attempt {ctx.attempt}"

    agent = Agent("worker", pattern=pattern)

    async def resume(runtime: Any) -> Any:
        assert (await runtime.runs.get("r")).state == RunState.RUNNING
        return await (await runtime.resume("r")).result()

    place.live_until_killed([agent], lambda runtime: runtime.run(agent, "x", run_id="r"))
    assert place.live([agent], resume, recover=False).output == "done at attempt 2"


@pytest.mark.semantics("R34")
def test_a_resumed_run_survives_a_crash_at_any_commit_and_is_resumed_once(place: Any, killed_by_commit: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.step("first", note_it, "first")
        await ctx.step("second", note_it, "second")
        await ctx.step("third", note_it, "third")
        return "done"

    async def note_it(what: str) -> None:
        place.note(what)
        if what == "second" and place.noted.count("second") == 1:
            raise Defect("not now")

    agent = Agent("worker", pattern=pattern, budget=RunBudget(max_resume_attempts=100))

    async def fail(runtime: Any) -> None:
        assert (await runtime.run(agent, "x", run_id="r", session_id="s")).stop_reason == "failed"

    async def resume(runtime: Any) -> None:
        await (await runtime.resume("r")).result()

    place.live([agent], fail)
    place.live_until_killed([agent], resume, store=killed_by_commit(0, "before"))
    for when in ("after", "before"):
        for number in range(3):
            place.live_until_killed(
                [agent], lambda runtime: runtime.wait("r"), store=killed_by_commit(number, when), surely=False
            )
    result = place.carry_on([agent], "r")
    assert result.output == "done"
    assert sum(isinstance(one, OutcomeVoided) for one in asyncio.run(place.log("s"))) == 1
    assert place.noted.count("first") == 1


# ---- trying again by itself


@pytest.mark.semantics("R35")
async def test_a_run_that_fails_over_an_error_that_can_pass_is_tried_again_after_growing_pauses(
    place: Any, impatient: list[float]
) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.step("first", note_it, "first")
        answer = await ctx.generate("second")
        await ctx.step("third", note_it, "third")
        return answer.text

    async def note_it(what: str) -> None:
        place.note(what)
        if what == "third" and place.noted.count("third") < 3:
            raise Outage("the network is down")

    def think(request: ModelRequest) -> str:
        place.note("asked")
        if place.noted.count("asked") < 4:
            raise Outage("the model is down")
        return "answer"

    agent = Agent("worker", pattern=pattern, model=ScriptedModel(think), budget=RunBudget(max_resume_attempts=3))
    async with place.runtime(agent) as runtime:
        result = await runtime.run(agent, "x", run_id="r", session_id="s")
        assert result.output == "answer"
        assert texts(await runtime.sessions.transcript("s")) == ["x", "second", "answer"]
        names = [event.name for event in await events_of(runtime, "r")]
    assert place.noted == ["first", *["asked"] * 4, *["third"] * 3]
    assert names.count("run.resume_attempted") == 5
    assert "run.failed" not in names
    # Once it has got further, its chances and its pauses are those of a run that fails for the first time.
    assert impatient[0] < impatient[1] < impatient[2]
    assert impatient[3] == impatient[0] < impatient[4]


@pytest.mark.semantics("R36")
def test_chances_are_as_many_as_the_budget_says_also_across_restarts(
    place: Any, die: Any, impatient: list[float]
) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        await ctx.step("act", fail)
        return "never"

    async def fail() -> None:
        place.note("tried")
        if len(place.noted) == 2 and place.happens_first("killed"):
            die()
        raise Outage("still down")

    agent = Agent("worker", pattern=pattern, budget=RunBudget(max_resume_attempts=3))

    async def start(runtime: Any) -> None:
        await runtime.run(agent, "x", run_id="r", session_id="s")

    async def look(runtime: Any) -> Any:
        return await runtime.wait("r")

    place.live_until_killed([agent], start)
    failed = place.live([agent], look)
    assert (failed.stop_reason, failed.error_details.code) == ("failed", "outage")
    assert failed.error_details.context["tried"] == 4
    # The attempt that the process died in has had no outcome, and is made once more.
    assert place.noted.count("tried") == 5


@pytest.mark.semantics("R37")
def test_a_call_that_failed_is_made_again_on_resume_and_one_in_doubt_or_denied_is_not(place: Any, die: Any) -> None:
    @tool
    async def charge(ctx: ToolContext[None]) -> str:
        """Charge."""
        if place.happens_first(f"charged {ctx.attempt}"):
            if ctx.attempt == 1:
                raise Defect("declined")
            if ctx.attempt == 2:
                die()
        return f"charged at call attempt {ctx.attempt}"

    async def pattern(ctx: RunContext[Any]) -> str:
        if ctx.input_text == "pay":
            await ctx.call_tool("pay", amount=3)
        return str(await ctx.call_tool("charge"))

    agent = Agent("worker", pattern=pattern, tools=[charge, pay])

    async def fail(runtime: Any) -> None:
        declined = await runtime.run(agent, "x", run_id="r", session_id="s")
        assert declined.error_details.code == "tool_failed"
        denied = await runtime.run(agent, "pay", run_id="d", session_id="d", approvals={"*": Deny("no")})
        assert denied.error_details.code == "tool_denied"
        again = await (await runtime.resume("d")).result()
        assert again.error_details == denied.error_details

    async def resume(runtime: Any) -> None:
        await (await runtime.resume("r")).result()

    async def settle(runtime: Any) -> Any:
        doubt = await runtime.wait("r")
        # Its first outcome was known: what is in doubt is the attempt that nobody saw the end of.
        assert [(one.reason, one.attempt) for one in doubt.pending] == [("in_doubt", 2)]
        await runtime.decide("r:0", NotHappened(), by="ann")
        return await runtime.wait("r")

    place.live([agent], fail)
    place.live_until_killed([agent], resume)
    assert place.live([agent], settle).output == "charged at call attempt 3"
    assert place.noted == ["charged 1", "charged 2", "charged 3"]


@pytest.mark.semantics("R38")
async def test_a_branch_that_failed_is_made_again_and_those_beside_it_are_not(place: Any) -> None:
    async def branch(ctx: RunContext[Any], item: int) -> int:
        return await ctx.step("work", work, item)

    async def work(item: int) -> int:
        place.note(item)
        if item == 1 and place.noted.count("1") == 1:
            await others_done.wait()
            raise Outage("down")
        if place.noted.count("0") + place.noted.count("2") == 2:
            others_done.set()
        return item

    async def pattern(ctx: RunContext[Any]) -> str:
        return str(await ctx.map(branch, {str(n): n for n in range(3)}))

    others_done = asyncio.Event()
    agent = Agent("worker", pattern=pattern)
    async with place.runtime(agent) as runtime:
        assert (await runtime.run(agent, "x")).output == "{'0': 0, '1': 1, '2': 2}"
    assert sorted(place.noted) == ["0", "1", "1", "2"]


@pytest.mark.semantics("R40")
def test_a_run_that_failed_for_a_crash_is_tried_once_more_on_resume(place: Any, die: Any) -> None:
    async def pattern(ctx: RunContext[Any]) -> str:
        place.note(ctx.run_id)
        if len(place.noted) == 2 or place.noted.count(ctx.run_id) == 2:
            die()
        if len(place.noted) < 2:
            await asyncio.Future()
        return f"done at attempt {ctx.attempt}"

    agent = Agent("worker", pattern=pattern, budget=RunBudget(max_resume_attempts=1))

    async def start(runtime: Any) -> None:
        await runtime.submit(agent, "x", run_id="fails", on_crash="fail")
        await runtime.run(agent, "x", run_id="poisonous")

    async def look(runtime: Any) -> list[str]:
        return [(await runtime.wait(run_id)).error_details.code for run_id in ("fails", "poisonous")]

    def resume(run_id: str) -> Any:
        async def resume(runtime: Any) -> Any:
            return await (await runtime.resume(run_id)).result()

        return resume

    codes = ["interrupted_by_crash", "poisonous_run"]
    place.live_until_killed([agent], start)
    assert place.live([agent], look) == codes
    # It ends its process once more, and is not tried again by itself.
    for run_id in ("poisonous", "fails"):
        place.live_until_killed([agent], resume(run_id))
    assert place.live([agent], look) == codes
    assert place.live([agent], resume("fails")).output == "done at attempt 3"
    assert place.live([agent], resume("poisonous")).output == "done at attempt 3"


@pytest.mark.semantics("R39")
def test_a_run_between_two_attempts_can_be_cancelled_and_holds_up_no_closing(
    place: Any, die: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(returning, "FIRST_PAUSE_FAILED", 3600.0)

    @asynccontextmanager
    async def deps(info: RunInfo) -> AsyncIterator[None]:
        if "killed" in place.noted:
            raise ConnectionError("down")
        yield

    async def stay(ctx: RunContext[Any]) -> str:
        place.note(f"{ctx.run_id} begun")
        if len(place.noted) == 3 and place.happens_first("killed"):
            die()
        return await asyncio.Future()

    async def fail(ctx: RunContext[Any]) -> str:
        raise Outage("down")

    agents = [Agent("needy", pattern=stay, deps=deps), Agent("stuck", pattern=stay), Agent("failing", pattern=fail)]

    async def begin(runtime: Any) -> None:
        for agent_id, run_id in (("needy", "parked"), ("stuck", "struck 1"), ("stuck", "struck 2")):
            await runtime.submit(agent_id, "x", run_id=run_id)
        await asyncio.Future()

    async def come_between(runtime: Any) -> Any:
        await runtime.submit("failing", "x", run_id="paused")
        left = await runtime.submit("failing", "x", run_id="left")

        async def states() -> list[RunState]:
            return [(await runtime.runs.get(run_id)).state for run_id in ("parked", "paused", "left")]

        between = [RunState.PARKED, RunState.INTERRUPTED, RunState.INTERRUPTED]
        async with asyncio.timeout(20):
            while await states() != between:  # noqa: ASYNC110  (as another process would see it)
                await asyncio.sleep(0)
        assert [one.reason for one in (await runtime.runs.get("paused")).pending] == ["retry"]
        await until(lambda: place.noted.count("struck 1 begun") == 2 and runtime.stats().queued == 1)
        for run_id in ("parked", "paused", "struck 2"):
            waiting = asyncio.ensure_future(runtime.wait(run_id))
            await asyncio.sleep(0)
            assert await runtime.cancel(run_id, reason="enough") is True
            assert (await waiting).stop_reason == "cancelled"
            assert (await runtime.runs.get(run_id)).state == RunState.CANCELLED
            assert texts(await runtime.sessions.transcript(f"session-{run_id}")) == ["x"]
        return left

    async def live() -> Any:
        async with place.runtime(*agents) as runtime:
            left = await come_between(runtime)
        return await left.result()

    place.live_until_killed(agents, begin)
    assert asyncio.run(live()).stop_reason == "interrupted"
    assert place.noted.count("struck 2 begun") == 1
