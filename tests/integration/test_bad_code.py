"""Tools, models, patterns, deps and states that misbehave: each fails its own run at most, and says what it was."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from callboard import (
    Agent,
    AgentDefinitionError,
    ConcurrentStepError,
    InvalidArgumentsError,
    InvalidIdentifierError,
    Message,
    MissingExtraError,
    Model,
    ModelError,
    ModelRequest,
    ModelResponse,
    NonDeterministicRunError,
    OutputValidationError,
    RunBudget,
    RunContext,
    RunFailedError,
    Runtime,
    ScriptedModel,
    ScriptExhaustedError,
    SessionHeldByAncestorError,
    StepFailedError,
    SyncRuntime,
    ToolCall,
    ToolFailedError,
    ToolTimeoutError,
    UnknownToolError,
    UnpersistableValueError,
    UsageError,
    WouldDeadlockError,
    tool,
)
from callboard.runs.run_info import run_at_work
from callboard_storage.lmdb_store import LmdbStore

pytestmark = pytest.mark.anyio

PLAIN = "use plain data"
PATIENCE = 20
Raises = Callable[[], BaseException]
EXITS: list[Raises] = [lambda: SystemExit(3), KeyboardInterrupt, asyncio.CancelledError]
EXIT_IDS = ["SystemExit", "KeyboardInterrupt", "CancelledError"]


class Thing:
    """Something that no store takes."""


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even its text can be had")


def one_call(name: str, **arguments: Any) -> ScriptedModel:
    """A model that calls one tool, and then says what it was told."""

    def think(request: ModelRequest) -> Any:
        last = request.messages[-1]
        return f"told: {last.text}" if last.role == "tool" else ToolCall(name=name, arguments=arguments)

    return ScriptedModel(think)


def caller(used: Any, **arguments: Any) -> Agent[Any, str]:
    return Agent("caller", model=one_call(used.name, **arguments), tools=[used])


@tool(read_only=True)
async def add(a: int, b: int = 0) -> int:
    """Add two numbers."""
    return a + b


# ---- what a model asks for


async def test_arguments_that_do_not_fit_go_back_to_the_model_which_mends_them(play: Any) -> None:
    seen: list[str] = []

    def think(request: ModelRequest) -> Any:
        last = request.messages[-1]
        if last.role != "tool":
            return ToolCall(name="add", arguments={"a": "one"})
        seen.append(last.text)
        return ToolCall(name="add", arguments={"a": 1, "b": 2}) if len(seen) == 1 else f"it is {last.text}"

    result = await play(Agent("adder", model=ScriptedModel(think), tools=[add]))
    assert result.output == "it is 3"
    assert "a: input should be a valid integer" in seen[0]
    assert result.usage.tool_calls == 1, "a call that was not made is not counted"


async def test_an_unknown_tool_is_answered_with_the_nearest_one(play: Any) -> None:
    result = await play(Agent("adder", model=one_call("adds", a=1), tools=[add]))
    assert result.output == "told: there is no tool 'adds'; did you mean 'add'?"


async def test_a_pattern_that_calls_an_unknown_tool_fails_with_the_list_of_them(play: Any, refused: Any) -> None:
    async def pattern(ctx: RunContext[None]) -> Any:
        return await ctx.call_tool("adds", a=1)

    result = await play(Agent("adder", tools=[add], pattern=pattern))
    refused.told(result, UnknownToolError, "no tool 'adds'; did you mean 'add'", hint="has: add")


async def test_a_pattern_that_calls_a_tool_wrongly_learns_where(play: Any, refused: Any) -> None:
    async def pattern(ctx: RunContext[None]) -> Any:
        return await ctx.call_tool("add", a="one")

    result = await play(Agent("adder", tools=[add], pattern=pattern))
    refused.told(result, InvalidArgumentsError, "a: input should be a valid integer", hint="arguments that fit")


async def test_a_model_that_asks_for_what_utf_8_cannot_carry_fails_its_run_by_name(play: Any, refused: Any) -> None:
    result = await play(Agent("adder", model=one_call("add", a="\ud800"), tools=[add]))
    refused.told(
        result, UnpersistableValueError, r"generate \(step 0 .*tool_calls\[0\].arguments.a .*lone surrogate", hint=PLAIN
    )


# ---- tools


async def raise_it(make: Raises) -> str:
    raise make()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ValueError("kaputt"), "bad failed: ValueError: kaputt"),
        (lambda: ValueError("\ud800"), r"bad failed: ValueError: \ud800"),
        (Unspeakable, "bad failed: Unspeakable"),
        (lambda: SystemExit(3), "bad failed: SystemExit: 3"),
        (KeyboardInterrupt, "bad failed: KeyboardInterrupt"),
        (asyncio.CancelledError, "bad failed: CancelledError"),
    ],
    ids=["ValueError", "unstorable text", "no text at all", *EXIT_IDS],
)
@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_what_a_tool_raises_is_told_to_the_model_and_the_run_goes_on(
    play: Any, make: Raises, says: str, kind: str
) -> None:
    async def bad() -> str:
        return await raise_it(make)

    def bad_in_a_thread() -> str:
        raise make()

    result = await play(caller(tool(bad) if kind == "async" else tool(name="bad")(bad_in_a_thread)))
    assert result.output == f"told: {says}"


@pytest.mark.parametrize("make", EXITS, ids=EXIT_IDS)
async def test_an_exit_in_one_call_of_a_batch_leaves_the_others_alone(play: Any, make: Raises) -> None:
    @tool
    async def bad() -> str:
        """Ends it all."""
        return await raise_it(make)

    def think(request: ModelRequest) -> Any:
        answers = [message.text for message in request.messages if message.role == "tool"]
        return " and ".join(answers) or [ToolCall(name="bad"), ToolCall(name="add", arguments={"a": 7})]

    result = await play(Agent("batcher", model=ScriptedModel(think), tools=[bad, add]))
    assert result.output.startswith("bad failed: ")
    assert result.output.endswith(" and 7")


@pytest.mark.parametrize("make", [lambda: ZeroDivisionError("oops"), *EXITS[:2]], ids=["error", *EXIT_IDS[:2]])
async def test_an_approval_function_that_raises_is_no_approval(play: Any, make: Raises) -> None:
    made: list[str] = []

    def approve(**_: Any) -> bool:
        raise make()

    @tool(approval=approve)
    async def pay() -> str:
        """Pay."""
        made.append("paid")
        return "paid"

    def think(request: ModelRequest) -> Any:
        answers = [message.text for message in request.messages if message.role == "tool"]
        return " and ".join(answers) or [ToolCall(name="pay"), ToolCall(name="add", arguments={"a": 7})]

    result = await play(Agent("payer", model=ScriptedModel(think), tools=[pay, add]))
    assert result.output.startswith("the approval function of pay raised ")
    assert result.output.endswith("the call was not made and 7")
    assert made == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Thing(), "tool 'give' returned a .*Thing, which has no plain form"),
        ({"a": [1, {"b": Thing()}]}, "tool 'give' returned a .*Thing"),
        ((number for number in range(3)), "tool 'give' returned a generator, which can be read only once"),
        ("\ud800", r"tool 'give' \(step 1.0 .*is a str with a lone surrogate"),
    ],
    ids=["object", "nested object", "generator", "lone surrogate"],
)
async def test_a_result_that_cannot_persist_fails_the_run_and_names_the_tool_and_the_type(
    play: Any, refused: Any, value: Any, says: str
) -> None:
    @tool
    async def give() -> Any:
        """Give something."""
        return value

    refused.told(await play(caller(give)), UnpersistableValueError, says, hint=PLAIN)


async def test_a_run_that_failed_in_mid_call_leaves_no_call_unanswered(runtime: Runtime, play: Any) -> None:
    @tool
    async def give() -> Any:
        """Give something."""
        return Thing()

    calls = [ToolCall(name="give", id="first"), ToolCall(name="add", arguments={"a": 1}, id="second")]
    await play(Agent("batcher", model=ScriptedModel([calls, "done"]), tools=[give, add]))
    messages = await runtime.sessions.transcript("s")
    assert [message.tool_call_id for message in messages if message.role == "tool"] == ["first", "second"]


async def test_a_thread_that_blocks_for_ever_is_left_behind(echo: Any, store: Path | None) -> None:
    """Its call times out, the run goes on, and the runtime closes all the same."""
    gate = threading.Event()

    @tool(timeout=0.2, read_only=True)
    def block() -> str:
        """Wait for what never comes."""
        gate.wait()
        return "at last"

    try:
        async with Runtime([echo, caller(block)], store=store) as runtime:
            result = await runtime.run("caller", "go", session_id="s")
            assert "block ran past its timeout of 0.2 s" in result.output
            assert "its thread cannot be stopped and was abandoned" in result.output
            assert (await runtime.run("echo", "next", session_id="s")).output == "you said 'next'"
            closing = time.monotonic()
        assert time.monotonic() - closing < 5
    finally:
        gate.set()


async def test_an_async_tool_that_never_ends_is_cancelled_at_its_timeout(play: Any) -> None:
    cancelled: list[str] = []

    @tool(timeout=0.1, read_only=True)
    async def hang() -> str:
        """Wait for what never comes."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("yes")
            raise
        return "at last"

    result = await play(caller(hang))
    assert result.output == "told: hang ran past its timeout of 0.1 s"
    assert cancelled == ["yes"]


