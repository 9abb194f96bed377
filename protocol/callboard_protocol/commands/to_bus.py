"""What is said to the `EventBus`."""

from collections.abc import Sequence
from typing import Any

from callboard_protocol.commands.base import Command, Live, Request


class PublishEvents(Command):
    """Events in the order they happened.

    Attributes:
        events: raw events, as `callboard_protocol.events` describes them.
    """

    events: Live[Sequence[Any]]


class Subscribe(Request[Any]):
    """Begin to watch. The answer is a `Subscription`.

    Attributes:
        run_id: only this run's events; every run's where None.
        names: only events of these names; all where empty.
        limit: how many events may wait before the oldest live-only ones are dropped.
    """

    run_id: str | None = None
    names: frozenset[str] = frozenset()
    limit: int = 1000


class Unsubscribe(Command):
    """Stop watching.

    Attributes:
        subscription: what `Subscribe` answered.
    """

    subscription: Live[Any]
