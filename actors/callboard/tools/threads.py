"""Threads for tools that block: bounded, and expendable. A thread that never comes back keeps nothing else waiting."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from callboard_protocol.errors import ToolFailedError


class _Job:
    __slots__ = ("abandoned", "context", "function", "holds_slot", "outcome")

    def __init__(self, function: Callable[[], Any], outcome: asyncio.Future[tuple[Any, BaseException | None]]) -> None:
        self.function = function
        self.context = contextvars.copy_context()
        self.outcome = outcome
        self.abandoned = False
        self.holds_slot = True


class ToolThreads:
    """A pool of daemon threads, so that a call that hangs does not keep the process from ending.

    An abandoned call gives its place to the next one, as long as no more than `size` calls are abandoned: there are
    never more than ``2 * size`` threads.

    Args:
        loop: where the answers go.
        size: how many calls run at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int) -> None:
        self._loop = loop
        self._size = size
        self._slots = asyncio.Semaphore(size)
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._idle = 0
        self._threads = 0
        self._abandoned = 0
        self._stuck = 0
        self._serials = itertools.count(1)

    @property
    def abandoned(self) -> int:
        """How many abandoned calls still hold a thread."""
        return self._abandoned

    async def reserve(self) -> None:
        """Wait for a place; `run` gives it back.

        Raises:
            ToolFailedError: every place is held by an abandoned call.
        """
        if self._stuck >= self._size:
            raise ToolFailedError(
                f"no thread is free: {self._abandoned} calls ran past their timeouts and still block",
                hint="have blocking tools look at ctx.cancelled, or give their own calls timeouts",
                retryable=True,
            )
        await self._slots.acquire()

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call it in a thread, in a reserved place. Cancelling this abandons the thread: it goes on, unheard.

        Raises:
            BaseException: what the function raised.
        """
        job = _Job(function, self._loop.create_future())
        if self._idle:
            self._idle -= 1
        else:
            self._threads += 1
            name = f"callboard-tool-{next(self._serials)}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        self._jobs.put(job)
        try:
            value, error = await job.outcome
        except asyncio.CancelledError:
            if not job.outcome.done() or job.outcome.cancelled():
                self._abandon(job)
            raise
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """Let every thread end once it is idle."""
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0

    def _abandon(self, job: _Job) -> None:
        job.abandoned = True
        self._abandoned += 1
        if self._abandoned <= self._size:
            job.holds_slot = False
            self._slots.release()
        else:
            self._stuck += 1

    def _returned(self, job: _Job, value: Any, error: BaseException | None) -> None:
        self._idle += 1
        if job.abandoned:
            self._abandoned -= 1
            self._stuck -= job.holds_slot
        if job.holds_slot:
            self._slots.release()
        if not job.outcome.done():
            job.outcome.set_result((value, error))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            value, error = None, None
            if not job.abandoned:
                try:
                    value = job.context.run(job.function)
                except BaseException as problem:  # noqa: BLE001 - an exit in a tool must not end its thread unheard
                    error = problem
            with contextlib.suppress(RuntimeError):  # the loop may have closed over an abandoned call
                self._loop.call_soon_threadsafe(self._returned, job, value, error)
            # The thread may wait long for its next job, and must not keep this one's values alive meanwhile.
            del job, value, error