async def test_a_tool_that_may_have_acted_when_its_time_was_up_is_in_doubt_and_not_failed(play: Any) -> None:
    @tool(timeout=0.1, on_in_doubt="tell")
    async def act() -> str:
        """Act, and never say so."""
        await asyncio.Event().wait()
        return "acted"

    result = await play(caller(act))
    assert "began, and a timeout hid whether it took effect" in result.output


# ---- models


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ValueError("kaputt"), "failed: ValueError: kaputt"),
        (Unspeakable, "failed: Unspeakable"),
        *((make, f"failed: {name}") for make, name in zip(EXITS, EXIT_IDS, strict=True)),
    ],
    ids=["ValueError", "no text at all", *EXIT_IDS],
)
async def test_what_a_model_raises_fails_its_run(play: Any, refused: Any, make: Raises, says: str) -> None:
    async def think(request: ModelRequest) -> str:
        return await raise_it(make)

    result = await play(Agent("thinker", model=ScriptedModel(think)))
    refused.told(result, ModelError, says, hint="ModelError")


async def test_a_model_that_answers_something_else_fails_its_run(play: Any, refused: Any) -> None:
    class Strange(Model):
        name = "strange"
        is_offline = True

        async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
            return "text"  # type: ignore[return-value]

    refused.told(
        await play(Agent("a", model=Strange())), ModelError, "strange answered a str", hint="return a ModelResponse"
    )


