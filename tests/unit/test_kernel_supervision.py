from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from callboard.kernel import Actor, ActorSystem, ChildSpec, Ref, handles
from callboard_protocol.commands import Command, Live, Request
from callboard_protocol.errors import RuntimeClosedError, UnhealthyError, UsageError, WouldDeadlockError

pytestmark = pytest.mark.anyio


class Break(Command):
    pass


class Do(Request[Any]):
    function: Live[Callable[[Any], Any]]


class Worker(Actor[Break | Do]):
    def __init__(self, log: list[str] | None = None, name: str = "worker") -> None:
        super().__init__()
        self.log = [] if log is None else log
        self.name = name

    @handles
    def break_down(self, message: Break) -> None:
        raise LookupError("broken")

    @handles
    async def do(self, message: Do) -> Any:
        return await message.function(self)

    def on_stop(self) -> None:
        self.log.append(self.name)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def system(anyio_backend: str) -> AsyncIterator[ActorSystem]:
    system = ActorSystem()
    yield system
    await system.stop(timeout=0)


async def broken(ref: Ref[Any]) -> BaseException | None:
    """Break an actor and wait for its end."""
    end: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    ref.watch(end.set_result)
    ref.tell(Break())
    return await end


async def sent() -> None:
    """Return once the tasks made before have taken their first step, which is when they send."""
    reached = asyncio.Event()
    asyncio.get_running_loop().call_soon(reached.set)
    await reached.wait()


# ---- starting again


async def test_a_name_is_supervised_once(system: ActorSystem):
    system.supervise(ChildSpec("worker", Worker))
    with pytest.raises(UsageError, match="'worker' is supervised already"):
        system.supervise(ChildSpec("worker", Worker))


async def test_an_unknown_name_is_answered_with_the_nearest(system: ActorSystem):
    system.supervise(ChildSpec("event_bus", Worker))
    with pytest.raises(UsageError, match=r"no supervised actor is named 'event_buss' \(did you mean 'event_bus'\?\)"):
        system.ref("event_buss")
    with pytest.raises(UsageError, match=r"named 'x'$"):
        system.ref("x")


async def test_the_first_factory_call_raises_to_whoever_supervises(system: ActorSystem):
    def factory() -> Worker:
        raise LookupError("no")

    with pytest.raises(LookupError):
        system.supervise(ChildSpec("worker", factory))
    with pytest.raises(UsageError):
        system.ref("worker")
    assert system.health.healthy


async def test_a_supervised_actor_bears_its_name(system: ActorSystem):
    ref = system.supervise(ChildSpec("worker", Worker))
    assert str(ref) == "worker"
    await broken(ref)
    assert str(system.ref("worker")) == "worker"


