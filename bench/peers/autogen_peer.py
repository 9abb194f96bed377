"""autogen-core: a ``RoutedAgent`` on the ``SingleThreadedAgentRuntime``, as its quickstart shows.

An ask is ``send_message``; a tell is ``publish_message``, its one way to send without an answer; an actor starts when
its id is first resolved.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from autogen_core import (
    AgentId,
    DefaultTopicId,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    TypeSubscription,
    message_handler,
)

from bench.peers.actor_kit import ActorKit, bursts


@dataclass
class Tell:
    """Count one."""


@dataclass
class Ask:
    """Answer the count so far."""


class Counter(RoutedAgent):
    """Counts what it is told."""

    def __init__(self) -> None:
        super().__init__("counter")
        self._seen = 0

    @message_handler
    async def on_tell(self, message: Tell, ctx: MessageContext) -> None:
        self._seen += 1

    @message_handler
    async def on_ask(self, message: Ask, ctx: MessageContext) -> int:
        return self._seen


class AutogenKit:
    """Drives the counter named ``default``; every other key is another agent."""

    def __init__(self, runtime: SingleThreadedAgentRuntime) -> None:
        self._runtime = runtime
        self._counter = AgentId("counter", "default")
        self._started = 0
        self._told = 0

    async def start(self, count: int) -> None:
        for _ in range(count):
            self._started += 1
            await self._runtime.get("counter", f"idle-{self._started}", lazy=False)

    async def ask(self, count: int) -> None:
        question = Ask()
        for _ in range(count):
            await self._runtime.send_message(question, self._counter)

    async def tell(self, count: int) -> None:
        message, topic = Tell(), DefaultTopicId()
        for burst in bursts(count):
            for _ in range(burst):
                await self._runtime.publish_message(message, topic)
            self._told += burst
            # Each message is handled in a task of its own, so one answer does not prove that all were handled.
            while await self._runtime.send_message(Ask(), self._counter) < self._told:
                pass


@asynccontextmanager
async def actors() -> AsyncIterator[ActorKit]:
    """Start a runtime with one registered agent type."""
    runtime = SingleThreadedAgentRuntime()
    await Counter.register(runtime, "counter", Counter)
    await runtime.add_subscription(TypeSubscription("default", "counter"))
    runtime.start()
    try:
        yield AutogenKit(runtime)
    finally:
        await runtime.stop()
