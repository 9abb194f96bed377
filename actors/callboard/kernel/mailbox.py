"""The mailbox: the messages that wait for one actor, bounded, and the doors by which they come.

pykka gives each actor a thread that blocks on its inbox. Here callbacks of the event loop drain it instead (see
`callboard.kernel.engine`): an idle actor holds no thread, no task and no timer.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal

from callboard.kernel.replies import Reply
from callboard_protocol.errors import ActorDied, MailboxFull, UsageError

if TYPE_CHECKING:
    from callboard.kernel.handlers import Handler, HandlerTable
    from callboard.kernel.system import ActorSystem

logger = logging.getLogger("callboard.kernel")

# What an actor is doing. IDLE: nothing, and nothing waits. SCHEDULED: messages wait and the loop will come for them.
# BUSY: a handler has the actor. STOPPED: for good.
IDLE: Final = 0
SCHEDULED: Final = 1
BUSY: Final = 2
STOPPED: Final = 3


class Envelope:
    """A message on its way: what handles it and where its answer goes.

    Attributes:
        handler: None for the kernel's own requests, to start and to stop.
        reply_to: None for a message that was told.
    """

    __slots__ = ("handler", "message", "reply_to")

    def __init__(self, message: Any, handler: Handler | None, reply_to: Reply | None) -> None:
        self.message = message
        self.handler = handler
        self.reply_to = reply_to


def answer(envelope: Envelope, value: Any) -> None:
    """Reply, if anyone still waits."""
    reply_to = envelope.reply_to
    if reply_to is not None and not reply_to.done():
        reply_to.set_result(value)


def refuse(envelope: Envelope, error: BaseException) -> None:
    """Reply with an error, if anyone still waits."""
    reply_to = envelope.reply_to
    if reply_to is not None and not reply_to.done():
        reply_to.set_exception(error)


class Mailbox:
    """The messages that wait for one actor; pykka's `ActorInbox`.

    On the loop's thread only, unless a method says otherwise.

    Attributes:
        state: IDLE, SCHEDULED, BUSY or STOPPED.
        foreign: how many messages from other threads are on their way, each with a place reserved.
    """

    __slots__ = ("ask_timeout", "context", "foreign", "limit", "loop", "name", "queue", "state", "system", "table")

    def __init__(self, system: ActorSystem, name: str) -> None:
        self.system = system
        self.loop = system.loop
        self.name = name
        self.context = system.context.copy()
        self.queue: deque[Envelope] = deque()
        self.state = BUSY
        self.foreign = 0
        self.table: HandlerTable
        self.limit: int
        self.ask_timeout: float | None

    def __str__(self) -> str:
        return self.name

    # ---- what takes the messages: callboard.kernel.engine

    def drain(self) -> None:
        """Handle what waits."""
        raise NotImplementedError

    def go_on(self) -> None:
        """Have the loop come for what waits, or be idle."""
        raise NotImplementedError

    def begin(self, envelope: Envelope) -> None:
        """Run an async handler as a task."""
        raise NotImplementedError

    def stop_soon(self, request: Envelope) -> None:
        """Stop after the messages that wait now."""
        raise NotImplementedError

    # ---- pykka's inbox

    def put(self, envelope: Any, /) -> None:
        """Queue a message behind those that wait.

        Raises:
            ActorDied: the actor has stopped.
            MailboxFull: as many messages wait as may.
        """
        state = self.state
        if state == STOPPED:
            raise self.died("no")
        if len(self.queue) + self.foreign >= self.limit:
            raise self.full(envelope.message)
        if state != IDLE:
            self.queue.append(envelope)
        elif envelope.handler.direct:
            self.queue.append(envelope)
            self.state = SCHEDULED
            self.loop.call_soon(self.drain, context=self.context)
        else:
            self.begin(envelope)

    def get(self) -> Any:
        """The oldest message that waits."""
        return self.queue.popleft()

    def empty(self) -> bool:
        """Whether no message waits, nor is on its way from another thread."""
        return not self.queue and not self.foreign

    # ---- from other threads

    def put_from_outside(self, envelope: Envelope) -> None:
        """Queue a message from any thread but the loop's; a request to stop (no handler) knows no bound.

        A place is reserved here and filled on the loop. A sender on the loop takes no lock, so it and one thread can
        both take the last place: the mailbox holds one more than its limit at worst.

        Raises:
            ForkedError: this is a child of the process the actor lives in.
            WrongLoopError: this thread runs another event loop.
            ActorDied: the actor has stopped, or the loop has closed.
            MailboxFull: as many messages wait as may.
        """
        system = self.system
        system.place.require_process(self)
        with system.lock:
            if self.state == STOPPED:
                raise self.died("no")
            if envelope.handler is not None and len(self.queue) + self.foreign >= self.limit:
                raise self.full(envelope.message)
            try:
                self.loop.call_soon_threadsafe(self._arrive, envelope)
            except RuntimeError:
                raise self.died("no") from None
            self.foreign += 1
            system.in_transit[envelope] = self

    def _arrive(self, envelope: Envelope) -> None:
        with self.system.lock:
            self.foreign -= 1
            if self.system.in_transit.pop(envelope, None) is None:
                return
        if envelope.handler is None:
            self.stop_soon(envelope)
        elif self.state == STOPPED:
            if envelope.reply_to is None:
                logger.warning("%s stopped before %s reached it", self, type(envelope.message).__name__)
            refuse(envelope, self.died("no"))
        else:
            self.append(envelope)

    def append(self, envelope: Envelope) -> None:
        """Queue a message whose place is granted."""
        self.queue.append(envelope)
        if self.state == IDLE:
            self.go_on()

    # ---- errors, made here so that each receiver has its own

    def died(self, handled: Literal["no", "maybe"], cause: BaseException | None = None) -> ActorDied:
        """What an asker of an actor that ended gets."""
        error = ActorDied(f"{self} has stopped", handled=handled)
        error.__cause__ = cause
        return error

    def full(self, message: object) -> MailboxFull:
        """What a sender past the bound gets."""
        return MailboxFull(f"{self} has {self.limit} messages waiting, its limit", unsent=message)

    def unaccepted(self, message: object) -> UsageError:
        """What a sender of a message with no handler gets."""
        accepted = ", ".join(sorted(message_type.__name__ for message_type in self.table)) or "no message at all"
        return UsageError(f"{self} does not handle {type(message).__name__}", hint=f"it handles {accepted}")
