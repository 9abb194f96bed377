"""Which batches may be written: pure rules, the same for every backend.

A batch with a fence is written if the session's lock is its writer's and the log ends where the batch says it does. If
the log is past that point and the very frames are there, the batch is a replay and succeeds without being written
again. Else it is refused. Lock and log are looked at in the transaction that writes, so a writer that was stopped for a
while and wakes up when another has taken its session over (a zombie) writes nothing.

A lock names its holder: a token that is never used again, and an owner. Whoever wants it may take it when there is no
holder, when the holder is not alive, or when it is an earlier lease of the same owner, whose runs take turns anyway.

A refusal must also stop what the session committed before it knew: those batches follow records that were never
written, and one of them could meet a log that happens to end at its fence. So from a refusal until it is *delivered*,
and for every batch committed before that, the session's fenced batches are refused as well. A batch committed after
the delivery is judged by its fence alone: by then the session has had the chance to reload.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Final, NamedTuple, TypeAlias

from callboard_protocol.errors import CallboardError, FencedError, SessionLockedError, UsageError
from callboard_storage.batch import FrameBatch
from callboard_storage.store import Batch
from callboard_storage.store_values import Fence

OWNER_BYTES: Final = 16
"""How long an owner's id is: random, so that nobody ever has it again."""

NOBODY: Final = bytes(OWNER_BYTES)
"""Whose a run is that was given up: nobody's, who is never alive."""

_HOLDER = struct.Struct(f">Q{OWNER_BYTES}s")


class Holder(NamedTuple):
    """Who has a session's lock."""

    token: int
    owner: bytes

    def pack(self) -> bytes:
        """As a row of the table of locks."""
        return _HOLDER.pack(self.token, self.owner)


def holder_in(row: bytes | None) -> Holder | None:
    """Who a row of the table of locks names. A row that is damaged names somebody who is not alive."""
    if row is None:
        return None
    return Holder(*_HOLDER.unpack(row)) if len(row) == _HOLDER.size else Holder(0, b"")


class Verdict(Enum):
    """What to do with a batch."""

    WRITE = auto()
    REPLAY = auto()


def check_shape(batch: Batch, fence: Fence | None, owner: bytes) -> FrameBatch:
    """The batch as this package's own, if it and its fence go together.

    Args:
        batch: what is to be committed.
        fence: what it follows.
        owner: the open store it is committed to.

    Raises:
        UsageError: it appends records without a fence, or elsewhere than behind its fence, or is not from this store.
    """
    frames = own(batch)
    if frames.owner != owner:
        raise UsageError(
            f"the batch for session {frames.session_id!r} was made by another store, or before this one was opened",
            hint="use store.batch(session_id)",
        )
    if fence is not None and fence.lease is not None and fence.lease.owner != owner:
        raise UsageError(
            f"the lease for session {frames.session_id!r} was made by another store, or before this one was opened",
            hint="use store.lease()",
        )
    if frames.log:
        if fence is None:
            raise UsageError(f"a batch that appends to session {frames.session_id!r} needs a fence")
        if fence.follows is None or frames.first != fence.follows + 1:
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
    batch: FrameBatch,
    fence: Fence,
    last: int,
    holder: Holder | None,
    *,
    is_alive: Callable[[bytes], bool],
    frame_at: Callable[[bytes], bytes | None],
) -> Verdict | FencedError | SessionLockedError:
    """Whether a batch is written, was written before, or is refused.

    Args:
        batch: the batch.
        fence: who writes it, and what it follows.
        last: the sequence the session's log ends at; -1 where it is empty.
        holder: who has the session's lock.
        is_alive: whether an owner lives.
        frame_at: the stored frame under a log key.
    """
    refusal = _refused_lock(batch.session_id, fence, holder, is_alive)
    if refusal is None and fence.follows in {last, None}:
        return Verdict.WRITE
    if batch.log and batch.last <= last and all(frame_at(key) == frame for key, frame in batch.log):
        return Verdict.REPLAY
    return refusal or FencedError(
        f"session {batch.session_id!r} ends at sequence {last}; the batch follows {fence.follows}",
        context={"session_id": batch.session_id, "last": last, "follows": fence.follows},
    )


