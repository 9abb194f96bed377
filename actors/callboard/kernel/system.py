"""The actor system: it starts the actors of one event loop, restarts the supervised ones, and ends them all.

A supervised actor is data, as in Erlang/OTP: a `ChildSpec` says how to make it and how often it may fail.
"""

from __future__ import annotations

import asyncio
import contextvars
import difflib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, overload

from callboard.kernel.engine import Engine
from callboard.kernel.mailbox import Envelope, Mailbox, refuse
from callboard.kernel.place import Place
from callboard.kernel.replies import Deadlines, for_receiver, fresh
from callboard.kernel.waits import Waits
from callboard_protocol.errors import RuntimeClosedError, UnhealthyError, UsageError, WouldDeadlockError

if TYPE_CHECKING:
    from callboard.kernel import Actor, Ref

logger = logging.getLogger("callboard.kernel")

ActorT = TypeVar("ActorT", bound="Actor[Any]")
P = ParamSpec("P")

LAST_GRACE: Final = 1.0
"""Seconds that cancelled handlers and last hooks have once the time for stopping is up."""

_in_the_making: ContextVar[Engine] = ContextVar("callboard_in_the_making")


def engine_in_the_making() -> Engine:
    """The engine of the actor whose constructor runs.

    Raises:
        UsageError: an actor class was called outside `ActorSystem.start`.
    """
    engine = _in_the_making.get(None)
    if engine is None:
        raise UsageError("an actor lives in a system", hint="use system.start(ActorClass, ...)")
    return engine


@dataclass(frozen=True, slots=True)
class ChildSpec(Generic[ActorT]):
    """How to make a supervised actor, and how often it may fail.

    Attributes:
        name: what `ActorSystem.ref` finds it by.
        factory: makes the actor; called again at each restart.
        max_restarts: failures within the window after which it is started again; one more and the system is unhealthy.
        within: seconds.
    """

    name: str
    factory: Callable[[], ActorT]
    max_restarts: int = 3
    within: float = 60.0


@dataclass(frozen=True, slots=True)
class ActorRestart:
    """A supervised actor failed and another was started in its place.

    Attributes:
        name: the child's name.
        error: what ended the old actor.
        restarts: how many times within the window, this time included.
    """

    name: str
    error: BaseException
    restarts: int


@dataclass(frozen=True, slots=True)
class ActorFailure:
    """A supervised actor that is not started again.

    Attributes:
        name: the child's name.
        error: what ended it the last time, as text.
        failures: how often it failed within the window.
        within: the window, in seconds.
    """

    name: str
    error: str
    failures: int
    within: float