async def test_a_new_actor_waits_for_an_async_on_failure_of_the_old(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    failing, gate = asyncio.Event(), asyncio.Event()

    class Careful(Worker):
        async def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
            failing.set()
            await gate.wait()

    old = system.supervise(ChildSpec("worker", Careful))
    ending = asyncio.create_task(broken(old))
    await failing.wait()
    assert not old.is_alive()
    assert system.ref("worker") is old
    gate.set()
    await ending
    assert system.ref("worker") is not old


async def test_an_actor_without_supervision_stays_down(system: ActorSystem, caplog: pytest.LogCaptureFixture):
    ref = system.start(Worker)
    assert isinstance(await broken(ref), LookupError)
    assert not ref.is_alive()
    assert system.live == {}
    assert system.health.healthy


async def test_one_past_its_bound_leaves_the_others_running(system: ActorSystem, caplog: pytest.LogCaptureFixture):
    system.supervise(ChildSpec("weak", Worker, max_restarts=0))
    strong = system.supervise(ChildSpec("strong", Worker))
    await broken(system.ref("weak"))
    with pytest.raises(UnhealthyError, match="weak failed 1 times within 60 s, the last time with LookupError: broken"):
        system.ref("weak")
    assert system.ref("strong") is strong
    assert [failure.name for failure in system.health.failures] == ["weak"]


async def test_callbacks_that_fail_do_no_harm(caplog: pytest.LogCaptureFixture):
    def fail(_: object) -> None:
        raise SystemExit(1)

    system = ActorSystem(on_restart=fail, on_unhealthy=fail)
    system.supervise(ChildSpec("worker", Worker, max_restarts=1))
    await broken(system.ref("worker"))
    await broken(system.ref("worker"))
    assert not system.health.healthy
    assert "the callback for ActorRestart failed" in caplog.text
    assert "the callback for ActorFailure failed" in caplog.text
    await system.stop()


# ---- stopping


async def test_a_handler_may_use_actors_started_before_its_own_while_the_system_stops():
    system = ActorSystem()
    log: list[str] = []
    earlier = system.start(Worker, log, "earlier")
    later = system.start(Worker, log, "later")
    gate = asyncio.Event()

    async def ask_the_earlier(_: Worker) -> str:
        await gate.wait()
        return await earlier.ask(Do(function=lambda _: asyncio.sleep(0, "still here")))

    answer = asyncio.create_task(later.ask(Do(function=ask_the_earlier)))
    await sent()
    assert later.busy
    stopping = asyncio.create_task(system.stop())
    asyncio.get_running_loop().call_soon(gate.set)
    await stopping
    assert await answer == "still here"
    assert log == ["later", "earlier"]


async def test_nothing_is_started_again_while_the_system_stops(caplog: pytest.LogCaptureFixture):
    restarts: list[object] = []
    system = ActorSystem(on_restart=restarts.append)
    ref = system.supervise(ChildSpec("worker", Worker))
    ref.tell(Break())
    await system.stop()
    assert not ref.is_alive()
    assert restarts == []
    assert system.health.healthy
    with pytest.raises(RuntimeClosedError):
        system.start(Worker)


async def test_cancelling_one_who_awaits_stop_does_not_stop_the_stopping():
    system = ActorSystem()
    gate = asyncio.Event()
    ref = system.start(Worker)
    ref.tell(Do(function=lambda _: gate.wait()))
    waiting = [asyncio.create_task(system.stop()) for _ in range(2)]
    await sent()
    assert system.closed
    waiting[0].cancel()
    gate.set()
    await waiting[1]
    assert not ref.is_alive()


async def test_a_handler_cannot_await_the_stop_of_its_own_system(system: ActorSystem):
    with pytest.raises(WouldDeadlockError, match="would wait for itself to end"):
        await system.start(Worker).ask(Do(function=lambda worker: worker.system.stop()))


async def test_a_last_hook_that_never_ends_is_cut_off(caplog: pytest.LogCaptureFixture):
    class Endless(Worker):
        async def on_stop(self) -> None:
            await asyncio.Event().wait()

    system = ActorSystem()
    before = asyncio.all_tasks()
    ref = system.start(Endless)
    await system.stop(timeout=0)
    assert asyncio.all_tasks() == before
    assert system.live == {}
    assert not ref.is_alive()
    assert "failed in its last hook" in caplog.text


async def test_a_handler_that_resists_once_is_cancelled_again_and_the_last_hook_still_runs():
    begun = asyncio.Event()

    async def resist(_: Worker) -> None:
        begun.set()
        for _attempt in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    system = ActorSystem()
    log: list[str] = []
    ref = system.start(Worker, log)
    ref.tell(Do(function=resist))
    await begun.wait()
    before = asyncio.all_tasks() - set(system.waits.handlers)
    await system.stop(timeout=0)
    assert asyncio.all_tasks() == before
    assert log == ["worker"]


async def test_five_thousand_idle_actors_stop_in_one_turn():
    system = ActorSystem()
    log: list[str] = []
    for _ in range(5000):
        system.start(Worker, log)
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        if system.live:
            asyncio.get_running_loop().call_soon(count)

    asyncio.get_running_loop().call_soon(count)
    await system.stop()
    assert len(log) == 5000
    assert turns <= 2
