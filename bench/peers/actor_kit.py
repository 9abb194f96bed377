"""What the actor row asks of each actor library."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias


class ActorKit(Protocol):
    """One actor library, driven in bulk so that the driver adds nothing per message.

    The actor counts the messages it is told and answers an ask with that count.
    """

    async def start(self, count: int) -> None:
        """Start ``count`` idle actors and keep them."""

    async def ask(self, count: int) -> None:
        """Ask one actor ``count`` times, each after the answer to the one before."""

    async def tell(self, count: int) -> None:
        """Tell one actor ``count`` messages and return when it has handled the last."""


ActorPeer: TypeAlias = Callable[[], AbstractAsyncContextManager[ActorKit]]

TELLS_IN_FLIGHT = 100
"""Tells are sent in bursts of this many, then awaited: bounded mailboxes must not be what is measured."""


def bursts(count: int) -> list[int]:
    """Split ``count`` tells into bursts."""
    whole, rest = divmod(count, TELLS_IN_FLIGHT)
    return [TELLS_IN_FLIGHT] * whole + [rest] * bool(rest)
