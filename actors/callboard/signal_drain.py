"""Closing a runtime when the process is told to end: by SIGTERM from whoever deploys it, by Ctrl-C from a terminal."""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any, Self

from callboard.runtime import Runtime
from callboard_protocol.errors import RuntimeClosedError, UsageError

_HOW = "signals=(signal.SIGTERM, signal.SIGINT)"
_NOBODY_HEARS = frozenset({signal.SIGKILL, signal.SIGSTOP})
_Handler = Callable[[int, FrameType | None], Any]


class SignalDrain:
    """What `drain_on_signals` gives.

    Attributes:
        received: the first signal that came; None while none has.
    """

    def __init__(self, runtime: Runtime, signals: Iterable[int]) -> None:
        given: object = runtime
        if not isinstance(given, Runtime):
            raise UsageError(
                f"drain_on_signals got a {type(given).__name__}, which is no Runtime",
                hint="leave the `with` block of a SyncRuntime by an exception instead; it drains then",
            )
        try:
            self._signals = [signal.Signals(number) for number in signals]
        except (ValueError, TypeError):
            raise UsageError(f"signals={signals!r:.60} are not signals", hint=_HOW) from None
        deaf = _NOBODY_HEARS.intersection(self._signals)
        if deaf:
            raise UsageError(f"no process hears of {', '.join(sorted(one.name for one in deaf))}", hint=_HOW)
        self.received: signal.Signals | None = None
        self._runtime = runtime
        self._earlier: dict[signal.Signals, Any] = {}
        self._loop: asyncio.AbstractEventLoop
        self._body: asyncio.Task[Any]
        self._closing: asyncio.Task[None] | None = None
        self._is_in_block = False
        self._cancels_body = False

    async def __aenter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise UsageError(
                "signals reach the main thread only, and this is another",
                hint="open the runtime on a loop in the main thread; with SyncRuntime, leave its `with` block",
            )
        if self._is_in_block:
            raise UsageError("this block is open already", hint="call drain_on_signals once for each block")
        body = asyncio.current_task()
        assert body is not None
        self._loop, self._body = asyncio.get_running_loop(), body
        for number in self._signals:
            earlier = signal.getsignal(number)
            if earlier is not signal.SIG_IGN:  # whoever started the process wants it not to hear of that one
                self._earlier[number] = earlier
                signal.signal(number, self._hear)
        self._is_in_block = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._is_in_block = False
        try:
            if self.received is not None:
                # The block may have ended by itself meanwhile. A further signal still ends the process at once.
                await self._runtime.aclose(reason=self.received.name)
        finally:
            for number, earlier in self._earlier.items():
                if signal.getsignal(number) == self._hear:
                    signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
        if self._cancels_body:
            return self._body.uncancel() == 0 and isinstance(error, asyncio.CancelledError)
        return self.received is not None and isinstance(error, RuntimeClosedError)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread between two instructions of whatever runs there, also while that blocks the loop."""
        came = signal.Signals(number)
        earlier = self._earlier[came]
        is_first, self.received = self.received is None, self.received or came
        if is_first:
            self._loop.call_soon_threadsafe(self._begin)
        elif not _ends_the_program(earlier):
            signal.signal(came, signal.SIG_DFL)
            signal.raise_signal(came)
        if _ends_the_program(earlier):
            earlier(number, frame)

    def _begin(self) -> None:
        self._closing = self._loop.create_task(self._close(), name="closing on a signal")

    async def _close(self) -> None:
        assert self.received is not None
        is_left_to_others = _ends_the_program(self._earlier[self.received])
        try:
            await self._runtime.aclose(reason=self.received.name)
        finally:
            if self._is_in_block and not is_left_to_others:
                self._cancels_body = True
                self._body.cancel()


def drain_on_signals(runtime: Runtime, signals: Iterable[int] = (signal.SIGTERM, signal.SIGINT)) -> SignalDrain:
    """Close a runtime when a signal comes, as `aclose` does, and then end the block.

        async with Runtime(agents, store="./data", drain_timeout=20) as runtime, drain_on_signals(runtime) as drain:
            await work(runtime)

    The first signal begins the closing at once; calls that wait for runs get their results (`interrupted`, where the
    next start carries the run on). Once the runtime has closed, the block is cancelled if it has not ended by itself,
    and the code behind it goes on: the process ends with 0 unless it says otherwise. A second signal ends the process
    at once, which loses nothing that was acknowledged. Leaving the block restores the earlier handlers.

    Where somebody else answers the signal already (uvicorn, hypercorn, a handler of your own), theirs is called as
    well, each time, and it is they who end the program: the block is left alone.

    Args:
        runtime: it is open, on a loop in the main thread.
        signals: which; those that the process was started to ignore stay ignored.

    Raises:
        UsageError: `signals` holds something else, or one that no process hears of; on entering, this is not the main
            thread.
    """
    return SignalDrain(runtime, signals)


def _ends_the_program(earlier: _Handler | int | None) -> bool:
    """Whether a handler is somebody's answer to the signal, rather than what Python and asyncio do by default."""
    if not callable(earlier) or earlier is signal.default_int_handler:
        return False
    function = earlier.func if isinstance(earlier, functools.partial) else earlier
    return not isinstance(getattr(function, "__self__", None), asyncio.Runner)