async def test_a_script_that_is_too_short_says_so(play: Any, refused: Any) -> None:
    result = await play(Agent("a", model=ScriptedModel([ToolCall(name="add", arguments={"a": 1})]), tools=[add]))
    refused.told(result, ScriptExhaustedError, "item 2 of a script of 1", hint="add items")


async def test_an_agent_without_a_model_fails_when_it_asks_and_says_where_to_give_one(play: Any, refused: Any) -> None:
    refused.told(await play(Agent("a")), AgentDefinitionError, "agent 'a' has no model", hint="model=")


async def test_a_model_that_nothing_installed_can_reach_says_what_to_install(play: Any, refused: Any) -> None:
    result = await play(Agent("a", model="openai:gpt-5-mini"))
    refused.told(result, MissingExtraError, "'openai:gpt-5-mini'", hint=r"callboard\[models\]")


# ---- patterns


def patterned(pattern: Any, **options: Any) -> Agent[Any, Any]:
    return Agent("patterned", pattern=pattern, **{"model": ScriptedModel(lambda request: "fine"), **options})


@pytest.mark.parametrize("where", ["pattern", "step", "branch", "step of a branch", "deps"])
@pytest.mark.parametrize("make", EXITS, ids=EXIT_IDS)
async def test_an_exit_in_an_agents_code_fails_its_own_run_only(
    runtime: Runtime, play: Any, make: Raises, where: str
) -> None:
    beside_began, beside_goes_on = asyncio.Event(), asyncio.Event()

    async def wait() -> str:
        beside_began.set()
        await beside_goes_on.wait()
        return "untouched"

    async def bystand(ctx: RunContext[None]) -> str:
        return await ctx.step("wait", wait)

    async def leave() -> str:
        return await raise_it(make)

    async def branch(below: RunContext[None], item: int) -> str:
        return await (leave() if where == "branch" else below.step("leave", leave))

    async def pattern(ctx: RunContext[None]) -> str:
        if where == "pattern":
            await leave()
        elif where == "step":
            await ctx.step("leave", leave)
        await ctx.map(branch, {"a": 1, "b": 2})
        return "not reached"

    def deps(info: Any) -> Any:
        raise make()

    runtime.agents.register(bystander := Agent("bystander", pattern=bystand))
    beside = await runtime.submit(bystander, "go", session_id="beside")
    await beside_began.wait()
    result = await play(patterned(pattern, deps=deps if where == "deps" else None))
    assert result.stop_reason == "failed"
    name = type(make()).__name__
    assert name in f"{result.error_details.code} {result.error_details.message}"
    beside_goes_on.set()
    assert (await beside.result()).output == "untouched"


