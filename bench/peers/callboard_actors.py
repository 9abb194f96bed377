"""Callboard's kernel: typed actors on the caller's event loop.

``actors`` handles messages in plain methods, which an ask to an idle actor runs in the asker's own turn: every ask in
a run's step is one of these. ``mailbox_actors`` are the same, but busy: each ask finds a message waiting and queues
behind it. ``async_actors`` handles messages in ``async def`` methods, which go through the mailbox and a task, as in
systems that know no other kind.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

from bench.peers.actor_kit import ActorKit, bursts
from callboard.kernel import Actor, ActorSystem, Ref, handles
from callboard_protocol.commands import Command, Request


class Tell(Command):
    """Count one."""


class Ask(Request[int]):
    """Answer the count so far."""


class Counter(Actor[Tell | Ask]):
    """Counts what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    @handles
    def on_tell(self, _message: Tell) -> None:
        self._seen += 1

    @handles
    def on_ask(self, _message: Ask) -> int:
        return self._seen


class AsyncCounter(Actor[Tell | Ask]):
    """The same, in coroutines."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    @handles
    async def on_tell(self, _message: Tell) -> None:
        self._seen += 1

    @handles
    async def on_ask(self, _message: Ask) -> int:
        return self._seen


AnyCounter: TypeAlias = type[Counter] | type[AsyncCounter]


class KernelKit:
    """Drives one counter and keeps the idle ones."""

    def __init__(self, system: ActorSystem, counter_type: AnyCounter) -> None:
        self._system = system
        self._counter_type = counter_type
        self._counter: Ref[Counter | AsyncCounter] = system.start(counter_type)
        self._idle: list[Ref[Counter | AsyncCounter]] = []

    async def start(self, count: int) -> None:
        for _ in range(count):
            self._idle.append(self._system.start(self._counter_type))

    async def ask(self, count: int) -> None:
        question = Ask()
        for _ in range(count):
            await self._counter.ask(question)

    async def tell(self, count: int) -> None:
        message = Tell()
        for burst in bursts(count):
            for _ in range(burst):
                self._counter.tell(message)
            await self._counter.ask(Ask())


class BusyKit(KernelKit):
    """Asks an actor that has a message waiting."""

    async def ask(self, count: int) -> None:
        question, message = Ask(), Tell()
        for _ in range(count):
            # Until the next turn of the loop the actor is not idle, so the ask takes its place in the mailbox.
            self._counter.tell(message)
            await self._counter.ask(question)


@asynccontextmanager
async def actors() -> AsyncIterator[ActorKit]:
    """Open a system whose actors handle messages in plain methods."""
    yield KernelKit(ActorSystem(), Counter)


@asynccontextmanager
async def mailbox_actors() -> AsyncIterator[ActorKit]:
    """Open the same system and ask an actor that is never idle."""
    yield BusyKit(ActorSystem(), Counter)


@asynccontextmanager
async def async_actors() -> AsyncIterator[ActorKit]:
    """Open a system whose actors handle messages in coroutines."""
    yield KernelKit(ActorSystem(), AsyncCounter)
