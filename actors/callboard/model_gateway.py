"""ModelGateway: the actor that asks models, within their limits and with retries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from callboard.clock import SYSTEM_CLOCK, Clock
from callboard.kernel import Actor, LoopFuture, handles
from callboard.models.base import Model
from callboard.retry import Retry, retrying
from callboard_protocol.base import as_seconds
from callboard_protocol.commands import AbandonModelCall, AskModel
from callboard_protocol.errors import CallboardError, ModelError, RealModelRefusedError, UsageError
from callboard_protocol.failures import in_words
from callboard_protocol.model_calls import ModelRequest, ModelResponse

if TYPE_CHECKING:
    from types import TracebackType

DEFAULT_RETRY: Final = Retry(attempts=4, on=(ModelError,), delay=0.5, max_delay=30.0)
"""What models are retried with, where the gateway is not told otherwise; only errors that say `retryable` are."""


@dataclass(slots=True)
class ModelReply:
    """What came of one model call.

    Attributes:
        response: the answer.
        latency: seconds the model took: its own attempts and the pauses between them, not the wait for its turn.
        retries: how often it was asked again.
        ttft: seconds from the last attempt's start to its first text; None where nothing was streamed.
        abandoned: whether it was abandoned; `response` is empty then. Whoever abandons a call no longer waits for it,
            and an error that nobody reads would be logged.
    """

    response: ModelResponse[Any]
    latency: float
    retries: int = 0
    ttft: float | None = None
    abandoned: bool = False


class _Call:
    __slots__ = ("abandoned", "key", "message", "reply", "retries", "task", "ttft")

    def __init__(self, message: AskModel) -> None:
        self.message = message
        self.reply: LoopFuture[ModelReply] = LoopFuture()
        self.retries = 0
        self.ttft: float | None = None
        self.abandoned = False
        self.key: object
        self.task: asyncio.Task[None]


class ModelGateway(Actor[AskModel | AbandonModelCall]):
    """Asks models, each call as a task of its own.

    Args:
        concurrency: how many calls of a model, by its name, may run at once; others wait their turn.
        default_concurrency: the same for models not named there; None is no limit.
        retry: how a `ModelError` that says `retryable` is tried again. A pause the provider asked for is a floor.
        clock: what the pauses between attempts go by.
        only_offline: whether models that ask somebody outside this process are refused.

    Raises:
        UsageError: a concurrency under 1.
    """

    # An answer is paid for, and decides what goes on record: nobody stops waiting for it by a clock.
    ask_timeout = None
    # Runs are bounded where they are admitted; to give a call up must not be refused because many do at once.
    mailbox_limit = 100_000

    def __init__(
        self,
        *,
        concurrency: Mapping[str, int] | None = None,
        default_concurrency: int | None = None,
        retry: Retry = DEFAULT_RETRY,
        clock: Clock = SYSTEM_CLOCK,
        only_offline: bool = False,
    ) -> None:
        super().__init__()
        self._concurrency = dict(concurrency or {})
        for limit in (*self._concurrency.values(), default_concurrency):
            if limit is not None and limit < 1:
                raise UsageError(f"a concurrency of {limit} lets no call through", hint="at least 1, or None")
        self._default_concurrency = default_concurrency
        self._retry = retry
        self._clock = clock
        self._only_offline = only_offline
        self._gates: dict[str, asyncio.Semaphore] = {}
        self._calls: dict[object, _Call] = {}

    @handles
    def ask(self, message: AskModel) -> LoopFuture[ModelReply]:
        """Ask a model; with `on_delta`, stream its answer.

        A stream that fails in the middle is retried as any call is; the whole text then comes again.

        Raises:
            ModelError: the model did not answer, after every retry.
            RealModelRefusedError: it asks somebody outside this process, and only models that do not may be asked.
        """
        model: Model = message.model
        if self._only_offline and not model.is_offline:
            raise RealModelRefusedError(
                f"run {message.request.run_id!r} would have asked {model.name!r}", context={"model": model.name}
            )
        call = _Call(message)
        call_id = message.request.call_id
        call.key = call if not call_id or call_id in self._calls else call_id
        self._calls[call.key] = call
        call.task = self.loop.create_task(self._run(call))
        return call.reply

    @handles
    def abandon(self, message: AbandonModelCall) -> None:
        """Stop a call; it is answered as abandoned."""
        call = self._calls.pop(message.call_id, None)
        if call is not None:
            call.abandoned = True
            call.task.cancel()
            call.reply.set(ModelReply(ModelResponse(finish_reason="error"), 0.0, call.retries, abandoned=True))

    @property
    def in_flight(self) -> int:
        """How many calls have no answer yet."""
        return len(self._calls)

    async def on_stop(self) -> None:
        """Cancel what runs."""
        tasks = [call.task for call in self._calls.values()]
        self._calls.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)

    async def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As `on_stop`."""
        await self.on_stop()

    async def _run(self, call: _Call) -> None:
        reply: ModelReply | None = None
        error: BaseException | None = None
        model: Model = call.message.model
        try:
            gate = self._gate(model.name)
            if gate is None:
                reply = await self._timed(call, model)
            else:
                async with gate:
                    reply = await self._timed(call, model)
        except BaseException as problem:  # noqa: BLE001 - whatever a model's adapter does, it is that call's outcome
            error = _verdict(model, problem)
        if self._calls.pop(call.key, None) is None:
            return
        if error is not None:
            call.reply.set_exception(error)
        else:
            call.reply.set(reply)

    async def _timed(self, call: _Call, model: Model) -> ModelReply:
        started = self._clock.monotonic()
        try:
            response = await self._attempt(call, model)
        except CallboardError as first:
            if not _worth_it(first) or self._retry.attempts < 2:
                raise
            response = await self._again(call, model, first)
        return ModelReply(response, self._clock.monotonic() - started, call.retries, call.ttft)

    async def _again(self, call: _Call, model: Model, first: CallboardError) -> ModelResponse[Any]:
        """The attempts after the first, which goes without tenacity: most calls succeed."""
        raised: list[CallboardError] = [first]

        async def attempt() -> ModelResponse[Any]:
            if raised:
                raise raised.pop()
            call.retries += 1
            return await self._attempt(call, model)

        return await retrying(self._retry, _worth_it, self._clock.sleep)(attempt)

    async def _attempt(self, call: _Call, model: Model) -> ModelResponse[Any]:
        message = call.message
        request: ModelRequest = message.request
        on_delta = message.on_delta
        asked: Coroutine[Any, Any, ModelResponse[Any]] = (
            model.generate(request) if on_delta is None else _streamed(call, model, request, on_delta)
        )
        seconds = None if request.settings.timeout is None else as_seconds(request.settings.timeout)
        limit: asyncio.Timeout | None = None
        try:
            if seconds is None:
                response = await asked
            else:
                async with asyncio.timeout(seconds) as limit:
                    response = await asked
        except CallboardError:
            raise
        except Exception as problem:
            if limit is not None and limit.expired():
                raise ModelError(
                    f"{model.name} did not answer within {seconds:g} s", context={"timeout": seconds}, retryable=True
                ) from problem
            raise _verdict(model, problem) from problem
        if not isinstance(response, ModelResponse):
            raise ModelError(f"{model.name} answered a {type(response).__name__}", hint="return a ModelResponse")
        return response

    def _gate(self, name: str) -> asyncio.Semaphore | None:
        limit = self._concurrency.get(name, self._default_concurrency)
        if limit is None:
            return None
        gate = self._gates.get(name)
        if gate is None:
            gate = self._gates[name] = asyncio.Semaphore(limit)
        return gate


