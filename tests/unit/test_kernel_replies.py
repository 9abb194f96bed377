from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Self

import pykka
import pytest

from callboard.kernel import LoopFuture, replies
from callboard.kernel.replies import DeadlineRow, Deadlines, for_receiver, fresh
from callboard_protocol.errors import ActorError, AskTimeout, CallboardError, UsageError, WouldDeadlockError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_several_may_await_one_loop_future():
    future = LoopFuture[str]()
    waiting = [asyncio.create_task(wait(future)) for _ in range(3)]
    asyncio.get_running_loop().call_soon(future.set, "done")
    assert await asyncio.gather(*waiting) == ["done"] * 3
    assert await future == "done"
    assert future.get() == "done"


async def wait(future: LoopFuture[str]) -> str:
    return await future


async def test_cancelling_one_who_waits_leaves_the_future_open():
    future = LoopFuture[str]()
    waiting = [asyncio.create_task(wait(future)) for _ in range(2)]
    asyncio.get_running_loop().call_soon(waiting[0].cancel)
    await asyncio.wait(waiting[:1])
    assert not future.done()
    future.set("done")
    assert await waiting[1] == "done"


async def test_get_blocks_another_thread_until_the_future_is_set():
    future = LoopFuture[str]()
    blocked = [asyncio.create_task(asyncio.to_thread(future.get)) for _ in range(2)]
    asyncio.get_running_loop().call_soon(future.set, "done")
    assert await asyncio.gather(*blocked) == ["done", "done"]
    with pytest.raises(pykka.Timeout):
        await asyncio.to_thread(lambda: LoopFuture[str]().get(timeout=0.001))
    with pytest.raises(WouldDeadlockError):
        LoopFuture[str]().get(timeout=0.001)


def test_a_loop_future_is_set_once():
    future = LoopFuture[str]()
    with pytest.raises(asyncio.InvalidStateError):
        future.result()
    future.set("first")
    with pytest.raises(asyncio.InvalidStateError):
        future.set("second")
    assert future.result() == "first"
    assert repr(future) == "<LoopFuture done>"


def test_an_error_is_raised_itself_once_and_then_afresh():
    future = LoopFuture[str]()
    try:
        int("x")
    except ValueError:
        future.set_exception()
    raised = []
    for _ in range(3):
        with pytest.raises(ValueError, match="invalid literal") as caught:
            future.get()
        raised.append(caught.value)
    assert raised[0] is future.exception()
    assert len(set(map(id, raised))) == 3


def test_set_exception_takes_an_exception_a_triple_or_nothing():
    error = ValueError("x")
    for given in (error, (ValueError, error, None)):
        future = LoopFuture[str]()
        future.set_exception(given)
        assert future.exception() is error
    future = LoopFuture[str]()
    future.set_exception()
    assert isinstance(future.exception(), ActorError)


def test_pykkas_own_combinators_work():
    future = LoopFuture[int]()
    doubled = future.map(lambda value: value * 2)
    future.set(21)
    assert doubled.get() == 42
    assert pykka.get_all([future, doubled]) == [21, 42]


def test_done_callbacks_run_in_the_turn_that_sets_the_future():
    seen: list[bool] = []
    future = LoopFuture[int]()
    for _ in range(2):
        future.add_done_callback(lambda done: seen.append(done.done()))
    future.set(1)
    future.add_done_callback(lambda done: seen.append(done.done()))
    assert seen == [True] * 3


class AwkwardError(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.hint = hint


class RefusesError(Exception):
    def __new__(cls, *args: object) -> Self:
        if args == ("again",):
            raise RuntimeError("not twice")
        return super().__new__(cls, *args)

    def __init__(self, text: str) -> None:
        super().__init__("again")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        FileNotFoundError(2, "gone", "file"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        ExceptionGroup("two", [ValueError(1), KeyError(2)]),
        AwkwardError(7, hint="a constructor that copy.copy() would call wrongly"),
    ],
)
def test_a_fresh_error_is_an_equal_one_caused_by_the_original(error: Exception):
    twin = fresh(error)
    assert twin is not error
    assert (type(twin), str(twin), twin.args) == (type(error), str(error), error.args)
    assert vars(twin) == vars(error)
    assert twin.__cause__ is error
    assert twin.__traceback__ is None


