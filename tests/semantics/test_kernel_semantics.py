from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pykka
import pytest
from pydantic import ValidationError

from callboard.kernel import Actor, ActorDefinitionError, ActorSystem, ChildSpec, LoopFuture, Ref, handles
from callboard_protocol.commands import Command, Live, Request
from callboard_protocol.errors import (
    ActorDied,
    ActorError,
    AskTimeout,
    CallboardError,
    ForkedError,
    MailboxFull,
    UnhealthyError,
    UsageError,
    WouldDeadlockError,
    WrongLoopError,
)

pytestmark = pytest.mark.anyio


class Note(Command):
    text: str


class Notes(Request[list[str]]):
    pass


class Carry(Request[object]):
    load: Live[object]


class Hold(Request[str]):
    """Keeps a handler until its gate opens."""

    gate: Live[asyncio.Event]
    begun: Live[asyncio.Event]
    text: str = "held"


class HoldBeside(Hold):
    pass


class Defer(Request[str]):
    reply: Live[Any]


class Raise(Request[None]):
    error: Live[BaseException]


class RaiseLater(Request[None]):
    error: Live[BaseException]


class Do(Request[Any]):
    """Runs a function of the actor inside a sync handler."""

    function: Live[Callable[[Any], Any]]


class DoAsync(Request[Any]):
    function: Live[Callable[[Any], Any]]


class DoBeside(Request[Any]):
    function: Live[Callable[[Any], Any]]


class Clerk(Actor[Note | Notes | Carry | Hold | HoldBeside | Defer | Raise | RaiseLater | Do | DoAsync | DoBeside]):
    def __init__(self, log: list[str] | None = None, mailbox_limit: int = 1000) -> None:
        super().__init__()
        self.mailbox_limit = mailbox_limit
        self.log: list[str] = [] if log is None else log

    @handles
    def note(self, message: Note) -> None:
        self.log.append(message.text)

    @handles
    def notes(self, message: Notes) -> list[str]:
        return list(self.log)

    @handles
    def carry(self, message: Carry) -> object:
        return message.load

    @handles
    async def hold(self, message: Hold) -> str:
        message.begun.set()
        await message.gate.wait()
        self.log.append(message.text)
        return message.text

    @handles(concurrent=True)
    async def hold_beside(self, message: HoldBeside) -> str:
        message.begun.set()
        try:
            await message.gate.wait()
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        self.log.append(message.text)
        return message.text

    @handles
    def defer(self, message: Defer) -> Any:
        return message.reply

    @handles
    def fail(self, message: Raise) -> None:
        raise message.error

    @handles
    async def fail_later(self, message: RaiseLater) -> None:
        raise message.error

    @handles
    def do(self, message: Do) -> Any:
        return message.function(self)

    @handles
    async def do_async(self, message: DoAsync) -> Any:
        return await message.function(self)

    @handles(concurrent=True)
    async def do_beside(self, message: DoBeside) -> Any:
        return await message.function(self)

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        self.log.append(f"failed: {exception_type.__name__}")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def system(anyio_backend: str) -> AsyncIterator[ActorSystem]:
    system = ActorSystem()
    yield system
    await system.stop(timeout=0)


def hold() -> Hold:
    return Hold(gate=asyncio.Event(), begun=asyncio.Event())


def hold_beside() -> HoldBeside:
    return HoldBeside(gate=asyncio.Event(), begun=asyncio.Event())


async def begin(ref: Ref[Any], message: Hold) -> asyncio.Task[str]:
    """Ask in a task, and return once the handler runs."""
    task = asyncio.create_task(ref.ask(message))
    await message.begun.wait()
    return task


async def sent(*tasks: asyncio.Task[Any]) -> None:
    """Return once each of these new tasks has taken its first step, which is when it sends."""
    reached = asyncio.Event()
    asyncio.get_running_loop().call_soon(reached.set)
    await reached.wait()