async def test_an_error_of_a_pattern_is_named_with_its_traceback(play: Any) -> None:
    async def pattern(ctx: RunContext[None]) -> str:
        raise ZeroDivisionError("by nothing")

    result = await play(patterned(pattern))
    assert (result.error_details.code, result.error_details.message) == ("ZeroDivisionError", "by nothing")
    assert "error_snapshot" in result.error_details.hint
    assert "in pattern" in result.error_snapshot.traceback
    with pytest.raises(RunFailedError, match="by nothing"):
        _ = result.output


@pytest.mark.parametrize("make", [Unspeakable, lambda: ValueError("\ud800")], ids=["no text at all", "lone surrogate"])
async def test_an_error_that_cannot_be_told_still_ends_its_run(play: Any, make: Raises) -> None:
    async def pattern(ctx: RunContext[None]) -> str:
        return await raise_it(make)

    result = await play(patterned(pattern))
    assert (result.stop_reason, result.error_details.code) == ("failed", type(make()).__name__)


async def test_an_error_with_a_context_that_cannot_persist_still_ends_its_run(play: Any, refused: Any) -> None:
    async def pattern(ctx: RunContext[None]) -> str:
        raise UsageError("mine", hint="my hint", context={"thing": Thing(), "bytes": b"\xff"})

    refused.told(await play(patterned(pattern)), UsageError, "mine", hint="my hint")


@pytest.mark.parametrize(
    ("output_type", "output", "says"),
    [
        (str, 7, "the output is a int, not text"),
        (str, None, "the output is a NoneType, not text"),
        (int, "seven", "Invalid JSON|valid integer"),
        (dict[str, int], {"a": "x"}, "a: Input should be a valid integer"),
    ],
)
async def test_a_pattern_that_returns_the_wrong_type_fails_after_its_retries(
    play: Any, refused: Any, output_type: Any, output: Any, says: str
) -> None:
    tries: list[Any] = []

    async def pattern(ctx: RunContext[None]) -> Any:
        tries.append(output)
        return output

    agent = patterned(pattern, output_type=output_type, budget=RunBudget(max_validation_retries=2))
    refused.told(await play(agent), OutputValidationError, f"after 2 retries: .*{says}", hint="max_validation_retries")
    assert len(tries) == 3


class Verdict(BaseModel):
    guilty: bool


async def test_an_output_that_never_validates_fails_and_the_model_was_told_each_time(
    runtime: Runtime, play: Any, refused: Any
) -> None:
    agent = Agent("judge", model=ScriptedModel(lambda request: "who knows"), output_type=Verdict)
    refused.told(await play(agent), OutputValidationError, "Verdict.* after 3 retries", hint="max_validation_retries")
    said = [message.text for message in await runtime.sessions.transcript("s") if message.role == "user"]
    assert sum("does not fit what was asked for" in text for text in said) == 3


async def test_a_step_whose_answer_never_validates_fails_by_its_step(play: Any, refused: Any) -> None:
    async def pattern(ctx: RunContext[None]) -> str:
        return str((await ctx.generate(output_type=Verdict)).output)

    refused.told(await play(patterned(pattern)), OutputValidationError, "step 0: the answer does not fit", hint="type")


