"""What an actor accepts: `@handles`, and the table it makes of a class when the class is created.

A missing, doubled or undeclared handler is an error of the class, so it is raised where the class is: at import.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Never, TypeVar, Union, overload

from callboard_protocol.commands import Command
from callboard_protocol.errors import UsageError

MethodT = TypeVar("MethodT", bound=Callable[..., Any])

_MARK = "__callboard_handles__"


class ActorDefinitionError(UsageError, TypeError):
    """An actor class does not handle exactly what it declares; it names each message and method in question."""

    code = "actor_definition"


class HandlerKind(Enum):
    """How a handler occupies its actor."""

    SYNC = "sync"
    """Runs to its end in one turn of the loop."""

    ASYNC = "async"
    """Awaits, and keeps later messages waiting meanwhile."""

    CONCURRENT = "concurrent"
    """Runs as a task of its own; later messages do not wait for it."""


class Handler:
    """One row of an actor's dispatch table.

    Attributes:
        function: the plain function; called with the actor and the message.
        kind: how it occupies the actor.
        direct: whether an ask may run it in the asker's own turn.
    """

    __slots__ = ("direct", "function", "kind", "name")

    def __init__(self, name: str, function: Callable[[Any, Any], Any], kind: HandlerKind) -> None:
        self.name = name
        self.function = function
        self.kind = kind
        self.direct = kind is HandlerKind.SYNC


HandlerTable = dict[type[Command], Handler]
"""Exact message type -> handler."""


@overload
def handles(method: MethodT, /) -> MethodT: ...


@overload
def handles(*, concurrent: bool = False) -> Callable[[MethodT], MethodT]: ...


def handles(method: Any = None, /, *, concurrent: bool = False) -> Any:
    """Mark a method as the handler of the message type its parameter is annotated with.

    A plain method runs to its end in one turn; to answer later it returns a `LoopFuture` or an `asyncio.Future`, and
    the actor goes on meanwhile. An ``async def`` keeps the actor's later messages waiting until it returns, unless
    it is concurrent.

    Args:
        method: the method, where the decorator is used bare.
        concurrent: run each call as a task of its own and reply when it is done; cancelled when the actor stops.

    Raises:
        ActorDefinitionError: ``concurrent=True`` on a method that is not ``async def``.
    """

    def mark(function: MethodT) -> MethodT:
        if inspect.iscoroutinefunction(function):
            kind = HandlerKind.CONCURRENT if concurrent else HandlerKind.ASYNC
        elif concurrent:
            raise ActorDefinitionError(f"{function.__qualname__} is concurrent, but not an `async def`")
        else:
            kind = HandlerKind.SYNC
        setattr(function, _MARK, kind)
        return function

    return mark if method is None else mark(method)


def declared_types(actor_class: type, root: type) -> frozenset[type[Command]] | TypeVar | None:
    """What ``class X(Actor[A | B])`` says it accepts.

    Args:
        actor_class: the class, as `__init_subclass__` sees it.
        root: the class whose type argument is the declaration (`Actor`).

    Returns:
        The message types; a `TypeVar` where the class is still generic; None where it says nothing.

    Raises:
        ActorDefinitionError: the argument is neither a message type nor a union of them.
    """
    for base in actor_class.__dict__.get("__orig_bases__", ()):
        origin = typing.get_origin(base)
        if not (isinstance(origin, type) and issubclass(origin, root)):
            continue
        inherited = origin.__dict__.get("_accepts")
        if isinstance(inherited, frozenset):
            return inherited
        parameters = getattr(origin, "__parameters__", ())
        place = parameters.index(inherited) if inherited in parameters else 0
        argument = typing.get_args(base)[place]
        return argument if isinstance(argument, TypeVar) else frozenset(_message_types(actor_class, argument))
    for ancestor in actor_class.__mro__[1:]:
        accepts: frozenset[type[Command]] | TypeVar | None = ancestor.__dict__.get("_accepts")
        if accepts is not None:
            return None if ancestor is root else accepts
    return None


def build_table(actor_class: type, declared: frozenset[type[Command]]) -> HandlerTable:
    """Match the marked methods of a class, inherited ones included, with the messages it declares.

    Raises:
        ActorDefinitionError: a declared message has no handler or two, or a handler takes an undeclared message.
    """
    table: HandlerTable = {}
    problems: list[str] = []
    unmarked: set[str] = set()
    for name, function in _methods(actor_class):
        kind: HandlerKind | None = getattr(function, _MARK, None)
        if kind is None:
            unmarked.add(name)
            continue
        for message_type in _handled_types(actor_class, function, declared):
            if message_type in table:
                problems.append(f"{message_type.__name__} is handled twice: {table[message_type].name} and {name}")
            elif message_type not in declared:
                problems.append(f"{name} handles {message_type.__name__}, which the class does not declare")
            else:
                table[message_type] = Handler(name, function, kind)
    missing = sorted(message_type.__name__ for message_type in declared - table.keys())
    problems.extend(f"{name} has no handler{_near_miss(actor_class, unmarked)}" for name in missing)
    if problems:
        raise ActorDefinitionError(f"{actor_class.__qualname__}: " + "; ".join(problems))
    return table


def _message_types(actor_class: type, annotation: Any) -> Iterator[type[Command]]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _message_types(actor_class, member)
    elif isinstance(annotation, type) and issubclass(annotation, Command):
        yield annotation
    elif annotation is not Never:
        raise ActorDefinitionError(
            f"{actor_class.__qualname__}: {annotation!r} is neither a Command, a Request, nor a union of them"
        )


def _methods(actor_class: type) -> Iterator[tuple[str, Any]]:
    """Each method name once, with the function attribute lookup would find."""
    seen: set[str] = set()
    for ancestor in actor_class.__mro__:
        for name, value in vars(ancestor).items():
            if name not in seen and isinstance(value, types.FunctionType):
                seen.add(name)
                yield name, value


def _handled_types(
    actor_class: type, function: types.FunctionType, declared: frozenset[type[Command]]
) -> list[type[Command]]:
    where = f"{actor_class.__qualname__}.{function.__name__}"
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) != 2 or parameters[1].annotation is inspect.Parameter.empty:
        raise ActorDefinitionError(f"{where} must take self and one annotated message")
    # Only the message's annotation is resolved: the return type may name what is imported for type checkers alone.
    # The declared types come first, so that messages defined inside a function are found too.
    holder = types.SimpleNamespace(__annotations__={"message": parameters[1].annotation})
    known = {message_type.__name__: message_type for message_type in declared}
    try:
        annotation = typing.get_type_hints(holder, function.__globals__, known)["message"]
    except NameError as error:
        raise ActorDefinitionError(f"{where}: its message type cannot be resolved: {error}") from error
    return list(_message_types(actor_class, annotation))


def _near_miss(actor_class: type, unmarked: set[str]) -> str:
    """A subclass that overrides a handler and forgets the decorator is the likely cause: say so."""
    for ancestor in actor_class.__mro__[1:]:
        for name, value in vars(ancestor).items():
            if name in unmarked and hasattr(value, _MARK):
                return f" (is {name} overridden without @handles?)"
    return ""
