"""What the kernel costs, held against pykka's own actors in the same run; bench/ has the full figures."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import pykka
import pytest

from callboard.kernel import Actor, ActorSystem, Ref, handles
from callboard_protocol.commands import Command, Request

pytestmark = pytest.mark.anyio


class Read(Request[int]):
    pass


class Count(Command):
    pass


class Counter(Actor[Read | Count]):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @handles
    def read(self, message: Read) -> int:
        return self.total

    @handles
    def count(self, message: Count) -> None:
        self.total += 1


class ThreadingCounter(pykka.ThreadingActor):
    def on_receive(self, message: object) -> int:
        return 0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def ref(anyio_backend: str) -> AsyncIterator[Ref[Counter]]:
    system = ActorSystem()
    yield system.start(Counter)
    await system.stop()


@pytest.fixture
def threading_ask() -> float:
    """Seconds per ask of a `pykka.ThreadingActor`, at its best."""
    ref = ThreadingCounter.start()
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(100):
            ref.ask("read")
        best = min(best, (time.perf_counter() - began) / 100)
    ref.stop()
    return best


async def best_of(rounds: int, times: int, call: Callable[[], Awaitable[object]]) -> float:
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(times):
            await call()
        best = min(best, (time.perf_counter() - began) / times)
    return best


async def test_an_ask_costs_a_small_part_of_a_threading_actors(ref: Ref[Counter], threading_ask: float):
    request = Read()

    async def through_the_mailbox() -> int:
        ref.actor_inbox.direct_left = 0
        return await ref.ask(request)

    # Where both threads share one busy core a thread switch is at its cheapest: these ratios hold even there.
    assert await best_of(20, 200, lambda: ref.ask(request)) < threading_ask / 8
    assert await best_of(20, 200, through_the_mailbox) < threading_ask


async def test_a_direct_ask_costs_a_small_part_of_one_through_the_mailbox(ref: Ref[Counter]):
    request = Read()

    async def through_the_mailbox() -> int:
        ref.actor_inbox.direct_left = 0
        return await ref.ask(request)

    direct = await best_of(20, 200, lambda: ref.ask(request))
    assert direct < await best_of(20, 200, through_the_mailbox) / 2


async def test_a_burst_of_tells_wakes_the_loop_once_in_64(ref: Ref[Counter], monkeypatch: pytest.MonkeyPatch):
    loop = asyncio.get_running_loop()
    scheduled = 0
    call_soon = loop.call_soon

    def counted(callback: Callable[..., object], *args: object, **kwargs: object) -> asyncio.Handle:
        nonlocal scheduled
        scheduled += getattr(callback, "__name__", "") == "drain"
        return call_soon(callback, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_soon", counted)
    message = Count()
    for _ in range(640):
        ref.tell(message)
    assert scheduled == 1
    assert await ref.ask(Read()) == 640
    assert scheduled == 11


async def test_an_idle_actor_costs_two_and_a_half_kibibytes_at_most():
    system = ActorSystem()
    system.start(Counter)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    refs = [system.start(Counter) for _ in range(1000)]
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / len(refs) <= 2560
    await system.stop()