def test_an_error_that_cannot_be_copied_becomes_one_that_names_it():
    twin = fresh(RefusesError("x"))
    assert isinstance(twin, ActorError)
    assert str(twin) == "RefusesError: again"


def test_only_the_first_receiver_gets_the_instance_that_was_raised():
    for error in (ValueError("x"), CallboardError("y")):
        assert for_receiver(error, "here") is error
        assert for_receiver(error, "here") is not error
    with pytest.raises(ActorError, match="here raised StopIteration: 3"):
        raise for_receiver(StopIteration(3), "here")


@pytest.mark.parametrize("timeout", [0.05, 0.1, 1, 7, 30, 33.3, 3600])
async def test_a_timeout_is_never_shortened_and_lengthened_by_a_thirtieth_at_most(timeout: float):
    row = Deadlines(asyncio.get_running_loop()).row(timeout)
    assert timeout <= row.length <= timeout * (1 + 1 / 30)


async def test_ever_different_timeouts_share_few_rows():
    deadlines = Deadlines(asyncio.get_running_loop())
    rows = {id(deadlines.row(0.01 + number * 0.012)) for number in range(5000)}
    assert len(rows) < 450
    assert len(deadlines.rows) <= 1001


async def test_a_timeout_must_be_a_number_of_seconds():
    deadlines = Deadlines(asyncio.get_running_loop())
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="None waits for ever"):
            deadlines.row(wrong)
    assert deadlines.row(-1) is deadlines.row(0)


class FrozenLoop:
    """A loop whose time is what the test says, and which only notes its timers."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[float] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: object) -> None:
        self.call_at(self.now + delay, callback)

    def call_at(self, when: float, callback: object) -> None:
        self.timers.append(when)


async def test_asks_that_fall_due_close_together_are_swept_together():
    loop: Any = FrozenLoop()
    row = DeadlineRow(loop, 50)
    waiters = [asyncio.get_running_loop().create_future() for _ in range(3)]
    for waiter, moment in zip(waiters, (100, 100.4, 120), strict=True):
        loop.now = moment
        row.add(waiter, "someone", "message")
        row.timer = row.timer or object()  # type: ignore[assignment]
    assert loop.timers == [150]
    loop.now = 150
    row._sweep()
    assert [waiter.done() for waiter in waiters] == [True, False, False]
    loop.now = 151
    row._sweep()
    assert [waiter.done() for waiter in waiters] == [True, True, False]
    assert loop.timers == [150, 151, 170]
    for waiter in waiters[:2]:
        assert isinstance(waiter.exception(), AskTimeout)


async def test_asks_fall_due_in_their_own_time():
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop)
    row = deadlines.row(0.02)
    began = loop.time()
    early, late = loop.create_future(), loop.create_future()
    answered = loop.create_future()
    answered.set_result(None)
    row.add(early, "someone", "message")
    row.add(answered, "someone", "message")
    loop.call_later(0.01, lambda: row.add(late, "someone", "message"))
    for waiter, due in ((early, 0.02), (late, 0.03)):
        with pytest.raises(AskTimeout, match=r"someone did not answer str within 0\.02"):
            await waiter
        assert loop.time() - began >= due
    assert row.waits == {}
    assert row.timer is None
    row.add(loop.create_future(), "someone", "message")
    deadlines.close()
    assert row.timer is None


def test_a_hook_is_not_set_on_a_future_that_is_done():
    future = LoopFuture[int]()
    future.set(1)
    with pytest.raises(asyncio.InvalidStateError):
        future.set_get_hook(lambda _: 2)


def test_an_answer_that_comes_as_a_thread_begins_to_wait_is_not_missed(monkeypatch: pytest.MonkeyPatch):
    future = LoopFuture[int]()

    def event() -> threading.Event:
        future.set(3)
        return threading.Event()

    monkeypatch.setattr(replies, "threading", SimpleNamespace(Event=event))
    assert future.get(timeout=1) == 3


def test_every_blocked_thread_wakes():
    future = LoopFuture[int]()
    with ThreadPoolExecutor(8) as pool:
        blocked = [pool.submit(future.get, timeout=10) for _ in range(8)]
        future.set(3)
    assert [each.result() for each in blocked] == [3] * 8