async def _streamed(
    call: _Call, model: Model, request: ModelRequest, on_delta: Callable[[str], object]
) -> ModelResponse[Any]:
    started = time.monotonic()
    call.ttft = None
    response: ModelResponse[Any] | None = None
    async for delta in model.stream(request):
        if delta.text:
            if call.ttft is None:
                call.ttft = time.monotonic() - started
            if not call.abandoned:
                on_delta(delta.text)
        response = delta.response or response
    if response is None:
        raise ModelError(f"{model.name} ended its stream without a response", retryable=True)
    return response


def _worth_it(error: BaseException) -> bool:
    return isinstance(error, ModelError) and error.retryable


def _verdict(model: Model, problem: BaseException) -> CallboardError:
    """The error that an exception of a model stands for.

    Raises:
        CancelledError: the call was abandoned, or the gateway stops.
    """
    if isinstance(problem, CallboardError):
        return problem
    task = asyncio.current_task()
    if isinstance(problem, GeneratorExit) or (
        isinstance(problem, asyncio.CancelledError) and task is not None and task.cancelling()
    ):
        raise problem
    error = ModelError(
        f"{model.name} failed: {in_words(problem)}",
        hint="the cause says why; an adapter raises ModelError(..., retryable=True) for what may pass",
        context={"model": model.name},
        retryable=False,
    )
    error.__cause__ = problem
    return error
