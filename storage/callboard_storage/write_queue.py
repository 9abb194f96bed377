"""What waits for the writer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from callboard_protocol.errors import CallboardError
from callboard_storage.batch import FrameBatch
from callboard_storage.lmdb_transactions import WriteTransaction
from callboard_storage.store_values import Acknowledge, Fence
from callboard_storage.uploads import Upload
from callboard_storage.write_turn import WriteTurn

GROUP_BYTES = 8 * 1024 * 1024
"""How much one transaction takes; what waits beyond that goes into the next one, in order."""


@dataclass(slots=True, eq=False)
class Commit:
    """A batch that waits to be written.

    Attributes:
        batch: what is written.
        fence: what it follows.
        loop: where `acknowledge` is called.
        acknowledge: called with None or the error.
        stamp: `Refusals.stamp` as it was when the batch was committed.
        upload: what goes to disk ahead of it; None where there is nothing.
        is_uploaded: whether all of that is on disk.
    """

    batch: FrameBatch
    fence: Fence | None
    loop: asyncio.AbstractEventLoop
    acknowledge: Acknowledge
    stamp: int
    upload: Upload | None = None
    is_uploaded: bool = False

    @property
    def session_id(self) -> str:
        """The session it is for."""
        return self.batch.session_id


@dataclass(slots=True)
class Operation:
    """Work that has the write transaction to itself, in its turn among the batches.

    Attributes:
        session_id: the session it is for.
        work: what to do; its result goes to `done`.
        loop: where `done` is called.
        done: called with the result, or with None and the error.
    """

    session_id: str
    work: Callable[[WriteTransaction], Any]
    loop: asyncio.AbstractEventLoop
    done: Callable[[Any, CallboardError | None], None]


class WriteQueue:
    """Any thread puts, only the writer takes. It needs no lock: a deque's ends and a flag are atomic under the GIL.

    A commit with an upload stands aside until its chunks are on disk, and with it whatever its session put behind it;
    other sessions overtake. Uploads have a turn after each transaction of the others, one upload after the other.

    Args:
        wake: called by the first `put` after the writer fell asleep.
        group_bytes: how much one transaction takes.

    Attributes:
        commits: transactions committed so far.
        batches: batches those held together.
        turn: what the writer is at.
    """

    def __init__(self, wake: Callable[[], None], group_bytes: int = GROUP_BYTES) -> None:
        self._wake = wake
        self.commits = 0
        self.batches = 0
        self.turn = WriteTurn()
        self._waiting: deque[Commit | Operation] = deque()
        self._uploading: deque[Commit] = deque()
        self._behind: dict[str, list[Commit | Operation]] = {}
        self._is_turn_of_uploads = False
        self._group_bytes = group_bytes
        self._is_awake = False

    def put(self, item: Commit | Operation) -> None:
        """Add to the end; wakes the writer if it sleeps."""
        self._waiting.append(item)
        if not self._is_awake:
            self._is_awake = True
            self._wake()

    def take(self) -> list[Commit] | Commit | Operation | None:
        """What the next transaction does: commits, a step of one commit's upload, or an operation. None once nothing
        waits and the next `put` will wake the writer again.
        """
        if self._uploading and (self._is_turn_of_uploads or not self._waiting):
            return self._next_upload()
        group = self._take_group()
        if group:
            self._is_turn_of_uploads = True
            return group
        if self._uploading:
            return self._next_upload()
        self._is_awake = False
        if not self._waiting:
            return None
        self._is_awake = True  # put between the look and the flag
        return self.take()

    def end_upload(self, commit: Commit) -> None:
        """Let a commit whose chunks are on disk go on, and with it what its session put behind it."""
        self._leave_uploads(commit, (commit,))

    def give_up_upload(self, commit: Commit) -> None:
        """Let what a session put behind a commit go on without that."""
        self._leave_uploads(commit, ())

    def _leave_uploads(self, commit: Commit, instead: tuple[Commit, ...]) -> None:
        self._uploading.remove(commit)
        self._waiting.extendleft(reversed((*instead, *self._behind.pop(commit.session_id))))

    def _next_upload(self) -> Commit:
        self._is_turn_of_uploads = False
        self._uploading.rotate(-1)
        return self._uploading[-1]

    def _take_group(self) -> list[Commit] | Operation:
        waiting, behind = self._waiting, self._behind
        group: list[Commit] = []
        size = 0
        while waiting:
            item = waiting[0]
            if behind and item.session_id in behind:
                behind[item.session_id].append(waiting.popleft())
            elif isinstance(item, Operation):
                if not group:
                    waiting.popleft()
                    return item
                break
            elif item.upload is not None and not item.is_uploaded:
                behind[item.session_id] = []
                self._uploading.append(item)
                waiting.popleft()
            else:
                size += item.batch.size
                if group and size > self._group_bytes:
                    break
                group.append(item)
                waiting.popleft()
        return group
