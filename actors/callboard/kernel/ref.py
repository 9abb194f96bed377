"""The ref: what the rest of the program holds of an actor, its address."""

from __future__ import annotations

import asyncio
import uuid
from asyncio.events import _get_running_loop
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, Never, TypeVar

import pykka

from callboard.kernel.engine import DEFERRED, Engine
from callboard.kernel.mailbox import IDLE, STOPPED, Envelope
from callboard.kernel.replies import LoopFuture
from callboard_protocol.commands import Command, ReplyT, Request
from callboard_protocol.errors import ActorDied, AskTimeout, UsageError

if TYPE_CHECKING:
    from callboard.kernel import Actor

CommandT = TypeVar("CommandT", bound=Command)
ActorT_co = TypeVar("ActorT_co", bound="Actor[Any]", covariant=True)


class _Default(Enum):
    TIMEOUT = "the actor's own ask_timeout"


_DEFAULT: Final = _Default.TIMEOUT


class Stopped:
    """The part of `threading.Event` that pykka uses of an actor's stop flag, at no cost per actor."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def is_set(self) -> bool:
        """Whether the actor takes no further message. From any thread."""
        return self._engine.state == STOPPED

    def set(self) -> None:
        """Stop the actor at once, on its loop: what waits is refused, what runs is cancelled."""
        self._engine.kill()


class Ref(pykka.ActorRef[Any], Generic[ActorT_co]):
    """What the rest of the program holds of an actor: its address.

    Every method may be called from the actor's own loop; `tell`, `ask_blocking`, `stop_blocking` and `is_alive` from
    any thread of the process.
    """

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # ---- messages

    def tell(self: Ref[Actor[CommandT]], message: CommandT) -> None:
        """Send a message and go on; it is handled in a later turn. From any thread.

        Args:
            message: one of those the actor declares.

        Raises:
            MailboxFull: not delivered; the error holds the message.
            ActorDied: not delivered; the actor has stopped.
            UsageError: the actor does not handle this type.
            WrongLoopError: this thread runs another event loop.
            ForkedError: this is a child of the process the actor lives in.
        """
        engine = self._engine
        handler = engine.table.get(message.__class__)
        if handler is None:
            raise engine.unaccepted(message)
        if _get_running_loop() is engine.loop:
            engine.put(Envelope(message, handler, None))
        else:
            engine.put_from_outside(Envelope(message, handler, None))

    async def ask(  # type: ignore[override]
        self, message: Request[ReplyT], *, timeout: float | _Default | None = _DEFAULT
    ) -> ReplyT:
        """Send a request and await its answer, on the actor's own loop.

        A sync handler of an idle actor runs in this very turn. Cancelling this call, or its timeout, ends the waiting
        and never the handler.

        Args:
            message: one of those the actor declares.
            timeout: seconds to wait; None waits for ever; left out, the actor's `ask_timeout` applies.

        Raises:
            AskTimeout: no answer in time; the handler goes on.
            MailboxFull: not delivered; the error holds the message.
            ActorDied: the actor ended before it answered; the error says whether it may have handled the message.
            WouldDeadlockError: the answer would wait for the handler that asks.
            UsageError: the actor does not handle this type.
            WrongLoopError: not on the actor's event loop; `ask_blocking` is for other threads.
            ForkedError: this is a child of the process the actor lives in.
            Exception: what the handler raised.
        """
        engine = self._engine
        system = engine.system
        loop = engine.loop
        if _get_running_loop() is not loop:
            raise system.place.misplaced(engine)
        handler = engine.table.get(message.__class__)
        if handler is None:
            raise engine.unaccepted(message)
        asking: asyncio.Task[Any] | None = None
        reply: Any
        if engine.state == IDLE and handler.direct and engine.direct_left:
            reply = engine.run_directly(handler, message)
            if not isinstance(reply, DEFERRED):
                direct: ReplyT = reply
                return direct
            waiter: asyncio.Future[ReplyT] = loop.create_future()
            engine.defer(Envelope(message, handler, waiter), reply)
        else:
            if system.waits.handlers:
                asking = system.waits.refuse_circle(engine)
            waiter = loop.create_future()
            envelope = Envelope(message, handler, waiter)
            engine.put(envelope)
            if asking is not None:
                system.waits.asks[asking] = (engine, envelope)
        seconds = engine.ask_timeout if timeout is _DEFAULT else timeout
        try:
            if seconds is None:
                return await waiter
            row = system.deadlines.rows.get(seconds) or system.deadlines.row(seconds)
            row.add(waiter, engine, message)
            try:
                return await waiter
            finally:
                row.waits.pop(waiter, None)
        finally:
            if asking is not None:
                system.waits.asks.pop(asking, None)

    def ask_blocking(self, message: Request[ReplyT], *, timeout: float | _Default | None = _DEFAULT) -> ReplyT:
        """Send a request and block until its answer, from any thread but the loop's.

        Args:
            message: one of those the actor declares.
            timeout: seconds to wait; None waits for ever; left out, the actor's `ask_timeout` applies.

        Raises:
            WouldDeadlockError: called on the loop's own thread, which would have to answer.
            AskTimeout: no answer in time; the handler goes on.
            MailboxFull: not delivered; the error holds the message.
            ActorDied: the actor ended before it answered; the error says whether it may have handled the message.
            UsageError: the actor does not handle this type.
            WrongLoopError: this thread runs another event loop.
            ForkedError: this is a child of the process the actor lives in.
            Exception: what the handler raised.
        """
        engine = self._engine
        engine.system.place.require_other_thread(engine)
        handler = engine.table.get(message.__class__)
        if handler is None:
            raise engine.unaccepted(message)
        reply: LoopFuture[ReplyT] = LoopFuture()
        engine.put_from_outside(Envelope(message, handler, reply))
        seconds = engine.ask_timeout if timeout is _DEFAULT else timeout
        try:
            return reply.get(timeout=seconds)
        except pykka.Timeout:
            name = type(message).__name__
            raise AskTimeout(f"{engine} did not answer {name} within {seconds:g} s") from None

    # ---- its life

    def is_alive(self) -> bool:
        """Whether it still takes messages."""
        return self._engine.state != STOPPED

    @property
    def mailbox_empty(self) -> bool:
        """Whether no message waits, nor is on its way from another thread."""
        return self._engine.empty()

    @property
    def busy(self) -> bool:
        """Whether a handler runs, or a concurrent handler or a deferred reply is outstanding."""
        return self._engine.busy

    def stop_now(self) -> bool:
        """Stop in this turn if there is nothing to do: whatever is looked up next finds it stopped.

        Returns:
            Whether it takes no further message; False if it is busy or a message waits.
        """
        self._engine.system.place.require_loop(self)
        return self._engine.stop_now()

    async def stop(self) -> bool:  # type: ignore[override]
        """Stop after the messages that wait now, and await the end of its last hook.

        Returns:
            Whether this call stopped it; False if it had stopped before.
        """
        engine = self._engine
        waits = engine.system.waits
        engine.system.place.require_loop(engine)
        asking = waits.refuse_circle(engine)
        ended: asyncio.Future[bool] = engine.loop.create_future()
        request = Envelope(None, None, ended)
        engine.stop_soon(request)
        if asking is not None:
            waits.asks[asking] = (engine, request)
        try:
            return await ended
        finally:
            if asking is not None:
                waits.asks.pop(asking, None)

    def stop_blocking(self, *, timeout: float | None = None) -> bool:
        """`stop`, from any thread but the loop's.

        Raises:
            WouldDeadlockError: called on the loop's own thread.
            AskTimeout: it has not ended in time.
        """
        engine = self._engine
        engine.system.place.require_other_thread(engine)
        reply: LoopFuture[bool] = LoopFuture()
        try:
            engine.put_from_outside(Envelope(None, None, reply))
        except ActorDied:
            return False
        try:
            return reply.get(timeout=timeout)
        except pykka.Timeout:
            raise AskTimeout(f"{engine} did not stop within {timeout:g} s") from None

    def watch(self, watcher: Callable[[BaseException | None], object]) -> None:
        """Call back, on the loop, once the actor has ended: with the error that ended it, or None."""
        self._engine.system.place.require_loop(self)
        self._engine.watch(watcher)

    # ---- pykka's attributes

    @property
    def actor_class(self) -> type[ActorT_co]:  # type: ignore[override]
        """The actor's class."""
        return self._engine.actor_class  # type: ignore[return-value]

    @property
    def actor_urn(self) -> str:  # type: ignore[override]
        """A universally unique name, made when first asked for."""
        engine = self._engine
        if engine.urn is None:
            engine.urn = uuid.uuid4().urn
        return engine.urn

    @property
    def actor_inbox(self) -> Engine:  # type: ignore[override]
        """The actor's mailbox."""
        return self._engine

    @property
    def actor_stopped(self) -> Stopped:  # type: ignore[override]
        """Whether it has stopped, as pykka's event of that name."""
        return Stopped(self._engine)

    def proxy(self) -> Never:
        """Not offered: an actor is reached by its typed messages alone.

        Raises:
            UsageError: always.
        """
        raise UsageError("proxies reach past the typed messages", hint="ask or tell one of the messages it handles")

    def __str__(self) -> str:
        return self._engine.name

    def __repr__(self) -> str:
        return f"<Ref {self._engine.name}>"