async def ended(ref: Ref[Any]) -> BaseException | None:
    """Wait for the end of an actor, and for what ended it."""
    end: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    ref.watch(end.set_result)
    return await end


# ---- messages and handlers


@pytest.mark.semantics("K1")
async def test_a_message_is_frozen_and_carries_live_values_by_reference(system: ActorSystem):
    load: list[str] = []
    message = Carry(load=load)
    with pytest.raises(ValidationError):
        message.load = []  # type: ignore[misc]
    assert await system.start(Clerk).ask(message) is load


@pytest.mark.semantics("K2")
async def test_a_class_that_does_not_handle_exactly_what_it_declares_cannot_be_created():
    with pytest.raises(ActorDefinitionError) as caught:

        class Muddled(Actor[Note | Notes]):
            @handles
            def one(self, message: Note) -> None: ...

            @handles
            def other(self, message: Note) -> None: ...

            @handles
            def stray(self, message: Carry) -> None: ...

    text = str(caught.value)
    assert "Notes has no handler" in text
    assert "Note is handled twice: one and other" in text
    assert "stray handles Carry, which the class does not declare" in text
    assert isinstance(caught.value, TypeError)


@pytest.mark.semantics("K3")
async def test_a_message_of_any_other_type_is_refused_at_the_door(system: ActorSystem):
    class SpecialNote(Note):
        pass

    ref = system.start(Clerk)
    with pytest.raises(UsageError, match=r"does not handle SpecialNote \(it handles Carry, .*Note, "):
        ref.tell(SpecialNote(text="almost"))
    with pytest.raises(UsageError):
        ref.tell("no message at all")  # type: ignore[misc]
    ref.tell(Note(text="exact"))
    assert await ref.ask(Notes()) == ["exact"]


# ---- order


@pytest.mark.semantics("K5")
async def test_one_message_at_a_time_in_the_order_they_arrived(system: ActorSystem):
    ref = system.start(Clerk)
    ref.tell(Note(text="1"))
    held = Hold(gate=asyncio.Event(), begun=asyncio.Event(), text="2")
    ref.tell(held)
    ref.tell(Note(text="3"))
    notes = asyncio.create_task(ref.ask(Notes()))
    await held.begun.wait()
    await sent(notes)
    assert not notes.done()
    ref.tell(Note(text="too late to be read"))
    held.gate.set()
    assert await notes == ["1", "2", "3"]


@pytest.mark.semantics("K6")
async def test_later_messages_do_not_wait_for_a_concurrent_handler(system: ActorSystem):
    ref = system.start(Clerk)
    first, second = hold_beside(), hold_beside()
    tasks = [await begin(ref, first), await begin(ref, second)]
    assert await ref.ask(Notes()) == []
    second.gate.set()
    assert await tasks[1] == "held"
    assert not tasks[0].done()
    first.gate.set()
    assert await tasks[0] == "held"


@pytest.mark.semantics("K7")
@pytest.mark.parametrize("kind", [asyncio.Future, LoopFuture])
async def test_an_answer_can_be_deferred_while_the_actor_goes_on(system: ActorSystem, kind: type[Any]):
    ref = system.start(Clerk)
    for direct in (True, False):
        reply = kind()
        if not direct:
            ref.tell(Note(text="so that the ask has to queue"))
        answer = asyncio.create_task(ref.ask(Defer(reply=reply)))
        await sent(answer)
        await ref.ask(Notes())
        assert ref.busy
        assert not answer.done()
        reply.set_result("in the end")
        assert await answer == "in the end"
        assert not ref.busy
    done = kind()
    done.set_result("already")
    assert await ref.ask(Defer(reply=done)) == "already"


@pytest.mark.semantics("K8")
async def test_tell_never_runs_a_handler_in_the_senders_turn(system: ActorSystem):
    ref = system.start(Clerk, log := [])
    held = hold()
    ref.tell(Note(text="told"))
    assert log == []
    await ref.ask(Notes())
    assert log == ["told"]
    ref.tell(held)
    assert not held.begun.is_set()
    await held.begun.wait()


