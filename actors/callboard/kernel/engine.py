"""The engine: it takes one actor's messages one at a time on the event loop, answers them, and ends the actor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from callboard.kernel.handlers import ActorDefinitionError, Handler, HandlerKind
from callboard.kernel.mailbox import BUSY, IDLE, SCHEDULED, STOPPED, Envelope, Mailbox, answer, refuse
from callboard.kernel.replies import LoopFuture, Reply, for_receiver, fresh
from callboard_protocol.errors import UsageError

if TYPE_CHECKING:
    from callboard.kernel import Actor
    from callboard.kernel.system import ActorSystem

logger = logging.getLogger("callboard.kernel")

MESSAGES_PER_TURN: Final = 64
"""How many messages one actor may handle before everyone else on the loop gets a turn."""

STOP_PATIENCE: Final = 10.0
"""Seconds an ending actor waits for its cancelled handlers before it goes on without them."""

DEFERRED: Final = (LoopFuture, asyncio.Future, CoroutineType)
"""What a handler may return in place of its answer; the last one only to be told that it may not."""


class Engine(Mailbox):
    """One actor's mailbox and what empties it.

    Attributes:
        actor: the actor; None once it has ended, so that a ref held somewhere does not keep its state alive.
        direct_left: how many more asks may run in their askers' turns before one has to go through the queue.
        in_hand: what an async handler is handling, and `task` where it runs.
        in_flight: what is handled beside the actor's turn: by the task of a concurrent handler, or by a deferred reply
            (None).
        ended: the last hook has run too.
    """

    __slots__ = (
        "actor",
        "actor_class",
        "direct_left",
        "ended",
        "in_flight",
        "in_hand",
        "task",
        "urn",
        "watchers",
    )

    def __init__(self, system: ActorSystem, name: str) -> None:
        super().__init__(system, name)
        self.actor: Any = None
        self.actor_class: type[Actor[Any]]
        self.direct_left = MESSAGES_PER_TURN
        self.ended = False
        self.urn: str | None = None
        self.in_hand: Envelope | None = None
        self.task: asyncio.Task[None] | None = None
        self.in_flight: dict[Envelope, asyncio.Task[None] | None] | None = None
        self.watchers: list[Callable[[BaseException | None], object]] | None = None

    # ---- its turns

    def belong_to(self, actor: Actor[Any]) -> None:
        """Take an actor in; called by its constructor.

        Raises:
            UsageError: a factory made two actors at once.
        """
        if self.actor is not None:
            raise UsageError(f"{self.name} is one actor: start the other with a call of its own")
        self.actor = actor
        self.actor_class = type(actor)
        self.table = actor.handler_table
        self.name = self.name or f"{self.actor_class.__name__}#{self.system.next_serial()}"
        self._configure(actor)

    def _configure(self, actor: Actor[Any]) -> None:
        self.limit = actor.mailbox_limit
        self.ask_timeout = actor.ask_timeout

    def open(self) -> None:
        """Begin: `on_start` in the actor's own turn, and then the messages."""
        # Once more: the constructor may have set its own.
        self._configure(self.actor)
        self.system.live[self] = None
        if self.actor_class.starts_plainly:
            self.go_on()
        else:
            self.begin(Envelope(None, None, None))

    def drain(self) -> None:
        """Handle what waits, in order, up to the bound of one turn."""
        if self.state != SCHEDULED:
            return
        queue = self.queue
        actor = self.actor
        self.state = BUSY
        for _ in range(MESSAGES_PER_TURN):
            if not queue:
                break
            envelope = queue.popleft()
            handler = envelope.handler
            if handler is None:
                self._end(None, envelope)
            elif handler.direct:
                try:
                    result = handler.function(actor, envelope.message)
                except BaseException as error:  # noqa: BLE001 - an interrupt in one actor must not end the others
                    self._failed(envelope, error)
                else:
                    self._reply(envelope, result)
            else:
                self.begin(envelope)
                if self.task is not None:
                    return
            if self.state == STOPPED:
                return
        self.go_on()

    def go_on(self) -> None:
        """Go on after a handler: the loop comes again if messages wait."""
        if self.queue:
            self.state = SCHEDULED
            self.loop.call_soon(self.drain, context=self.context)
        else:
            self.state = IDLE
        self.direct_left = MESSAGES_PER_TURN

    def run_directly(self, handler: Handler, message: object) -> Any:
        """Run a sync handler of an idle actor in the asker's own turn.

        Raises:
            Exception: what the handler raised.
        """
        self.state = BUSY
        self.direct_left -= 1
        try:
            return self.context.run(handler.function, self.actor, message)
        except BaseException as error:
            allowed = for_receiver(error, f"{self}.{handler.name}")
            if allowed is error:
                raise
            raise allowed from error
        finally:
            if self.queue:
                self.go_on()
            else:
                self.state = IDLE

    def begin(self, envelope: Envelope) -> None:
        """Run an async handler as a task: in the actor's turn, or beside it if it is concurrent."""
        if envelope.handler is None or envelope.handler.kind is HandlerKind.ASYNC:
            self.state = BUSY
            self.in_hand = envelope
            task = self.task = self._task(self._handle(envelope), self.context)
        else:
            task = self._task(self._handle(envelope), self.context.copy())
            if self.in_flight is None:
                self.in_flight = {}
            self.in_flight[envelope] = task
        self.system.waits.handlers[task] = (self, envelope)
        task.add_done_callback(self._gone, context=self.context)

    def _task(self, coroutine: Coroutine[Any, Any, None], context: Context) -> asyncio.Task[None]:
        # Not loop.create_task(): an eager task factory would run the handler in its sender's turn.
        return asyncio.Task(coroutine, loop=self.loop, name=self.name, context=context)

    async def _handle(self, envelope: Envelope) -> None:
        try:
            result = await self._work(envelope)
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - asyncio would raise an interrupt through the loop
            self._complete(envelope, None, error)
        else:
            self._complete(envelope, result, None)

    def _work(self, envelope: Envelope) -> Any:
        if envelope.handler is None:
            return _started(self.actor)
        return envelope.handler.function(self.actor, envelope.message)

    def _gone(self, task: asyncio.Task[None]) -> None:
        _, envelope = self.system.waits.handlers.pop(task)
        # A task that was cancelled before its first step, or thrown away, never got to say so.
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._complete(envelope, None, error)

    def _complete(self, envelope: Envelope, result: Any, error: BaseException | None) -> None:
        """An async handler ended: answer, and go on if it was the one that kept the others waiting."""
        in_turn = envelope is self.in_hand
        if in_turn:
            self.in_hand = self.task = None
        elif not self._land(envelope):
            if error is not None and not isinstance(error, asyncio.CancelledError):
                logger.warning("%s.%s failed after its actor had ended", self, _where(envelope), exc_info=error)
            return
        if error is not None:
            self._failed(envelope, error)
        else:
            self._reply(envelope, result)
        if in_turn and self.state != STOPPED:
            self.go_on()

    def _reply(self, envelope: Envelope, result: Any) -> None:
        if isinstance(result, DEFERRED):
            self.defer(envelope, result)
        else:
            answer(envelope, result)

    def defer(self, envelope: Envelope, deferred: Reply | CoroutineType[Any, Any, Any]) -> None:
        """Answer when a handler's future does; the actor goes on meanwhile."""
        if isinstance(deferred, CoroutineType):
            deferred.close()
            where = f"{self}.{_where(envelope)}"
            self._failed(envelope, ActorDefinitionError(f"{where} returned a coroutine: make it `async def`"))
            return
        if self.in_flight is None:
            self.in_flight = {}
        self.in_flight[envelope] = None
        deferred.add_done_callback(partial(self._settle, envelope))

    def _settle(self, envelope: Envelope, done: Reply) -> None:
        # Asked for even where nobody waits any more: asyncio logs an error that was never looked at.
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if not self._land(envelope):
            return
        if error is None:
            answer(envelope, done.result())
        else:
            # Others may hold the future too.
            self._failed(envelope, fresh(error))

    def _land(self, envelope: Envelope) -> bool:
        """Take a message out of those in flight; False if the actor ended before and it was refused then."""
        in_flight = self.in_flight
        if in_flight is None or envelope not in in_flight:
            return False
        del in_flight[envelope]
        if not in_flight:
            self.in_flight = None
        return True

    def _failed(self, envelope: Envelope, error: BaseException) -> None:
        """A handler raised: its asker is answered and the actor lives; where nobody asked, the actor ends."""
        where = _where(envelope)
        if envelope.reply_to is None:
            self.fail(error, where)
        elif envelope.reply_to.done():
            logger.warning("%s.%s failed after its asker had left", self, where, exc_info=error)
        else:
            refuse(envelope, for_receiver(error, f"{self}.{where}"))

    # ---- the end

    @property
    def busy(self) -> bool:
        """Whether a handler runs, or a concurrent handler or a deferred reply is outstanding."""
        return self.state == BUSY or self.in_flight is not None

    def stop_now(self) -> bool:
        """Stop in this turn if idle.

        Returns:
            Whether the actor takes no further message; False if it has something to do.
        """
        if self.state == STOPPED:
            return True
        if self.state != IDLE or self.in_flight is not None or self.foreign:
            return False
        self._end(None, None)
        return True

    def stop_soon(self, request: Envelope) -> None:
        """Stop after the messages that wait now; those that come later are refused. No bound applies.

        Args:
            request: an envelope without a handler; answered once the actor has ended, with whether this stopped it.
        """
        if self.state == STOPPED:
            self._answer_at_the_end(request, stopped_it=False)
        else:
            self.append(request)

    def kill(self) -> None:
        """Stop at once: the handler in hand is cancelled, what waits is refused."""
        if self.state != STOPPED:
            self._end(None, None)

    def kill_unborn(self) -> None:
        """Refuse whatever reached an actor whose constructor raised."""
        self.state = STOPPED
        self.ended = True
        self.actor = None
        for envelope in self.queue:
            refuse(envelope, self.died("no"))
        self.queue.clear()

    def fail(self, error: BaseException, where: str) -> None:
        """End because something raised that nobody waits for."""
        if self.state == STOPPED:
            return
        logger.error("%s failed in %s and ends", self, where, exc_info=error)
        self._end(for_receiver(error, f"{self}.{where}"), None)

    def _end(self, failure: Exception | None, request: Envelope | None) -> None:
        """Refuse all that waits, cancel all that runs, and call the last hook."""
        self.state = STOPPED
        if request is not None:
            self._answer_at_the_end(request, stopped_it=True)
        waiting = list(self.queue)
        self.queue.clear()
        for envelope in waiting:
            if envelope.handler is None:
                self._answer_at_the_end(envelope, stopped_it=False)
            else:
                refuse(envelope, self.died("no", failure))
        running = self.in_flight or {}
        if self.in_hand is not None:
            running[self.in_hand] = self.task
        self.in_flight = self.in_hand = self.task = None
        cancelled: list[asyncio.Task[None]] = []
        for envelope, task in running.items():
            refuse(envelope, self.died("maybe", failure))
            if task is not None:
                task.cancel()
                cancelled.append(task)
        last = None if cancelled else self._last_hook(failure)
        if cancelled or last is not None:
            finishing = self._task(self._finish(failure, cancelled, last), self.context.copy())
            self.system.finishing[finishing] = self
            finishing.add_done_callback(lambda done: self._finished(done, failure))
        else:
            self._ended(failure)

    def _answer_at_the_end(self, request: Envelope, *, stopped_it: bool) -> None:
        if request.reply_to is not None:
            self.watch(lambda _: answer(request, stopped_it))

    def _last_hook(self, failure: Exception | None) -> Any:
        try:
            if failure is None:
                return self.actor.on_stop()
            return self.actor.on_failure(type(failure), failure, failure.__traceback__)
        except BaseException:
            logger.exception("%s failed in its last hook", self)
            return None

    async def _finish(self, failure: Exception | None, cancelled: list[asyncio.Task[None]], last: Any) -> None:
        try:
            if cancelled:
                # Cancelled itself when the system is out of time; the last hook has its turn even then.
                with contextlib.suppress(asyncio.CancelledError):
                    _, stubborn = await asyncio.wait(cancelled, timeout=STOP_PATIENCE)
                    if stubborn:
                        logger.error("%s ends while %d of its handlers resist cancellation", self, len(stubborn))
                last = self._last_hook(failure)
            if last is not None:
                await last
        except GeneratorExit:
            raise
        except BaseException:
            logger.exception("%s failed in its last hook", self)

    def _finished(self, finishing: asyncio.Task[None], failure: Exception | None) -> None:
        del self.system.finishing[finishing]
        self._ended(failure)

    def _ended(self, failure: Exception | None) -> None:
        self.ended = True
        self.actor = None
        self.system.live.pop(self, None)
        watchers, self.watchers = self.watchers, None
        for watcher in watchers or ():
            try:
                watcher(None if failure is None else fresh(failure))
            except BaseException:
                logger.exception("a watcher of %s failed", self)
        self.system.actor_ended(self, failure)

    def watch(self, watcher: Callable[[BaseException | None], object]) -> None:
        """Call back once the actor has ended, with what ended it or None; at once, with None, if it has."""
        if self.ended:
            watcher(None)
        elif self.watchers is None:
            self.watchers = [watcher]
        else:
            self.watchers.append(watcher)


def _where(envelope: Envelope) -> str:
    return "on_start" if envelope.handler is None else envelope.handler.name


async def _started(actor: Any) -> None:
    starting = actor.on_start()
    if starting is not None:
        await starting
