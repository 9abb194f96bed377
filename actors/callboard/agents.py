"""What an agent is: a model, instructions, tools, and how its runs are to behave."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypedDict, Unpack, cast, overload

from pydantic import TypeAdapter
from typing_extensions import TypeVar

from callboard.context import ContextAssembler, resolve_assembler
from callboard.memory import Memory
from callboard.models.base import Model, resolve_model
from callboard.output import OutputContract
from callboard.patterns import Pattern, resolve_pattern
from callboard.runs.run_info import RunInfo
from callboard.tool import Tool
from callboard_protocol.base import as_seconds, check_identifier
from callboard_protocol.errors import AgentDefinitionError, DuplicateAgentError, UnknownAgentError, UsageError
from callboard_protocol.failures import text_of
from callboard_protocol.records import AgentSnapshot
from callboard_protocol.runs import RunBudget
from callboard_protocol.tools import OnInDoubt

if TYPE_CHECKING:
    from callboard.run import RunContext

DepsT = TypeVar("DepsT", default=None)
OutputT = TypeVar("OutputT", default=str)


DepsFactory = Callable[[RunInfo], AbstractAsyncContextManager[DepsT]]


class AgentOptions(TypedDict, total=False):
    """What any agent may be given, whatever its deps and output; `Agent` says what each means."""

    model: Model | str | None
    instructions: str
    context: str | ContextAssembler
    memory: Memory | None
    budget: RunBudget | None
    step_timeout: float | timedelta | None
    on_in_doubt: OnInDoubt
    state_type: type[Any] | None
    version: str


class Agent(Generic[DepsT, OutputT]):
    """An agent: immutable once made, shared by any number of runs.

    Args:
        id: its name; runs on disk refer to it, so it must stay the same across deploys.
        model: a `Model`, or ``"provider:name"``.
        instructions: the system prompt.
        tools: what the model may call.
        deps: what tools get as `ctx.deps`: a value, or a factory ``(RunInfo) -> async context manager`` that is
            entered at every start of a run, recoveries included.
        output_type: what a run returns; the model's final answer is validated against it.
        pattern: ``"react"``, or an async function of a `RunContext` that returns the output.
        context: how much of the transcript the model sees: ``"full"``, or an assembler such as `SlidingWindow`.
        memory: what outlives the transcript's window, such as `WindowMemory`.
        budget: limits of every run that brings none of its own.
        step_timeout: seconds or a timedelta one step may take; the run ends as ``timeout`` past it.
        on_in_doubt: what to do with a tool call of unknown outcome, where the tool does not say: ``"ask"`` suspends
            the run until someone decides, ``"tell"`` tells the model, ``"retry"`` calls again, ``"fail"`` fails it.
        state_type: the type of `ctx.state`; a class that can be made without arguments.
        version: recorded with every run, for people and for `ctx.patched`.

    Raises:
        AgentDefinitionError: two tools of one name, a pattern, a context or options that do not exist.
        InvalidIdentifierError: the id cannot be stored.
    """

    @overload
    def __init__(
        self,
        id: str,
        *,
        deps: DepsFactory[DepsT],
        tools: Sequence[Tool[DepsT] | Tool[None]] = (),
        pattern: str | Callable[[RunContext[DepsT]], Awaitable[str]] = "react",
        **options: Unpack[AgentOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        id: str,
        *,
        deps: DepsT | None = None,
        tools: Sequence[Tool[DepsT] | Tool[None]] = (),
        pattern: str | Callable[[RunContext[DepsT]], Awaitable[str]] = "react",
        **options: Unpack[AgentOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        id: str,
        *,
        output_type: type[OutputT],
        deps: DepsFactory[DepsT],
        tools: Sequence[Tool[DepsT] | Tool[None]] = (),
        pattern: str | Callable[[RunContext[DepsT]], Awaitable[OutputT]] = "react",
        **options: Unpack[AgentOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        id: str,
        *,
        output_type: type[OutputT],
        deps: DepsT | None = None,
        tools: Sequence[Tool[DepsT] | Tool[None]] = (),
        pattern: str | Callable[[RunContext[DepsT]], Awaitable[OutputT]] = "react",
        **options: Unpack[AgentOptions],
    ) -> None: ...
    def __init__(
        self,
        id: str,  # noqa: A002  (the public API's name)
        *,
        output_type: type[Any] = str,
        model: Model | str | None = None,
        instructions: str = "",
        tools: Sequence[Tool[Any]] = (),
        deps: Any = None,
        pattern: str | Callable[[RunContext[Any]], Awaitable[Any]] = "react",
        context: str | ContextAssembler = "full",
        memory: Memory | None = None,
        budget: RunBudget | None = None,
        step_timeout: float | timedelta | None = None,
        on_in_doubt: OnInDoubt = "ask",
        state_type: type[Any] | None = None,
        version: str = "1",
    ) -> None:
        self.id = check_identifier(id, "agent id")
        for option, value in (("instructions", instructions), ("version", version)):
            if not _is_text(value):
                raise AgentDefinitionError(f"agent {id!r}: {option}={value!r:.60} is not text", hint="give a str")
        if not isinstance(budget, RunBudget | None):
            raise AgentDefinitionError(
                f"agent {id!r}: budget={budget!r:.60} is no budget", hint="budget=RunBudget(max_steps=...)"
            )
        if not isinstance(memory, Memory | None):
            raise AgentDefinitionError(
                f"agent {id!r}: memory={memory!r:.60} is no memory", hint="such as memory=WindowMemory(10)"
            )
        self.instructions = instructions
        self.tools: dict[str, Tool[Any]] = _by_name(id, tools)
        self.deps = deps
        self.output: OutputContract = OutputContract(output_type)
        self.pattern: Pattern = resolve_pattern(pattern, id)
        self.context: ContextAssembler = resolve_assembler(context, id)
        self.memory = memory
        self.budget = RunBudget() if budget is None else budget
        self.step_timeout = None if step_timeout is None else as_seconds(step_timeout)
        if on_in_doubt not in ("ask", "tell", "retry", "fail"):
            raise AgentDefinitionError(
                f"agent {id!r}: on_in_doubt={on_in_doubt!r} is not a choice", hint="one of: ask, tell, retry, fail"
            )
        self.on_in_doubt: OnInDoubt = on_in_doubt
        self.state_type = _checked_state(id, state_type)
        self.version = version
        self.tool_schemas = tuple(one.schema for one in self.tools.values())
        self._model = None if model is None else resolve_model(model)
        self._overridden: ContextVar[Model | None] = ContextVar(f"model of {id}", default=None)

    def __repr__(self) -> str:
        return f"<Agent {self.id!r} version {self.version!r}>"

    @property
    def output_type(self) -> type[OutputT]:
        """What a run returns."""
        return cast("type[OutputT]", self.output.type)

    @property
    def model(self) -> Model | None:
        """The model its runs ask: its own, or the one that stands in for it here."""
        return self._overridden.get() or self._model

    @contextmanager
    def override(self, *, model: Model | str) -> Iterator[None]:
        """Runs started inside use another model: for tests.

        Args:
            model: the model to use instead.
        """
        token = self._overridden.set(resolve_model(model))
        try:
            yield
        finally:
            self._overridden.reset(token)

    def snapshot(self) -> AgentSnapshot:
        """What a run's records say about it."""
        model = self.model
        return AgentSnapshot(
            version=self.version,
            model="" if model is None else model.name,
            instructions=self.instructions,
            tools=tuple(self.tools),
            pattern=self.pattern.name,
        )


