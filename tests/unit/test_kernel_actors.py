from __future__ import annotations

import asyncio
import gc
import sys
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from callboard.kernel import Actor, ActorDefinitionError, ActorSystem, LoopFuture, Ref, handles
from callboard_protocol.commands import Command, Live, Request
from callboard_protocol.errors import ActorDied, AskTimeout, MailboxFull, UsageError, WouldDeadlockError

pytestmark = pytest.mark.anyio


class Do(Request[Any]):
    function: Live[Callable[[Any], Any]]


class DoAsync(Request[Any]):
    function: Live[Callable[[Any], Any]]


class DoBeside(Request[Any]):
    function: Live[Callable[[Any], Any]]


class Ping(Command):
    pass


class Doer(Actor[Do | DoAsync | DoBeside | Ping]):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[object] = []

    @handles
    def do(self, message: Do) -> Any:
        return message.function(self)

    @handles
    async def do_async(self, message: DoAsync) -> Any:
        return await message.function(self)

    @handles(concurrent=True)
    async def do_beside(self, message: DoBeside) -> Any:
        return await message.function(self)

    @handles
    def ping(self, message: Ping) -> None:
        self.log.append("ping")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def system(anyio_backend: str) -> AsyncIterator[ActorSystem]:
    system = ActorSystem()
    yield system
    await system.stop(timeout=0)


@pytest.fixture
def without_gc() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def ended(ref: Ref[Any]) -> BaseException | None:
    end: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    ref.watch(end.set_result)
    return await end


async def sent() -> None:
    """Return once the tasks made before have taken their first step, which is when they send."""
    reached = asyncio.Event()
    asyncio.get_running_loop().call_soon(reached.set)
    await reached.wait()


# ---- coming to life


async def test_an_actor_is_made_by_a_system_alone(system: ActorSystem):
    with pytest.raises(UsageError, match=r"use system\.start"):
        Doer()
    with pytest.raises(UsageError, match=r"use system\.start\(Doer"):
        Doer.start()
    with pytest.raises(UsageError, match="start the other with a call of its own"):
        system.start(lambda: (Doer(), Doer())[0])


async def test_a_constructor_that_raises_leaves_nothing_behind(system: ActorSystem):
    leaked: list[Ref[Any]] = []

    class Stillborn(Doer):
        def __init__(self) -> None:
            super().__init__()
            leaked.append(self.actor_ref)
            self.actor_ref.tell(Ping())
            raise LookupError("no")

    with pytest.raises(LookupError):
        system.start(Stillborn)
    assert not leaked[0].is_alive()
    with pytest.raises(ActorDied):
        await leaked[0].ask(Do(function=str))
    assert not system.live


async def test_what_a_constructor_tells_its_own_actor_is_handled_once_it_lives(system: ActorSystem):
    class Eager(Doer):
        def __init__(self) -> None:
            super().__init__()
            self.actor_ref.tell(Ping())

        def on_start(self) -> None:
            self.log.append("start")

    ref = system.start(Eager)
    assert await ref.ask(Do(function=lambda actor: actor.log)) == ["start", "ping"]


async def test_an_actor_may_start_others(system: ActorSystem):
    class Parent(Doer):
        def __init__(self) -> None:
            super().__init__()
            self.child = self.system.start(Doer)

    parent = system.start(Parent)
    child = await parent.ask(Do(function=lambda actor: actor.child))
    assert (str(parent), str(child)) == ("Parent#1", "Doer#2")
    assert await child.ask(Do(function=lambda actor: actor.actor_ref is child))


async def test_an_actor_whose_on_start_raises_ends_and_says_why(system: ActorSystem, caplog: pytest.LogCaptureFixture):
    class Broken(Doer):
        async def on_start(self) -> None:
            raise LookupError("no configuration")

    ref = system.start(Broken)
    with pytest.raises(ActorDied) as caught:
        await ref.ask(Do(function=str))
    assert caught.value.handled == "no"
    assert isinstance(caught.value.__cause__, LookupError)
    assert "Broken#1 failed in on_start and ends" in caplog.text


async def test_limits_are_those_of_the_class_unless_the_instance_has_its_own(system: ActorSystem):
    class Small(Doer):
        mailbox_limit = 1
        ask_timeout = 0.01

    class Chosen(Small):
        def __init__(self, mailbox_limit: int) -> None:
            super().__init__()
            self.mailbox_limit = mailbox_limit

    for ref, limit in ((system.start(Small), 1), (system.start(Chosen, 3), 3)):
        for _ in range(limit):
            ref.tell(Ping())
        with pytest.raises(MailboxFull, match=f"has {limit} messages waiting"):
            ref.tell(Ping())
    with pytest.raises(AskTimeout):
        await system.start(Small).ask(DoBeside(function=lambda _: asyncio.Event().wait()))


