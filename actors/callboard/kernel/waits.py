"""Who waits for whom: asks among handlers that would wait in a circle are refused, not left to hang."""

from __future__ import annotations

import asyncio
from asyncio.tasks import current_task
from typing import TYPE_CHECKING, Any

from callboard_protocol.errors import WouldDeadlockError

if TYPE_CHECKING:
    from callboard.kernel.engine import Engine
    from callboard.kernel.mailbox import Envelope


class Waits:
    """The async handlers that run in one system, and what each of them has asked and waits for.

    Only they matter: a sync handler cannot wait, and a reply that was deferred waits for nobody the kernel knows of. An
    ask counts as its handler's own when made in the handler's task, not in one that the handler spawned: whether it
    waits for that one cannot be known, so such a circle ends by the ask's timeout.

    Attributes:
        handlers: the task of each handler -> its actor and the message it handles.
        asks: the task of each handler that waits -> whom it asked, and with what.
    """

    __slots__ = ("asks", "handlers")

    def __init__(self) -> None:
        self.handlers: dict[asyncio.Task[Any], tuple[Engine, Envelope]] = {}
        self.asks: dict[asyncio.Task[Any], tuple[Engine, Envelope]] = {}

    def refuse_circle(self, asked: Engine) -> asyncio.Task[Any] | None:
        """Refuse to let the handler that runs wait for an answer that waits, through others, for that handler.

        Args:
            asked: the actor it is about to ask.

        Returns:
            The handler's task, to note the ask under; None where it is no handler that asks.

        Raises:
            WouldDeadlockError: it names each actor of the circle.
        """
        asking = current_task(asked.loop)
        if asking is None or asking not in self.handlers:
            return None
        chain = [self.handlers[asking][0].name, asked.name]
        blocker = asked.task
        while blocker is not None:
            if blocker is asking:
                raise WouldDeadlockError(
                    f"a circle of asks would never end: {' -> '.join(chain)}",
                    hint="tell instead, or answer from a concurrent handler or by a deferred reply",
                )
            ask = self.asks.get(blocker)
            if ask is None:
                break
            engine, envelope = ask
            chain.append(engine.name)
            # What is handled already waits for its own handler; what is queued, for the one that has the actor.
            in_flight = engine.in_flight
            blocker = in_flight[envelope] if in_flight and envelope in in_flight else engine.task
        return asking