@pytest.mark.parametrize(
    ("output_type", "make", "says"),
    [(Any, Thing, "Thing"), (dict, lambda: {"a": Thing()}, "Thing"), (str, lambda: "\ud800", "lone surrogate")],
)
@pytest.mark.parametrize("durable", [True, False])
async def test_an_output_that_cannot_persist_fails_the_run_that_made_it(
    play: Any, refused: Any, output_type: Any, make: Any, says: str, durable: bool
) -> None:
    async def pattern(ctx: RunContext[None]) -> Any:
        return make()

    result = await play(patterned(pattern, output_type=output_type), durable=durable)
    refused.told(result, UnpersistableValueError, says, hint=PLAIN)


async def test_two_steps_in_flight_in_one_scope_are_refused_and_pointed_to_branches(play: Any, refused: Any) -> None:
    async def pattern(ctx: RunContext[None]) -> str:
        await asyncio.gather(ctx.generate(), ctx.generate())
        return "not reached"

    refused.told(await play(patterned(pattern)), ConcurrentStepError, "while generate is in flight", hint="ctx.branch")


@pytest.mark.parametrize(
    ("act", "kind", "says", "hint"),
    [
        (lambda ctx: ctx.sleep(-1), UsageError, "a duration of -1", "seconds >= 0"),
        (lambda ctx: ctx.sleep("long"), UsageError, "a duration of 'long'", "seconds >= 0"),
        (lambda ctx: ctx.step("fetch", 7), UsageError, "which is no function", "async def"),
        (lambda ctx: ctx.step("fetch", lambda: 7), UsageError, "returned a int at once", "async def"),
        (lambda ctx: ctx.step("", give), InvalidIdentifierError, "is empty", "name"),
        (lambda ctx: ctx.step("\ud800", give), InvalidIdentifierError, "lone surrogate", "UTF-8"),
        (lambda ctx: ctx.emit("run.completed"), UsageError, "is a built-in event", "first word of your own"),
        (lambda ctx: ctx.emit(""), InvalidIdentifierError, "event name is empty", "1 to 200"),
        (lambda ctx: ctx.emit("mine", [1]), UsageError, "of type list", "dict"),
        (lambda ctx: ctx.add_artifact("", 1), InvalidIdentifierError, "is empty", "name"),
        (lambda ctx: ctx.map(branch_of, ["a"]), UsageError, "of type list", "dict"),
        (lambda ctx: ctx.map(branch_of, {"a/b": 1}), UsageError, "'a/b' cannot name a branch", "without '/'"),
        (lambda ctx: ctx.map(branch_of, {"a": 1}, limit=0), UsageError, "limit=0", "at least 1"),
        (lambda ctx: ctx.call_tool("\ud800"), InvalidIdentifierError, "lone surrogate", "UTF-8"),
    ],
)
async def test_a_step_that_makes_no_sense_is_refused(
    play: Any, refused: Any, act: Any, kind: Any, says: str, hint: str
) -> None:
    async def pattern(ctx: RunContext[None]) -> str:
        await act(ctx)
        return "not reached"

    refused.told(await play(patterned(pattern)), kind, says, hint=hint)


async def give() -> Thing:
    return Thing()


async def give_anything() -> Any:
    return {"a": [Thing()]}


async def give_wrongly() -> int:
    return "seven"  # type: ignore[return-value]


async def branch_of(ctx: RunContext[None], item: Any) -> Any:
    return item


async def set_state(ctx: RunContext[None], value: Any) -> None:
    ctx.state["a"] = value
    await ctx.generate()


@pytest.mark.parametrize(
    ("act", "says", "hint"),
    [
        (lambda ctx: ctx.step("fetch", give_anything), "step 'fetch' returned a dict .*Thing", PLAIN),
        (lambda ctx: ctx.step("fetch", give_wrongly), "step 'fetch' returned a str, .*valid integer", "annotation"),
        (lambda ctx: ctx.emit("mine", {"a": Thing()}), "emit 'mine' .*value.a is a Thing", PLAIN),
        (lambda ctx: ctx.add_artifact("report", Thing()), "artifact 'report' .*payload is a Thing", PLAIN),
        (lambda ctx: ctx.add_artifact("report", 1, metadata={"a": Thing()}), "artifact 'report' .*is a Thing", PLAIN),
        (lambda ctx: set_state(ctx, Thing()), r"generate \(step 0 .*state.a is a Thing", PLAIN),
        (lambda ctx: set_state(ctx, "\ud800"), "state.a is a str with a lone surrogate", PLAIN),
        (lambda ctx: ctx.generate("\ud800"), r"generate \(step 0 .*messages.* lone surrogate", PLAIN),
    ],
)
@pytest.mark.parametrize("durable", [True, False])
async def test_what_cannot_persist_fails_the_run_by_name_and_the_session_lives(
    play: Any, refused: Any, act: Any, says: str, hint: str, durable: bool
) -> None:
    async def pattern(ctx: RunContext[None]) -> str:
        await act(ctx)
        return "not reached"

    result = await play(patterned(pattern, state_type=dict), durable=durable)
    # A run that is not durable meets the store at its end only, and is told of the place alone.
    said = says if durable or "step 'fetch'" in says else says.rpartition(".*")[2]
    refused.told(result, UnpersistableValueError, said, hint=hint)