# ---- refs


async def test_a_ref_says_what_it_refers_to(system: ActorSystem):
    ref = system.start(Doer)
    assert (str(ref), repr(ref)) == ("Doer#1", "<Ref Doer#1>")
    assert ref.actor_class is Doer
    assert uuid.UUID(ref.actor_urn).urn == ref.actor_urn
    assert ref.actor_urn != system.start(Doer).actor_urn
    assert not ref.actor_stopped.is_set()
    ref.actor_stopped.set()
    assert not ref.is_alive()
    with pytest.raises(UsageError, match="typed messages"):
        ref.proxy()


async def test_an_actor_knows_its_ref_its_system_and_its_loop(system: ActorSystem):
    ref = system.start(Doer)
    seen = await ref.ask(Do(function=lambda actor: (actor.actor_ref, actor.system, actor.loop, str(actor))))
    assert seen == (ref, system, asyncio.get_running_loop(), "Doer#1")


async def test_a_watcher_learns_how_the_actor_ended(system: ActorSystem, caplog: pytest.LogCaptureFixture):
    stopped, failed = system.start(Doer), system.start(Doer)
    seen: list[BaseException | None] = []
    for ref in (stopped, failed):
        ref.watch(seen.append)
        ref.watch(lambda _: 1 / 0)
        ref.watch(seen.append)
    await stopped.stop()
    assert seen == [None, None]
    failed.tell(Do(function=lambda _: [].pop()))
    await ended(failed)
    assert [type(error) for error in seen[2:]] == [IndexError, IndexError]
    assert seen[2] is not seen[3]
    assert caplog.text.count("a watcher of") == 2
    late: list[BaseException | None] = []
    failed.watch(late.append)
    assert late == [None]


# ---- handlers


async def test_a_plain_handler_that_returns_a_coroutine_is_told_what_is_wrong(system: ActorSystem):
    async def never_awaited(_: Doer) -> None: ...

    ref = system.start(Doer)
    for queued in (False, True):
        if queued:
            ref.tell(Ping())
        with pytest.raises(ActorDefinitionError, match=r"Doer#1\.do returned a coroutine: make it `async def`"):
            await ref.ask(Do(function=never_awaited))


async def test_an_async_handler_may_defer_its_answer_too(system: ActorSystem):
    reply = LoopFuture[str]()
    began = asyncio.Event()

    async def defer(_: Doer) -> LoopFuture[str]:
        began.set()
        return reply

    ref = system.start(Doer)
    answer = asyncio.create_task(ref.ask(DoAsync(function=defer)))
    await began.wait()
    assert await ref.ask(Do(function=lambda _: "meanwhile")) == "meanwhile"
    reply.set("later")
    assert await answer == "later"


