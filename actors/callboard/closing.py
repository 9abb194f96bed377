"""How a runtime closes: admission ends, runs come to rest, actors stop, and then the store is closed. In that order,
whoever loses patience.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from callboard.directory import Directory
from callboard.supervision.draining import PATIENCE
from callboard_protocol.commands import DrainRuns
from callboard_protocol.errors import ActorError


class Closing:
    """One runtime's way out. It begins at once and takes a task of its own, which any number of callers wait for.

    Args:
        directory: the runtime's actors.
        drain_timeout: seconds that runs have to come to the end of their step.
        reason: why, for the events.
        ended: lets go of what is left, the store last, once no actor acts any more.
    """

    def __init__(
        self, directory: Directory, drain_timeout: float, reason: str, *, ended: Callable[[], Awaitable[None]]
    ) -> None:
        self._directory = directory
        self._drain_timeout = drain_timeout
        self._reason = reason
        self._ended = ended
        self._began = time.monotonic()
        self._task = asyncio.get_running_loop().create_task(self._close(), name="closing")

    async def finished(self) -> None:
        """Wait until all is closed. A cancellation hurries that, and is raised behind it."""
        cancelled: asyncio.CancelledError | None = None
        while not self._task.done():
            try:
                await asyncio.wait([self._task])
            except asyncio.CancelledError as cancellation:
                if cancelled is None:  # some cancel again and again, at every turn of the loop
                    self.hurry()
                cancelled = cancellation
        if cancelled is not None:
            raise cancelled
        self._task.result()

    def hurry(self) -> None:
        """Stop the runs that are left where they are, now."""
        # Where the supervisor has stopped there is nothing to hurry, or it has failed and stopped them itself.
        with contextlib.suppress(ActorError):
            self._directory.supervisor.tell(DrainRuns(within=0.0))

    async def _close(self) -> None:
        try:
            try:
                await self._drain()
            finally:
                await self._directory.system.stop()
        finally:
            await self._ended()

    async def _drain(self) -> None:
        directory, stats = self._directory, self._directory.describe()
        asked = {"active_runs": stats.running, "queued_runs": stats.queued, "suspended_runs": stats.suspended}
        directory.announce("runtime.shutdown_requested", {"reason": self._reason, **asked})
        given = {"active_runs": stats.running, "drain_timeout": self._drain_timeout}
        directory.announce("runtime.shutdown_started", given)
        left = 0
        try:
            left = await directory.supervisor.ask(DrainRuns(within=self._drain_timeout), timeout=None)
        except ActorError:
            # The supervisor has failed. It stopped its runs then, and they may still be writing that down.
            if directory.attempts:
                await asyncio.wait(directory.attempts, timeout=PATIENCE)
        told = {"interrupted_runs": left, "duration": time.monotonic() - self._began}
        directory.announce("runtime.shutdown_completed", told)
