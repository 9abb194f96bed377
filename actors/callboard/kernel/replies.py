"""How an answer travels back: futures that are set later, errors made fresh, deadlines that cost next to nothing."""

from __future__ import annotations

import asyncio
import copy
import math
import sys
import threading
from asyncio.events import _get_running_loop
from collections.abc import Callable, Generator
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

import pykka

from callboard_protocol.errors import ActorError, AskTimeout, CallboardError, UsageError, WouldDeadlockError

if TYPE_CHECKING:
    from types import TracebackType

ResultT = TypeVar("ResultT")

_blocking_lock = threading.Lock()

_DELIVERED = "__callboard_delivered__"
"""Set on an exception once a receiver has it."""


class LoopFuture(pykka.Future[ResultT]):
    """A reply to come: awaitable on the loop, blocking (`get`) on any other thread.

    A handler that cannot answer yet returns one and sets it later, on the loop's own thread. Waiting for it is all
    that an asker can cancel; the future itself stays open.
    """

    __slots__ = ("_callbacks", "_done", "_error", "_event", "_raised", "_value")

    # In place of pykka's __init__, which runs only where a hook is set.
    _get_hook: Any = None

    def __init__(self) -> None:
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._raised = False
        self._callbacks: list[Callable[[LoopFuture[ResultT]], object]] | None = None
        self._event: threading.Event | None = None

    def __repr__(self) -> str:
        return f"<LoopFuture {'done' if self._done else 'pending'}>"

    def done(self) -> bool:
        """Whether it holds a value or an error."""
        return self._done

    def cancelled(self) -> bool:
        """Always false: only the waiting can be cancelled."""
        return False

    def exception(self) -> BaseException | None:
        """The error it holds, if any."""
        return self._error

    def result(self) -> ResultT:
        """The value it holds.

        Raises:
            InvalidStateError: it is not done.
            Exception: the error it holds: itself the first time, then a fresh instance each time.
        """
        if not self._done:
            raise asyncio.InvalidStateError("the reply has not come yet")
        if self._error is not None:
            again, self._raised = self._raised, True
            raise fresh(self._error) if again else self._error
        value: ResultT = self._value
        return value

    def set(self, value: ResultT | None = None) -> None:
        """Answer. On the loop's thread only.

        Raises:
            InvalidStateError: it is already done.
        """
        self._finish(value, None)

    def set_result(self, value: ResultT) -> None:
        """`set`, under asyncio's name."""
        self._finish(value, None)

    def set_exception(
        self,
        exc_info: BaseException
        | tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
        | None = None,
    ) -> None:
        """Answer with an error: an exception, an ``exc_info`` triple, or the exception being handled.

        Raises:
            InvalidStateError: it is already done.
        """
        error = exc_info if isinstance(exc_info, BaseException) else (exc_info or sys.exc_info())[1]
        self._finish(None, error or ActorError("set_exception() was called with no exception to set"))

    def add_done_callback(self, callback: Callable[[LoopFuture[ResultT]], object]) -> None:
        """Call back in the very turn it is answered, or now if it is."""
        if self._done:
            callback(self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def get(self, *, timeout: float | None = None) -> ResultT:
        """Wait for the answer, on a thread that runs no event loop.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            WouldDeadlockError: called on a thread that runs an event loop, before the answer is there.
            pykka.Timeout: no answer in time.
            Exception: the error it holds.
        """
        if self._get_hook is not None:
            return super().get(timeout=timeout)
        if not self._done:
            if _get_running_loop() is not None:
                raise WouldDeadlockError("LoopFuture.get() would block the event loop")
            with _blocking_lock:
                event = self._event = self._event or threading.Event()
            # The answer may have come between the first look and the event: then nobody will set it.
            if not self.done() and not event.wait(timeout):
                raise pykka.Timeout(f"{timeout} seconds")
        return self.result()

    def set_get_hook(self, func: Callable[[float | None], ResultT]) -> None:
        """Have `get` call a function in place of waiting; pykka's `map` and `join` do.

        Raises:
            InvalidStateError: it is already done.
        """
        if self._done:
            raise asyncio.InvalidStateError("the reply was set before")
        super().__init__()
        self._get_hook = func

    def _finish(self, value: Any, error: BaseException | None) -> None:
        if self._done:
            raise asyncio.InvalidStateError("the reply was set before")
        self._value = value
        self._error = error
        self._done = True
        if self._event is not None:
            self._event.set()
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks:
                callback(self)

    def __await__(self) -> Generator[Any, None, ResultT]:
        if self._get_hook is not None:
            return super().get()
        if not self._done:
            waiter = asyncio.get_running_loop().create_future()
            self.add_done_callback(lambda _: None if waiter.done() else waiter.set_result(None))
            yield from waiter
        return self.result()

    __iter__ = __await__


Reply = asyncio.Future[Any] | LoopFuture[Any]
"""Where an answer goes: an asker on the loop awaits the first, one on another thread blocks on the second."""


def fresh(error: BaseException) -> BaseException:
    """The same error for one more receiver.

    A raised exception collects the traceback and context of whoever raises it, so an instance must not be shared.

    Returns:
        A new instance of the same class, with the original as its cause where it is not one of ours; an `ActorError`
        that names the original where its class cannot be copied.
    """
    if isinstance(error, CallboardError):
        twin: BaseException = error.fresh()
    else:
        twin = _copied(error)
        twin.__cause__ = error
    twin.__dict__.pop(_DELIVERED, None)
    return twin


def _copied(error: BaseException) -> BaseException:
    kind = type(error)
    try:
        if isinstance(kind.__init__, FunctionType):
            # Such a constructor need not take what `args` holds: copy.copy() would call it with the wrong ones.
            twin: BaseException = kind.__new__(kind, *error.args)
            twin.args = error.args
            twin.__dict__.update(error.__dict__)
        else:
            twin = copy.copy(error)
    except Exception:  # noqa: BLE001 - a class of the user's may refuse in any way
        twin = error
    return ActorError(f"{kind.__name__}: {error}") if twin is error or type(twin) is not kind else twin


def for_receiver(error: BaseException, where: str) -> Exception:
    """What to raise into an asker in place of what a handler raised.

    SystemExit, KeyboardInterrupt and CancelledError would act on the asker's task, or on the loop, as if they had been
    meant for them; StopIteration cannot cross an await at all: these become an `ActorError` that names them. An error
    that reached someone before, because the handler keeps it or got it from another actor, is made fresh.

    Args:
        error: what was raised.
        where: which actor and handler raised it.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        if _DELIVERED in error.__dict__:
            again = fresh(error)
            error = again if isinstance(again, Exception) else error
        error.__dict__[_DELIVERED] = True
        return error
    wrapped = ActorError(f"{where} raised {type(error).__name__}{f': {error}' if str(error) else ''}")
    wrapped.__cause__ = error
    return wrapped


class DeadlineRow:
    """The waiting asks of one timeout: they fall due in the order they came, so one timer serves them all."""

    __slots__ = ("length", "loop", "timer", "waits")

    def __init__(self, loop: asyncio.AbstractEventLoop, length: float) -> None:
        self.loop = loop
        self.length = length
        self.waits: dict[asyncio.Future[Any], tuple[float, object, object]] = {}
        self.timer: asyncio.TimerHandle | None = None

    def add(self, waiter: asyncio.Future[Any], asked: object, message: object) -> None:
        """Wait at most `length` from now; the caller pops the waiter from `waits` when it is done."""
        self.waits[waiter] = (self.loop.time() + self.length, asked, message)
        if self.timer is None:
            self.timer = self.loop.call_later(self.length, self._sweep)

    def _sweep(self) -> None:
        self.timer = None
        now = self.loop.time()
        overdue = []
        for waiter, (due, asked, message) in self.waits.items():
            if due > now:
                # Not sooner than a fiftieth of the timeout from now: one timer for many asks, whatever their spread.
                self.timer = self.loop.call_at(max(due, now + self.length / 50), self._sweep)
                break
            overdue.append((waiter, asked, message))
        for waiter, asked, message in overdue:
            del self.waits[waiter]
            if not waiter.done():
                name = type(message).__name__
                waiter.set_exception(AskTimeout(f"{asked} did not answer {name} within {self.length:g} s"))


class Deadlines:
    """Ask timeouts without a timer per ask.

    Timeouts are rounded up to one of 32 lengths per octave, so that however many different values are asked for there
    are few rows: an ask times out never early, and late by a thirtieth plus a fiftieth at most.
    """

    __slots__ = ("_loop", "_rows", "rows")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rows: dict[float, DeadlineRow] = {}
        self.rows: dict[float, DeadlineRow] = {}
        """Row by the timeout as it was asked for: the fast way in; see `row`."""

    def row(self, timeout: float) -> DeadlineRow:
        """The row that keeps this timeout.

        Args:
            timeout: seconds; less than a millisecond counts as one.

        Raises:
            UsageError: it is no finite number.
        """
        if not math.isfinite(timeout):
            raise UsageError(f"an ask cannot time out after {timeout} s", hint="timeout=None waits for ever")
        mantissa, exponent = math.frexp(max(timeout, 0.001))
        length = math.ldexp(math.ceil(mantissa * 64) / 64, exponent)
        row = self._rows.get(length)
        if row is None:
            row = self._rows[length] = DeadlineRow(self._loop, length)
        if len(self.rows) > 1000:
            self.rows.clear()
        self.rows[timeout] = row
        return row

    def close(self) -> None:
        """Disarm every timer."""
        for row in self._rows.values():
            if row.timer is not None:
                row.timer.cancel()
                row.timer = None
