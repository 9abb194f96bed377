"""What a caller of an actor may write: every checker accepts it, with these types."""

from __future__ import annotations

from typing import assert_type

from callboard.kernel import Actor, ActorSystem, ChildSpec, Ref, handles
from callboard_protocol.commands import Command, Request


class Add(Command):
    amount: int


class Total(Request[int]):
    pass


class Names(Request[list[str]]):
    pass


class Counter(Actor[Add | Total | Names]):
    def __init__(self, first: int) -> None:
        super().__init__()
        self.total = first

    @handles
    def add(self, message: Add) -> None:
        self.total += message.amount

    @handles
    def read(self, message: Total) -> int:
        return self.total

    @handles(concurrent=True)
    async def names(self, message: Names) -> list[str]:
        return [str(self.total)]

    async def on_start(self) -> None:
        assert_type(self.actor_ref.is_alive(), bool)

    def on_stop(self) -> None:
        self.stop()


async def use(system: ActorSystem, anything: Ref[Counter]) -> None:
    ref = system.start(Counter, 1)
    assert_type(ref, Ref[Counter])
    ref.tell(Add(amount=1))
    assert_type(await ref.ask(Total()), int)
    assert_type(await ref.ask(Names(), timeout=None), list[str])
    assert_type(ref.ask_blocking(Total(), timeout=2.5), int)
    spec = ChildSpec("counter", lambda: Counter(1))
    assert_type(system.supervise(spec), Ref[Counter])
    assert_type(system.ref(spec), Ref[Counter])
    anything.tell(Add(amount=2))