async def test_a_function_that_says_it_returns_what_cannot_be_stored_is_not_even_called(
    play: Any, refused: Any
) -> None:
    async def pattern(ctx: RunContext[None]) -> str:
        await ctx.step("fetch", give)
        return "not reached"

    refused.told(await play(patterned(pattern)), UsageError, "'give' says it returns .*Thing", hint="annotate")


class Cart(BaseModel):
    items: int = 0


async def test_a_state_that_stops_being_what_its_type_says_fails_the_run_and_not_the_session(
    runtime: Runtime, play: Any, refused: Any
) -> None:
    spoil = True

    async def pattern(ctx: RunContext[None]) -> int:
        ctx.state.items = "many" if spoil else ctx.state.items + 1
        await ctx.generate()
        return int(ctx.state.items)

    agent = patterned(pattern, state_type=Cart, output_type=int)
    refused.told(
        await play(agent),
        UnpersistableValueError,
        "state is not what its state_type says: items",
        hint="declared types",
    )
    spoil = False
    assert (await runtime.run(agent, "go", session_id="s")).output == 1


async def test_an_outcome_that_could_not_persist_is_met_again_on_replay(tmp_path: Path) -> None:
    """The pattern catches the error and goes on; a later attempt finds the same error where the first one did."""
    caught: list[tuple[str, str]] = []
    stop_here, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> str:
        stop_here.set()
        await go_on.wait()
        return "went on"

    async def pattern(ctx: RunContext[None]) -> str:
        for act in (lambda: ctx.step("fetch", give_anything), lambda: ctx.emit("mine", {"a": Thing()})):
            try:
                await act()
            except UnpersistableValueError as error:
                caught.append((error.code, error.message))
        return await ctx.step("wait", wait)

    async with Runtime([patterned(pattern)], store=tmp_path / "data", drain_timeout=0) as runtime:
        await runtime.submit("patterned", "go", run_id="r")
        await stop_here.wait()
    go_on.set()
    async with Runtime([patterned(pattern)], store=tmp_path / "data") as runtime:
        assert (await runtime.wait("r")).output == "went on"
    assert len(caught) == 4
    assert caught[:2] == caught[2:]


async def test_a_pattern_that_asks_for_something_else_on_replay_is_stopped_and_shown_both(
    tmp_path: Path, refused: Any
) -> None:
    stop_here = asyncio.Event()
    lives: list[int] = []

    async def fetch(what: str) -> str:
        return what

    async def hang() -> None:
        stop_here.set()
        await asyncio.Event().wait()

    async def pattern(ctx: RunContext[None]) -> str:
        lives.append(1)
        await ctx.step("fetch", fetch, f"in life {len(lives)}")
        await ctx.step("hang", hang)
        return "not reached"

    async with Runtime([patterned(pattern)], store=tmp_path / "data", drain_timeout=0) as runtime:
        await runtime.submit("patterned", "go", run_id="r", session_id="s")
        await stop_here.wait()
    async with Runtime([patterned(pattern)], store=tmp_path / "data") as runtime:
        result = await runtime.wait("r")
        refused.told(
            result,
            NonDeterministicRunError,
            "recorded is step 'fetch' with .*, the pattern now asks for",
            hint="new run",
        )
        sane = patterned(branchless)
        runtime.agents.unregister("patterned")
        runtime.agents.register(sane)
        assert (await runtime.run(sane, "go", session_id="s")).output == "fine"


async def branchless(ctx: RunContext[None]) -> str:
    return (await ctx.generate()).text


