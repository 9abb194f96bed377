"""Processes for tools that must be killable: spawned when needed, kept while in use, and never outlived by anything.

Neither anyio's `to_process` nor pebble's pool could be used: the one leaves alive what a killed worker has started and
does not say how a worker died, the other takes three seconds to kill a worker that ignores SIGTERM.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any, Final

from callboard.tools.base import Tool
from callboard.tools.context import ToolContext
from callboard.tools.crossing import CallIdentity, MainImport
from callboard.tools.worker import WorkerProcess
from callboard_protocol.errors import ToolFailedError
from callboard_protocol.failures import in_words

IDLE: Final = 60.0
"""Seconds a worker without a call is kept."""


class ToolProcesses:
    """The workers of one runtime.

    Args:
        size: how many calls run at once; there are never more workers than that.
    """

    def __init__(self, size: int) -> None:
        self._slots = asyncio.Semaphore(size)
        self._workers: set[WorkerProcess] = set()
        self._idle: list[WorkerProcess] = []
        self._ending: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def reserve(self, tool: Tool[Any]) -> WorkerProcess:
        """Wait for a place, and for a worker that has the tool's function loaded; `run` gives both back.

        Raises:
            ToolFailedError: no worker can be started, or the function cannot be imported in one.
            UsageError: this is itself a worker, which imports its main module.
        """
        MainImport.refuse(f"{tool.name} was called")
        function = tool.function_reference
        assert function is not None, "the tool says isolation='process'"
        await self._slots.acquire()
        worker: WorkerProcess | None = None
        try:
            worker = self._take()
            if worker is None:
                worker = await WorkerProcess.start()
                self._workers.add(worker)
                worker.when_gone(self._workers.discard)
            await worker.load(tool, function)
        except BaseException as problem:
            if worker is not None:
                if not isinstance(problem, ToolFailedError):
                    worker.kill()
                    await worker.gone()
                self._keep(worker)
            self._slots.release()
            raise
        return worker

    async def run(
        self, worker: WorkerProcess, tool: Tool[Any], context: ToolContext[Any], arguments: dict[str, Any]
    ) -> Any:
        """Make a call in a worker that was reserved for it. Cancelling this kills the worker, and waits for its end.

        Raises:
            ToolCrashedError: the worker died in the middle.
            ToolFailedError: the arguments cannot cross; the function was not called.
            UnpersistableValueError: what the function returned cannot come across.
            BaseException: what the function raised.
        """
        function = tool.function_reference
        assert function is not None, "the tool says isolation='process'"
        identity = CallIdentity(context.run_id, context.session_id, context.agent_id, context.call_id, context.attempt)
        try:
            return await worker.call(tool, function, _crossing(tool, identity, arguments), context)
        except asyncio.CancelledError:
            worker.kill()
            await worker.gone()
            raise
        finally:
            self._keep(worker)
            self._slots.release()

    async def close(self) -> None:
        """End every worker."""
        if self._timer is not None:
            self._timer.cancel()
        self._idle.clear()
        await asyncio.gather(*(worker.end() for worker in self._workers), *self._ending)

    def _take(self) -> WorkerProcess | None:
        """The idle worker used last, so that those not needed grow old."""
        while self._idle:
            worker = self._idle.pop()
            if worker.is_ready:
                return worker
            worker.kill()
        return None

    def _keep(self, worker: WorkerProcess) -> None:
        if not worker.is_alive:
            return
        loop = asyncio.get_running_loop()
        worker.idle_since = loop.time()
        self._idle.append(worker)
        if self._timer is None:
            self._timer = loop.call_later(IDLE, self._end_idle)

    def _end_idle(self) -> None:
        """End the workers that nobody has needed, and look again when the next one has grown old."""
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._idle and self._idle[0].idle_since + IDLE <= loop.time():
            worker = self._idle.pop(0)
            ending = loop.create_task(worker.end())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        if self._idle:
            self._timer = loop.call_at(self._idle[0].idle_since + IDLE, self._end_idle)


def _crossing(tool: Tool[Any], identity: CallIdentity, arguments: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps(tool.spread(identity, arguments), pickle.HIGHEST_PROTOCOL)
    except Exception as problem:
        raise ToolFailedError(
            f"{tool.name} was not called: its arguments cannot cross to another process: {in_words(problem)}",
            hint="annotate its parameters with plain types, or with models defined at the top level of a module",
        ) from problem