async def test_a_told_message_whose_deferred_reply_fails_ends_the_actor(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    ref = system.start(Doer)
    reply = LoopFuture[str]()
    ref.tell(Do(function=lambda _: reply))
    await ref.ask(DoBeside(function=lambda _: asyncio.sleep(0)))
    reply.set_exception(LookupError("late"))
    assert not ref.is_alive()
    assert "failed in do and ends" in caplog.text


async def test_a_deferred_reply_may_come_after_its_actor_has_ended(system: ActorSystem):
    ref = system.start(Doer)
    reply: asyncio.Future[str] = asyncio.Future()
    answer = asyncio.create_task(ref.ask(Do(function=lambda _: reply)))
    await sent()
    assert ref.busy
    await ref.stop()
    with pytest.raises(ActorDied) as caught:
        await answer
    assert caught.value.handled == "maybe"
    reply.set_exception(LookupError("nobody is left to tell"))
    await asyncio.sleep(0)


async def test_a_cancelled_deferred_future_does_not_look_like_a_cancelled_asker(system: ActorSystem):
    reply: asyncio.Future[str] = asyncio.Future()
    reply.cancel()
    with pytest.raises(Exception, match=r"Doer#1\.do raised CancelledError"):
        await system.start(Doer).ask(Do(function=lambda _: reply))


async def test_a_handler_that_fails_after_its_asker_left_is_logged(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    gate = asyncio.Event()

    async def fail(_: Doer) -> None:
        await gate.wait()
        raise LookupError("unheard")

    ref = system.start(Doer)
    with pytest.raises(AskTimeout):
        await ref.ask(DoAsync(function=fail), timeout=0.001)
    gate.set()
    await ref.ask(Do(function=str))
    assert "Doer#1.do_async failed after its asker had left" in caplog.text
    assert ref.is_alive()


async def test_a_handler_that_fails_as_it_is_cancelled_by_the_end_of_its_actor_is_logged(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    begun = asyncio.Event()

    async def clean_up_badly(_: Doer) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            raise LookupError("while cleaning up")

    ref = system.start(Doer)
    ref.tell(DoBeside(function=clean_up_badly))
    await begun.wait()
    await ref.stop()
    assert "Doer#1.do_beside failed after its actor had ended" in caplog.text


async def test_a_handler_cancelled_before_its_first_step_still_answers(system: ActorSystem):
    ref = system.start(Doer)
    answer = asyncio.create_task(ref.ask(DoAsync(function=lambda _: asyncio.sleep(0))))

    def cancel() -> None:
        (task,) = system.waits.handlers
        task.cancel()

    asyncio.get_running_loop().call_soon(cancel)
    with pytest.raises(Exception, match=r"Doer#1\.do_async raised CancelledError"):
        await answer
    assert await ref.ask(Do(function=lambda _: "lives")) == "lives"


async def test_the_task_of_a_handler_bears_its_actors_name(system: ActorSystem):
    async def name(_: Doer) -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    assert await system.start(Doer).ask(DoAsync(function=name)) == "Doer#1"


async def test_an_answer_in_the_turn_of_a_cancellation_is_no_unretrieved_error(system: ActorSystem):
    unretrieved: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unretrieved.append(context))
    ref = system.start(Doer)
    reply = LoopFuture[str]()
    asker = asyncio.create_task(ref.ask(Do(function=lambda _: reply)))
    await sent()
    assert ref.busy
    reply.set_exception(LookupError("too late"))
    asker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asker
    del asker
    gc.collect()
    assert unretrieved == []


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_an_eager_task_factory_does_not_run_handlers_in_their_senders_turn(system: ActorSystem):
    asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
    ref = system.start(Doer)
    began: list[bool] = []

    async def begin(_: Doer) -> None:
        began.append(True)

    ref.tell(DoAsync(function=begin))
    assert began == []
    assert await ref.ask(Do(function=lambda _: list(began))) == [True]


# ---- the end


async def test_an_actor_may_stop_itself_after_what_waits(system: ActorSystem):
    ref = system.start(Doer)
    log = await ref.ask(Do(function=lambda actor: actor.stop() or actor.log))
    ref.tell(Ping())
    await ended(ref)
    assert log == []
    ref = system.start(Doer)
    ref.tell(Ping())
    log = await ref.ask(Do(function=lambda actor: actor.stop() or actor.log))
    await ended(ref)
    assert log == ["ping"]


async def test_what_waits_behind_a_stop_is_refused(system: ActorSystem):
    ref = system.start(Doer)
    ref.tell(Ping())
    stops = [asyncio.create_task(ref.stop()) for _ in range(2)]
    behind = asyncio.create_task(ref.ask(Do(function=str)))
    assert await asyncio.gather(*stops) == [True, False]
    with pytest.raises(ActorDied) as caught:
        await behind
    assert caught.value.handled == "no"


async def test_a_full_mailbox_can_still_be_stopped(system: ActorSystem):
    class Small(Doer):
        mailbox_limit = 1

    ref = system.start(Small)
    ref.tell(Ping())
    assert await ref.stop()


async def test_stop_returns_after_an_async_last_hook(system: ActorSystem):
    class Lingering(Doer):
        left = False

        async def on_stop(self) -> None:
            await asyncio.sleep(0)
            type(self).left = True

    ref = system.start(Lingering)
    assert ref.stop_now()
    assert not Lingering.left
    assert not await ref.stop()
    assert Lingering.left


async def test_a_last_hook_that_fails_is_logged(system: ActorSystem, caplog: pytest.LogCaptureFixture):
    class BadSync(Doer):
        def on_stop(self) -> None:
            raise SystemExit(1)

    class BadAsync(Doer):
        async def on_stop(self) -> None:
            raise KeyboardInterrupt

    for kind in (BadSync, BadAsync):
        assert await system.start(kind).stop()
    assert caplog.text.count("failed in its last hook") == 2


async def test_what_an_ended_actor_held_is_freed_while_its_ref_is_kept(system: ActorSystem, without_gc: None):
    ref = system.start(Doer)
    held = weakref.ref(await ref.ask(Do(function=lambda actor: actor)))
    assert await ref.ask(DoBeside(function=lambda _: asyncio.sleep(0, "done"))) == "done"
    assert held() is not None
    assert ref.stop_now()
    await asyncio.sleep(0)
    assert held() is None
    kept = weakref.ref(ref)
    del ref
    assert kept() is None


# ---- other threads


async def test_stop_blocking_stops_from_another_thread(system: ActorSystem):
    ref = system.start(Doer)
    assert await asyncio.to_thread(ref.stop_blocking)
    assert not await asyncio.to_thread(ref.stop_blocking)
    stuck = system.start(Doer)
    stuck.tell(DoAsync(function=lambda _: asyncio.Event().wait()))
    with pytest.raises(AskTimeout, match="did not stop within"):
        await asyncio.to_thread(stuck.stop_blocking, timeout=0.001)


async def test_a_message_from_a_thread_that_its_actor_does_not_live_to_see_is_refused(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    ref = system.start(Doer)
    with ThreadPoolExecutor(2) as pool:
        # The loop has no turn until the first await below: what the threads send is on its way until then.
        pool.submit(ref.tell, Ping()).result()
        asking = pool.submit(ref.ask_blocking, Do(function=str))
        while len(system.in_transit) < 2:
            pass
        assert not ref.mailbox_empty
        assert not ref.stop_now()
        ref.actor_stopped.set()
        with pytest.raises(ActorDied) as caught:
            await asyncio.wrap_future(asking)
    assert caught.value.handled == "no"
    assert "Doer#1 stopped before Ping reached it" in caplog.text


async def test_messages_on_their_way_from_threads_count_towards_the_bound(system: ActorSystem):
    class Small(Doer):
        mailbox_limit = 2

    ref = system.start(Small)
    with ThreadPoolExecutor(1) as pool:
        sent = [pool.submit(ref.tell, Ping()).exception() for _ in range(4)]
    assert [type(error) for error in sent] == [type(None), type(None), MailboxFull, MailboxFull]
    with pytest.raises(MailboxFull):
        ref.tell(Ping())


async def test_other_threads_are_served_while_the_system_drains():
    system = ActorSystem()
    ref = system.start(Doer)
    busy = system.start(Doer)
    stopping: asyncio.Event = asyncio.Event()

    async def ask_in_a_thread(_: Doer) -> object:
        await stopping.wait()
        return await asyncio.to_thread(ref.ask_blocking, Do(function=lambda _: "served"))

    answer = asyncio.create_task(busy.ask(DoAsync(function=ask_in_a_thread)))
    await sent()
    stop = asyncio.create_task(system.stop())
    asyncio.get_running_loop().call_soon(stopping.set)
    assert await answer == "served"
    await stop


async def test_a_sender_whose_message_never_arrives_is_released_when_the_system_stops(monkeypatch: pytest.MonkeyPatch):
    system = ActorSystem()
    ref = system.start(Doer)
    loop = asyncio.get_running_loop()
    from_the_thread = asyncio.to_thread(ref.ask_blocking, Do(function=str), timeout=None)
    lost = asyncio.Event()
    deliver = loop.call_soon_threadsafe

    def lose(callback: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(callback, "__name__", "") == "_arrive":
            return deliver(lost.set)
        return deliver(callback, *args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", lose)
    asking = asyncio.create_task(from_the_thread)
    await lost.wait()
    await system.stop(timeout=0)
    with pytest.raises(ActorDied) as caught:
        await asking
    assert caught.value.handled == "no"


def test_a_thread_that_outlives_the_loop_is_refused():
    async def main() -> tuple[Ref[Doer], Ref[Doer]]:
        stopped, abandoned = ActorSystem(), ActorSystem()
        refs = stopped.start(Doer), abandoned.start(Doer)
        await stopped.stop()
        return refs

    loop = asyncio.new_event_loop()
    refs = loop.run_until_complete(main())
    loop.close()
    for ref in refs:
        with pytest.raises(ActorDied):
            ref.tell(Ping())
        with pytest.raises(WouldDeadlockError):
            ref.ask_blocking(Do(function=str))
