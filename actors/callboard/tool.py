"""Tools: what a model may call. `@tool` makes one of a function; `Tool` is the base class of the others."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from typing_extensions import Unpack

from callboard.retry import Retry
from callboard.tools.base import SchemaTool, Spread, Tool, is_async_callable
from callboard.tools.context import ToolContext
from callboard.tools.crossing import CallIdentity
from callboard.tools.options import ToolOptions, apply_options
from callboard.tools.schema import caller_names, check_tool_name, read_function
from callboard_protocol.errors import ToolDefinitionError, UsageError
from callboard_protocol.tools import Happened, NotHappened, Reconciliation, Unknown

__all__ = ["tool", "Tool", "FunctionTool", "SchemaTool", "ToolOptions", "Retry"]

D = TypeVar("D")
T = TypeVar("T")
P = ParamSpec("P")


class FunctionTool(Tool[D], Generic[D, P, T]):
    """A function as a tool; made by `@tool`, and still callable like the function.

    Attributes:
        function: the function itself.
    """

    def __init__(self, fn: Callable[..., Any], options: ToolOptions, local_names: Mapping[str, Any]) -> None:
        if not callable(fn):
            raise ToolDefinitionError(f"@tool was given a {type(fn).__name__}", hint="decorate a function")
        if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
            raise ToolDefinitionError(
                f"{fn.__name__} is a generator", hint="to stream, subclass Tool and override invoke_stream()"
            )
        apply_options(self, options)
        self.name = options.get("name") or str(getattr(fn, "__name__", type(fn).__name__))
        shape = read_function(fn, check_tool_name(self.name), local_names)
        self.function = fn
        self.description = options.get("description") or shape.description
        self._takes_context = shape.takes_context
        self._needs_deps = shape.needs_deps
        if self.isolation == "process" and shape.needs_deps:
            raise ToolDefinitionError(
                f"tool {self.name!r} runs in a process of its own, where the agent's deps are not",
                hint="take a plain ToolContext and open what it needs in the function, or say isolation='thread'",
            )
        self._reconcile: tuple[Callable[..., Awaitable[Reconciliation]], bool] | None = None
        self._settle(shape.arguments, shape.returns, is_async=is_async_callable(fn), function=fn)
        functools.update_wrapper(cast("Any", self), fn, updated=())

    def invoke(self, context: ToolContext[D], arguments: dict[str, Any]) -> Any:
        """Call the function."""
        positional, named = self.spread(context, arguments)
        return self.function(*positional, **named)

    def spread(self, context: ToolContext[D] | CallIdentity, arguments: dict[str, Any]) -> Spread:
        """The context, where the function takes it, then the arguments by name."""
        return (context,) if self._takes_context else (), arguments

    @overload
    async def __call__(self, context: ToolContext[D], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    @overload
    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T: ...

    # mypy does not see that *args takes the context too.
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
        """Call the function directly: no run, no timeout, no record. For tests and for other code.

        A context may come first; a function that wants one gets an empty one otherwise.

        Raises:
            UsageError: the function wants deps, and no context was given.
        """
        if self._takes_context and not (args and isinstance(args[0], ToolContext)):
            if self._needs_deps:
                raise UsageError(
                    f"{self.name} takes a ToolContext with deps", hint=f"await {self.name}(ToolContext(deps), ...)"
                )
            args = (ToolContext(), *args)
        elif not self._takes_context and args and isinstance(args[0], ToolContext):
            args = args[1:]
        if self.isolation != "loop" and not is_async_callable(self.function):
            result = await asyncio.to_thread(self.function, *args, **kwargs)
        else:
            result = self.function(*args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
        return result

    @property
    def can_reconcile(self) -> bool:
        """Whether it was given a `reconcile`."""
        return self._reconcile is not None

    async def ask_reconcile(self, context: ToolContext[D], arguments: dict[str, Any]) -> Reconciliation:
        """Call what `reconcile` was given."""
        if self._reconcile is None:
            return Unknown()
        fn, takes_context = self._reconcile
        return await (fn(context, **arguments) if takes_context else fn(**arguments))

    def reconcile(  # type: ignore[override]  # of a function's tool it is a decorator
        self, fn: Callable[..., Awaitable[Happened[T] | NotHappened | Unknown]], /
    ) -> Callable[..., Awaitable[Happened[T] | NotHappened | Unknown]]:
        """Decorate the function that finds out what became of a call in doubt.

        It takes what the tool takes, and answers `Happened` with the result, `NotHappened` or `Unknown`.

        Raises:
            ToolDefinitionError: the tool's calls are never in doubt, or the function takes something else.
        """
        if self.specification.may_be_repeated:
            raise ToolDefinitionError(
                f"tool {self.name!r} may be repeated, so its calls are never in doubt", hint="it needs no reconcile"
            )
        shape = read_function(fn, self.name, caller_names(1))
        if not inspect.iscoroutinefunction(fn) or shape.arguments.schema["properties"].keys() != (
            self.parameters["properties"].keys()
        ):
            names = ", ".join(self.parameters["properties"])
            raise ToolDefinitionError(f"the reconcile of tool {self.name!r} must be async and take: {names}")
        self._reconcile = (fn, shape.takes_context)
        return fn


class ToolDecorator(Protocol):
    """What `tool(...)` with options gives."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a function that returns an awaitable is an async one
        self, fn: Callable[Concatenate[ToolContext[D], P], Awaitable[T]], /
    ) -> FunctionTool[D, P, T]: ...

    @overload
    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> FunctionTool[None, P, T]: ...

    @overload
    def __call__(self, fn: Callable[Concatenate[ToolContext[D], P], T], /) -> FunctionTool[D, P, T]: ...

    @overload
    def __call__(self, fn: Callable[P, T], /) -> FunctionTool[None, P, T]: ...


@overload
def tool(  # type: ignore[overload-overlap]  # as above
    fn: Callable[Concatenate[ToolContext[D], P], Awaitable[T]], /
) -> FunctionTool[D, P, T]: ...


@overload
def tool(fn: Callable[P, Awaitable[T]], /) -> FunctionTool[None, P, T]: ...


@overload
def tool(fn: Callable[Concatenate[ToolContext[D], P], T], /) -> FunctionTool[D, P, T]: ...


@overload
def tool(fn: Callable[P, T], /) -> FunctionTool[None, P, T]: ...


@overload
def tool(**options: Unpack[ToolOptions]) -> ToolDecorator: ...


def tool(fn: Any = None, /, **options: Unpack[ToolOptions]) -> Any:
    """Make a tool of a function.

    Its schema comes from the type hints and the Google-style docstring (``Args:``). A first parameter annotated with
    `ToolContext` gets the call's context and is not shown to the model.

        @tool(read_only=True, timeout=10)
        async def find_order(order_id: str) -> Order: ...

    Args:
        fn: the function, where the decorator is used bare. An async function runs on the loop, any other in a thread.
        **options: how it behaves; see `ToolOptions`.

    Raises:
        ToolDefinitionError: the signature or the options do not say what a model and the runtime must know.
    """
    if fn is not None:
        return FunctionTool(fn, options, caller_names(1))
    return lambda function: FunctionTool(function, options, caller_names(1))