def expected_token(fence: Fence) -> int:
    """The token a session's lock has where a batch needs no further look at who holds it; 0 is no lock at all."""
    lease = fence.lease
    if lease is None:
        return 0
    return lease.token or (0 if fence.takes else -1)


def claimable(rows: Iterable[tuple[bytes, bytes]], owner: bytes, is_alive: Callable[[bytes], bool]) -> list[bytes]:
    """The keys of unfinished runs that are an owner's, or nobody's who is alive.

    Args:
        rows: keys, and whose they are.
        owner: who claims.
        is_alive: whether an owner lives; asked once for each.
    """
    lives = {owner: False}
    found = []
    for key, theirs in rows:
        if theirs not in lives:
            lives[theirs] = is_alive(theirs)
        if not lives[theirs]:
            found.append(key)
    return found


def owned(rows: Iterable[tuple[bytes, bytes]], owner: bytes) -> list[bytes]:
    """The keys of unfinished runs that are an owner's."""
    return [key for key, theirs in rows if theirs == owner]


def refuse_if_locked(session_id: str, holder: Holder | None, is_alive: Callable[[bytes], bool]) -> None:
    """Raise if someone alive has a session's lock.

    Raises:
        SessionLockedError: someone has.
    """
    if holder is not None and is_alive(holder.owner):
        raise _locked(session_id, holder)


def _refused_lock(
    session_id: str, fence: Fence, holder: Holder | None, is_alive: Callable[[bytes], bool]
) -> FencedError | SessionLockedError | None:
    lease = fence.lease
    if lease is not None:
        if lease.token and holder == (lease.token, lease.owner):
            return None
        if not fence.takes:
            return FencedError(
                f"session {session_id!r} was taken over: this writer's lock had token {lease.token}, "
                + ("nobody has it now" if holder is None else f"the lock now has token {holder.token}"),
                context={"session_id": session_id, "token": lease.token},
            )
        if holder is not None and holder.owner == lease.owner:
            return None
    if holder is None or not is_alive(holder.owner):
        return None
    return _locked(session_id, holder)


def _locked(session_id: str, holder: Holder) -> SessionLockedError:
    return SessionLockedError(
        f"session {session_id!r} is locked by another open store (token {holder.token})",
        context={"session_id": session_id, "token": holder.token, "owner": holder.owner.hex()},
    )


class _Refusal:
    __slots__ = ("delivered_at", "error")

    def __init__(self, error: CallboardError) -> None:
        self.error = error
        self.delivered_at: int | None = None


Committer: TypeAlias = tuple[bytes, str]
"""Whose batches stand and fall together: an open store's, of one session. Several open stores may share a directory."""


class Refusals:
    """Committers one of whose batches was refused, until they know.

    Attributes:
        stamp: put on each batch when it is committed; it tells batches committed before a delivery from later ones.
    """

    __slots__ = ("_lock", "_refused", "stamp")

    def __init__(self) -> None:
        self.stamp = 0
        self._refused: dict[Committer, _Refusal] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._refused)

    def refuse(self, committer: Committer, error: CallboardError) -> None:
        """Refuse the committer's fenced batches from now on, until `deliver`."""
        with self._lock:
            self._refused[committer] = _Refusal(error)

    def standing(self, committer: Committer, stamp: int) -> CallboardError | None:
        """The error of a batch that was committed before its committer knew of the refusal; None if it did know."""
        refusal = self._refused.get(committer)
        if refusal is None or (refusal.delivered_at is not None and stamp >= refusal.delivered_at):
            return None
        return refusal.error.fresh()

    def deliver(self, committer: Committer) -> None:
        """It is being told now. Called on its loop, just before its acknowledgement."""
        with self._lock:
            refusal = self._refused.get(committer)
            if refusal is not None and refusal.delivered_at is None:
                self.stamp += 1
                refusal.delivered_at = self.stamp

    def forget_delivered(self) -> None:
        """Drop delivered refusals. Called when no batch waits: none is left that an old stamp could refuse."""
        with self._lock:
            self._refused = {one: refusal for one, refusal in self._refused.items() if refusal.delivered_at is None}