def find_agent(registered: Mapping[str, Agent[Any, Any]], agent: Agent[Any, Any] | str) -> Agent[Any, Any]:
    """The registered agent.

    Raises:
        UnknownAgentError: there is none; the error names the nearest.
        DuplicateAgentError: another is registered under its id.
        UsageError: it is no agent at all.
    """
    if not isinstance(agent, str | Agent):
        raise UsageError(f"{agent!r:.60} is neither an agent nor the id of one", hint="runtime.run(agent, '...')")
    agent_id = agent if isinstance(agent, str) else agent.id
    known = registered.get(agent_id)
    if known is None:
        near = difflib.get_close_matches(agent_id, registered, n=1)
        raise UnknownAgentError(
            f"no agent {agent_id!r} is registered",
            hint=f"did you mean {near[0]!r}?" if near else None,
            context={"registered": [*registered]},
        )
    if not isinstance(agent, str) and known is not agent:
        raise DuplicateAgentError(
            f"another agent is registered as {agent_id!r}", hint="pass the one that is registered, or its id"
        )
    return known


def _is_text(value: object) -> bool:
    """Whether it is a `str` that UTF-8 can carry."""
    return isinstance(value, str) and value.encode(errors="replace").decode() == value


def _checked_state(agent_id: str, state_type: Any) -> type[Any] | None:
    """The state type, if a state can be made of it, stored and read again."""
    if state_type is None:
        return None
    try:
        TypeAdapter(state_type).dump_python(state_type())
    except Exception as problem:
        raise AgentDefinitionError(
            f"agent {agent_id!r}: no state can be made by state_type={state_type!r:.60}: {text_of(problem)}",
            hint="give a class that can be called without arguments and that pydantic can validate: defaults for all",
        ) from problem
    return cast("type[Any]", state_type)


def _by_name(agent_id: str, tools: Sequence[Tool[Any]]) -> dict[str, Tool[Any]]:
    named: dict[str, Tool[Any]] = {}
    if isinstance(tools, Tool | str) or not isinstance(tools, Iterable):
        raise AgentDefinitionError(
            f"agent {agent_id!r}: tools={tools!r:.60} is not a list of tools", hint="tools=[...]"
        )
    for one in tools:
        if not isinstance(one, Tool):
            raise AgentDefinitionError(
                f"agent {agent_id!r}: {one!r} is not a tool", hint="decorate the function with @tool"
            )
        if one.name in named:
            raise AgentDefinitionError(
                f"agent {agent_id!r} has two tools named {one.name!r}", hint="rename one: @tool(name=...)"
            )
        named[one.name] = one
    return named
