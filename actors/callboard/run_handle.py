"""What callers hold of a run: a handle that outlives their interest, and a stream they follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

from callboard_protocol.errors import UsageError
from callboard_protocol.event_base import Event
from callboard_protocol.runs import OutputT_co, RunResult

if TYPE_CHECKING:
    from callboard.runtime import Runtime


class RunHandle(Generic[OutputT_co]):
    """A run that was taken in. Dropping the handle changes nothing: the run goes on.

    Attributes:
        run_id: the run.
    """

    def __init__(self, runtime: Runtime, run_id: str, settled: Callable[[], Awaitable[RunResult[OutputT_co]]]) -> None:
        self.run_id = run_id
        self._runtime = runtime
        self._settled = settled

    def __repr__(self) -> str:
        return f"<RunHandle {self.run_id!r}>"

    async def result(self) -> RunResult[OutputT_co]:
        """Wait until the run has stopped. Cancelling this ends the waiting, not the run.

        Raises:
            SessionHeldByAncestorError: the run that calls this holds that run's session, and would wait for itself.
        """
        return await self._settled()

    async def cancel(self, reason: str = "") -> None:
        """Stop the run; returns once it has stopped. Cancelling a finished run is harmless."""
        await self._runtime.cancel(self.run_id, reason=reason)

    def events(self, *, after: str | None = None) -> AsyncIterator[Event]:
        """The run's events; see `Runtime.events`."""
        return self._runtime.events(self.run_id, after=after)


class RunStream(Generic[OutputT_co]):
    """A run and its events as they come: ``async with runtime.stream(...) as stream: async for event in stream``.

    Leaving the block before the run has ended cancels it.

    Attributes:
        run_id: the run.
    """

    def __init__(self, runtime: Runtime, run_id: str, start: Callable[[], Awaitable[RunHandle[OutputT_co]]]) -> None:
        self.run_id = run_id
        self._runtime = runtime
        self._start = start
        self._handle: RunHandle[OutputT_co] | None = None
        self._result: asyncio.Task[RunResult[OutputT_co]] | None = None
        self._events: Any = None

    async def __aenter__(self) -> Self:
        self._events = await self._runtime.subscribe(self.run_id)
        try:
            self._handle = await self._start()
        except BaseException:
            self._events.close()
            raise
        self._result = asyncio.ensure_future(self._handle.result())
        self._result.add_done_callback(self._ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._handle is not None
        assert self._result is not None
        if not self._result.done():
            await self._handle.cancel("the stream was left")
            await asyncio.wait([self._result])
        self._events.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        if self._events is None:
            raise UsageError("the stream is not open", hint="async with runtime.stream(...) as stream: ...")
        events: AsyncIterator[Event] = self._events.__aiter__()
        return events

    async def result(self) -> RunResult[OutputT_co]:
        """Wait until the run has stopped.

        Raises:
            UsageError: the stream is not open.
        """
        if self._result is None:
            raise UsageError("the stream is not open", hint="async with runtime.stream(...) as stream: ...")
        return await asyncio.shield(self._result)

    def _ended(self, task: asyncio.Task[RunResult[OutputT_co]]) -> None:
        self._runtime.unsubscribe(self._events)
        if not task.cancelled():
            task.exception()
