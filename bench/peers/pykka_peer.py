"""pykka's ``ThreadingActor``: a thread for each actor, as its quickstart shows."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pykka

from bench.peers.actor_kit import ActorKit, bursts


@dataclass(frozen=True)
class Count:
    """Told: count one. Asked: answer the count so far."""

    wants_answer: bool


class Counter(pykka.ThreadingActor):
    """Counts what it is told."""

    # Thousands of threads stay alive when the child leaves; none may keep the process.
    use_daemon_thread = True

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    def on_receive(self, message: Any) -> int | None:
        if message.wants_answer:
            return self._seen
        self._seen += 1
        return None


class PykkaKit:
    """Drives one ``Counter`` and keeps the idle ones."""

    def __init__(self) -> None:
        self._counter = Counter.start()
        self._idle: list[pykka.ActorRef[Counter]] = []

    async def start(self, count: int) -> None:
        self._idle += [Counter.start() for _ in range(count)]

    async def ask(self, count: int) -> None:
        question = Count(wants_answer=True)
        for _ in range(count):
            self._counter.ask(question)

    async def tell(self, count: int) -> None:
        message = Count(wants_answer=False)
        for burst in bursts(count):
            for _ in range(burst):
                self._counter.tell(message)
            self._counter.ask(Count(wants_answer=True))


@asynccontextmanager
async def actors() -> AsyncIterator[ActorKit]:
    """Open the kit; the actors end with the process, since pykka stops them one join at a time."""
    yield PykkaKit()
