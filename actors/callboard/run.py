"""RunContext: what a pattern holds of its run. Everything with an effect goes through it, as a durable step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, ParamSpec, TypeVar, overload

from callboard.agents import Agent, DepsT
from callboard.live.live_run import LiveRun
from callboard.live.scopes import Scope
from callboard.output import OutputContract
from callboard.steps import delegation, model_step, plain_steps, signal_steps, tool_steps
from callboard.steps.delegation import SessionSharing
from callboard.steps.tool_steps import ToolResult
from callboard_protocol.base import JsonObject, check_name
from callboard_protocol.errors import UsageError
from callboard_protocol.messages import Message, ToolCall
from callboard_protocol.model_calls import ModelResponse
from callboard_protocol.runs import OnCrash, RunArtifact, RunBudget, RunResult, RunUsage

ResultT = TypeVar("ResultT")
ItemT = TypeVar("ItemT")
D = TypeVar("D")
P = ParamSpec("P")


class RunContext(Generic[DepsT]):
    """A run, as its pattern sees it.

    Every step has an identity that is the same at each attempt, is on disk before the next one starts, and on replay
    returns what was recorded without acting. One scope has one step in flight; `map` and `branch` open more scopes.
    """

    def __init__(self, run: LiveRun, scope: Scope) -> None:
        self._run = run
        self._scope = scope

    def __repr__(self) -> str:
        return f"<RunContext {self._run.run_id} scope {self._scope.prefix or 'root'!r}>"

    # ---- what it can read

    @property
    def run_id(self) -> str:
        """The run."""
        return self._run.run_id

    @property
    def session_id(self) -> str:
        """Its session."""
        return self._run.session_id

    @property
    def attempt(self) -> int:
        """Which attempt this is; 1 at the first start. A pattern must not decide by it."""
        return self._run.attempt

    @property
    def input_text(self) -> str:
        """What the user said, as text."""
        return self._run.request.input_message().text

    @property
    def input_message(self) -> Message:
        """What the user said, with all its parts."""
        return self._run.request.input_message()

    @property
    def transcript(self) -> Sequence[Message]:
        """The conversation in this scope so far, without instructions; it does not change once handed out."""
        view = self._scope.conversation.view()
        return view[1:] if len(view) and view[0].role == "system" else view

    @property
    def deps(self) -> DepsT:
        """What the agent's `deps` opened for this attempt."""
        deps: DepsT = self._run.deps
        return deps

    @property
    def state(self) -> Any:
        """The session's state, of the agent's `state_type`; changes are written with the next step."""
        return self._run.state.value

    @property
    def metadata(self) -> JsonObject:
        """The request's."""
        return self._run.request.metadata

    @property
    def context_hints(self) -> JsonObject:
        """The request's."""
        return self._run.request.context_hints

    @property
    def usage(self) -> RunUsage:
        """What the run has used so far, over all attempts."""
        return self._run.meter.usage()

    @property
    def artifacts(self) -> Sequence[RunArtifact]:
        """What this run made so far."""
        return tuple(self._run.artifacts)

    # ---- models and tools

    @overload
    async def generate(self, messages: str | Sequence[Message] | None = None) -> ModelResponse[str]: ...
    @overload
    async def generate(
        self, messages: str | Sequence[Message] | None = None, *, output_type: type[ResultT]
    ) -> ModelResponse[ResultT]: ...
    async def generate(
        self, messages: str | Sequence[Message] | None = None, *, output_type: type[Any] | None = None
    ) -> ModelResponse[Any]:
        """Ask the model.

        Args:
            messages: None to go on with the conversation, a text to say first, or a whole history to show instead.
            output_type: what `response.output` must be; the model is asked again where its answer does not fit.

        Raises:
            ModelError: the model did not answer.
            OutputValidationError: no answer fitted `output_type`.
            ConcurrentStepError: another step of this scope is in flight.
            NonDeterministicRunError: an earlier attempt asked for something else here.
        """
        contract = None if output_type is None else OutputContract(output_type)
        return await model_step.generate(self._run, self._scope, messages, contract)

    async def call_tool(self, name: str, /, **arguments: Any) -> Any:
        """Call one of the agent's tools; the result comes here and not into the transcript.

        Raises:
            ToolError: the call failed.
            UnpersistableValueError: what the tool returned cannot be stored.
            ConcurrentStepError: another step of this scope is in flight.
            NonDeterministicRunError: an earlier attempt asked for something else here.
        """
        return await tool_steps.call_one(self._run, self._scope, name, arguments)

    async def call_tools(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Make the calls a model asked for and answer it; results in the order of the calls.

        A call that fails is answered with what went wrong, so that the model can mend it.

        Raises:
            UnpersistableValueError: what a tool returned cannot be stored.
            ConcurrentStepError: another step of this scope is in flight.
            NonDeterministicRunError: an earlier attempt asked for something else here.
        """
        return await tool_steps.call_many(self._run, self._scope, calls)

    # ---- other agents

    @overload
    async def delegate(
        self,
        agent: Agent[D, ResultT],
        input: str,
        *,
        budget: RunBudget | None = None,
        session: SessionSharing = "isolated",
        on_crash: OnCrash = "resume",
        deps: D | None = None,
        metadata: JsonObject | None = None,
    ) -> RunResult[ResultT]: ...
    @overload
    async def delegate(
        self,
        agent: str,
        input: str,
        *,
        budget: RunBudget | None = None,
        session: SessionSharing = "isolated",
        on_crash: OnCrash = "resume",
        deps: Any = None,
        metadata: JsonObject | None = None,
    ) -> RunResult[Any]: ...
    async def delegate(
        self,
        agent: Agent[Any, Any] | str,
        input: str,  # noqa: A002  (the public API's name)
        *,
        budget: RunBudget | None = None,
        session: SessionSharing = "isolated",
        on_crash: OnCrash = "resume",
        deps: Any = None,
        metadata: JsonObject | None = None,
    ) -> RunResult[Any]:
        """Have another agent do something, and wait for its result; meanwhile this run holds no slot.

        The child is a run of its own, under the id ``{run_id}:{step}``. One that fails, is cancelled or runs out of its
        budget returns a result that says so. What it spends counts against this run's budget too, and it is stopped
        when this run is, for whatever reason. A resumed run does not begin it again, but carries it on, or has its
        result.

        Args:
            agent: an agent, or its id.
            input: what it is asked.
            budget: its limits; those of the agent where None.
            session: ``"isolated"``: a session of its own. ``"shared"``: this run's: it sees the conversation of this
                scope and the session's state as they are now, adds nothing to the transcript, and what it changes in
                the state is changed here too.
            on_crash: what a crash in the middle of it does: it is carried on, it begins afresh (``"restart"``, in a
                session of its own), or it fails, and this run has that as its result.
            deps: what its tools get; where None those of the agent, and where that has none, this run's.
            metadata: values of the caller's own, carried unchanged.

        Returns:
            Its result, without an `error_snapshot`: `runtime.wait` has that.

        Raises:
            UnknownAgentError: no such agent is registered; the error names the nearest.
            UsageError: an option does not exist, or does not go with another.
            DelegationDepthError: too many runs wait for each other.
            InvalidIdentifierError: the names of runs and branches leave no room for the child's id.
            UnpersistableValueError: the session's state cannot be stored.
            ConcurrentStepError: another step of this scope is in flight.
            NonDeterministicRunError: an earlier attempt asked for something else here.
        """
        return await delegation.delegate(
            self._run,
            self._scope,
            agent,
            input,
            budget=budget,
            session=session,
            on_crash=on_crash,
            deps=deps,
            metadata=metadata,
        )

    # ---- other steps

    async def step(
        self, name: str, fn: Callable[P, Awaitable[ResultT]], /, *args: P.args, **kwargs: P.kwargs
    ) -> ResultT:
        """Run a function once, however often the run is resumed: its result is recorded.

        The result passes through its annotated return type, live and on replay alike.

        Args:
            name: what the records call it.
            fn: an async function.
            *args: its arguments; compared on replay.
            **kwargs: its arguments by name; compared on replay.

        Raises:
            StepFailedError: it raised.
            UnpersistableValueError: its result cannot be stored.
            ConcurrentStepError: another step of this scope is in flight.
            NonDeterministicRunError: an earlier attempt asked for something else here.
        """
        result: ResultT = await plain_steps.run_function(self._run, self._scope, name, fn, args, kwargs)
        return result

    async def sleep(self, duration: float | timedelta) -> None:
        """Sleep until a stored instant: a restart in between does not prolong it.

        Args:
            duration: seconds or a timedelta.
        """
        await signal_steps.sleep(self._run, self._scope, duration)

    @overload
    async def receive(
        self, channel: str, type_: type[ResultT], *, timeout: float | timedelta | None = None
    ) -> ResultT: ...
    @overload
    async def receive(self, channel: str, type_: Any = Any, *, timeout: float | timedelta | None = None) -> Any: ...
    async def receive(self, channel: str, type_: Any = Any, *, timeout: float | timedelta | None = None) -> Any:
        """Wait for a value that somebody sends with `Runtime.send`; one that came before counts too. Values of a
        channel come in the order they were sent, each once, over all restarts.

        Args:
            channel: which.
            type_: what the value must be; it is validated.
            timeout: seconds or a timedelta to wait, over all restarts; for good where None.

        Raises:
            ReceiveTimeoutError: nothing came in time.
            UnexpectedSignalError: what came is not of the type; it is received all the same.
            UsageError: nothing sent can be of that type.
            ConcurrentStepError: another step of this scope is in flight.
            NonDeterministicRunError: an earlier attempt asked for something else here.
        """
        return await signal_steps.receive(self._run, self._scope, channel, type_, timeout)

    def now(self) -> datetime:
        """The time in UTC; a replay reads what the first attempt read."""
        return datetime.fromtimestamp(plain_steps.read_clock(self._run, self._scope), UTC)

    def patched(self, name: str) -> bool:
        """Guard code that was changed while runs were in flight: ``if ctx.patched("ask-twice"): ... else: ...``.

        False in a run that has come past this point before the code was changed; True in every other. The first answer
        stands for the run's life, at every attempt and wherever it asks by that name. Once no run from before the
        change is left, the guard and the old code can go.

        Args:
            name: of the change.

        Raises:
            InvalidIdentifierError: the name is empty or cannot be stored.
        """
        return plain_steps.patched(self._run, name)

    def random(self) -> float:
        """A number from 0 up to 1, drawn by the call's identity: the same at every attempt."""
        return plain_steps.draw(self._run, self._scope)

    async def add_artifact(
        self, name: str, payload: Any, *, kind: str = "data", metadata: JsonObject | None = None
    ) -> RunArtifact:
        """Keep something the run made with its session.

        Raises:
            UnpersistableValueError: the payload cannot be stored.
            InvalidIdentifierError: the name is empty or cannot be stored.
        """
        check_name(name, "name of the artifact")
        artifact = RunArtifact(name=name, kind=kind, payload=payload, metadata=metadata or {})
        return await plain_steps.add_artifact(self._run, self._scope, artifact)

    async def emit(self, name: str, payload: JsonObject | None = None) -> None:
        """Publish an event of the pattern's own; it is recorded and can be read again.

        Raises:
            UsageError: the name belongs to Callboard's own events.
        """
        await plain_steps.emit(self._run, self._scope, name, {} if payload is None else payload)

    # ---- more scopes

    def branch(self, name: str) -> RunContext[DepsT]:
        """A scope beside this one, whose steps may be in flight at the same time.

        It sees the conversation as it stands here; what it adds stays in it.

        Args:
            name: what tells it from its siblings, at every attempt.

        Raises:
            UsageError: the name is empty, holds ``/``, or was used before.
        """
        below = self._scope.below(name)
        plain_steps.keep_branch_readings(self._run, self._scope)
        return RunContext(self._run, below)

    async def map(
        self,
        fn: Callable[[RunContext[DepsT], ItemT], Awaitable[ResultT]],
        items: Mapping[str, ItemT],
        *,
        limit: int | None = None,
    ) -> dict[str, ResultT]:
        """Run `fn` once for each item, side by side, each in a scope of its own.

        The first failure cancels the rest and is raised.

        Args:
            fn: an async function of a context and an item.
            items: by the name of each item's scope.
            limit: how many at a time; all at once where None.

        Returns:
            Results by name, in the order of the items.

        Raises:
            UsageError: a limit under 1, or a name that cannot be a branch's.
            ConcurrentStepError: another step of this scope is in flight.
        """
        given: object = items
        if not isinstance(given, Mapping):
            raise UsageError(
                f"ctx.map got items of type {type(given).__name__}",
                hint="give a dict: each item under a name of its own",
            )
        if limit is not None and limit < 1:
            raise UsageError(f"ctx.map(limit={limit}) lets no item through", hint="at least 1, or None")
        step = self._scope.begin("map", timed=False)
        try:
            plain_steps.keep_map_readings(self._run, self._scope, step)
            places = asyncio.Semaphore(limit) if limit is not None else None

            async def one(scope: Scope, item: ItemT) -> ResultT:
                try:
                    if places is None:
                        return await fn(RunContext(self._run, scope), item)
                    async with places:
                        return await fn(RunContext(self._run, scope), item)
                except plain_steps.NOT_MEANT_FOR_US as problem:
                    raise plain_steps.failed(f"branch {scope.prefix!r} of ctx.map", problem) from problem

            scopes = {name: self._scope.below(name, within=step) for name in items}
            tasks = {name: asyncio.ensure_future(one(scopes[name], item)) for name, item in items.items()}
            try:
                await plain_steps.first_failure(list(tasks.values()))
            finally:
                for task in tasks.values():
                    task.cancel()
                await asyncio.gather(*tasks.values(), return_exceptions=True)
            return {name: task.result() for name, task in tasks.items()}
        finally:
            self._scope.end()
