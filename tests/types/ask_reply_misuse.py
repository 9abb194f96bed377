# type: ignore
"""What no checker may accept: each line that ends in "misuse" is an error, and no other.

The comment above keeps this file out of the project's own checks; the test takes it away.
"""

from __future__ import annotations

from callboard.kernel import Actor, ActorSystem, Ref, handles
from callboard_protocol.commands import Command, Request


class Add(Command):
    amount: int


class Total(Request[int]):
    pass


class Foreign(Command):
    pass


class Counter(Actor[Add | Total]):
    def __init__(self, first: int) -> None:
        super().__init__()
        self.total = first

    @handles
    def add(self, message: Add) -> None:
        self.total += message.amount

    @handles
    def read(self, message: Total) -> int:
        return self.total


async def use(system: ActorSystem, ref: Ref[Counter]) -> None:
    name: str = await ref.ask(Total())  # misuse
    (await ref.ask(Total())).upper()  # misuse
    blocked: str = ref.ask_blocking(Total())  # misuse
    await ref.ask(Add(amount=1))  # misuse
    ref.tell(Foreign())  # misuse
    ref.ask(Total()) + 1  # misuse
    system.start(Counter, "one")  # misuse
    system.start(Counter)  # misuse
    name += blocked
