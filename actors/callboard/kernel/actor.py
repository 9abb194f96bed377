"""The kernel: typed pykka actors on the caller's event loop.

An `Actor` declares the messages it accepts (``class Till(Actor[Pay | Close])``) and marks one method for each with
`@handles`. An `ActorSystem` starts it and hands out its `Ref`, which is all that anyone else ever holds. The promises
are numbered in docs/RUNTIME-SEMANTICS.md; one test stands for each.

It is pykka's `Actor` by pykka's own extension points (`_create_actor_inbox`, `_create_future`, `_start_actor_loop`),
drained on asyncio instead of by a thread. No actor enters pykka's process-global registry.

The one actor with a thread, the store's writer, is a `pykka.ThreadingActor`. Its futures block whoever waits for them,
also under ``await``: code on the loop never awaits a `pykka.ThreadingFuture`. What is told to that actor carries a
callback, which it hands back by ``loop.call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Never, Self, TypeVar

import pykka

from callboard.kernel.engine import Engine
from callboard.kernel.handlers import ActorDefinitionError, HandlerTable, build_table, declared_types
from callboard.kernel.mailbox import Envelope
from callboard.kernel.ref import CommandT, Ref, Stopped
from callboard.kernel.replies import LoopFuture
from callboard.kernel.system import ActorSystem, engine_in_the_making
from callboard_protocol.commands import Command
from callboard_protocol.errors import UsageError

if TYPE_CHECKING:
    from types import TracebackType

    class _PykkaActor:
        """A hook here may be async and pykka's may not: a checker that sees both would refuse every async hook."""
else:
    _PykkaActor = pykka.Actor


class Actor(_PykkaActor, Generic[CommandT]):
    """One thing at a time: state that only its own handlers touch.

    Subclass it with the messages it accepts, and mark one method for each:

        class Counter(Actor[Add | Read]):
            def __init__(self) -> None:
                super().__init__()
                self.total = 0

            @handles
            def add(self, message: Add) -> None:
                self.total += message.amount

            @handles
            async def read(self, message: Read) -> int:
                return self.total

    Attributes:
        mailbox_limit: how many messages may wait; a class or an instance may set its own (in `__init__`).
        ask_timeout: seconds an ask waits where it does not say; None for ever.

    Raises:
        ActorDefinitionError: when a subclass is created that does not handle exactly what it declares.
    """

    mailbox_limit: int = 1000
    ask_timeout: float | None = 30.0

    _accepts: ClassVar[frozenset[type[Command]] | TypeVar | None] = None
    handler_table: ClassVar[HandlerTable] = {}
    """What the class handles, by the exact type of the message."""
    starts_plainly: ClassVar[bool] = True
    """Whether the class has no `on_start` of its own, so that an actor is idle as soon as it is made."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared = declared_types(cls, Actor)
        if declared is None:
            raise ActorDefinitionError(
                f"{cls.__qualname__} does not say what it accepts", hint="class Till(Actor[Pay | Close])"
            )
        cls._accepts = declared
        cls.starts_plainly = cls.on_start is Actor.on_start
        if isinstance(declared, frozenset):
            cls.handler_table = build_table(cls, declared)

    def __init__(self) -> None:
        engine = self._engine = self._create_actor_inbox()
        engine.belong_to(self)
        self._ref: Ref[Self] = Ref(engine)

    @classmethod
    def start(cls, *_args: Any, **_kwargs: Any) -> Never:
        """Not offered: an actor belongs to a system, which starts it.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{cls.__name__} has no system to live in", hint=f"use system.start({cls.__name__}, ...)")

    @staticmethod
    def _create_actor_inbox() -> Engine:
        return engine_in_the_making()

    @staticmethod
    def _create_future() -> LoopFuture[Any]:
        return LoopFuture()

    def _start_actor_loop(self) -> None:
        self._engine.open()

    # ---- for subclasses

    @property
    def actor_ref(self) -> Ref[Self]:
        """The actor's own address, to hand out."""
        return self._ref

    @property
    def system(self) -> ActorSystem:
        """The system it lives in."""
        return self._engine.system

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop it lives on."""
        return self._engine.loop

    def stop(self) -> None:
        """Stop after the messages that wait now."""
        self._engine.stop_soon(Envelope(None, None, None))

    def on_start(self) -> Awaitable[None] | None:
        """Called before the first message; may be ``async def``. An error ends the actor."""
        return None

    def on_stop(self) -> Awaitable[None] | None:
        """Called after the last message of an actor that was stopped; may be ``async def``. An error is logged."""
        return None

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> Awaitable[None] | None:
        """Called in place of `on_stop` when an error ended the actor; may be ``async def``. An error is logged."""
        return None

    # ---- pykka's attributes

    @property
    def actor_urn(self) -> str:
        """A universally unique name, made when first asked for."""
        return self._ref.actor_urn

    @property
    def actor_inbox(self) -> Engine:
        """The actor's mailbox."""
        return self._engine

    @property
    def actor_stopped(self) -> Stopped:
        """Whether it has stopped, as pykka's event of that name."""
        return Stopped(self._engine)

    def _stop(self) -> None:
        self._engine.kill()

    def _handle_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._engine.fail(exception_value or UsageError("no exception to fail with"), "_handle_failure")

    def __str__(self) -> str:
        return self._engine.name
