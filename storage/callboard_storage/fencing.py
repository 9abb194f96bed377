"""Which batches may be written: pure rules, the same for every backend.

A batch with a fence is written if the session's log ends where the batch says it does. If the log is past that point
and the very frames are there, the batch is a replay and succeeds without being written again. Else it is refused.

A refusal must also stop what the session committed before it knew: those batches follow records that were never
written, and one of them could meet a log that happens to end at its fence. So from a refusal until it is *delivered*,
and for every batch committed before that, the session's fenced batches are refused as well. A batch committed after
the delivery is judged by its fence alone: by then the session has had the chance to reload.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum, auto

from callboard_protocol.errors import CallboardError, FencedError, UsageError
from callboard_storage.batch import FrameBatch
from callboard_storage.store import Batch, Fence


class Verdict(Enum):
    """What to do with a batch."""

    WRITE = auto()
    REPLAY = auto()


def check_shape(batch: Batch, fence: Fence | None) -> FrameBatch:
    """The batch as this package's own, if it and its fence go together.

    Raises:
        UsageError: it appends records without a fence, or elsewhere than behind its fence, or is not from this store.
    """
    frames = own(batch)
    if frames.log:
        if fence is None:
            raise UsageError(f"a batch that appends to session {frames.session_id!r} needs a fence")
        if frames.first != fence.follows + 1:
            raise UsageError(
                f"the batch for session {frames.session_id!r} starts at sequence {frames.first}, its fence follows "
                f"{fence.follows}"
            )
    return frames


def own(batch: Batch) -> FrameBatch:
    """The batch as this package's own.

    Raises:
        UsageError: it is not.
    """
    if type(batch) is not FrameBatch:
        raise UsageError(f"a {type(batch).__name__} is no batch of this store", hint="use store.batch(session_id)")
    return batch


def judge(
    batch: FrameBatch, fence: Fence | None, last: int, frame_at: Callable[[bytes], bytes | None]
) -> Verdict | FencedError:
    """Whether a batch is written, was written before, or is refused.

    Args:
        batch: the batch.
        fence: what it follows.
        last: the sequence the session's log ends at; -1 where it is empty.
        frame_at: the stored frame under a log key.
    """
    if fence is None or fence.follows == last:
        return Verdict.WRITE
    if batch.log and batch.last <= last and all(frame_at(key) == frame for key, frame in batch.log):
        return Verdict.REPLAY
    return FencedError(
        f"session {batch.session_id!r} ends at sequence {last}; the batch follows {fence.follows}",
        context={"session_id": batch.session_id, "last": last, "follows": fence.follows},
    )


class _Refusal:
    __slots__ = ("delivered_at", "error")

    def __init__(self, error: CallboardError) -> None:
        self.error = error
        self.delivered_at: int | None = None


class Refusals:
    """Sessions one of whose batches was refused, until they know.

    Attributes:
        stamp: put on each batch when it is committed; it tells batches committed before a delivery from later ones.
    """

    __slots__ = ("_lock", "_refused", "stamp")

    def __init__(self) -> None:
        self.stamp = 0
        self._refused: dict[str, _Refusal] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._refused)

    def refuse(self, session_id: str, error: CallboardError) -> None:
        """Refuse the session's fenced batches from now on, until `deliver`."""
        with self._lock:
            self._refused[session_id] = _Refusal(error)

    def standing(self, session_id: str, stamp: int) -> CallboardError | None:
        """The error of a batch that was committed before its session knew of the refusal; None if it did know."""
        refusal = self._refused.get(session_id)
        if refusal is None or (refusal.delivered_at is not None and stamp >= refusal.delivered_at):
            return None
        return refusal.error.fresh()

    def deliver(self, session_id: str) -> None:
        """The session is being told now. Called on its committer's loop, just before its acknowledgement."""
        with self._lock:
            refusal = self._refused.get(session_id)
            if refusal is not None and refusal.delivered_at is None:
                self.stamp += 1
                refusal.delivered_at = self.stamp

    def forget_delivered(self) -> None:
        """Drop delivered refusals. Called when no batch waits: none is left that an old stamp could refuse."""
        with self._lock:
            self._refused = {one: refusal for one, refusal in self._refused.items() if refusal.delivered_at is None}
