"""What callers get wrong: each mistake is refused at once, says what to do instead, and changes nothing."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from callboard import (
    Agent,
    AgentDefinitionError,
    Allow,
    CallboardError,
    DuplicateAgentError,
    Happened,
    InvalidIdentifierError,
    RunBudget,
    RunConflictError,
    RunRequest,
    Runtime,
    RuntimeBusyError,
    RuntimeLimits,
    ScriptedModel,
    ToolDefinitionError,
    UnknownAccountError,
    UnknownAgentError,
    UnknownRunError,
    UnknownSessionError,
    UnpersistableValueError,
    UsageError,
    tool,
)

pytestmark = pytest.mark.anyio

MODEL = ScriptedModel(["fine"])
BAD_IDS = {
    "empty": ("", "is empty"),
    "too long": ("x" * 201, "is 201 bytes long"),
    "too long in UTF-8": ("é" * 101, "is 202 bytes long"),
    "NUL": ("a\0b", "control character"),
    "a newline": ("a\nb", "control character"),
    "DEL": ("a\x7f", "control character"),
    "a C1 control": ("a\x85", "control character"),
    "a lone surrogate": ("a\ud800", "lone surrogate"),
    "bytes": (b"abc", "is of type bytes"),
    "a number": (7, "is of type int"),
}
ID_RULE = "1 to 200 bytes of UTF-8"
PLAIN = "use plain data"


# ---- which agent


async def test_an_unknown_agent_is_refused_with_the_nearest_one(runtime: Runtime, refused: Any) -> None:
    with refused(UnknownAgentError, "no agent 'ehco'", hint="did you mean 'echo'"):
        await runtime.run("ehco", "hello")


async def test_an_agent_that_is_like_no_other_is_refused_with_how_to_register_it(
    runtime: Runtime, refused: Any
) -> None:
    with refused(UnknownAgentError, "no agent 'zzz'", hint=r"runtime.agents.register"):
        await runtime.submit(Agent("zzz", model=MODEL), "hello")


async def test_another_agent_under_a_registered_id_is_refused(runtime: Runtime, refused: Any) -> None:
    with refused(DuplicateAgentError, "another agent is registered as 'echo'", hint="the one that is registered"):
        await runtime.run(Agent("echo", model=MODEL), "hello")


@pytest.mark.parametrize("agent", [None, 7])
async def test_what_is_no_agent_at_all_is_refused(runtime: Runtime, refused: Any, agent: Any) -> None:
    with refused(UsageError, "neither an agent nor the id of one", hint="runtime.run"):
        await runtime.run(agent, "hello")


async def test_two_agents_of_one_id_are_refused(runtime: Runtime, refused: Any) -> None:
    with refused(DuplicateAgentError, "two agents have the id 'echo'", hint="an id of its own"):
        runtime.agents.register(Agent("echo", model=MODEL))
    with refused(DuplicateAgentError, "two agents have the id 'a'", hint="an id of its own"):
        Runtime([Agent("a", model=MODEL), Agent("a", model=MODEL)])


async def test_unregistering_an_unknown_agent_names_the_nearest(runtime: Runtime, refused: Any) -> None:
    with refused(UnknownAgentError, "no agent 'echoo'", hint="did you mean 'echo'"):
        runtime.agents.unregister("echoo")


async def test_agents_that_are_no_list_of_agents_are_refused(echo: Any, refused: Any) -> None:
    with refused(UsageError, "is not a list of agents", hint=r"Runtime\(\[agent\]\)"):
        Runtime(echo)
    with refused(UsageError, "'echo' is not an agent", hint=r"Runtime\(\[Agent"):
        Runtime(["echo"])  # type: ignore[list-item]


# ---- options


async def test_an_unknown_option_names_the_nearest(runtime: Runtime, refused: Any) -> None:
    with refused(UsageError, "no option 'sesion_id'", hint="did you mean 'session_id'"):
        await runtime.run("echo", "hello", sesion_id="s")  # type: ignore[call-overload]


async def test_an_option_that_is_like_no_other_lists_them_all(runtime: Runtime, refused: Any) -> None:
    with refused(UsageError, "no option 'colour'", hint="one of: .*approvals.*deps.*session_id"):
        await runtime.submit("echo", "hello", colour="red")  # type: ignore[call-overload]


async def test_a_stream_checks_its_options_before_it_is_entered(runtime: Runtime, refused: Any) -> None:
    with refused(UsageError, "no option 'run_ids'", hint="did you mean 'run_id'"):
        runtime.stream("echo", "hello", run_ids="r")  # type: ignore[call-overload]


async def test_a_request_with_options_beside_it_is_refused(runtime: Runtime, refused: Any) -> None:
    request = RunRequest(agent_id="echo", session_id="s", run_id="r", input_text="hello")
    with refused(UsageError, "a RunRequest says everything", hint="set its fields"):
        await runtime.run(request, budget=RunBudget())  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("on_busy", "que", "'queue', 'reject' or 'interrupt'"),
        ("on_crash", "retry", "'resume', 'restart' or 'fail'"),
        ("durable", "perhaps", "valid boolean"),
        ("budget", 7, "RunBudget"),
        ("metadata", ["a"], "valid dictionary"),
        ("approvals", {"pay": True}, r"Allow\(\), Deny"),
        ("approvals", [Allow()], r"Allow\(\), Deny"),
    ],
)
async def test_a_value_that_an_option_cannot_have_is_refused(
    runtime: Runtime, refused: Any, option: str, value: Any, hint: str
) -> None:
    with refused(UsageError, f"RunRequest: {option}.* does not fit", hint=hint):
        await runtime.run("echo", "hello", **{option: value})


async def test_an_account_nobody_opened_and_a_parent_of_the_callers_choice_are_refused(
    runtime: Runtime, refused: Any
) -> None:
    request = RunRequest(agent_id="echo", session_id="s", run_id="r", input_text="hello", account="team")
    with refused(UnknownAccountError, "no account 'team' is open", hint="runtime.accounts.open"):
        await runtime.submit(request)
    child = RunRequest(agent_id="echo", session_id="s", run_id="r:0", input_text="hello", parent_run_id="r")
    with refused(UsageError, "parent_run_id", hint="ctx.delegate"):
        await runtime.submit(child)


# ---- ids


@pytest.mark.parametrize("option", ["session_id", "run_id"])
@pytest.mark.parametrize(("bad", "says"), BAD_IDS.values(), ids=BAD_IDS)
async def test_a_bad_id_is_refused_by_name_and_with_the_rule(
    runtime: Runtime, refused: Any, option: str, bad: Any, says: str
) -> None:
    what = option.replace("_", " ")
    with refused(InvalidIdentifierError, f"the {what} .*{says}", hint=ID_RULE):
        await runtime.run("echo", "hello", **{option: bad})
    with refused(InvalidIdentifierError, f"the {what} .*{says}", hint=ID_RULE):
        RunRequest(**{"agent_id": "echo", "session_id": "s", "run_id": "r", option: bad})
    assert await runtime.runs.list() == []


async def test_the_longest_ids_work_and_a_long_run_id_needs_no_session_id(runtime: Runtime) -> None:
    longest = "é" * 100
    result = await runtime.run("echo", "hello", run_id=longest)
    assert result.output == "you said 'hello'"
    assert (await runtime.runs.get(longest)).session_id == result.session_id
    beside = await runtime.run("echo", "hello", run_id="x" * 200, session_id="y" * 200)
    assert len(await runtime.sessions.transcript(beside.session_id)) == 2


async def test_a_path_is_an_id_like_any_other_and_reaches_no_file(runtime: Runtime, tmp_path: Path) -> None:
    await runtime.run("echo", "hello", session_id="../../etc/passwd", run_id="a/../b")
    assert await runtime.sessions.list() == ["../../etc/passwd"]
    assert {*os.listdir(tmp_path)} <= {"data"}


@pytest.mark.parametrize(("bad", "says"), BAD_IDS.values(), ids=BAD_IDS)
async def test_an_agent_with_a_bad_id_cannot_be_made(refused: Any, bad: Any, says: str) -> None:
    with refused(InvalidIdentifierError, f"the agent id .*{says}", hint=ID_RULE):
        Agent(bad, model=MODEL)


# ---- input


async def test_an_empty_input_is_an_input(runtime: Runtime) -> None:
    """The agent may know what to do without being told."""
    result = await runtime.run("echo", "", session_id="s")
    assert result.output == "you said ''"
    assert [message.role for message in await runtime.sessions.transcript("s")] == ["user", "assistant"]


@pytest.mark.parametrize(("said", "says"), [(None, "there is no input"), (7, "the input is of type int")])
async def test_what_is_no_input_is_refused(runtime: Runtime, refused: Any, said: Any, says: str) -> None:
    with refused(UsageError, says, hint="what the user says"):
        await runtime.run("echo", said)


@pytest.mark.parametrize("said", [b"bytes", ["text"], [7], {"type": "text"}.items()])
async def test_parts_that_are_no_parts_are_refused(runtime: Runtime, refused: Any, said: Any) -> None:
    with refused(UsageError, "input_parts|of type dict_items", hint="TextPart|content parts"):
        await runtime.run("echo", said)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"metadata": {"a": object()}}, r"request.metadata.a is a object"),
        ({"metadata": {"a": {1, 2}}}, r"request.metadata.a is a set"),
        ({"metadata": {"a": ["\ud800"]}}, r"request.metadata.a\[0\] is a str with a lone surrogate"),
        ({"metadata": {"a": {(1, 2): 3}}}, "has a tuple as its key"),
        ({"context_hints": {"a": lambda: None}}, "request.context_hints.a is a function"),
        ({"approvals": {"pay": Happened(object())}}, "request.approvals.pay.result is a object"),
    ],
)
async def test_what_cannot_persist_is_refused_at_the_door_and_named(
    runtime: Runtime, refused: Any, options: Any, place: str
) -> None:
    with refused(UnpersistableValueError, place, hint=PLAIN):
        await runtime.submit("echo", "hello", session_id="s", run_id="r", **options)
    assert await runtime.runs.list() == []
    assert (await runtime.run("echo", "hello", session_id="s", run_id="r")).output == "you said 'hello'"


async def test_an_input_with_a_lone_surrogate_is_refused_and_named(runtime: Runtime, refused: Any) -> None:
    with refused(UnpersistableValueError, "request.input_text is a str with a lone surrogate", hint=PLAIN):
        await runtime.run("echo", "\ud800")


async def test_metadata_that_holds_itself_is_refused_and_not_followed_for_ever(runtime: Runtime, refused: Any) -> None:
    metadata: dict[str, Any] = {}
    metadata["itself"] = metadata
    with refused(UnpersistableValueError, "nested more than 64 deep", hint=PLAIN):
        await runtime.run("echo", "hello", metadata=metadata)


# ---- submitting


async def test_another_request_under_a_known_run_id_is_refused(runtime: Runtime, refused: Any) -> None:
    await runtime.run("echo", "hello", run_id="r")
    with refused(RunConflictError, "run 'r' was submitted before", hint="the same request|a new run id"):
        await runtime.submit("echo", "something else", run_id="r")


async def test_past_a_limit_a_run_is_refused_and_not_started(echo: Any, refused: Any) -> None:
    limits = RuntimeLimits(max_concurrent_runs=1, max_queued_runs=0)

    async def wait(ctx: Any) -> str:
        await ctx.sleep(0.2)
        return "done"

    patient = Agent("patient", pattern=wait)
    async with Runtime([echo, patient], limits=limits) as runtime:
        first = await runtime.submit(patient, "wait", session_id="s")
        with refused(RuntimeBusyError, "max_queued_runs=0|waiting", hint="later, or raise the limit"):
            await runtime.submit(echo, "hello", session_id="s")
        assert (await first.result()).output == "done"
        assert (await runtime.run(echo, "hello", session_id="s")).output == "you said 'hello'"


async def test_a_busy_session_is_refused_where_the_caller_will_not_queue(
    runtime: Runtime, refused: Any, echo: Any
) -> None:
    async def wait(ctx: Any) -> str:
        await ctx.sleep(0.2)
        return "done"

    runtime.agents.register(patient := Agent("patient", pattern=wait))
    first = await runtime.submit(patient, "wait", session_id="s")
    with refused(RuntimeBusyError, "session 's' has another run", hint="on_busy='queue'"):
        await runtime.run(echo, "hello", session_id="s", on_busy="reject")
    assert (await first.result()).output == "done"


# ---- reading


@pytest.mark.parametrize("method", ["get", "transcript", "artifacts", "checkpoints", "delete"])
async def test_an_unknown_session_is_refused_by_every_method(runtime: Runtime, refused: Any, method: str) -> None:
    with refused(UnknownSessionError, "no session 'nowhere'", hint=r"runtime.sessions.list\(\)"):
        await getattr(runtime.sessions, method)("nowhere")


async def test_a_checkpoint_of_an_unknown_session_is_refused(runtime: Runtime, refused: Any) -> None:
    with refused(UnknownSessionError, "no session 'nowhere'", hint=r"runtime.sessions.list\(\)"):
        await runtime.sessions.checkpoint("nowhere", "mine")


@pytest.mark.parametrize("method", ["get", "transcript", "artifacts", "checkpoints", "delete", "release"])
@pytest.mark.parametrize(("bad", "says"), BAD_IDS.values(), ids=BAD_IDS)
async def test_a_bad_session_id_is_refused_by_every_method(
    runtime: Runtime, refused: Any, method: str, bad: Any, says: str
) -> None:
    with refused(InvalidIdentifierError, f"the session id .*{says}", hint=ID_RULE):
        await getattr(runtime.sessions, method)(bad)


@pytest.mark.parametrize(("bad", "says"), BAD_IDS.values(), ids=BAD_IDS)
async def test_a_bad_name_for_a_checkpoint_is_refused(runtime: Runtime, refused: Any, bad: Any, says: str) -> None:
    await runtime.run("echo", "hello", session_id="s")
    with refused(InvalidIdentifierError, f"the checkpoint name .*{says}", hint=ID_RULE):
        await runtime.sessions.checkpoint("s", bad)


async def read_events(runtime: Runtime, run_id: Any, after: Any = None) -> list[str]:
    return [event.name async for event in runtime.events(run_id, after=after)]


@pytest.mark.parametrize("method", ["runs.get", "runs.steps", "wait", "cancel", "events"])
async def test_an_unknown_run_is_refused_by_every_method(runtime: Runtime, refused: Any, method: str) -> None:
    with refused(UnknownRunError, "no run 'nowhere'", hint=r"runtime.runs.list\(\)"):
        await ask_about(runtime, method, "nowhere")


@pytest.mark.parametrize("method", ["runs.get", "runs.steps", "wait", "cancel", "events", "subscribe"])
@pytest.mark.parametrize(("bad", "says"), BAD_IDS.values(), ids=BAD_IDS)
async def test_a_bad_run_id_is_refused_by_every_method(
    runtime: Runtime, refused: Any, method: str, bad: Any, says: str
) -> None:
    with refused(InvalidIdentifierError, f"the run id .*{says}", hint=ID_RULE):
        await ask_about(runtime, method, bad)


async def ask_about(runtime: Runtime, method: str, run_id: Any) -> Any:
    if method == "events":
        return await read_events(runtime, run_id)
    name, _, attribute = method.partition(".")
    target = getattr(runtime, name)
    return await (getattr(target, attribute) if attribute else target)(run_id)


@pytest.mark.parametrize(
    "cursor", ["", "bogus", "r", "r-1", "-1", "7", "r1", "r1.x", "r1.-5", "r" + "9" * 5000 + ".0", 7, "r\u0661"]
)
async def test_a_bad_cursor_is_refused(runtime: Runtime, refused: Any, cursor: Any) -> None:
    await runtime.run("echo", "hello", run_id="r")
    with refused(UsageError, r"^.{1,45} is no cursor", hint="the `cursor` of an event"):
        await read_events(runtime, "r", cursor)


async def test_the_cursor_of_an_event_leads_to_what_follows_it(runtime: Runtime) -> None:
    await runtime.run("echo", "hello", run_id="r")
    events = [event async for event in runtime.events("r")]
    for position, event in enumerate(events):
        rest = [later.name for later in events[position + 1 :]]
        assert await read_events(runtime, "r", event.cursor) == rest


async def test_a_state_that_does_not_exist_names_the_nearest(runtime: Runtime, refused: Any) -> None:
    with refused(UsageError, "no run state 'runing'", hint="did you mean 'running'"):
        await runtime.runs.list(state="runing")


async def test_a_built_in_event_that_does_not_exist_names_the_nearest(runtime: Runtime, refused: Any) -> None:
    with refused(UsageError, "no event 'run.complted'", hint="did you mean 'run.completed'"):
        await runtime.subscribe(names=["run.complted"])


# ---- limits, budgets, durations


@pytest.mark.parametrize(
    ("make", "says", "hint"),
    [
        (lambda: RuntimeLimits(max_concurrent_runs=0), "max_concurrent_runs=0", "greater than or equal to 1"),
        (lambda: RuntimeLimits(max_queued_runs=-1), "max_queued_runs=-1", "greater than or equal to 0"),
        (lambda: RuntimeLimits(max_active_sessions="many"), "max_active_sessions='many'", "valid integer"),
        (lambda: RuntimeLimits(session_idle=-1), "session_idle: a duration of -1", "seconds >= 0"),
        (lambda: RuntimeLimits(max_queued=1), "no option 'max_queued'", "did you mean 'max_queued_runs'"),
        (lambda: RunBudget(max_steps=-1), "max_steps=-1", "greater than or equal to 0"),
        (lambda: RunBudget(max_steps=1.5), "max_steps=1.5", "valid integer"),
        (lambda: RunBudget(max_cost_usd=float("nan")), "max_cost_usd=nan", "greater than or equal to 0"),
        (lambda: RunBudget(max_duration=-1), "max_duration: a duration of -1", "seconds >= 0"),
        (lambda: RunBudget(max_duration=timedelta(seconds=-1)), "max_duration: a duration of", "seconds >= 0"),
        (lambda: RunBudget(max_duration=float("inf")), "max_duration: a duration of inf", "seconds >= 0"),
        (lambda: RunBudget(max_duration="soon"), "max_duration: a duration of 'soon'", "seconds >= 0"),
        (lambda: RunBudget(max_stpes=1), "no option 'max_stpes'", "did you mean 'max_steps'"),
        (lambda: Runtime(limits=7), "limits=7", "RuntimeLimits"),
        (lambda: Runtime(drain_timeout=-1), "a duration of -1", "seconds >= 0"),
        (lambda: Runtime(drain_timeout="long"), "a duration of 'long'", "seconds >= 0"),
        (lambda: Agent("a", model=MODEL, step_timeout=-1), "a duration of -1", "seconds >= 0"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(refused: Any, make: Any, says: str, hint: str) -> None:
    with refused(UsageError, says, hint=hint):
        make()


# ---- agents and tools


@tool
def same() -> str:
    """One of two."""
    return "one"


@tool(name="same")
def other() -> str:
    """The other of two."""
    return "other"


async def pattern(ctx: Any) -> str:
    return "done"


@pytest.mark.parametrize(
    ("options", "says", "hint"),
    [
        ({"tools": [same, other]}, "two tools named 'same'", r"@tool\(name="),
        ({"tools": [len]}, "is not a tool", "@tool"),
        ({"tools": same}, "is not a list of tools", r"tools=\["),
        ({"pattern": "reakt"}, "no pattern 'reakt'", "did you mean 'react'"),
        ({"pattern": lambda ctx: "done"}, "is not an async function", "async def"),
        ({"context": "ful"}, "no context 'ful'", "did you mean 'full'"),
        ({"context": 7}, "context=7", "assembler|SlidingWindow"),
        ({"memory": 7}, "memory=7", "WindowMemory"),
        ({"budget": 7}, "budget=7", "RunBudget"),
        ({"instructions": 7}, "instructions=7", "str"),
        ({"instructions": "\ud800"}, "instructions=.* is not text", "str"),
        ({"version": 2}, "version=2", "str"),
        ({"on_in_doubt": "aks"}, "on_in_doubt='aks'", "ask, tell, retry, fail"),
        ({"output_type": 7}, "output_type=7", "pydantic model"),
        ({"state_type": 7}, "state_type=7", "without arguments"),
    ],
)
def test_an_agent_that_cannot_run_cannot_be_made(refused: Any, options: Any, says: str, hint: str) -> None:
    with refused(AgentDefinitionError, says, hint=hint):
        Agent("a", **{"model": MODEL, **options})


def test_a_state_type_that_needs_arguments_is_refused(refused: Any) -> None:
    class Cart:
        def __init__(self, owner: str) -> None:
            self.owner = owner

    with refused(AgentDefinitionError, "no state can be made", hint="without arguments"):
        Agent("a", model=MODEL, state_type=Cart)


@pytest.mark.parametrize(
    ("options", "says", "hint"),
    [
        ({"timeout": -1}, "a duration of -1", "seconds >= 0"),
        ({"timeout": "soon"}, "a duration of 'soon'", "seconds >= 0"),
        ({"timeout": 0}, "lets no call succeed", "more time"),
        ({"timeot": 1}, "no tool option 'timeot'", "did you mean 'timeout'"),
        ({"max_concurrency": 0}, "max_concurrency=0", "at least 1"),
    ],
)
def test_a_tool_with_options_that_make_no_sense_cannot_be_made(
    refused: Any, options: Any, says: str, hint: str
) -> None:
    def work() -> str:
        return "done"

    with refused(ToolDefinitionError, says, hint=hint):
        tool(**options)(work)


@pytest.mark.parametrize(("model", "hint"), [(7, "a Model"), ("gpt", "openai:")])
def test_what_is_no_model_is_refused(refused: Any, model: Any, hint: str) -> None:
    with refused(UsageError, "is no model|names no provider", hint=hint):
        Agent("a", model=model)


def test_every_error_class_has_a_code_of_its_own() -> None:
    seen: dict[str, type[CallboardError]] = {}
    waiting: list[type[CallboardError]] = [CallboardError]
    while waiting:
        kind = waiting.pop()
        assert seen.setdefault(kind.code, kind) is kind, f"{kind.__name__} and {seen[kind.code].__name__}: {kind.code}"
        waiting.extend(sub for sub in kind.__subclasses__() if sub.__module__.startswith("callboard"))