@dataclass(frozen=True, slots=True)
class SystemHealth:
    """Whether every supervised actor runs.

    Attributes:
        failures: those that failed too often, in the order they did.
        restarts: by name, how often each of the others was restarted since the system began.
    """

    failures: tuple[ActorFailure, ...] = ()
    restarts: tuple[tuple[str, int], ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether no actor is past its bound."""
        return not self.failures


@dataclass(slots=True)
class _Child:
    spec: ChildSpec[Any]
    ref: Ref[Any] | None = None
    failed_at: deque[float] = field(default_factory=deque)
    restarts: int = 0
    failure: ActorFailure | None = None


class ActorSystem:
    """The actors of one event loop in one process.

    Args:
        loop: the loop they live on; the running one where none is given.
        clock: a monotonic clock in seconds, for the restart windows.
        on_restart: called after a supervised actor was started again.
        on_unhealthy: called when a supervised actor has failed too often.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_restart: Callable[[ActorRestart], object] | None = None,
        on_unhealthy: Callable[[ActorFailure], object] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop() if loop is None else loop
        self.place = Place(self.loop)
        self.context = contextvars.copy_context()
        self.deadlines = Deadlines(self.loop)
        self.lock = threading.Lock()
        self.closed = False
        self.on_restart = on_restart
        self.on_unhealthy = on_unhealthy
        self._clock = clock
        self._serials = itertools.count(1)
        self._children: dict[str, _Child] = {}
        self._by_mailbox: dict[Engine, _Child] = {}
        self._stopping: asyncio.Task[None] | None = None
        # Books that the engines keep: every actor that has not ended, in the order they were started; which handlers
        # run and wait; the tasks of last hooks; and what other threads have sent and the loop has not yet seen.
        self.live: dict[Engine, None] = {}
        self.waits = Waits()
        self.finishing: dict[asyncio.Task[Any], Engine] = {}
        self.in_transit: dict[Envelope, Mailbox] = {}

    # ---- starting

    def start(self, factory: Callable[P, ActorT], /, *args: P.args, **kwargs: P.kwargs) -> Ref[ActorT]:
        """Start an actor that nobody restarts.

        Args:
            factory: its class, or a function that makes it.
            *args: passed on.
            **kwargs: passed on.

        Returns:
            Its ref; the actor is alive until it is stopped or fails.

        Raises:
            RuntimeClosedError: the system is stopping.
            WrongLoopError: not on the system's loop.
            ForkedError: this is a child of the process the system was made in.
            Exception: what the constructor raised; then there is no actor.
        """
        return self._start("", factory, *args, **kwargs)

    def _start(self, name: str, factory: Callable[P, ActorT], *args: P.args, **kwargs: P.kwargs) -> Ref[ActorT]:
        self.place.require_loop("the actor system")
        if self.closed:
            raise RuntimeClosedError("the actor system is stopping and starts nothing")
        engine = Engine(self, name)
        token = _in_the_making.set(engine)
        try:
            actor = factory(*args, **kwargs)
        except BaseException:
            # The constructor may have handed its ref out before it raised.
            engine.kill_unborn()
            raise
        finally:
            _in_the_making.reset(token)
        actor._start_actor_loop()
        return actor.actor_ref

    def next_serial(self) -> int:
        """What tells the actors of one class apart in messages and logs."""
        return next(self._serials)

    # ---- supervision

    def supervise(self, spec: ChildSpec[ActorT]) -> Ref[ActorT]:
        """Start an actor and start it again whenever it fails, within its bound.

        Raises:
            UsageError: the name is taken.
            Exception: what the factory raised, this first time.
        """
        if spec.name in self._children:
            raise UsageError(f"{spec.name!r} is supervised already")
        ref = self._start(spec.name, spec.factory)
        child = self._children[spec.name] = _Child(spec, ref)
        self._by_mailbox[ref.actor_inbox] = child
        return ref

    @overload
    def ref(self, child: ChildSpec[ActorT]) -> Ref[ActorT]: ...

    @overload
    def ref(self, child: str) -> Ref[Any]: ...

    def ref(self, child: ChildSpec[Any] | str) -> Ref[Any]:
        """The present ref of a supervised actor: a new one after each restart.

        Args:
            child: its name, or its spec for a typed ref.

        Raises:
            UnhealthyError: it failed more often than it may, and is not started again.
            UsageError: nothing is supervised under that name.
        """
        name = child if isinstance(child, str) else child.name
        known = self._children.get(name)
        if known is None:
            near = difflib.get_close_matches(name, self._children, 1)
            raise UsageError(
                f"no supervised actor is named {name!r}", hint=f"did you mean {near[0]!r}?" if near else None
            )
        if known.failure is not None or known.ref is None:
            failure = known.failure
            raise UnhealthyError(
                f"{name} is not running"
                if failure is None
                else f"{name} failed {failure.failures} times within {failure.within:g} s, the last time with"
                f" {failure.error}"
            )
        return known.ref

    @property
    def health(self) -> SystemHealth:
        """Which supervised actors are past their bound, why, and how often the others were restarted."""
        children = self._children.values()
        return SystemHealth(
            failures=tuple(child.failure for child in children if child.failure is not None),
            restarts=tuple((child.spec.name, child.restarts) for child in children if child.restarts),
        )

    def actor_ended(self, engine: Engine, failure: Exception | None) -> None:
        """Called by an engine once its actor has ended and its last hook has run."""
        child = self._by_mailbox.pop(engine, None)
        if child is None or failure is None or self.closed:
            return
        error: BaseException = failure
        spec = child.spec
        while True:
            now = self._clock()
            child.failed_at.append(now)
            while child.failed_at[0] <= now - spec.within:
                child.failed_at.popleft()
            failures = len(child.failed_at)
            if failures > spec.max_restarts:
                self._give_up(child, error, failures)
                return
            try:
                child.ref = self._start(spec.name, spec.factory)
            except BaseException as again:
                logger.exception("%s could not be started again", spec.name)
                error = for_receiver(again, f"the factory of {spec.name}")
                continue
            break
        self._by_mailbox[child.ref.actor_inbox] = child
        child.restarts += 1
        self._call(self.on_restart, ActorRestart(spec.name, fresh(error), failures))

    def _give_up(self, child: _Child, error: BaseException, failures: int) -> None:
        spec = child.spec
        text = f"{type(error).__name__}: {error}"
        child.ref = None
        child.failure = ActorFailure(spec.name, text, failures, spec.within)
        logger.error("%s failed %d times within %g s and is not started again", spec.name, failures, spec.within)
        self._call(self.on_unhealthy, child.failure)

    def _call(self, callback: Callable[[Any], object] | None, event: object) -> None:
        if callback is None:
            return
        try:
            callback(event)
        except BaseException:
            logger.exception("the callback for %s failed", type(event).__name__)

    # ---- stopping

    async def stop(self, *, timeout: float = 10.0) -> None:
        """Stop every actor: the last started first, and the supervised ones after all others.

        Each handles what waits for it before its turn to stop comes. When the time is up the rest are cut off: handlers
        are cancelled and what waits is refused. Afterwards no task and no timer of the system is left, nor a sender on
        another thread that waits. Calling it again awaits the first call.

        Args:
            timeout: seconds in all for the orderly part; the rest has two seconds more for its last hooks.

        Raises:
            WouldDeadlockError: called by a handler that keeps its own actor busy meanwhile.
            WrongLoopError: not on the system's loop.
            ForkedError: this is a child of the process the system was made in.
        """
        self.place.require_loop("the actor system")
        stopper = asyncio.current_task(self.loop)
        if stopper in self.waits.handlers and self.waits.handlers[stopper][0].task is stopper:
            raise WouldDeadlockError("a handler that awaits system.stop() would wait for itself to end")
        if self._stopping is None:
            with self.lock:
                self.closed = True
            self._stopping = self.loop.create_task(self._stop(timeout), context=self.context.copy())
        await asyncio.shield(self._stopping)

    async def _stop(self, timeout: float) -> None:
        deadline = self.loop.time() + timeout
        for engine in self._stop_order():
            if not await self._ended_by(engine, deadline):
                break
        rest = self._stop_order()
        for engine in rest:
            engine.kill()
        if self.finishing:
            await asyncio.wait(list(self.finishing), timeout=LAST_GRACE)
        for _ in range(2):
            leftover = [*self.finishing, *self.waits.handlers]
            for task in leftover:
                task.cancel()
            if leftover:
                await asyncio.wait(leftover, timeout=LAST_GRACE / 2)
        for engine in list(self.live):
            logger.error("%s resists being stopped", engine)
        with self.lock:
            lost, self.in_transit = self.in_transit, {}
        for envelope, mailbox in lost.items():
            refuse(envelope, mailbox.died("no"))
        self.deadlines.close()

    def _stop_order(self) -> list[Engine]:
        supervised = [
            child.ref.actor_inbox for child in self._children.values() if child.ref is not None and child.ref.is_alive()
        ]
        kept = set(supervised)
        others = [engine for engine in self.live if engine not in kept]
        return [*reversed(others), *reversed(supervised)]

    async def _ended_by(self, engine: Engine, deadline: float) -> bool:
        """Stop one actor in order; False if the deadline comes first."""
        if not engine.stop_now():
            engine.stop_soon(Envelope(None, None, None))
        if engine.ended:
            return True
        enough = asyncio.Event()
        engine.watch(lambda _: enough.set())
        timer = self.loop.call_at(deadline, enough.set)
        await enough.wait()
        timer.cancel()
        return engine.ended
