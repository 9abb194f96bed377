"""A run's mail: the letters posted to it, as the process that carries it knows them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from callboard_protocol.letters import Letter, PostedCancellation, PostedDecision, PostedSignal
from callboard_protocol.tools import PendingCall, Question


class RunMail:
    """What was said to one run from outside and is not in its journal yet.

    Attributes:
        cancellation: who wants the run stopped; None where nobody does.
    """

    __slots__ = ("_decisions", "_last_number", "_signals", "_waiting", "cancellation")

    def __init__(self, letters: Iterable[Letter] = ()) -> None:
        self.cancellation: PostedCancellation | None = None
        self._decisions: dict[tuple[str, Question, int, bytes], PostedDecision] = {}
        self._signals: dict[str, deque[PostedSignal]] = {}
        self._waiting: dict[str, deque[asyncio.Future[PostedSignal]]] = {}
        self._last_number = -1
        self.take_in(letters)

    def take_in(self, letters: Iterable[Letter]) -> None:
        """Add letters; those that were added before change nothing."""
        for letter in letters:
            if isinstance(letter, PostedDecision):
                about = letter.step, letter.reason, letter.attempt, letter.arguments_digest
                self._decisions.setdefault(about, letter)
            elif isinstance(letter, PostedSignal):
                if letter.number > self._last_number:
                    self._last_number = letter.number
                    self._deliver(letter)
            else:
                self.cancellation = self.cancellation or letter

    def decision(self, step: str, reason: Question, attempt: int, digest: bytes) -> PostedDecision | None:
        """What was decided about a call with these very arguments; None where nobody has."""
        return self._decisions.get((step, reason, attempt, digest))

    def decides(self, call: PendingCall) -> bool:
        """Whether a pending call has been decided."""
        if call.reason not in ("approval", "in_doubt"):
            return False
        about = call.call_id, call.reason, call.attempt, bytes.fromhex(call.arguments_digest)
        return any(
            about == (f"{letter.run_id}:{letter.step}", letter.reason, letter.attempt, letter.arguments_digest)
            for letter in self._decisions.values()
        )

    async def next_signal(self, channel: str) -> PostedSignal:
        """The oldest signal of a channel, once there is one; it is not there any more for whoever asks next."""
        signals = self._signals.get(channel)
        if signals:
            return signals.popleft()
        waiter: asyncio.Future[PostedSignal] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(channel, deque()).append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.put_back(waiter.result())
            raise

    def put_back(self, signal: PostedSignal) -> None:
        """A signal that was taken has not been received after all."""
        self._deliver(signal, first=True)

    def _deliver(self, signal: PostedSignal, *, first: bool = False) -> None:
        waiting = self._waiting.get(signal.channel, ())
        while waiting:
            waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(signal)
                return
        signals = self._signals.setdefault(signal.channel, deque())
        if first:
            signals.appendleft(signal)
        else:
            signals.append(signal)
