"""What waits for the writer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from callboard_protocol.errors import CallboardError
from callboard_storage.batch import FrameBatch
from callboard_storage.lmdb_environment import WriteTransaction
from callboard_storage.store import Acknowledge, Fence

GROUP_BYTES = 8 * 1024 * 1024
"""How much one transaction takes; what waits beyond that goes into the next one, in order."""


@dataclass(slots=True)
class Commit:
    """A batch that waits to be written.

    Attributes:
        batch: what is written.
        fence: what it follows.
        loop: where `acknowledge` is called.
        acknowledge: called with None or the error.
        stamp: `Refusals.stamp` as it was when the batch was committed.
    """

    batch: FrameBatch
    fence: Fence | None
    loop: asyncio.AbstractEventLoop
    acknowledge: Acknowledge
    stamp: int


@dataclass(slots=True)
class Operation:
    """Work that has the write transaction to itself, in its turn among the batches.

    Attributes:
        work: what to do; its result goes to `done`.
        loop: where `done` is called.
        done: called with the result, or with None and the error.
    """

    work: Callable[[WriteTransaction], Any]
    loop: asyncio.AbstractEventLoop
    done: Callable[[Any, CallboardError | None], None]


class WriteQueue:
    """Any thread puts, only the writer takes. It needs no lock: a deque's ends and a flag are atomic under the GIL.

    Args:
        wake: called by the first `put` after the writer fell asleep.
        group_bytes: how much one transaction takes.

    Attributes:
        commits: transactions committed so far.
        batches: batches those held together.
    """

    def __init__(self, wake: Callable[[], None], group_bytes: int = GROUP_BYTES) -> None:
        self._wake = wake
        self.commits = 0
        self.batches = 0
        self._waiting: deque[Commit | Operation] = deque()
        self._group_bytes = group_bytes
        self._is_awake = False

    def put(self, item: Commit | Operation) -> None:
        """Add to the end; wakes the writer if it sleeps."""
        self._waiting.append(item)
        if not self._is_awake:
            self._is_awake = True
            self._wake()

    def take(self) -> list[Commit] | Operation | None:
        """What the next transaction does; None once nothing waits and the next `put` will wake the writer again."""
        waiting = self._waiting
        if not waiting:
            self._is_awake = False
            if not waiting:
                return None
            self._is_awake = True  # put between the look and the flag
        group: list[Commit] = []
        size = 0
        while waiting:
            item = waiting[0]
            if isinstance(item, Operation):
                if group:
                    break
                waiting.popleft()
                return item
            size += item.batch.size
            if group and size > self._group_bytes:
                break
            group.append(item)
            waiting.popleft()
        return group
