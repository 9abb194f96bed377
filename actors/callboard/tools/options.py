"""How a tool behaves, and which behaviours go together."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

from callboard.retry import Retry
from callboard_protocol.base import as_seconds
from callboard_protocol.errors import ToolDefinitionError, UsageError
from callboard_protocol.tools import Isolation, OnInDoubt

if TYPE_CHECKING:
    from callboard.tool import Tool

Approval: TypeAlias = bool | Callable[..., bool]
Interrupt: TypeAlias = Literal["cancel", "finish"]


class ToolBehaviour(TypedDict, total=False):
    """How a tool behaves: what `@tool` and `Tool.from_schema` may be told.

    Attributes:
        timeout: seconds or a timedelta one attempt may take; None is no limit; 60 where it is left out.
        read_only: it changes nothing, so a call whose outcome is unknown is simply made again.
        idempotent: two calls with one idempotency key have one effect, so the same holds.
        on_in_doubt: what to do when nobody knows whether a call took effect; the agent's answer where left out.
        approval: whether someone must allow each call, or a function of the arguments that says so.
        approval_timeout: seconds or a timedelta after which a call that nobody has decided is denied; None is never.
        concurrency_safe: whether calls of one batch may run beside each other.
        max_concurrency: how many calls may run at once in this runtime; the others wait, outside their timeout.
        retry: which errors are tried again, and how often; none where left out.
        isolation: ``loop`` for async functions, ``thread`` for others. A sync function that never blocks may say
            ``loop``; a function that must be killable, ``process``.
        interrupt: ``cancel``: a cancellation stops a call in flight; ``finish``: it waits until the call has ended.
        reads_files: names of the arguments that name files it reads.
        writes_files: names of the arguments that name files it writes.
    """

    timeout: float | timedelta | None
    read_only: bool
    idempotent: bool
    on_in_doubt: OnInDoubt | None
    approval: Approval
    approval_timeout: float | timedelta | None
    concurrency_safe: bool
    max_concurrency: int | None
    retry: Retry | None
    isolation: Isolation | None
    interrupt: Interrupt
    reads_files: Sequence[str]
    writes_files: Sequence[str]


class ToolOptions(ToolBehaviour, total=False):
    """What `@tool` may be told.

    Attributes:
        name: what the model calls it by; the function's name otherwise.
        description: what it does, for the model; the docstring up to its first section otherwise.
    """

    name: str
    description: str


def apply_options(tool: Tool[Any], options: Mapping[str, Any]) -> None:
    """Set a tool's options as its attributes.

    Raises:
        ToolDefinitionError: there is no such option; the error names the nearest.
    """
    for option, value in options.items():
        if option not in ToolOptions.__optional_keys__:
            near = difflib.get_close_matches(option, ToolOptions.__optional_keys__, n=1)
            raise ToolDefinitionError(
                f"there is no tool option {option!r}",
                hint=f"did you mean {near[0]!r}?"
                if near
                else f"one of: {', '.join(sorted(ToolOptions.__optional_keys__))}",
            )
        setattr(tool, option, value)


def settle_options(tool: Tool[Any], *, is_async: bool, arguments: Mapping[str, Any]) -> None:
    """Check a tool's options against each other, and put durations and isolation into their plain form.

    Args:
        tool: the tool; its `timeout`, `isolation`, `reads_files` and `writes_files` are replaced.
        is_async: whether its function is ``async``.
        arguments: its arguments by name.

    Raises:
        ToolDefinitionError: options that contradict each other or do not exist.
    """
    try:
        tool.timeout = None if tool.timeout is None else as_seconds(tool.timeout)
        tool.approval_timeout = None if tool.approval_timeout is None else as_seconds(tool.approval_timeout)
    except UsageError as problem:
        raise ToolDefinitionError(f"tool {tool.name!r}: {problem.message}", hint=problem.hint) from None
    if tool.isolation is None:
        tool.isolation = "loop" if is_async else "thread"
    tool.reads_files = tuple(tool.reads_files)
    tool.writes_files = tuple(tool.writes_files)
    for contradiction, hint in _contradictions(tool, is_async, arguments):
        raise ToolDefinitionError(f"tool {tool.name!r}: {contradiction}", hint=hint)


def _contradictions(tool: Tool[Any], is_async: bool, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if tool.timeout == 0:
        yield "a timeout of 0 lets no call succeed", "give it more time, or None for no limit"
    if tool.isolation not in get_args(Isolation):
        yield f"isolation={tool.isolation!r} is not a choice", "'loop', 'thread' or 'process'"
    if tool.isolation == "thread" and is_async:
        yield "an async function runs on the loop", "make it a plain def to run it in a thread"
    if tool.on_in_doubt not in (None, *get_args(OnInDoubt)):
        yield f"on_in_doubt={tool.on_in_doubt!r} is not a choice", "one of: ask, tell, retry, fail"
    if tool.on_in_doubt is not None and (tool.read_only or tool.idempotent):
        declared = "read-only" if tool.read_only else "idempotent"
        yield f"a {declared} call is never in doubt: it is made again", "leave on_in_doubt out"
    if tool.read_only and tool.writes_files:
        yield "it is read_only and writes files", "one of the two cannot be"
    if tool.interrupt not in get_args(Interrupt):
        yield f"interrupt={tool.interrupt!r} is not a choice", "'cancel' or 'finish'"
    if tool.max_concurrency is not None and tool.max_concurrency < 1:
        yield f"max_concurrency={tool.max_concurrency} lets no call run", "at least 1, or None"
    retry: object = tool.retry
    if retry is not None and not isinstance(retry, Retry):
        yield f"retry={retry!r} is no Retry", "retry=Retry(attempts=3, on=(ConnectionError,))"
    yield from _odd_approval(tool)
    for name in (*tool.reads_files, *tool.writes_files):
        if name not in arguments:
            yield f"it has no argument {name!r} that could name a file", f"its arguments: {', '.join(arguments)}"


def _odd_approval(tool: Tool[Any]) -> Iterator[tuple[str, str]]:
    if tool.approval_timeout is not None and tool.approval is False and not tool.offers("requires_approval"):
        yield "it has an approval_timeout, and nobody is asked", "approval=True, or leave approval_timeout out"
    if inspect.iscoroutinefunction(tool.approval) or not (isinstance(tool.approval, bool) or callable(tool.approval)):
        yield "approval is neither a bool nor a plain function", "approval=lambda amount, **_: amount > 50"