async def test_a_context_that_outlives_its_run_does_nothing_and_says_so(play: Any, refused: Any) -> None:
    kept: list[RunContext[None]] = []

    async def pattern(ctx: RunContext[None]) -> str:
        kept.append(ctx)
        return "done"

    assert (await play(patterned(pattern))).output == "done"
    with refused(UsageError, "has stopped, and its context does nothing any more", hint="before it returns"):
        await kept[0].generate()


# ---- deps


def raises(info: Any) -> Any:
    raise ConnectionError("no database")


@asynccontextmanager
async def raises_on_entering(info: Any) -> AsyncIterator[str]:
    raise ConnectionError("no database")
    yield "deps"


@contextmanager
def is_sync(info: Any) -> Iterator[str]:
    yield "deps"


@pytest.mark.parametrize(
    ("deps", "kind", "says", "hint"),
    [
        (raises, StepFailedError, "the deps factory of agent 'patterned' raised ConnectionError: no database", "cause"),
        (raises_on_entering, StepFailedError, "deps factory .* raised ConnectionError: no database", "cause"),
        (lambda: "deps", StepFailedError, "deps factory .* raised TypeError: .*positional argument", "cause"),
        (lambda info: "deps", AgentDefinitionError, "gave a str, which is no async context", "asynccontextmanager"),
        (is_sync, AgentDefinitionError, "which is no async context manager", "asynccontextmanager"),
    ],
)
async def test_deps_that_cannot_be_had_fail_the_run_by_name(
    play: Any, refused: Any, deps: Any, kind: Any, says: str, hint: str
) -> None:
    refused.told(await play(patterned(branchless, deps=deps)), kind, says, hint=hint)


async def test_deps_that_cannot_be_closed_fail_the_run(play: Any) -> None:
    @asynccontextmanager
    async def deps(info: Any) -> AsyncIterator[str]:
        yield "deps"
        raise ConnectionError("cannot say goodbye")

    result = await play(patterned(branchless, deps=deps))
    assert (result.stop_reason, result.error_details.message) == ("failed", "cannot say goodbye")


async def test_a_run_whose_deps_cannot_be_had_at_a_restart_is_parked_until_they_can(tmp_path: Path) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()
    is_down = False

    @asynccontextmanager
    async def deps(info: Any) -> AsyncIterator[str]:
        if is_down:
            raise ConnectionError("no database")
        yield "deps"

    async def wait() -> str:
        began.set()
        await go_on.wait()
        return "done"

    async def pattern(ctx: RunContext[Any]) -> str:
        return await ctx.step("wait", wait)

    agent = patterned(pattern, deps=deps)
    async with Runtime([agent], store=tmp_path / "data", drain_timeout=0) as runtime:
        await runtime.submit(agent, "go", run_id="r")
        await began.wait()
    is_down = True
    async with Runtime([agent], store=tmp_path / "data") as runtime:
        async with asyncio.timeout(PATIENCE):
            while (await runtime.runs.get("r")).state in {"running", "queued", "interrupted"}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await runtime.runs.get("r")).state == "parked"
    is_down = False
    go_on.set()
    async with Runtime([agent], store=tmp_path / "data") as runtime:
        assert (await runtime.wait("r")).output == "done"


# ---- waiting for oneself


async def test_a_blocking_call_on_the_runtimes_own_thread_is_refused_and_not_a_deadlock(refused: Any) -> None:
    errors: list[BaseException] = []

    def sync() -> str:
        @tool
        async def nest() -> str:
            """Use the blocking runtime inside the loop that would have to answer."""
            try:
                runtime.run("caller", "again")
            except WouldDeadlockError as error:
                errors.append(error)
                raise
            return "not reached"

        with SyncRuntime([caller(nest)]) as runtime:
            return runtime.run("caller", "go").output

    said = await asyncio.wait_for(asyncio.to_thread(sync), 20)
    assert "blocking call on the thread that would have to answer it" in said
    with refused(WouldDeadlockError, "would have to answer", hint="await"):
        raise errors[0]


async def test_a_blocking_call_from_a_tools_thread_is_no_deadlock() -> None:
    def sync() -> str:
        @tool
        def nest() -> str:
            """Use the blocking runtime in a thread of its own."""
            return runtime.run("inner", "hello").output

        inner = Agent("inner", model=ScriptedModel(["from within"]))
        with SyncRuntime([caller(nest), inner]) as runtime:
            return runtime.run("caller", "go").output

    assert await asyncio.wait_for(asyncio.to_thread(sync), 20) == "told: from within"


