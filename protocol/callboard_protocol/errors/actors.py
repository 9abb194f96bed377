"""What the actors, and the runtime they make up, refuse or fail at."""

from typing import Any, ClassVar, Literal

from callboard_protocol.errors.base import CallboardError, Fault


class ActorError(CallboardError):
    """Something between actors went wrong."""

    code = "actor"


class MailboxFull(ActorError):
    """The actor has as many messages waiting as it may.

    Attributes:
        unsent: the message that was not delivered; it was not handled, so sending it again is safe.
    """

    code = "mailbox_full"
    default_hint = "the message was not delivered: send it again when the actor has caught up"
    default_retryable = True
    unsent: object = None

    def __init__(self, message: str, *, unsent: object) -> None:
        super().__init__(message)
        self.unsent = unsent


class ActorDied(ActorError):
    """The actor ended before it answered.

    Attributes:
        handled: ``"no"`` if the message was never begun, ``"maybe"`` if it was in hand when the actor ended.
    """

    code = "actor_died"
    handled: Literal["no", "maybe"]

    def __init__(self, message: str, *, handled: Literal["no", "maybe"]) -> None:
        super().__init__(
            message,
            hint="it was never handled: send it to the new actor"
            if handled == "no"
            else "it may have taken effect: check before sending it again",
            context={"handled": handled},
            retryable=handled == "no",
        )
        self.handled = handled


class AskTimeout(ActorError, TimeoutError):
    """No answer in time. The handler goes on: only the waiting ended."""

    code = "ask_timeout"
    default_hint = "the handler was not stopped; its effect may still come"


class WouldDeadlockError(ActorError):
    """A blocking call on the very thread that would have to answer it."""

    code = "would_deadlock"
    fault: ClassVar[Fault] = "caller"
    default_hint = "await it instead: `await ref.ask(...)`"


class WrongLoopError(ActorError):
    """A Runtime belongs to one process and one event loop."""

    code = "wrong_loop"
    fault: ClassVar[Fault] = "caller"
    default_hint = "open one Runtime per process and loop, or use SyncRuntime from other threads"


class ForkedError(ActorError):
    """Used in a child of the process that opened it."""

    code = "forked"
    fault: ClassVar[Fault] = "caller"
    default_hint = "spawn worker processes instead of forking, and open a Runtime in each"


class RuntimeClosedError(ActorError):
    """The runtime is not open."""

    code = "runtime_closed"
    fault: ClassVar[Fault] = "caller"
    default_hint = "use it inside `async with Runtime(...)`, or between start() and aclose()"


class RuntimeClosingError(RuntimeClosedError):
    """The runtime is about to close, and takes no more runs in."""

    code = "runtime_closing"
    fault: ClassVar[Fault] = "runtime"
    default_hint = "submit it to another process on the directory, or once this one has started again"
    default_retryable = True

    def __init__(self, message: str = "the runtime is closing: it takes no more runs in", **rest: Any) -> None:
        super().__init__(message, **rest)


class UnhealthyError(ActorError):
    """An actor failed more often than its restart limit allows."""

    code = "unhealthy"
    default_hint = "see runtime.health() for which one and why; restart the process once that is mended"


class RuntimeBusyError(CallboardError):
    """A limit of `RuntimeLimits` is reached; nothing was started."""

    code = "runtime_busy"
    fault: ClassVar[Fault] = "caller"
    default_hint = "submit again later, or raise the limit named here"
    default_retryable = True
