"""`Tool`: what every tool is. `@tool`, in tool.py, makes one of a function."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Generic, TypeAlias, cast

from typing_extensions import TypeVar, Unpack

from callboard.retry import Retry
from callboard.tools.context import ToolContext
from callboard.tools.crossing import CallIdentity, FunctionReference
from callboard.tools.json_arguments import JsonArguments
from callboard.tools.options import Approval, Interrupt, ToolBehaviour, apply_options, settle_options
from callboard.tools.results import ResultContract
from callboard.tools.schema import ArgumentsContract, check_tool_name
from callboard_protocol.base import JsonObject
from callboard_protocol.errors import CallboardError, NotImplementedYetError, ToolDefinitionError, ToolFailedError
from callboard_protocol.failures import text_of
from callboard_protocol.model_calls import ToolSchema
from callboard_protocol.tools import Isolation, OnInDoubt, Reconciliation, ToolSpecification, Unknown

DepsT = TypeVar("DepsT", default=None)

Spread: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments."""


class Tool(Generic[DepsT]):
    """A tool: what a model is told of it, how it behaves, and what it does.

    `@tool` and `Tool.from_schema` make tools of functions. A class of its own suits a tool with parts: set the class
    attributes, override `invoke`, and whichever of the optional methods it has. Options mean what `ToolOptions` says.

    Attributes:
        name: what the model calls it by.
        description: what it does, for the model.
        parameters: a JSON schema of an object.
        result_type: what it returns, for storing and giving it back; None for plain data of any shape.
        schema: the tool as a model sees it.
        specification: its declared behaviour, as records and events show it.
        function_reference: where a worker process finds its function; None for a tool that needs no worker.

    Raises:
        ToolDefinitionError: the name, the schema or the options cannot be.
    """

    name: str = ""
    description: str = ""
    parameters: JsonObject = {"type": "object", "properties": {}}
    result_type: Any = None

    timeout: float | timedelta | None = 60.0
    read_only: bool = False
    idempotent: bool = False
    on_in_doubt: OnInDoubt | None = None
    approval: Approval = False
    approval_timeout: float | timedelta | None = None
    concurrency_safe: bool = True
    max_concurrency: int | None = None
    retry: Retry | None = None
    isolation: Isolation | None = None
    interrupt: Interrupt = "cancel"
    reads_files: Sequence[str] = ()
    writes_files: Sequence[str] = ()

    function_reference: FunctionReference | None = None

    def __init__(self) -> None:
        self._settle(
            JsonArguments(self.name, dict(self.parameters)),
            self.result_type,
            is_async=inspect.iscoroutinefunction(self.invoke) or self.offers("invoke_stream"),
        )

    def _settle(
        self,
        arguments: JsonArguments | ArgumentsContract,
        returns: Any,
        *,
        is_async: bool,
        function: Callable[..., Any] | None = None,
    ) -> None:
        check_tool_name(self.name)
        self.parameters = arguments.schema
        settle_options(self, is_async=is_async, arguments=arguments.schema.get("properties", {}))
        if self.isolation == "process":
            self.function_reference = FunctionReference.of(function, self.name)
        self._arguments = arguments
        self._results = ResultContract(self.name, returns)
        self.schema = ToolSchema(name=self.name, description=self.description, parameters=arguments.schema)
        self.specification = ToolSpecification(
            name=self.name,
            read_only=self.read_only,
            idempotent=self.idempotent,
            on_in_doubt=self.on_in_doubt,
            timeout=cast("float | None", self.timeout),
            isolation=self.isolation or "loop",
        )
        self.timeout_seconds = cast("float | None", self.timeout)
        """The timeout as the executor reads it."""
        self.approval_timeout_seconds = cast("float | None", self.approval_timeout)
        """How long somebody may be asked."""
        hooks = ("before_invoke", "after_invoke", "fallback", "invoke_stream")
        self.plain = (
            self.isolation == "loop"
            and is_async
            and self.retry is None
            and self.max_concurrency is None
            and not any(map(self.offers, hooks))
        )
        """Whether a call is nothing but awaiting `invoke`: the executor's short way."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @classmethod
    def from_schema(
        cls,
        name: str,
        description: str,
        parameters: Mapping[str, Any],
        fn: Callable[[dict[str, Any], ToolContext[Any]], Any],
        **options: Unpack[ToolBehaviour],
    ) -> Tool[Any]:
        """A tool whose JSON schema is given.

        Args:
            name: what the model calls it by.
            description: what it does, for the model.
            parameters: a JSON schema of an object.
            fn: called with the arguments as a dict, and the context; usually ``async``.
            **options: as for `@tool`.

        Raises:
            ToolDefinitionError: the name, the schema or the options cannot be.
        """
        return SchemaTool(name, description, parameters, fn, options)

    # ---- what the runtime asks of every tool

    def validate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments as the tool takes them: checked, converted, defaults filled in.

        Raises:
            InvalidArgumentsError: they do not fit; the message says where, so that a model can mend it.
        """
        return self._arguments.validate(arguments)

    def dump_arguments(self, arguments: dict[str, Any]) -> Any:
        """Validated arguments as plain data."""
        return self._arguments.dump(arguments)

    def dump_result(self, value: Any) -> Any:
        """What the tool returned, as plain data.

        Raises:
            UnpersistableValueError: there is no plain form of it.
        """
        return self._results.dump(value)

    def load_result(self, plain: Any) -> Any:
        """What `dump_result` gave, as the type the tool says it returns; as it is where it does not fit that type."""
        return self._results.load(plain)

    def offers(self, method: str) -> bool:
        """Whether the tool has an optional method of its own, such as ``"fallback"``."""
        return getattr(type(self), method) is not getattr(Tool, method)

    @property
    def can_reconcile(self) -> bool:
        """Whether it can be asked what became of a call."""
        return self.offers("reconcile")

    async def ask_reconcile(self, context: ToolContext[DepsT], arguments: dict[str, Any]) -> Reconciliation:
        """`reconcile`, however the tool was given it."""
        return await self.reconcile(context, arguments)

    # ---- what a tool does

    def invoke(self, context: ToolContext[DepsT], arguments: dict[str, Any]) -> Any:
        """Make the call. Override it: ``async def`` runs on the loop, a plain ``def`` in a thread.

        Args:
            context: the call.
            arguments: validated.

        Returns:
            What the model is told, or an awaitable of it.

        Raises:
            ModelRetry: to send the model its mistake.
            Exception: anything else is the call's outcome, a `ToolFailedError`.
        """
        raise ToolDefinitionError(f"tool {self.name!r} does nothing", hint="override invoke()")

    def spread(self, context: ToolContext[DepsT] | CallIdentity, arguments: dict[str, Any]) -> Spread:
        """How a tool made of a function calls it: the positional and the named arguments."""
        raise ToolDefinitionError(f"tool {self.name!r} is made of no function", hint="override invoke()")

    # ---- optional methods

    def requires_approval(self, arguments: dict[str, Any]) -> bool:
        """Whether someone must allow this call first; by default, what the option `approval` says.

        Args:
            arguments: validated.

        Raises:
            ToolFailedError: the option is a function, and it raised; the call is not made.
        """
        if isinstance(self.approval, bool):
            return self.approval
        try:
            return bool(self.approval(**arguments))
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise ToolFailedError(
                f"the approval function of {self.name} raised {type(error).__name__}: {text_of(error)}; the call was "
                "not made",
                hint="an approval function takes the call's arguments by name and returns a bool",
            ) from error

    async def before_invoke(self, context: ToolContext[DepsT], arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Called before each call, once for all its attempts. Raising keeps the call from being made.

        Returns:
            The arguments to call with instead; None to leave them.
        """
        return None

    async def after_invoke(
        self, context: ToolContext[DepsT], arguments: dict[str, Any], *, result: Any, error: CallboardError | None
    ) -> None:
        """Called after each call, always: after success, failure, timeout and cancellation alike.

        Args:
            context: the call.
            arguments: what it was called with.
            result: what it returned; None where it failed.
            error: why it failed; None where it did not.
        """

    async def fallback(self, context: ToolContext[DepsT], arguments: dict[str, Any], error: CallboardError) -> Any:
        """Called when a call has failed for good, for a result to use instead.

        Not called where the call's outcome is unknown: after the timeout of a tool that is neither `read_only` nor
        `idempotent`, after a cancellation, or for a `ModelRetry`, which is an answer.

        Raises:
            Exception: the call has failed after all, with this error.
        """
        raise NotImplementedYetError(f"tool {self.name!r} has no fallback")

    async def reconcile(self, context: ToolContext[DepsT], arguments: dict[str, Any]) -> Reconciliation:
        """Called when a crash, a timeout or a cancellation left a call in doubt, before anyone is asked.

        Returns:
            `Happened` with the result, `NotHappened`, or `Unknown`.
        """
        return Unknown()

    def invoke_stream(self, context: ToolContext[DepsT], arguments: dict[str, Any]) -> AsyncIterator[Any]:
        """Make the call piece by piece; an async generator. Where a tool has it, it is used in place of `invoke`.

        Each piece is published as a ``tool.delta``. The call's result is the pieces: joined where all are text, else a
        list of them.
        """
        raise NotImplementedYetError(f"tool {self.name!r} does not stream")

    # ---- extension points that a later release calls; this one does not

    async def preflight(self, context: ToolContext[DepsT]) -> str | None:
        """Whether the tool can work in this run, asked before the run begins. Not called in this release.

        Returns:
            Why it cannot; None where it can.
        """
        return None

    async def invoke_batch(self, context: ToolContext[DepsT], items: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Make several calls at once, results by item. Not called in this release: a batch calls `invoke` per item."""
        raise NotImplementedYetError(f"tool {self.name!r} does not take batches")

    async def invoke_background(self, context: ToolContext[DepsT], arguments: dict[str, Any]) -> Any:
        """Submit a job and return what finds it again. Not called in this release."""
        raise NotImplementedYetError(f"tool {self.name!r} has no background jobs")

    async def poll_job(self, context: ToolContext[DepsT], reference: Any) -> Any:
        """How far a submitted job is. Not called in this release."""
        raise NotImplementedYetError(f"tool {self.name!r} has no background jobs")

    async def cancel_job(self, context: ToolContext[DepsT], reference: Any) -> None:
        """Stop a submitted job. Not called in this release."""
        raise NotImplementedYetError(f"tool {self.name!r} has no background jobs")


class SchemaTool(Tool[Any]):
    """A tool whose JSON schema is given; made by `Tool.from_schema`."""

    def __init__(
        self,
        name: str,
        description: str,
        parameters: Mapping[str, Any],
        fn: Callable[[dict[str, Any], ToolContext[Any]], Any],
        options: ToolBehaviour,
    ) -> None:
        apply_options(self, options)
        self.name = name
        self.description = description
        self.function = fn
        if parameters.get("type", "object") != "object":
            raise ToolDefinitionError(f"tool {name!r}: its schema is not that of an object", hint='{"type": "object"}')
        schema = {"type": "object", "properties": {}, **parameters}
        self._settle(JsonArguments(name, schema), None, is_async=is_async_callable(fn), function=fn)

    def invoke(self, context: ToolContext[Any], arguments: dict[str, Any]) -> Any:
        """Call the function."""
        positional, named = self.spread(context, arguments)
        return self.function(*positional, **named)

    def spread(self, context: ToolContext[Any] | CallIdentity, arguments: dict[str, Any]) -> Spread:
        """The arguments as a dict, then the context."""
        return (arguments, context), {}


def is_async_callable(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
