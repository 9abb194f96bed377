from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from callboard.kernel import ActorSystem, Ref
from callboard.retry import Retry
from callboard.tool import Tool, tool
from callboard.tool_executor import ReconcileFailed, ToolExecutor, ToolOutcome
from callboard.tools.context import ToolContext
from callboard_protocol.commands import CallTool, CancelCall, ReconcileCall
from callboard_protocol.errors import (
    ActorDied,
    CallboardError,
    ModelRetry,
    ToolFailedError,
    ToolTimeoutError,
    UsageError,
)
from callboard_protocol.tools import Happened, NotHappened, Unknown

pytestmark = pytest.mark.anyio

QUICK = Retry(attempts=3, on=(ConnectionError, TimeoutError), delay=0, max_delay=0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def system(anyio_backend: str) -> AsyncIterator[ActorSystem]:
    system = ActorSystem()
    yield system
    await system.stop()


@pytest.fixture
async def executor(system: ActorSystem) -> Ref[ToolExecutor]:
    return system.start(ToolExecutor)


@pytest.fixture
def gate() -> Any:
    """What blocks threads until the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def call(executor: Ref[ToolExecutor], one: Tool[Any], context: ToolContext[Any] | None = None, **arguments: Any):  # type: ignore[no-untyped-def]
    message = CallTool(tool=one, arguments=arguments, context=context or ToolContext(call_id="run:0"))
    outcome: ToolOutcome = await executor.ask(message)
    return outcome


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [error] * times

    def act() -> str:
        if left:
            raise left.pop()
        return "done"

    return act


# ---- one call


async def test_a_call_answers_with_what_the_tool_returned(executor: Ref[ToolExecutor]):
    @tool
    async def double(ctx: ToolContext, number: int) -> int:
        return number * 2 + len(ctx.call_id)

    outcome = await call(executor, double, number=3)
    assert (outcome.value, outcome.error, outcome.attempts, outcome.cancelled) == (11, None, 1, False)
    assert outcome.duration >= 0


async def test_calls_run_beside_each_other(executor: Ref[ToolExecutor]):
    both = asyncio.Barrier(2)

    @tool
    async def meet() -> str:
        await both.wait()
        return "met"

    outcomes = await asyncio.gather(call(executor, meet), call(executor, meet, ToolContext(call_id="run:1")))
    assert [outcome.value for outcome in outcomes] == ["met", "met"]


async def test_a_tool_that_raises_fails_with_the_cause(executor: Ref[ToolExecutor]):
    problem = ValueError("no such order")

    @tool
    async def find() -> str:
        raise problem

    outcome = await call(executor, find)
    assert isinstance(outcome.error, ToolFailedError)
    assert outcome.error.message == "find failed: ValueError: no such order"
    assert outcome.error.__cause__ is problem


async def test_a_model_retry_passes_as_it_is(executor: Ref[ToolExecutor]):
    problem = ModelRetry("the order id begins with an O")

    @tool
    async def find() -> str:
        raise problem

    assert (await call(executor, find)).error is problem


async def test_an_error_that_is_no_tool_error_is_wrapped(executor: Ref[ToolExecutor]):
    @tool
    async def find() -> str:
        raise UsageError("wrong use")

    outcome = await call(executor, find)
    assert type(outcome.error) is ToolFailedError


async def test_a_single_error_of_a_task_group_is_told_as_itself(executor: Ref[ToolExecutor]):
    async def part() -> None:
        raise ModelRetry("try another id")

    @tool
    async def find() -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(part())
        return "never"

    assert isinstance((await call(executor, find)).error, ModelRetry)


async def test_an_error_that_cannot_be_printed_is_still_an_outcome(executor: Ref[ToolExecutor]):
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    @tool
    async def find() -> str:
        raise Mute

    outcome = await call(executor, find)
    assert outcome.error is not None
    assert outcome.error.message == "find failed: Mute"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), BaseException()])
@pytest.mark.parametrize("threaded", [False, True])
async def test_nothing_a_tool_raises_takes_anything_else_down(
    executor: Ref[ToolExecutor], error: BaseException, threaded: bool
):
    def act() -> str:
        raise error

    async def act_async() -> str:
        raise error

    outcome = await call(executor, tool(act) if threaded else tool(act_async))
    assert isinstance(outcome.error, ToolFailedError)
    assert executor.is_alive()


async def test_a_tool_cancelled_from_inside_fails(executor: Ref[ToolExecutor]):
    @tool
    async def find() -> str:
        inner: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        inner.cancel()
        return await inner

    outcome = await call(executor, find)
    assert isinstance(outcome.error, ToolFailedError)
    assert not outcome.cancelled


async def test_a_sync_function_on_the_loop_is_called_there(executor: Ref[ToolExecutor]):
    @tool(isolation="loop")
    def where() -> int:
        return threading.get_ident()

    assert (await call(executor, where)).value == threading.get_ident()


async def test_a_sync_function_runs_in_a_thread_with_its_progress_on_the_loop(executor: Ref[ToolExecutor]):
    told: list[tuple[int, str, dict[str, Any]]] = []
    heard = asyncio.Event()

    def publish(name: str, fields: dict[str, Any]) -> None:
        told.append((threading.get_ident(), name, fields))
        heard.set()

    @tool
    def where(ctx: ToolContext) -> int:
        ctx.report(1, 2, "half")
        return threading.get_ident()

    outcome = await call(executor, where, ToolContext(call_id="run:0", publish=publish))
    await heard.wait()
    assert outcome.value != threading.get_ident()
    assert told == [(threading.get_ident(), "tool.progress", {"done": 1, "total": 2, "note": "half"})]


async def test_progress_of_an_async_tool_is_published_at_once(executor: Ref[ToolExecutor]):
    told: list[tuple[str, dict[str, Any]]] = []

    @tool
    async def work(ctx: ToolContext) -> str:
        await ctx.progress(3)
        return "done"

    context: ToolContext[None] = ToolContext(publish=lambda name, fields: told.append((name, fields)))
    await call(executor, work, context)
    assert told == [("tool.progress", {"done": 3, "total": None, "note": ""})]


async def test_a_tool_given_by_a_schema_gets_its_arguments_as_a_dict(executor: Ref[ToolExecutor]):
    async def look_up(arguments: dict[str, Any], ctx: ToolContext[Any]) -> Any:
        return {**arguments, "call": ctx.call_id}

    made = Tool.from_schema("look_up", "", {"properties": {"key": {"type": "string"}}}, look_up)
    assert (await call(executor, made, key="x")).value == {"key": "x", "call": "run:0"}


# ---- timeouts and cancellation


async def test_a_loop_tool_past_its_timeout_is_cancelled(executor: Ref[ToolExecutor]):
    cleaned = asyncio.Event()

    @tool(timeout=0.02)
    async def hang() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        return "never"

    context: ToolContext[None] = ToolContext(call_id="run:0")
    outcome = await call(executor, hang, context)
    assert isinstance(outcome.error, ToolTimeoutError)
    assert outcome.error.message == "hang ran past its timeout of 0.02 s"
    assert outcome.duration >= 0.02
    assert cleaned.is_set()
    assert context.cancelled


async def test_a_blocking_tool_past_its_timeout_is_abandoned_and_the_error_says_so(
    executor: Ref[ToolExecutor], gate: threading.Event
):
    @tool(timeout=0.02)
    def hang() -> str:
        gate.wait()
        return "late"

    outcome = await call(executor, hang)
    assert isinstance(outcome.error, ToolTimeoutError)
    assert "abandoned: it may still take effect" in outcome.error.message


async def test_each_call_has_the_timeout_of_its_own_tool(executor: Ref[ToolExecutor]):
    @tool(timeout=30)
    async def patient() -> str:
        await released.wait()
        return "patient"

    @tool(timeout=0.02)
    async def hasty() -> str:
        await released.wait()
        return "hasty"

    released = asyncio.Event()
    waiting = asyncio.ensure_future(call(executor, patient, ToolContext(call_id="run:1")))
    assert isinstance((await call(executor, hasty)).error, ToolTimeoutError)
    released.set()
    assert (await waiting).value == "patient"


async def test_a_tool_without_a_timeout_takes_its_time(executor: Ref[ToolExecutor]):
    @tool(timeout=None)
    async def patient() -> str:
        await asyncio.Event().wait()
        return "never"

    call_ = asyncio.ensure_future(call(executor, patient))
    await call(executor, tool(timeout=0.02)(hang_for_ever), ToolContext(call_id="run:1"))
    assert not call_.done()
    executor.tell(CancelCall(call_id="run:0"))
    assert (await call_).cancelled


async def hang_for_ever() -> str:
    await asyncio.Event().wait()
    return "never"


async def test_what_a_tool_returns_although_it_was_told_to_end_stands(executor: Ref[ToolExecutor]):
    @tool(timeout=0.02)
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "finished all the same"
        return "never"

    outcome = await call(executor, stubborn)
    assert (outcome.value, outcome.error) == ("finished all the same", None)


async def test_a_failed_cleanup_does_not_hide_the_timeout(executor: Ref[ToolExecutor]):
    @tool(timeout=0.02)
    async def untidy() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            raise ModelRetry("cleanup failed")

    outcome = await call(executor, untidy)
    assert isinstance(outcome.error, ToolTimeoutError)
    assert isinstance(outcome.error.__cause__, ModelRetry)


async def test_a_tool_that_resists_cancellation_is_answered_for(
    executor: Ref[ToolExecutor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("callboard.tools.flights.PATIENCE", 0.02)
    released = asyncio.Event()

    @tool(timeout=0.02)
    async def deaf() -> str:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    outcome = await call(executor, deaf)
    assert isinstance(outcome.error, ToolTimeoutError)
    assert "left to itself" in outcome.error.message
    assert "resists cancellation" in caplog.text
    released.set()


async def test_a_call_can_be_cancelled(executor: Ref[ToolExecutor]):
    begun = asyncio.Event()

    @tool
    async def hang() -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    waiting = asyncio.ensure_future(call(executor, hang))
    await begun.wait()
    executor.tell(CancelCall(call_id="run:0", reason="the user left"))
    outcome = await waiting
    assert outcome.cancelled
    assert isinstance(outcome.error, ToolFailedError)
    assert outcome.error.message == "hang was cancelled: the user left"
    assert outcome.attempts == 1


async def test_a_call_cancelled_before_it_began_was_never_made(executor: Ref[ToolExecutor]):
    @tool
    async def act() -> str:
        raise AssertionError

    # All three wait in the mailbox and are handled in one turn, before the call's task has its first.
    loop = asyncio.get_running_loop()
    loop.call_soon(executor.tell, CancelCall(call_id="run:7"))
    waiting = asyncio.ensure_future(call(executor, act))
    loop.call_soon(executor.tell, CancelCall(call_id="run:0", reason="too late"))
    outcome = await waiting
    assert (outcome.cancelled, outcome.attempts) == (True, 0)
    assert outcome.error is not None
    assert outcome.error.message == "act was cancelled: too late"


async def test_cancelling_a_call_that_is_not_in_flight_does_nothing(executor: Ref[ToolExecutor]):
    executor.tell(CancelCall(call_id="run:7"))
    assert (await call(executor, tool(failing(0, ValueError())))).value == "done"


async def test_a_cancelled_blocking_call_is_abandoned(executor: Ref[ToolExecutor], gate: threading.Event):
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    ended: list[bool] = []

    @tool
    def hang(ctx: ToolContext) -> str:
        loop.call_soon_threadsafe(begun.set)
        gate.wait()
        ended.append(ctx.cancelled)
        return "late"

    waiting = asyncio.ensure_future(call(executor, hang))
    await begun.wait()
    executor.tell(CancelCall(call_id="run:0"))
    outcome = await waiting
    assert outcome.error is not None
    assert "abandoned" in outcome.error.message


async def test_a_tool_that_wants_to_finish_is_told_and_not_cancelled(executor: Ref[ToolExecutor]):
    begun, released = asyncio.Event(), asyncio.Event()

    @tool(interrupt="finish")
    async def finish(ctx: ToolContext) -> bool:
        begun.set()
        await released.wait()
        return ctx.cancelled

    waiting = asyncio.ensure_future(call(executor, finish))
    await begun.wait()
    executor.tell(CancelCall(call_id="run:0"))
    asyncio.get_running_loop().call_soon(released.set)
    assert (await waiting).value is True


async def test_a_call_that_waits_for_its_turn_is_cancelled_also_where_its_tool_wants_to_finish(
    executor: Ref[ToolExecutor],
):
    begun, released = asyncio.Event(), asyncio.Event()

    @tool(interrupt="finish", max_concurrency=1)
    async def finish() -> str:
        begun.set()
        await released.wait()
        return "finished"

    at_work = asyncio.ensure_future(call(executor, finish))
    await begun.wait()
    waiting = asyncio.ensure_future(call(executor, finish, ToolContext(call_id="run:1")))
    await asyncio.sleep(0)
    told = await executor.ask(CancelCall(call_id="run:1"))
    assert (told.cancelled, told.attempts) == (True, 0)
    assert (await waiting).cancelled
    released.set()
    assert (await at_work).value == "finished"


async def test_a_cancellation_is_answered_with_what_became_of_the_call(executor: Ref[ToolExecutor]):
    begun = asyncio.Event()

    @tool
    async def hang() -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    waiting = asyncio.ensure_future(call(executor, hang))
    await begun.wait()
    assert await executor.ask(CancelCall(call_id="run:0")) is await waiting
    assert await executor.ask(CancelCall(call_id="run:0")) is None


async def test_leaving_an_ask_does_not_stop_the_call(executor: Ref[ToolExecutor]):
    begun, released, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @tool
    async def work() -> str:
        begun.set()
        await released.wait()
        done.set()
        return "done"

    waiting = asyncio.ensure_future(call(executor, work))
    await begun.wait()
    waiting.cancel()
    released.set()
    await done.wait()


async def test_stopping_the_executor_cancels_what_runs(system: ActorSystem):
    executor = system.start(ToolExecutor)
    begun, cleaned = asyncio.Event(), asyncio.Event()

    @tool
    async def hang() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        return "never"

    waiting = asyncio.ensure_future(call(executor, hang))
    await begun.wait()
    await executor.stop()
    assert cleaned.is_set()
    with pytest.raises(ActorDied):
        await waiting


# ---- retries


async def test_an_error_worth_it_is_tried_again(executor: Ref[ToolExecutor]):
    context: ToolContext[None] = ToolContext(call_id="run:0")
    seen: list[int] = []
    act = failing(2, ConnectionError("lost"))

    @tool(retry=QUICK, isolation="loop")
    def flaky(ctx: ToolContext) -> str:
        seen.append(ctx.attempt)
        return act()

    outcome = await call(executor, flaky, context)
    assert (outcome.value, outcome.attempts, seen) == ("done", 3, [1, 2, 3])


async def test_the_last_error_is_the_outcome(executor: Ref[ToolExecutor]):
    flaky = tool(retry=QUICK)(failing(9, ConnectionError("lost")))
    outcome = await call(executor, flaky)
    assert outcome.attempts == 3
    assert isinstance(outcome.error, ToolFailedError)
    assert isinstance(outcome.error.__cause__, ConnectionError)


@pytest.mark.parametrize("error", [ValueError("wrong"), ModelRetry("other arguments")])
async def test_other_errors_are_not_tried_again(executor: Ref[ToolExecutor], error: Exception):
    outcome = await call(executor, tool(retry=QUICK)(failing(9, error)))
    assert outcome.attempts == 1


async def test_a_pause_the_other_side_asked_for_is_a_floor(executor: Ref[ToolExecutor]):
    class Busy(ConnectionError):
        retry_after = 0.05

    outcome = await call(executor, tool(retry=QUICK)(failing(1, Busy())))
    assert outcome.value == "done"
    # The executor reads the error's cause: a tool raises its client's exceptions as they come.
    assert outcome.duration >= 0.05


@pytest.mark.parametrize(("declared", "attempts"), [({"read_only": True}, 3), ({"idempotent": True}, 3), ({}, 1)])
async def test_a_timeout_is_tried_again_only_where_the_call_may_be_repeated(
    executor: Ref[ToolExecutor], declared: dict[str, Any], attempts: int
):
    outcome = await call(executor, tool(retry=QUICK, timeout=0.02, **declared)(hang_for_ever))
    assert outcome.attempts == attempts
    assert isinstance(outcome.error, ToolTimeoutError)


async def test_a_retry_after_an_abandoned_attempt_does_not_revive_it(
    executor: Ref[ToolExecutor], gate: threading.Event
):
    contexts: list[ToolContext[Any]] = []

    @tool(retry=QUICK, timeout=0.3, read_only=True)
    def hang_once(ctx: ToolContext) -> str:
        contexts.append(ctx)
        if len(contexts) == 1:
            gate.wait()
        return "second"

    assert (await call(executor, hang_once)).value == "second"
    assert [(context.attempt, context.cancelled) for context in contexts] == [(1, True), (2, False)]


async def test_state_assigned_by_a_retried_attempt_reaches_the_caller(executor: Ref[ToolExecutor]):
    act = failing(1, ConnectionError())

    @tool(retry=QUICK, isolation="loop")
    def count(ctx: ToolContext) -> str:
        said = act()
        ctx.state = {"count": 1}
        return said

    context: ToolContext[None] = ToolContext(state={"count": 0})
    await call(executor, count, context)
    assert context.state == {"count": 1}


async def test_a_cancelled_call_is_not_tried_again(executor: Ref[ToolExecutor]):
    begun = asyncio.Event()

    @tool(retry=Retry(attempts=3, on=(Exception,), delay=0), read_only=True)
    async def hang() -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    waiting = asyncio.ensure_future(call(executor, hang))
    await begun.wait()
    executor.tell(CancelCall(call_id="run:0"))
    outcome = await waiting
    assert (outcome.attempts, outcome.cancelled) == (1, True)


async def test_a_call_can_be_cancelled_between_attempts(executor: Ref[ToolExecutor]):
    failed = asyncio.Event()

    @tool(retry=Retry(attempts=2, on=(ConnectionError,), delay=60, max_delay=60), isolation="loop")
    def flaky() -> str:
        failed.set()
        raise ConnectionError

    waiting = asyncio.ensure_future(call(executor, flaky))
    await failed.wait()
    executor.tell(CancelCall(call_id="run:0"))
    outcome = await waiting
    assert (outcome.attempts, outcome.cancelled) == (1, True)


# ---- concurrency


async def test_no_more_calls_of_a_tool_run_at_once_than_it_allows(executor: Ref[ToolExecutor]):
    running, most = 0, 0
    three = asyncio.Event()
    begun = 0

    @tool(max_concurrency=2)
    async def work() -> str:
        nonlocal running, most, begun
        running += 1
        begun += 1
        most = max(most, running)
        if begun == 3:
            three.set()
        await asyncio.sleep(0)
        running -= 1
        return "done"

    await asyncio.gather(*(call(executor, work, ToolContext(call_id=f"run:{n}")) for n in range(8)))
    assert (most, begun) == (2, 8)


async def test_waiting_for_a_turn_does_not_count_towards_the_timeout(executor: Ref[ToolExecutor]):
    first_begun, released = asyncio.Event(), asyncio.Event()

    @tool(max_concurrency=1, timeout=0.3)
    async def work(wait: bool) -> str:
        first_begun.set()
        try:
            await (asyncio.Event() if wait else released).wait()
        finally:
            released.set()
        return "done"

    first = asyncio.ensure_future(call(executor, work, ToolContext(call_id="run:0"), wait=True))
    await first_begun.wait()
    second = await call(executor, work, ToolContext(call_id="run:1"), wait=False)
    assert isinstance((await first).error, ToolTimeoutError)
    assert second.value == "done"


async def test_a_call_that_waits_for_its_turn_can_be_cancelled(executor: Ref[ToolExecutor]):
    begun, released = asyncio.Event(), asyncio.Event()

    @tool(max_concurrency=1)
    async def work() -> str:
        begun.set()
        await released.wait()
        return "done"

    first = asyncio.ensure_future(call(executor, work, ToolContext(call_id="run:0")))
    await begun.wait()
    second = asyncio.ensure_future(call(executor, work, ToolContext(call_id="run:1")))
    asyncio.get_running_loop().call_soon(executor.tell, CancelCall(call_id="run:1"))
    outcome = await second
    assert (outcome.cancelled, outcome.attempts) == (True, 0)
    released.set()
    assert (await first).value == "done"


async def test_abandoned_threads_give_their_places_up(system: ActorSystem, gate: threading.Event):
    executor = system.start(ToolExecutor, threads=1)

    @tool(timeout=0.02)
    def hang() -> str:
        gate.wait()
        return "late"

    assert isinstance((await call(executor, hang)).error, ToolTimeoutError)
    assert (await call(executor, tool(failing(0, ValueError())))).value == "done"


async def test_when_every_place_is_held_by_abandoned_calls_the_next_is_refused(
    system: ActorSystem, gate: threading.Event
):
    executor = system.start(ToolExecutor, threads=1)

    @tool(timeout=0.02)
    def hang() -> str:
        gate.wait()
        return "late"

    for _ in range(2):
        assert isinstance((await call(executor, hang)).error, ToolTimeoutError)
    refused = await call(executor, hang)
    assert refused.error is not None
    assert "no thread is free: 2 calls ran past their timeouts" in refused.error.message
    assert refused.error.retryable
    assert refused.attempts == 0


async def test_threads_are_used_again(executor: Ref[ToolExecutor]):
    @tool
    def where() -> str:
        return threading.current_thread().name

    assert len({(await call(executor, where)).value for _ in range(5)}) == 1


# ---- hooks


class Hooked(Tool[None]):
    name = "hooked"
    parameters = {"properties": {"number": {"type": "integer"}}}
    read_only = True

    def __init__(self, timeout: float = 60) -> None:
        self.timeout = timeout
        super().__init__()
        self.seen: list[Any] = []
        self.error: BaseException | None = None
        self.hook_error: Exception | None = None

    async def before_invoke(self, context: ToolContext[None], arguments: dict[str, Any]) -> dict[str, Any] | None:
        self.seen.append("before")
        return {"number": arguments["number"] + 1} if arguments else None

    async def invoke(self, context: ToolContext[None], arguments: dict[str, Any]) -> Any:
        self.seen.append(arguments)
        if self.error is not None:
            raise self.error
        return arguments.get("number")

    async def after_invoke(
        self, context: ToolContext[None], arguments: dict[str, Any], *, result: Any, error: CallboardError | None
    ) -> None:
        self.seen.append(("after", result, type(error)))
        if self.hook_error is not None:
            raise self.hook_error


async def test_hooks_stand_around_a_call_and_may_change_its_arguments(executor: Ref[ToolExecutor]):
    hooked = Hooked()
    assert (await call(executor, hooked, number=1)).value == 2
    assert hooked.seen == ["before", {"number": 2}, ("after", 2, type(None))]


async def test_the_after_hook_is_called_after_a_failure_too(executor: Ref[ToolExecutor]):
    hooked = Hooked()
    hooked.error = ValueError("broken")
    assert isinstance((await call(executor, hooked)).error, ToolFailedError)
    assert hooked.seen[-1] == ("after", None, ToolFailedError)


async def test_the_after_hook_is_called_after_a_timeout_and_a_cancellation_too(executor: Ref[ToolExecutor]):
    class Hanging(Hooked):
        async def invoke(self, context: ToolContext[None], arguments: dict[str, Any]) -> Any:
            begun.set()
            await asyncio.Event().wait()

    begun, hanging = asyncio.Event(), Hanging(0.05)
    await call(executor, hanging)
    assert hanging.seen[-1] == ("after", None, ToolTimeoutError)
    begun.clear()
    hanging = Hanging()
    waiting = asyncio.ensure_future(call(executor, hanging))
    await begun.wait()
    executor.tell(CancelCall(call_id="run:0"))
    assert (await waiting).cancelled
    assert hanging.seen[-1] == ("after", None, ToolFailedError)


async def test_an_after_hook_that_raises_is_logged_and_changes_nothing(
    executor: Ref[ToolExecutor], caplog: pytest.LogCaptureFixture
):
    hooked = Hooked()
    hooked.hook_error = ValueError("in the hook")
    with caplog.at_level(logging.ERROR):
        assert (await call(executor, hooked, number=1)).value == 2
    assert "the after hook of tool hooked" in caplog.text


async def test_a_before_hook_that_raises_keeps_the_call_from_being_made(executor: Ref[ToolExecutor]):
    class Refusing(Hooked):
        async def before_invoke(self, context: ToolContext[None], arguments: dict[str, Any]) -> None:
            raise ModelRetry("not today")

    refusing = Refusing()
    outcome = await call(executor, refusing, number=1)
    assert isinstance(outcome.error, ModelRetry)
    assert outcome.attempts == 0
    assert refusing.seen == [("after", None, ModelRetry)]


async def test_a_hook_that_hangs_is_under_the_timeout(executor: Ref[ToolExecutor]):
    class Hanging(Hooked):
        async def after_invoke(self, *args: Any, **kwargs: Any) -> None:
            await asyncio.Event().wait()

    outcome = await call(executor, Hanging(0.3), number=1)
    assert (outcome.value, outcome.error) == (2, None)


class Backed(Tool[None]):
    name = "backed"
    timeout = 0.02

    def __init__(self, error: Exception | None = None, *, read_only: bool = False) -> None:
        self.read_only = read_only
        super().__init__()
        self.error = error

    async def invoke(self, context: ToolContext[None], arguments: dict[str, Any]) -> str:
        if self.error is None:
            await asyncio.Event().wait()
        else:
            raise self.error
        return "never"

    async def fallback(self, context: ToolContext[None], arguments: dict[str, Any], error: CallboardError) -> str:
        return f"instead of {type(error).__name__}"


async def test_a_fallback_stands_in_for_a_call_that_failed(executor: Ref[ToolExecutor]):
    outcome = await call(executor, Backed(ValueError()))
    assert (outcome.value, outcome.error) == ("instead of ToolFailedError", None)


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_fallback_does_not_hide_a_call_of_unknown_outcome(executor: Ref[ToolExecutor], read_only: bool):
    outcome = await call(executor, Backed(read_only=read_only))
    assert outcome.value == ("instead of ToolTimeoutError" if read_only else None)


async def test_a_fallback_does_not_hide_what_the_model_is_told(executor: Ref[ToolExecutor]):
    assert isinstance((await call(executor, Backed(ModelRetry("again")))).error, ModelRetry)


async def test_a_fallback_that_raises_is_the_outcome(executor: Ref[ToolExecutor]):
    class Worse(Backed):
        async def fallback(self, context: ToolContext[None], arguments: dict[str, Any], error: CallboardError) -> str:
            raise LookupError("no fallback either")

    outcome = await call(executor, Worse(ValueError("first")))
    assert outcome.error is not None
    assert outcome.error.message == "backed failed: LookupError: no fallback either"


# ---- streaming


class Streaming(Tool[None]):
    name = "streaming"

    def __init__(self, *chunks: Any) -> None:
        super().__init__()
        self.chunks = chunks

    async def invoke_stream(self, context: ToolContext[None], arguments: dict[str, Any]) -> AsyncIterator[Any]:
        for chunk in self.chunks:
            yield chunk


@pytest.mark.parametrize(
    ("chunks", "result"), [(("a", "b"), "ab"), (({"n": 1}, "b"), [{"n": 1}, "b"]), ((), ""), ((1,), [1])]
)
async def test_a_streaming_tool_publishes_its_pieces_and_returns_them_together(
    executor: Ref[ToolExecutor], chunks: tuple[Any, ...], result: Any
):
    told: list[tuple[str, dict[str, Any]]] = []
    context: ToolContext[None] = ToolContext(publish=lambda name, fields: told.append((name, fields)))
    outcome = await call(executor, Streaming(*chunks), context)
    assert outcome.value == result
    assert told == [("tool.delta", {"chunk": chunk, "offset": n}) for n, chunk in enumerate(chunks)]


# ---- reconcile


async def undecided(amount: int) -> int:
    return amount


def reconciled(answer: Any) -> Tool[None]:
    made = tool(timeout=0.02)(undecided)

    @made.reconcile
    async def _(amount: int) -> Happened[int] | NotHappened | Unknown:
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await asyncio.Event().wait()
        return answer  # type: ignore[no-any-return]

    return made


async def reconcile(executor: Ref[ToolExecutor], one: Tool[Any]) -> Any:
    return await executor.ask(ReconcileCall(tool=one, arguments={"amount": 3}, context=ToolContext(call_id="run:0")))


@pytest.mark.parametrize("answer", [Happened(3), NotHappened(), Unknown()])
async def test_reconcile_is_asked_and_its_answer_given(executor: Ref[ToolExecutor], answer: Any):
    assert await reconcile(executor, reconciled(answer)) == answer


@pytest.mark.parametrize(
    ("answer", "error"), [(ValueError("no"), ToolFailedError), (None, ToolTimeoutError), ("yes", ToolFailedError)]
)
async def test_a_reconcile_that_fails_is_unknown_and_says_why(
    executor: Ref[ToolExecutor], answer: Any, error: type[CallboardError]
):
    verdict = await reconcile(executor, reconciled(answer))
    assert isinstance(verdict, ReconcileFailed)
    assert isinstance(verdict, Unknown)
    assert isinstance(verdict.error, error)


async def test_a_tool_without_reconcile_is_unknown(executor: Ref[ToolExecutor]):
    assert await reconcile(executor, tool(undecided)) == Unknown()


# ---- many at once


async def test_of_a_thousand_calls_each_is_answered_once_and_none_is_left(executor: Ref[ToolExecutor]):
    chance = random.Random(7)  # noqa: S311 - a seed, not a secret

    @tool(timeout=0.05)
    async def hang() -> str:
        await asyncio.Event().wait()
        return "never"

    @tool(max_concurrency=100)
    async def work(kind: str) -> str:
        if kind == "cancel":
            await asyncio.Event().wait()
        if kind == "fail":
            raise ValueError(kind)
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        return kind

    kinds = [chance.choice(["return", "fail", "hang", "cancel"]) for _ in range(1000)]
    calls = [
        asyncio.ensure_future(
            call(executor, hang, ToolContext(call_id=f"run:{n}"))
            if kind == "hang"
            else call(executor, work, ToolContext(call_id=f"run:{n}"), kind=kind)
        )
        for n, kind in enumerate(kinds)
    ]
    await asyncio.sleep(0)
    for number, kind in enumerate(kinds):
        if kind == "cancel":
            executor.tell(CancelCall(call_id=f"run:{number}"))
    outcomes = await asyncio.gather(*calls)
    for kind, outcome in zip(kinds, outcomes, strict=True):
        if kind == "return":
            assert (outcome.value, outcome.error) == ("return", None)
        else:
            assert type(outcome.error) is (ToolTimeoutError if kind == "hang" else ToolFailedError)
        assert outcome.cancelled is (kind == "cancel")
    actor = executor.actor_inbox.actor
    assert isinstance(actor, ToolExecutor)
    assert actor.in_flight == 0
    assert not executor.busy


async def test_the_same_call_may_be_made_again_while_an_earlier_attempt_ends(executor: Ref[ToolExecutor]):
    released = asyncio.Event()

    @tool
    async def wait() -> str:
        await released.wait()
        return "done"

    both = [asyncio.ensure_future(call(executor, wait)) for _ in range(2)]
    asyncio.get_running_loop().call_soon(released.set)
    assert [outcome.value for outcome in await asyncio.gather(*both)] == ["done", "done"]