@pytest.mark.parametrize("kind", ["pattern", "step", "async tool", "tool in a thread"])
async def test_a_run_that_would_wait_for_its_own_session_is_told_so_and_does_not_hang(
    runtime: Runtime, play: Any, refused: Any, kind: str
) -> None:
    loop = asyncio.get_running_loop()

    async def nest() -> str:
        with refused(SessionHeldByAncestorError, "holds session 's', and would wait for itself", hint="of its own"):
            await runtime.run("echo", "nested", session_id="s")
        with refused(SessionHeldByAncestorError, "holds session 's', and would wait for itself", hint="of its own"):
            async with runtime.stream("echo", "nested", session_id="s"):
                pass
        beside = await runtime.run("echo", "nested", session_id="another")
        later = await runtime.submit("echo", "later", session_id="s", run_id="later")
        for waiting in (later.result(), runtime.wait("later"), runtime.wait(run_at_work.get())):
            with refused(SessionHeldByAncestorError, "holds session 's', and would wait for itself", hint="of its own"):
                await waiting
        return str(beside.output)

    def nest_in_a_thread() -> str:
        return asyncio.run_coroutine_threadsafe(nest(), loop).result(PATIENCE)

    nested = tool(name="nest")(nest_in_a_thread) if kind == "tool in a thread" else tool(nest)

    async def pattern(ctx: RunContext[None]) -> Any:
        if kind == "pattern":
            return await nest()
        return await (ctx.step("nest", nest) if kind == "step" else ctx.call_tool("nest"))

    assert (await play(patterned(pattern, tools=[nested]))).output == "you said 'nested'"
    inputs = [message.text for message in await runtime.sessions.transcript("s") if message.role == "user"]
    assert inputs == ["go", "later", "and now?"]


# ---- a cancellation that comes while the end is being written


class SlowStore(LmdbStore):
    """A store that, once asked to, keeps its acknowledgements back until it is told to let them go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, map_size=1 << 30)
        self.kept: list[Callable[[], None]] = []
        self.keeps = asyncio.Event()
        self.keeps_ends_of_runs = False

    def commit(self, batch: Any, fence: Any, loop: Any, acknowledge: Any) -> None:
        ends_a_run = any(table == "unfinished" and value is None for table, _, value in batch.changes)

        def keep(error: Any) -> None:
            self.kept.append(lambda: acknowledge(error))
            self.keeps.set()

        super().commit(batch, fence, loop, keep if ends_a_run and self.keeps_ends_of_runs else acknowledge)


async def test_a_run_that_is_cancelled_while_its_end_is_written_has_ended(echo: Any, tmp_path: Path) -> None:
    store = SlowStore(tmp_path / "data")
    async with Runtime([echo], store=store) as runtime:
        store.keeps_ends_of_runs = True
        handle = await runtime.submit(echo, "hello", run_id="r", session_id="s")
        waiting = asyncio.ensure_future(handle.result())
        await store.keeps.wait()
        cancelling = asyncio.ensure_future(runtime.cancel("r"))
        for _ in range(20):  # turns of the loop: the request to cancel reaches the run, if anything of it does
            await asyncio.sleep(0)
        store.keeps_ends_of_runs = False
        store.kept.pop()()
        assert (await waiting).output == "you said 'hello'"
        assert await cancelling is False
        assert (await runtime.runs.get("r")).state == "completed"
        assert (await runtime.run(echo, "next", session_id="s")).output == "you said 'next'"


async def test_a_run_without_a_second_to_spend_ends_as_exhausted(play: Any) -> None:
    result = await play(patterned(branchless), budget=RunBudget(max_duration=0))
    assert (result.stop_reason, result.error_details.code) == ("budget_exhausted", "budget_exhausted")


def test_messages_of_these_tests_are_what_users_see() -> None:
    """`ToolFailedError` and `ToolTimeoutError` reach the model as their message; their hints are for people."""
    for kind in (ToolFailedError, ToolTimeoutError):
        error = kind("it failed")
        assert error.hint
        assert Message.tool(error.message, tool_call_id="c", name="t").text == "it failed"