@pytest.mark.semantics("K9")
async def test_an_ask_of_an_idle_actor_runs_a_sync_handler_in_the_askers_turn(system: ActorSystem):
    ref = system.start(Clerk)
    tasks = [asyncio.current_task()]
    others_ran = False

    def mark() -> None:
        nonlocal others_ran
        others_ran = True

    asyncio.get_running_loop().call_soon(mark)
    await ref.ask(Do(function=lambda _: tasks.append(asyncio.current_task())))
    assert tasks[0] is tasks[1]
    assert not others_ran
    # It is busy meanwhile: what the handler sends to its own actor waits for its end.
    assert await ref.ask(Do(function=lambda clerk: clerk.actor_ref.tell(Note(text="x")) or list(clerk.log))) == []
    assert await ref.ask(Notes()) == ["x"]


@pytest.mark.semantics("K10")
async def test_after_64_messages_or_direct_asks_everyone_else_has_a_turn(system: ActorSystem):
    loop = asyncio.get_running_loop()
    ref = system.start(Clerk, log := [])
    for number in range(130):
        ref.tell(Note(text=str(number)))
    seen: list[int] = []

    def look() -> None:
        seen.append(len(log))
        if len(log) < 130:
            loop.call_soon(look)

    loop.call_soon(look)
    await ref.ask(Notes())
    assert seen == [64, 128, 130]

    asks_before_others_ran = 0
    others_ran = asyncio.Event()
    loop.call_soon(others_ran.set)
    while not others_ran.is_set():
        await ref.ask(Notes())
        asks_before_others_ran += 1
    assert asks_before_others_ran <= 65


caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")


@pytest.mark.semantics("K11")
async def test_context_variables_of_the_sender_do_not_reach_the_handler(system: ActorSystem):
    def read_and_set(_: Clerk) -> str:
        seen = caller.get()
        caller.set("the handler")
        return seen

    async def read_and_set_later(clerk: Clerk) -> str:
        return read_and_set(clerk)

    for message in (Do(function=read_and_set), DoAsync(function=read_and_set_later)):
        ref = system.start(Clerk)
        caller.set("the sender")
        assert await ref.ask(message) == "nobody"
        assert caller.get() == "the sender"
        ref.tell(Note(text="so that the ask has to queue"))
        assert await ref.ask(message) == "the handler"
        assert caller.get() == "the sender"


# ---- bounds


@pytest.mark.semantics("K12")
async def test_a_full_mailbox_hands_the_message_back(system: ActorSystem):
    ref = system.start(Clerk, log := [], mailbox_limit=2)
    held = hold()
    ref.tell(held)
    ref.tell(Note(text="1"))
    ref.tell(Note(text="2"))
    with pytest.raises(MailboxFull) as caught:
        ref.tell(unsent := Note(text="3"))
    assert caught.value.unsent is unsent
    assert caught.value.retryable
    with pytest.raises(MailboxFull):
        await ref.ask(Notes())
    refused: list[BaseException] = []

    def from_a_thread() -> None:
        for send in (ref.tell, ref.ask_blocking):
            try:
                send(Notes())
            except MailboxFull as full:
                refused.append(full)

    await asyncio.to_thread(from_a_thread)
    assert len(refused) == 2
    held.gate.set()
    await ref.stop()
    assert log == ["held", "1", "2"]


# ---- waiting


@pytest.mark.semantics("K13")
async def test_cancelling_an_ask_ends_the_waiting_and_nothing_else(system: ActorSystem):
    ref = system.start(Clerk)
    held, beside, reply = hold(), hold_beside(), asyncio.get_running_loop().create_future()
    asks = [asyncio.create_task(ref.ask(Defer(reply=reply))), await begin(ref, beside), await begin(ref, held)]
    queued = asyncio.create_task(ref.ask(Carry(load=None)))
    await sent(queued)
    for ask in (*asks, queued):
        ask.cancel()
    await asyncio.wait((*asks, queued))
    assert not reply.cancelled()
    held.gate.set()
    beside.gate.set()
    reply.set_result("nobody waits")
    await ref.stop()
    assert all(ask.cancelled() for ask in (*asks, queued))
    assert ref.actor_inbox.empty()


