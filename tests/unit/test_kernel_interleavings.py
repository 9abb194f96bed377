"""Whatever is sent, cancelled, resolved and stopped in whatever order: nothing is lost, doubled, reordered or left."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.kernel import Actor, ActorSystem, LoopFuture, handles
from callboard_protocol.commands import Command, Live, Request
from callboard_protocol.errors import ActorDied, AskTimeout, MailboxFull


class Numbered(Request[int]):
    number: int


class Plain(Numbered):
    pass


class Waiting(Numbered):
    turns: int = 2


class Beside(Numbered):
    turns: int = 2


class Deferred(Numbered):
    reply: Live[LoopFuture[int]]


class Poison(Command):
    pass


class Recorder(Actor[Plain | Waiting | Beside | Deferred | Poison]):
    mailbox_limit = 4

    def __init__(self, begun: list[int], beside: set[int]) -> None:
        super().__init__()
        self.begun = begun
        self.beside = beside
        self.inside = False

    def begin(self, number: int) -> None:
        assert not self.inside
        self.begun.append(number)

    @handles
    def plain(self, message: Plain) -> int:
        self.begin(message.number)
        return message.number

    @handles
    async def waiting(self, message: Waiting) -> int:
        self.begin(message.number)
        self.inside = True
        for _ in range(message.turns):
            await asyncio.sleep(0)
        self.inside = False
        return message.number

    @handles(concurrent=True)
    async def besides(self, message: Beside) -> int:
        assert message.number not in self.beside
        self.beside.add(message.number)
        for _ in range(message.turns):
            await asyncio.sleep(0)
        return message.number

    @handles
    def deferred(self, message: Deferred) -> Any:
        self.begin(message.number)
        return message.reply

    @handles
    def poison(self, message: Poison) -> None:
        raise LookupError("poison")


OPERATIONS = st.lists(
    st.sampled_from(
        ["plain"] * 4
        + ["waiting", "beside", "deferred"] * 3
        + ["turn"] * 6
        + ["tell", "cancel", "resolve", "impatient", "poison", "stop", "stop now"]
    ),
    max_size=60,
)


class Play:
    """One actor, and all that happens to it."""

    def __init__(self) -> None:
        self.system = ActorSystem()
        self.begun: list[int] = []
        self.beside: set[int] = set()
        self.ref = self.system.start(Recorder, self.begun, self.beside)
        self.asks: dict[int, asyncio.Task[int]] = {}
        self.sent: dict[int, Numbered] = {}
        self.replies: dict[int, LoopFuture[int]] = {}
        self.others: list[asyncio.Task[Any]] = []

    def ask(self, message: Numbered, timeout: float | None = None) -> None:
        self.sent[message.number] = message
        self.asks[message.number] = asyncio.create_task(self.ref.ask(message, timeout=timeout))

    async def tell(self, message: Plain | Poison) -> None:
        with contextlib.suppress(ActorDied, MailboxFull):
            self.ref.tell(message)

    def do(self, operation: str, number: int) -> None:
        match operation:
            case "plain":
                self.ask(Plain(number=number))
            case "waiting":
                self.ask(Waiting(number=number))
            case "beside":
                self.ask(Beside(number=number))
            case "deferred":
                self.replies[number] = LoopFuture()
                self.ask(Deferred(number=number, reply=self.replies[number]))
            case "impatient":
                self.ask(Waiting(number=number), timeout=0.001)
            # In tasks, as asks are: so all arrive in the order of their numbers.
            case "tell":
                self.others.append(asyncio.create_task(self.tell(Plain(number=number))))
            case "poison":
                self.others.append(asyncio.create_task(self.tell(Poison())))
            case "stop":
                self.others.append(asyncio.create_task(self.ref.stop()))
            case _:
                self.interfere(operation)

    def interfere(self, operation: str) -> None:
        if operation == "cancel" and self.asks:
            self.asks[min(self.asks)].cancel()
        elif operation == "resolve" and self.replies:
            oldest = min(self.replies)
            self.replies.pop(oldest).set(oldest)
        elif operation == "stop now":
            idle = self.ref.mailbox_empty and not self.ref.busy
            assert self.ref.stop_now() == (idle or not self.ref.is_alive())

    def check(self, number: int, outcome: object) -> None:
        handled = number in self.begun or number in self.beside
        match outcome:
            case int():
                assert outcome == number
                assert handled
            case ActorDied(handled="no") | MailboxFull():
                assert not handled
            case ActorDied(handled="maybe"):
                # Whether a task that was cancelled had taken its first step, only the task knows.
                assert handled or isinstance(self.sent[number], Waiting | Beside)
            case _:
                assert isinstance(outcome, asyncio.CancelledError | AskTimeout)


@settings(max_examples=200, deadline=None)
@given(operations=OPERATIONS, at_once=st.booleans())
def test_every_ask_ends_once_in_order_and_nothing_is_left(operations: list[str], at_once: bool):
    asyncio.run(play(operations, at_once))


async def play(operations: list[str], at_once: bool) -> None:
    before = asyncio.all_tasks()
    game = Play()
    for number, operation in enumerate(operations):
        game.do(operation, number)
        if operation == "turn":
            await asyncio.sleep(0)
    for number, reply in game.replies.items():
        reply.set(number)
    await game.system.stop(timeout=0 if at_once else 5)
    outcomes = await asyncio.gather(*game.asks.values(), return_exceptions=True)
    await asyncio.gather(*game.others)

    assert game.begun == sorted(set(game.begun))
    for number, outcome in zip(game.asks, outcomes, strict=True):
        game.check(number, outcome)
    system = game.system
    assert asyncio.all_tasks() == before
    books = (system.live, system.waits.handlers, system.waits.asks, system.finishing, system.in_transit)
    assert not any(books)
    assert not any(row.waits or row.timer for row in system.deadlines.rows.values())
    assert not game.ref.busy
