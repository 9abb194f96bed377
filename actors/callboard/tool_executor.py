"""ToolExecutor: the actor that makes tool calls, under their deadlines and with their retries."""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import math
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from callboard.clock import SYSTEM_CLOCK, Clock
from callboard.kernel import Actor, LoopFuture, handles
from callboard.retry import retrying
from callboard.runs.run_info import run_at_work
from callboard.tools.base import Tool
from callboard.tools.flights import Flight, Flights, ReconcileFailed, ToolOutcome
from callboard.tools.results import to_plain
from callboard.tools.threads import ToolThreads
from callboard_protocol.commands import CallTool, CancelCall, ReconcileCall
from callboard_protocol.errors import (
    CallboardError,
    ModelRetry,
    ToolCrashedError,
    ToolError,
    ToolFailedError,
    UnpersistableValueError,
)
from callboard_protocol.failures import in_words
from callboard_protocol.tools import Happened, NotHappened, Reconciliation, Unknown

if TYPE_CHECKING:
    from types import TracebackType

    from callboard.tools.processes import ToolProcesses

__all__ = ["ToolExecutor", "ToolOutcome", "ReconcileFailed"]

logger = logging.getLogger("callboard.tools")


class ToolExecutor(Actor[CallTool | CancelCall | ReconcileCall]):
    """Makes tool calls, each as a task of its own.

    Calls are answered by a future rather than by a concurrent handler: that saves a turn of the loop per call, and a
    call that will not end can be answered for.

    Args:
        threads: how many calls of blocking tools run at once.
        processes: how many calls of tools in processes of their own run at once.
        clock: what deadlines and the pauses between attempts go by.
    """

    # A call takes as long as its tool may take, and its outcome decides what goes on record.
    ask_timeout = None
    # Runs are bounded where they are admitted; a cancellation must not be refused because many come at once.
    mailbox_limit = 100_000

    def __init__(self, *, threads: int = 32, processes: int = 4, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self._clock = clock
        self._flights = Flights(self.loop, clock)
        self._threads = ToolThreads(self.loop, threads)
        self._max_processes = processes
        self._processes: ToolProcesses | None = None
        self._gates: WeakKeyDictionary[Tool[Any], asyncio.Semaphore] = WeakKeyDictionary()

    @handles
    def call(self, message: CallTool) -> LoopFuture[ToolOutcome]:
        """Make a call; the answer comes when it has ended, or has been left to itself."""
        tool = message.tool
        flight = Flight(tool, message.arguments, message.context, self._clock.monotonic(), reconciles=False)
        if tool.plain:
            flight.attempts = 1
            self._flights.start_clock(flight)
            self._flights.launch(flight, self._make_plainly(flight))
        else:
            self._flights.launch(flight, self._make(flight))
        return flight.reply

    @handles
    def reconcile(self, message: ReconcileCall) -> LoopFuture[Reconciliation]:
        """Ask a tool what became of a call."""
        flight = Flight(message.tool, message.arguments, message.context, self._clock.monotonic(), reconciles=True)
        self._flights.start_clock(flight)
        self._flights.launch(flight, self._ask_reconcile(flight))
        return flight.reply

    @handles
    def cancel(self, message: CancelCall) -> LoopFuture[ToolOutcome] | None:
        """Stop a call. One that has begun, and whose tool says ``interrupt="finish"``, is told and goes on."""
        flight = self._flights.get(message.call_id)
        if flight is None:
            return None
        if flight.tool.interrupt == "finish" and flight.attempts:
            flight.context.cancelled = True
        elif not flight.cancelled and flight.told_to_end is None:
            flight.reason = message.reason
            self._flights.end(flight, "cancel")
        return flight.reply

    @property
    def in_flight(self) -> int:
        """How many calls have no answer yet."""
        return len(self._flights)

    async def on_stop(self) -> None:
        """Cancel what runs and wait for it, but not for ever."""
        await self._flights.close()
        self._threads.close()
        if self._processes is not None:
            await self._processes.close()

    async def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As `on_stop`."""
        await self.on_stop()

    # ---- one call

    async def _make_plainly(self, flight: Flight) -> None:
        """The short way: nothing but the tool itself."""
        run_at_work.set(flight.context.run_id)
        value = None
        error: CallboardError | None = None
        try:
            value = await flight.tool.invoke(flight.context, flight.arguments)
        except BaseException as problem:  # noqa: BLE001 - whatever a tool does, it is that call's outcome
            error = self._verdict(flight, problem)
        self._flights.land(flight, value, error)

    async def _make(self, flight: Flight) -> None:
        run_at_work.set(flight.context.run_id)
        value = None
        error: CallboardError | None = None
        asked = flight.context
        try:
            gate = self._gate(flight.tool)
            if gate is None:
                value = await self._whole(flight)
            else:
                async with gate:
                    value = await self._whole(flight)
        except BaseException as problem:  # noqa: BLE001 - whatever a tool does, it is that call's outcome
            error = self._verdict(flight, problem)
        asked.state = flight.context.state
        self._flights.land(flight, value, error)

    def _gate(self, tool: Tool[Any]) -> asyncio.Semaphore | None:
        if tool.max_concurrency is None:
            return None
        gate = self._gates.get(tool)
        if gate is None:
            gate = self._gates[tool] = asyncio.Semaphore(tool.max_concurrency)
        return gate

    async def _whole(self, flight: Flight) -> Any:
        """Before hook, attempts, fallback, after hook."""
        tool = flight.tool
        value = None
        error: CallboardError | None = None
        try:
            if tool.offers("before_invoke"):
                changed = await self._timed(flight, tool.before_invoke(flight.context, flight.arguments))
                flight.arguments = flight.arguments if changed is None else changed
            value = await self._attempts(flight)
        except BaseException as problem:  # noqa: BLE001 - whatever a tool does, it is that call's outcome
            error = self._verdict(flight, problem)
        if error is not None and tool.offers("fallback") and _may_fall_back(flight, error):
            try:
                value = await self._timed(flight, tool.fallback(flight.context, flight.arguments, error))
                error = None
            except BaseException as problem:  # noqa: BLE001 - as above
                error = self._verdict(flight, problem)
        if tool.offers("after_invoke"):
            hook = tool.after_invoke(flight.context, flight.arguments, result=value, error=error)
            cancelled = flight.cancelled
            try:
                await self._timed(flight, hook)
            except BaseException as problem:
                self._verdict(flight, problem)
                logger.exception("the after hook of tool %s failed", tool.name)
            flight.cancelled = cancelled
        if error is not None:
            raise error
        return value

    async def _attempts(self, flight: Flight) -> Any:
        retry = flight.tool.retry
        if retry is None:
            return await self._attempt(flight)

        def worth_it(error: BaseException) -> bool:
            if flight.cancelled or not isinstance(error, CallboardError) or isinstance(error, ModelRetry):
                return False
            if flight.effect_unknown and not flight.tool.specification.may_be_repeated:
                return False
            return isinstance(error, retry.on) or isinstance(error.__cause__, retry.on)

        return await retrying(retry, worth_it, self._clock.sleep)(self._attempt, flight)

    async def _attempt(self, flight: Flight) -> Any:
        if flight.attempts:
            # A context of its own: an abandoned thread keeps reading the old one, and must go on seeing that it ended.
            flight.context = copy.copy(flight.context)
            flight.context.cancelled = False
            flight.context.attempt += 1
        flight.effect_unknown = False
        try:
            if flight.tool.isolation == "thread":
                return await self._in_thread(flight)
            if flight.tool.isolation == "process":
                return await self._in_process(flight)
            flight.attempts += 1
            return await self._timed(flight, self._on_loop(flight))
        except BaseException as problem:
            verdict = self._verdict(flight, problem)
            if verdict is problem:
                raise
            raise verdict from problem

    async def _on_loop(self, flight: Flight) -> Any:
        tool, context = flight.tool, flight.context
        if not tool.offers("invoke_stream"):
            value = tool.invoke(context, flight.arguments)
            return await value if inspect.isawaitable(value) else value
        chunks: list[Any] = []
        async for chunk in tool.invoke_stream(context, flight.arguments):
            plain = to_plain(chunk)
            context.announce("tool.delta", {"chunk": plain, "offset": len(chunks)})
            chunks.append(plain)
        return "".join(chunks) if all(isinstance(chunk, str) for chunk in chunks) else chunks

    async def _in_thread(self, flight: Flight) -> Any:
        await self._threads.reserve()
        flight.attempts += 1
        return await self._timed(flight, self._on_thread(flight))

    async def _on_thread(self, flight: Flight) -> Any:
        tool, context, arguments = flight.tool, flight.context, flight.arguments
        context.move_to_thread(self.loop)
        try:
            value = await self._threads.run(lambda: tool.invoke(context, arguments))
        except asyncio.CancelledError:
            if flight.told_to_end is not None:
                flight.left_behind = "its thread cannot be stopped and was abandoned: it may still take effect"
            raise
        context.move_to_thread(None)
        return await value if inspect.isawaitable(value) else value

    async def _in_process(self, flight: Flight) -> Any:
        if self._processes is None:
            # Few programs have such tools, and importing Callboard should not cost the others anything.
            from callboard.tools.processes import ToolProcesses  # noqa: PLC0415

            self._processes = ToolProcesses(self._max_processes)
        worker = await self._processes.reserve(flight.tool)
        flight.attempts += 1
        return await self._timed(flight, self._processes.run(worker, flight.tool, flight.context, flight.arguments))

    async def _timed(self, flight: Flight, awaitable: Awaitable[Any]) -> Any:
        """Await it; it has the tool's timeout, from now on."""
        self._flights.start_clock(flight)
        value = await awaitable
        if flight.told_to_end is None:
            flight.due = math.inf
        else:
            # It was told to end and returned all the same: then that is what happened.
            flight.ended()
            flight.cancelled = flight.effect_unknown = False
            flight.task.uncancel()
        return value

    async def _ask_reconcile(self, flight: Flight) -> None:
        verdict: object = None
        error: CallboardError | None = None
        try:
            verdict = cast("object", await flight.tool.ask_reconcile(flight.context, flight.arguments))
            if not isinstance(verdict, Happened | NotHappened | Unknown):
                error = ToolFailedError(f"the reconcile of {flight.tool.name} answered {verdict!r:.80}")
        except BaseException as problem:  # noqa: BLE001 - whatever a tool does, it is that call's outcome
            error = self._verdict(flight, problem)
        self._flights.land(flight, verdict, error)

    def _verdict(self, flight: Flight, problem: BaseException) -> CallboardError:
        """The outcome that an exception stands for.

        Raises:
            CancelledError: the executor itself is stopping.
        """
        verdict = flight.verdict
        if verdict is not None and problem is verdict:
            return verdict
        if flight.told_to_end is not None and flight.task.cancelling():
            flight.task.uncancel()
            verdict = flight.ended()
        elif isinstance(problem, GeneratorExit) or (
            isinstance(problem, asyncio.CancelledError) and flight.task.cancelling()
        ):
            raise problem
        else:
            flight.due = math.inf
            while isinstance(problem, BaseExceptionGroup) and len(problem.exceptions) == 1:
                problem = problem.exceptions[0]
            if isinstance(problem, ToolError | UnpersistableValueError):
                flight.verdict = problem
                flight.effect_unknown = isinstance(problem, ToolCrashedError)
                return problem
            verdict = ToolFailedError(
                f"{flight.tool.name} failed: {in_words(problem)}",
                context={"tool": flight.tool.name, "exception": type(problem).__qualname__},
            )
        verdict.__cause__ = problem
        flight.verdict = verdict
        return verdict


def _may_fall_back(flight: Flight, error: CallboardError) -> bool:
    if isinstance(error, ModelRetry) or flight.cancelled:
        return False
    return not flight.effect_unknown or flight.tool.specification.may_be_repeated
