"""One session's commits, in order: what the store has no room for is held, and everything behind it."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from callboard.kernel import LoopFuture
from callboard.sessions.room import FIRST_DELAY, next_delay
from callboard_protocol.errors import CallboardError, StoreFullError
from callboard_storage.store import Batch, Store
from callboard_storage.store_values import Fence

AnswerT = TypeVar("AnswerT")


class Hold(Protocol):
    """Who is told that a commit has to wait for room."""

    def begin(self, *, has_happened: bool) -> None:
        """It waits from now on.

        Args:
            has_happened: whether what it keeps has happened; otherwise nothing is lost by giving it up.
        """
        ...

    def end(self, *, has_happened: bool) -> None:
        """It waits no more: it is on disk, or given up."""
        ...


class _Commit:
    """A batch on its way to the disk."""

    __slots__ = ("acknowledged", "answer", "batch", "fence", "hold", "is_held", "line", "place")

    def __init__(
        self, line: CommitLine, place: int, batch: Batch, fence: Fence | None, answer: Any, hold: Hold | None
    ) -> None:
        self.line = line
        self.place = place
        self.batch = batch
        self.fence = fence
        self.answer = answer
        self.hold = hold
        self.is_held = False
        self.acknowledged: LoopFuture[Any] = LoopFuture()

    def answered(self, error: CallboardError | None) -> None:
        """The store has written it, or refused it."""
        if error is None and not self.is_held:
            self.acknowledged.set_result(self.answer)
        else:
            self.line.answered(self, error)

    def settle(self, error: CallboardError | None) -> None:
        """Answer whoever waits for it."""
        if self.is_held and self.hold is not None:
            self.hold.end(has_happened=not self.batch.begins_work)
        if error is None:
            self.acknowledged.set_result(self.answer)
        else:
            self.acknowledged.set_exception(error)


class CommitLine:
    """The way from a session to its store.

    A batch that the store has no room for is kept as it is, frames and fence, and tried again until the store takes it:
    one that was written after all counts as written. Meanwhile nothing of the session overtakes it.

    Args:
        store: where the batches go.
        on_refused: called when a batch is refused for good: what the session believes no longer holds.

    Attributes:
        last: the answer to the last commit.
        given_up: why everything held was given up; None while nothing was.
    """

    def __init__(self, store: Store, on_refused: Callable[[], None]) -> None:
        self._store = store
        self._on_refused = on_refused
        self._held: list[_Commit] = []
        self._places = 0
        self._delay = FIRST_DELAY
        self._retry: asyncio.TimerHandle | None = None
        self.last: LoopFuture[Any] | None = None
        self.given_up: StoreFullError | None = None

    def commit(
        self, batch: Batch, fence: Fence | None, answer: AnswerT, hold: Hold | None = None
    ) -> LoopFuture[AnswerT]:
        """Have a batch written.

        Args:
            batch: what is written.
            fence: what it follows.
            answer: what the future holds once it is on disk.
            hold: told if it has to wait for room; with None it is refused instead.
        """
        self._places += 1
        commit = _Commit(self, self._places, batch, fence, answer, hold)
        self.last = commit.acknowledged
        if self._held and hold is not None:
            self._keep(commit)
        else:
            self._send(commit)
        return commit.acknowledged

    def give_up(self) -> None:
        """Let go of everything held, if anything is: what is on disk stands, and the session has to read it anew."""
        held, self._held = self._held, []
        if not held:
            return
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        unwritten = sum(not commit.batch.begins_work for commit in held)
        self.given_up = StoreFullError(
            f"the store had no room, and {unwritten} outcomes that were held for it are not on disk",
            hint="make room; the next start carries the run on from what is on disk",
        )
        self._on_refused()
        for commit in held:
            commit.settle(self.given_up.fresh())

    def close(self) -> None:
        """The session's run has ended: the next one begins with a clean slate."""
        self.last = None
        self.given_up = None
        self._delay = FIRST_DELAY

    def _send(self, commit: _Commit) -> None:
        self._store.commit(commit.batch, commit.fence, asyncio.get_running_loop(), commit.answered)

    def answered(self, commit: _Commit, error: CallboardError | None) -> None:
        """The store has answered a commit, which waited for room or is refused now."""
        if error is None:
            self._delay = FIRST_DELAY
            commit.settle(None)
        elif isinstance(error, StoreFullError) and commit.hold is not None and self.given_up is None:
            self._keep(commit)
        else:
            if commit.fence is not None:
                self._on_refused()
                held, self._held = self._held, []
                for behind in held:
                    behind.settle(error.fresh())
            commit.settle(error)

    def _keep(self, commit: _Commit) -> None:
        # Refusals of one session's batches come in their order, but a retry can be refused after one behind it was.
        insort(self._held, commit, key=lambda held: held.place)
        if not commit.is_held and commit.hold is not None:
            commit.is_held = True
            commit.hold.begin(has_happened=not commit.batch.begins_work)
        if self._retry is None and self._held:
            self._retry = asyncio.get_running_loop().call_later(self._delay, self._try_again)
            self._delay = next_delay(self._delay)

    def _try_again(self) -> None:
        self._retry = None
        held, self._held = self._held, []
        for commit in held:
            self._send(commit)