@pytest.mark.semantics("K14")
async def test_a_timed_out_ask_raises_and_the_handler_goes_on(system: ActorSystem):
    loop = asyncio.get_running_loop()
    ref = system.start(Clerk, log := [])
    held = hold()
    began = loop.time()
    with pytest.raises(AskTimeout, match="Clerk#1 did not answer Hold"):
        await ref.ask(held, timeout=0.03)
    assert loop.time() - began >= 0.03
    with pytest.raises(TimeoutError):
        await ref.ask(Notes(), timeout=0.01)
    held.gate.set()
    assert await ref.ask(Notes()) == ["held"]
    assert log == ["held"]


@pytest.mark.semantics("K15")
async def test_an_ask_without_a_timeout_arms_no_timer(system: ActorSystem, armed_timers: Callable[[], int]):
    ref = system.start(Clerk)
    held = hold()
    ask = asyncio.create_task(ref.ask(held, timeout=None))
    await held.begun.wait()
    assert armed_timers() == 0
    held.gate.set()
    assert await ask == "held"


@pytest.mark.semantics("K16")
async def test_asks_of_one_timeout_share_one_timer_which_goes_once_none_waits(
    system: ActorSystem, armed_timers: Callable[[], int]
):
    ref = system.start(Clerk)
    held = hold()
    asks = [asyncio.create_task(ref.ask(message, timeout=0.05)) for message in (held, *[Notes()] * 99)]
    await held.begun.wait()
    assert armed_timers() == 1
    held.gate.set()
    await asyncio.gather(*asks)
    long_after = asyncio.Event()
    asyncio.get_running_loop().call_later(0.06, long_after.set)
    await long_after.wait()
    assert armed_timers() == 0


@pytest.fixture
def armed_timers() -> Callable[[], int]:
    def count() -> int:
        scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        return sum(not handle.cancelled() and "DeadlineRow" in repr(handle) for handle in scheduled)

    return count


@pytest.mark.semantics("K17")
async def test_a_circle_of_asks_is_refused_and_every_actor_in_it_named(system: ActorSystem):
    first, second, third = (system.start(Clerk) for _ in range(3))

    def asks(ref: Ref[Clerk], message: Request[Any]) -> Callable[[Clerk], Any]:
        return lambda _: ref.ask(message, timeout=None)

    itself = DoAsync(function=asks(first, Notes()))
    with pytest.raises(WouldDeadlockError, match="Clerk#1 -> Clerk#1"):
        await first.ask(itself)
    circle = DoAsync(function=asks(second, DoAsync(function=asks(third, DoAsync(function=asks(first, Notes()))))))
    with pytest.raises(WouldDeadlockError, match="Clerk#3 -> Clerk#1 -> Clerk#2 -> Clerk#3"):
        await first.ask(circle)
    through_a_concurrent_one = DoAsync(function=asks(second, DoBeside(function=asks(first, Notes()))))
    with pytest.raises(WouldDeadlockError, match="Clerk#2 -> Clerk#1 -> Clerk#2"):
        await first.ask(through_a_concurrent_one)
    with pytest.raises(WouldDeadlockError):
        await first.ask(DoAsync(function=lambda clerk: clerk.actor_ref.stop()))
    # What is no circle, because the handler that asks keeps nobody waiting, is let through.
    assert await first.ask(DoBeside(function=asks(first, Notes()))) == []
    reply = LoopFuture[str]()
    waits_for_a_deferred_reply = asyncio.create_task(first.ask(DoAsync(function=asks(second, Defer(reply=reply)))))
    await sent(waits_for_a_deferred_reply)
    asks_back = asyncio.create_task(second.ask(DoAsync(function=asks(first, Notes()))))
    await sent(asks_back)
    reply.set("resolved")
    assert await waits_for_a_deferred_reply == "resolved"
    assert await asks_back == []
    assert not system.waits.asks


