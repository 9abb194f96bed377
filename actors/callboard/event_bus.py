"""EventBus: the actor that hands events to whoever watches, and never keeps a publisher waiting."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from callboard.events.subscription import Subscription
from callboard.kernel import Actor, handles
from callboard_protocol.commands import PublishEvents, Subscribe, Unsubscribe
from callboard_protocol.event_base import RawEvent

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["EventBus", "Watchers", "Subscription"]

logger = logging.getLogger("callboard.events")

RING_SIZE: Final = 1000
"""How many events the bus remembers."""

_NOBODY: Final[tuple[Subscription, ...]] = ()


class Watchers:
    """Who watches which run. Shared with the runs by reference, so that they can ask without a message."""

    __slots__ = ("_by_run", "_everywhere")

    def __init__(self) -> None:
        self._by_run: dict[str, list[Subscription]] = {}
        self._everywhere: list[Subscription] = []

    def watched(self, run_id: str | None, name: str | None = None) -> bool:
        """Whether anyone would take this run's events.

        Args:
            run_id: the run.
            name: only events of this name, such as ``llm.delta``.
        """
        if name is None:
            return bool(self._everywhere) or run_id in self._by_run
        return any(one.takes(name) for one in (*self._everywhere, *self.of(run_id)))

    def of(self, run_id: str | None) -> Sequence[Subscription]:
        """The subscriptions to this run alone."""
        return _NOBODY if run_id is None else self._by_run.get(run_id, _NOBODY)

    @property
    def everywhere(self) -> Sequence[Subscription]:
        """The subscriptions to every run."""
        return self._everywhere

    @property
    def anyone(self) -> bool:
        """Whether there is any subscription."""
        return bool(self._everywhere or self._by_run)

    def add(self, subscription: Subscription) -> None:
        """Called by the bus."""
        if subscription.run_id is None:
            self._everywhere.append(subscription)
        else:
            self._by_run.setdefault(subscription.run_id, []).append(subscription)

    def remove(self, subscription: Subscription) -> None:
        """Called by the bus; one that is not there is no error."""
        if subscription.run_id is None:
            self._everywhere = [one for one in self._everywhere if one is not subscription]
            return
        rest = [one for one in self.of(subscription.run_id) if one is not subscription]
        if rest:
            self._by_run[subscription.run_id] = rest
        else:
            self._by_run.pop(subscription.run_id, None)

    def end_all(self) -> None:
        """End every subscription: each yields what it holds, and then no more."""
        for subscription in (*self._everywhere, *(one for several in self._by_run.values() for one in several)):
            subscription.end()
        self._everywhere = []
        self._by_run = {}


class EventBus(Actor[PublishEvents | Subscribe | Unsubscribe]):
    """Keeps the latest events as plain tuples and hands each to the subscriptions it concerns.

    Args:
        watchers: who watches what; shared with the runs. A restarted bus is given the same one, emptied.
        ring: how many events it remembers.
    """

    # A run that publishes must not be refused: what waits here are references to tuples.
    mailbox_limit = 100_000

    def __init__(self, watchers: Watchers | None = None, *, ring: int = RING_SIZE) -> None:
        super().__init__()
        self.watchers = Watchers() if watchers is None else watchers
        self._ring: deque[RawEvent] = deque(maxlen=ring)
        self.watchers.end_all()

    @handles
    def publish(self, message: PublishEvents) -> None:
        """Keep the events and hand them on."""
        events = message.events
        self._ring.extend(events)
        watchers = self.watchers
        if not watchers.anyone:
            return
        for raw in events:
            try:
                for subscription in watchers.of(raw[1]):
                    subscription.offer(raw)
                for subscription in watchers.everywhere:
                    subscription.offer(raw)
            except Exception:
                logger.exception("the event %r could not be handed on", raw)

    @handles
    def subscribe(self, message: Subscribe) -> Subscription:
        """Begin to watch: what is published from now on."""
        subscription = Subscription(
            self.actor_ref, run_id=message.run_id, names=message.names, limit=max(1, message.limit)
        )
        self.watchers.add(subscription)
        return subscription

    @handles
    def unsubscribe(self, message: Unsubscribe) -> None:
        """Stop watching."""
        self.watchers.remove(message.subscription)
        message.subscription.end()

    def recent(self, run_id: str | None = None) -> list[RawEvent]:
        """The latest events, oldest first; of one run where it is given."""
        return [raw for raw in self._ring if run_id is None or raw[1] == run_id]

    def on_stop(self) -> None:
        """End every subscription."""
        self.watchers.end_all()

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As `on_stop`."""
        self.watchers.end_all()
