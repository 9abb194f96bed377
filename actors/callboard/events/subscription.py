"""Subscription: events as one reader takes them, at that reader's pace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

from callboard_protocol.commands import Unsubscribe
from callboard_protocol.errors import ActorError, UsageError
from callboard_protocol.event_base import Event, RawEvent
from callboard_protocol.events import LIVE_ONLY, build_event

if TYPE_CHECKING:
    from types import TracebackType

    from callboard.kernel import Ref

logger = logging.getLogger("callboard.events")

_SLACK: Final = 16


class _Entry:
    """An event that waits, or the gap where some were lost: then `raw` is None."""

    __slots__ = ("missed", "raw")

    def __init__(self, raw: RawEvent) -> None:
        self.raw: RawEvent | None = raw
        self.missed = 0


class Subscription:
    """An async iterator over events, made by asking the bus to `Subscribe`. For one reader, on the bus's loop.

        async with subscription:
            async for event in subscription: ...

    It holds a bounded number of events. A reader that is too slow loses its oldest live-only events first, and recorded
    ones only when nothing else is left; where some are missing it gets one `subscriber.lagged` that says how many.

    Attributes:
        run_id: the run it watches; None for every run.
        names: the events it takes; all where empty.
        limit: how many may wait.
    """

    __slots__ = ("_bus", "_ended", "_live", "_queue", "_size", "_waiter", "limit", "names", "run_id")

    def __init__(self, bus: Ref[Any], *, run_id: str | None, names: frozenset[str], limit: int) -> None:
        self.run_id = run_id
        self.names = names
        self.limit = limit
        self._bus = bus
        self._queue: deque[_Entry] = deque()
        self._live: deque[_Entry] = deque()
        self._size = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return self._size

    def takes(self, name: str) -> bool:
        """Whether it takes events of that name."""
        return not self.names or name in self.names

    # ---- the bus's side

    def offer(self, raw: RawEvent) -> None:
        """Called by the bus with each event of the run. Never blocks."""
        name = raw[0]
        if self._ended or (self.names and name not in self.names):
            return
        entry = _Entry(raw)
        self._queue.append(entry)
        if name in LIVE_ONLY:
            self._live.append(entry)
        self._size += 1
        if self._size > self.limit:
            self._drop()
        if self._waiter is not None:
            self._wake()

    def end(self) -> None:
        """Called by the bus: nothing more comes. What waits can still be read."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _drop(self) -> None:
        self._size -= 1
        if self._live:
            entry = self._live.popleft()
            entry.raw = None
            entry.missed = 1
            if len(self._queue) > 3 * self.limit + _SLACK:
                self._merge_gaps()
            return
        missed = 1
        entry = self._queue.popleft()
        while entry.raw is None:
            missed += entry.missed
            entry = self._queue.popleft()
        entry.raw = None
        entry.missed = missed
        self._queue.appendleft(entry)

    def _merge_gaps(self) -> None:
        """Gaps side by side become one, so that a reader that never reads holds no more than twice its limit."""
        merged: deque[_Entry] = deque()
        for entry in self._queue:
            if entry.raw is None and merged and merged[-1].raw is None:
                merged[-1].missed += entry.missed
            else:
                merged.append(entry)
        self._queue = merged

    # ---- the reader's side

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises:
            StopAsyncIteration: the subscription was closed, or the bus has stopped.
            UsageError: somebody else is waiting for the next event.
        """
        while True:
            event = self._take()
            if event is not None:
                return event
            if self._ended:
                raise StopAsyncIteration
            if self._waiter is not None:
                raise UsageError("a subscription has one reader", hint="subscribe once for each")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _take(self) -> Event | None:
        queue = self._queue
        missed = 0
        while queue and queue[0].raw is None:
            missed += queue.popleft().missed
        if missed:
            return build_event(("subscriber.lagged", self.run_id, None, None, time.time(), None, {"missed": missed}))
        while queue:
            entry = queue[0]
            raw = entry.raw
            if raw is None:
                return self._take()
            queue.popleft()
            self._size -= 1
            if self._live and self._live[0] is entry:
                self._live.popleft()
            try:
                return build_event(raw)
            except Exception:
                # One event that does not fit its model must not end the stream of all that follow.
                logger.exception("the event %r does not fit its model and is skipped", raw)
        return None

    def close(self) -> None:
        """Stop watching. What waits is dropped, and the iteration ends."""
        self._queue.clear()
        self._live.clear()
        self._size = 0
        self.end()
        # A bus that has stopped has no subscriptions left to forget.
        with contextlib.suppress(ActorError):
            self._bus.tell(Unsubscribe(subscription=self))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