# ---- failure


@pytest.mark.semantics("K18")
@pytest.mark.parametrize("kind", [Raise, RaiseLater])
async def test_a_failing_ask_handler_answers_its_caller_and_the_actor_lives(
    system: ActorSystem, kind: type[Raise | RaiseLater]
):
    ref = system.start(Clerk)
    for queued in (False, True):
        if queued:
            ref.tell(Note(text="so that the ask has to queue"))
        with pytest.raises(ZeroDivisionError) as caught:
            await ref.ask(kind(error=(error := ZeroDivisionError("x"))))
        assert caught.value is error
    assert ref.is_alive()
    assert await ref.ask(Notes()) == ["so that the ask has to queue"]


@pytest.mark.semantics("K19")
async def test_a_failing_tell_handler_ends_the_actor_and_pending_asks_say_whether_they_began(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    ref = system.start(Clerk, log := [])
    beside = hold_beside()
    began = [await begin(ref, beside), asyncio.create_task(ref.ask(Defer(reply=asyncio.Future())))]
    await sent(*began)
    held = hold()
    ref.tell(held)
    ref.tell(Raise(error=ZeroDivisionError("boom")))
    waiting = [asyncio.create_task(ref.ask(Notes())) for _ in range(2)]
    await sent(*began, *waiting)
    held.gate.set()
    end = asyncio.create_task(ended(ref))
    answers = await asyncio.gather(*began, *waiting, return_exceptions=True)
    assert [answer.handled for answer in answers if isinstance(answer, ActorDied)] == ["maybe", "maybe", "no", "no"]
    assert [answer.retryable for answer in answers if isinstance(answer, ActorDied)] == [False, False, True, True]
    assert all(isinstance(answer, ActorDied) and str(answer.__cause__) == "boom" for answer in answers)
    assert isinstance(await end, ZeroDivisionError)
    assert log == ["held", "cancelled", "failed: ZeroDivisionError"]
    assert "Clerk#1 failed in fail and ends" in caplog.text


@pytest.mark.semantics("K20")
@pytest.mark.parametrize("interrupt", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_an_interrupt_in_a_handler_ends_nothing_but_its_own_actor(
    system: ActorSystem, interrupt: BaseException, caplog: pytest.LogCaptureFixture
):
    async def later(_: Clerk) -> None:
        raise interrupt

    neighbour = system.start(Clerk)
    asked: list[Request[Any]] = [
        Raise(error=interrupt),
        RaiseLater(error=interrupt),
        DoBeside(function=later),
    ]
    for message in asked:
        ref = system.start(Clerk)
        for queued in (False, True):
            if queued:
                ref.tell(Note(text="so that the ask has to queue"))
            with pytest.raises(ActorError, match=rf"raised {type(interrupt).__name__}"):
                await ref.ask(message)
        assert ref.is_alive()
        end = asyncio.create_task(ended(ref))
        await sent(end)
        ref.tell(message)
        assert isinstance(await end, ActorError)
        assert not ref.is_alive()
    assert await neighbour.ask(Notes()) == []
    assert "and ends" in caplog.text


@pytest.mark.semantics("K21")
async def test_an_error_that_reaches_several_receivers_is_a_fresh_instance_for_each(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    class PickyError(Exception):
        def __init__(self, code: int, *, hint: str) -> None:
            super().__init__(f"code {code}")
            self.code = code
            self.hint = hint

    for make in (
        lambda: CallboardError("ours"),
        lambda: ValueError("theirs"),
        lambda: PickyError(7, hint="awkward to copy"),
    ):
        error, kept = make(), make()
        ref = system.start(Clerk)
        shared: asyncio.Future[str] = asyncio.Future()
        asks = [ref.ask(Defer(reply=shared)) for _ in range(2)] + [ref.ask(Raise(error=kept)) for _ in range(2)]
        gathered = asyncio.gather(*asks, return_exceptions=True)
        await sent()
        shared.set_exception(error)
        received = await gathered
        assert len({id(instance) for instance in (*received, shared.exception())}) == 5
        for instance in received:
            assert isinstance(instance, type(error))
            assert str(instance) == str(error)
            assert getattr(instance, "code", None) == getattr(error, "code", None)
    ref = system.start(Clerk)
    ref.tell(Raise(error=ValueError("the end")))
    died = await asyncio.gather(*(ref.ask(Notes()) for _ in range(2)), return_exceptions=True)
    assert died[0] is not died[1]


@pytest.mark.semantics("K22")
async def test_a_message_to_a_stopped_actor_raises_actor_died_unhandled(system: ActorSystem):
    ref = system.start(Clerk)
    assert await ref.stop()
    for send in (lambda: ref.tell(Note(text="x")), lambda: asyncio.to_thread(ref.tell, Note(text="x"))):
        with pytest.raises(ActorDied) as caught:
            await (send() or asyncio.sleep(0))
        assert caught.value.handled == "no"
    for ask in (ref.ask(Notes()), asyncio.to_thread(ref.ask_blocking, Notes())):
        with pytest.raises(ActorDied) as caught:
            await ask
        assert caught.value.handled == "no"
    assert not ref.is_alive()
    assert not await ref.stop()


# ---- life


@pytest.mark.semantics("K23")
async def test_hooks_run_first_and_last_and_stop_handles_what_waits(system: ActorSystem):
    class WithSyncHooks(Clerk):
        def on_start(self) -> None:
            self.log.append("start")

        def on_stop(self) -> None:
            self.log.append("stop")

    class WithAsyncHooks(Clerk):
        async def on_start(self) -> None:
            await asyncio.sleep(0)
            self.log.append("start")

        async def on_stop(self) -> None:
            await asyncio.sleep(0)
            self.log.append("stop")

    for kind in (WithSyncHooks, WithAsyncHooks):
        log: list[str] = []
        ref = system.start(kind, log)
        beside = hold_beside()
        ref.tell(beside)
        ref.tell(Note(text="1"))
        ref.tell(Note(text="2"))
        await beside.begun.wait()
        assert await ref.stop()
        assert log == ["start", "1", "2", "cancelled", "stop"]


@pytest.mark.semantics("K24")
async def test_stop_now_stops_an_idle_actor_in_this_turn_and_no_other(system: ActorSystem):
    ref = system.start(Clerk)
    ref.tell(Note(text="waits"))
    assert (ref.mailbox_empty, ref.busy, ref.stop_now()) == (False, False, False)
    assert await ref.ask(Do(function=lambda clerk: (clerk.actor_ref.busy, clerk.actor_ref.stop_now()))) == (True, False)
    for message in (hold(), hold_beside()):
        ask = await begin(ref, message)
        assert (ref.mailbox_empty, ref.busy, ref.stop_now()) == (True, True, False)
        message.gate.set()
        await ask
    reply = LoopFuture[str]()
    deferred = asyncio.create_task(ref.ask(Defer(reply=reply)))
    await sent(deferred)
    assert (ref.busy, ref.stop_now()) == (True, False)
    reply.set("done")
    assert (ref.mailbox_empty, ref.busy, ref.stop_now()) == (True, False, True)
    assert not ref.is_alive()
    assert ref.stop_now()
    await deferred


@pytest.mark.semantics("K25")
async def test_pykkas_registry_never_knows_an_actor(system: ActorSystem, monkeypatch: pytest.MonkeyPatch):
    # An empty list of its own: stop_all() must not reach what other tests may have running.
    monkeypatch.setattr(pykka.ActorRegistry, "_actor_refs", [])
    ref = system.start(Clerk)
    assert isinstance(ref, pykka.ActorRef)
    assert issubclass(Clerk, pykka.Actor)
    assert pykka.ActorRegistry.get_all() == []
    assert pykka.ActorRegistry.stop_all() == []
    assert await ref.ask(Notes()) == []
    await ref.stop()


# ---- supervision


@pytest.mark.semantics("K26")
async def test_a_supervised_actor_that_fails_is_replaced_under_its_name(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    spec = ChildSpec("clerk", Clerk)
    restarts: list[Any] = []
    system.on_restart = restarts.append
    old = system.supervise(spec)
    old.tell(Note(text="forgotten"))
    old.tell(Raise(error=ZeroDivisionError("boom")))
    await ended(old)
    new = system.ref("clerk")
    assert new is system.ref(spec)
    assert new is not old
    assert not old.is_alive()
    assert await new.ask(Notes()) == []
    assert [(restart.name, str(restart.error), restart.restarts) for restart in restarts] == [("clerk", "boom", 1)]
    await new.stop()
    assert system.ref("clerk") is new
    assert "clerk failed in fail and ends" in caplog.text


@pytest.mark.semantics("K27")
async def test_past_its_bound_an_actor_is_not_replaced_and_health_says_why(caplog: pytest.LogCaptureFixture):
    unhealthy: list[Any] = []
    system = ActorSystem(clock=Clock(), on_unhealthy=unhealthy.append)
    system.supervise(ChildSpec("clerk", Clerk, max_restarts=2, within=60))
    for attempt in range(3):
        assert system.health.healthy
        ref = system.ref("clerk")
        ref.tell(Raise(error=ZeroDivisionError(f"boom {attempt}")))
        await ended(ref)
    with pytest.raises(UnhealthyError, match=r"clerk failed 3 times within 60 s, the last time with .*boom 2"):
        system.ref("clerk")
    assert not system.health.healthy
    (failure,) = system.health.failures
    assert (failure.name, failure.error, failure.failures) == ("clerk", "ZeroDivisionError: boom 2", 3)
    assert unhealthy == [failure]
    await system.stop()
    assert "is not started again" in caplog.text


@pytest.mark.semantics("K28")
async def test_old_failures_are_forgotten_and_a_failing_factory_counts(caplog: pytest.LogCaptureFixture):
    clock = Clock()
    system = ActorSystem(clock=clock)
    broken: list[BaseException] = []

    def factory() -> Clerk:
        if broken:
            raise broken.pop()
        return Clerk()

    system.supervise(ChildSpec("clerk", factory, max_restarts=2, within=60))

    async def fail() -> None:
        ref = system.ref("clerk")
        ref.tell(Raise(error=ZeroDivisionError("boom")))
        await ended(ref)

    for _ in range(5):
        await fail()
        clock.now += 30
    assert system.health.healthy
    assert system.health.restarts == (("clerk", 5),)
    clock.now += 60
    broken.append(RuntimeError("no clerk today"))
    await fail()
    assert system.health.healthy
    await fail()
    assert not system.health.healthy
    await system.stop()
    assert "clerk could not be started again" in caplog.text


@pytest.mark.semantics("K29")
async def test_stop_ends_everything_in_order_and_leaves_nothing(armed_timers: Callable[[], int]):
    class Leaver(Clerk):
        def __init__(self, name: str, log: list[str]) -> None:
            super().__init__(log)
            self.name = name

        def on_stop(self) -> None:
            self.log.append(self.name)

    loop = asyncio.get_running_loop()
    system = ActorSystem()
    before = asyncio.all_tasks()
    log: list[str] = []
    for name in ("first supervised", "second supervised"):
        system.supervise(ChildSpec(name, lambda name=name: Leaver(name, log)))
    stuck, idle, working = (system.start(Leaver, name, log) for name in ("stuck", "idle", "working"))
    working.tell(Note(text="what waits is handled"))
    blocked = asyncio.create_task(stuck.ask(never := hold()))
    queued = asyncio.create_task(stuck.ask(Notes()))
    sender = asyncio.create_task(asyncio.to_thread(stuck.ask_blocking, Notes(), timeout=None))
    await never.begun.wait()
    began = loop.time()
    await system.stop(timeout=0.05)
    assert loop.time() - began < 2.5
    assert log == ["what waits is handled", "working", "idle", "second supervised", "first supervised", "stuck"]
    answers = await asyncio.gather(blocked, queued, sender, return_exceptions=True)
    assert [answer.handled for answer in answers if isinstance(answer, ActorDied)] == ["maybe", "no", "no"]
    assert asyncio.all_tasks() == before
    assert armed_timers() == 0
    assert not any(ref.is_alive() for ref in (stuck, idle, working))
    with pytest.raises(ActorError, match="starts nothing"):
        system.start(Clerk)
    await system.stop()


# ---- threads, loops and processes


@pytest.mark.semantics("K30")
async def test_another_thread_tells_in_order_and_blocks_for_its_answers(system: ActorSystem):
    ref = system.start(Clerk)

    def from_a_thread() -> list[str]:
        for number in range(100):
            ref.tell(Note(text=str(number)))
        return ref.ask_blocking(Notes())

    assert await asyncio.to_thread(from_a_thread) == [str(number) for number in range(100)]
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(ref.ask_blocking, Raise(error=ZeroDivisionError()))
    with pytest.raises(AskTimeout):
        await asyncio.to_thread(ref.ask_blocking, hold(), timeout=0.01)


@pytest.mark.semantics("K31")
async def test_blocking_on_the_loops_own_thread_is_an_error_and_no_hang(system: ActorSystem):
    ref = system.start(Clerk)
    with pytest.raises(WouldDeadlockError):
        ref.ask_blocking(Notes())
    with pytest.raises(WouldDeadlockError):
        ref.stop_blocking()
    with pytest.raises(WouldDeadlockError):
        await ref.ask(Do(function=lambda clerk: clerk.actor_ref.ask_blocking(Notes())))
    with pytest.raises(WouldDeadlockError):
        LoopFuture[str]().get()
    assert await asyncio.to_thread(ref.ask_blocking, Notes()) == []


@pytest.mark.semantics("K32")
async def test_use_from_another_running_loop_is_an_error(system: ActorSystem):
    ref = system.start(Clerk)

    async def on_another_loop() -> list[type[BaseException]]:
        async def stop() -> None:
            ref.stop_now()

        async def tell() -> None:
            ref.tell(Note(text="x"))

        async def block() -> None:
            ref.ask_blocking(Notes())

        async def start() -> None:
            system.start(Clerk)

        uses = (ref.ask(Notes()), ref.stop(), system.stop(), stop(), tell(), block(), start())
        return [type(error) for error in await asyncio.gather(*uses, return_exceptions=True)]

    assert await asyncio.to_thread(asyncio.run, on_another_loop()) == [WrongLoopError] * 7
    assert await ref.ask(Notes()) == []


@pytest.mark.semantics("K33")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_use_in_a_forked_child_is_an_error(system: ActorSystem):
    ref = system.start(Clerk)
    uses: list[Callable[[], object]] = [
        lambda: ref.tell(Note(text="x")),
        lambda: ref.ask(Notes()).send(None),
        lambda: ref.ask_blocking(Notes()),
        lambda: ref.stop().send(None),
        ref.stop_now,
        lambda: system.start(Clerk),
        lambda: asyncio.run(ref.ask(Notes())),
    ]

    def outcome(use: Callable[[], object]) -> str:
        try:
            return repr(use())
        except BaseException as error:
            return type(error).__name__

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, ",".join(map(outcome, uses)).encode())
        os._exit(0)
    await asyncio.to_thread(os.waitpid, child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read().split(",") == [ForkedError.__name__] * len(uses)
    assert await ref.ask(Notes()) == []
