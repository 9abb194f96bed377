"""A runtime's life: its data directory and its actors, from the start to the close, and what is told meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from callboard.access import Agents
from callboard.clock import Clock
from callboard.closing import Closing
from callboard.directory import BUS, EXECUTOR, GATEWAY, SUPERVISOR, Directory
from callboard.event_bus import EventBus, Watchers
from callboard.health import RuntimeHealth
from callboard.kernel import ActorRestart, ActorSystem, ChildSpec
from callboard.limits import RuntimeLimits
from callboard.loop_watchdog import LoopBlock, LoopWatchdog
from callboard.model_gateway import ModelGateway
from callboard.models.base import only_offline_models
from callboard.supervisor import RunSupervisor
from callboard.tool_executor import ToolExecutor
from callboard.tools.crossing import MainImport
from callboard_protocol.base import as_seconds
from callboard_protocol.commands import RecoverRuns
from callboard_protocol.errors import RuntimeClosedError, UsageError
from callboard_protocol.failures import describe
from callboard_storage.open_store import open_store
from callboard_storage.store import Store
from callboard_storage.store_values import QuarantinedRecord


class RuntimeLife:
    """Opens and closes what one runtime stands on; more than once, if need be.

    Args:
        agents: those it may run.
        limits: how much it takes on at a time.
        location: a directory, None for memory, or a store.
        recover: whether unfinished runs of the directory are carried on when it starts.
        drain_timeout: seconds that runs have, when it closes, to come to the end of their step.
        clock: what runs go by.
    """

    def __init__(
        self,
        agents: Agents,
        limits: RuntimeLimits,
        *,
        location: str | os.PathLike[str] | Store | None,
        recover: bool,
        drain_timeout: float,
        clock: Clock,
    ) -> None:
        self._agents = agents
        self._limits = limits
        self._location = location
        self._recover = recover
        self._drain_timeout = drain_timeout
        self._clock = clock
        self._system: ActorSystem | None = None
        self._directory: Directory | None = None
        self._recovering: asyncio.Task[int] | None = None
        self._closing: Closing | None = None
        self._watchdog: LoopWatchdog | None = None
        self._is_starting = False
        self._end_watch: Callable[[], None] = _nothing

    @property
    def is_open(self) -> bool:
        """Whether it has been started and not closed."""
        return self._system is not None

    @property
    def is_closing(self) -> bool:
        """Whether it takes no more runs in."""
        return self._closing is not None

    @property
    def directory(self) -> Directory:
        """Where its actors are.

        Raises:
            RuntimeClosedError: it is not open.
        """
        directory = self._directory
        if directory is None:
            raise RuntimeClosedError("the runtime is not open")
        return directory

    @property
    def here(self) -> Directory:
        """`directory`, for what may be used on the runtime's own loop only.

        Raises:
            RuntimeClosedError: it is not open.
            WrongLoopError: it was opened on another event loop.
        """
        directory = self.directory
        directory.system.place.require_loop("the runtime")
        return directory

    async def start(self) -> None:
        """Open the data directory, start the actors, and queue what was left unfinished.

        Raises:
            StoreOpenError: the directory cannot be opened.
            UsageError: it is open already, or `limits` bound a store that was made with limits of its own.
        """
        if self._system is not None or self._is_starting:
            raise UsageError("the runtime is open already", hint="open one Runtime once; make another for another loop")
        MainImport.refuse("a Runtime was opened")
        limits = self._limits
        store = open_store(self._location, max_bytes=limits.max_store_bytes, min_free_bytes=limits.min_free_bytes)
        self._is_starting = True
        try:
            await store.open()
        finally:
            self._is_starting = False
        system = ActorSystem(asyncio.get_running_loop(), on_restart=self._restarted)
        watchers, clock, only_offline = Watchers(), self._clock, only_offline_models()
        directory = Directory(system, store, watchers, self._agents.by_id, clock)
        self._system, self._directory = system, directory
        self._agents.directory = directory
        self._end_watch = store.watch_quarantine(self._quarantined)
        if limits.loop_blocked_after is not None:
            self._watchdog = LoopWatchdog(system.loop, as_seconds(limits.loop_blocked_after), told=self._loop_blocked)
        try:
            system.supervise(ChildSpec(BUS, lambda: EventBus(watchers)))
            system.supervise(ChildSpec(GATEWAY, lambda: ModelGateway(clock=clock, only_offline=only_offline)))
            processes = limits.max_tool_processes
            system.supervise(ChildSpec(EXECUTOR, lambda: ToolExecutor(processes=processes, clock=clock)))
            agents = self._agents.by_id
            system.supervise(ChildSpec(SUPERVISOR, lambda: RunSupervisor(directory, agents, limits)))
            await directory.supervisor.ask(RecoverRuns(takes_over=self._recover), timeout=None)
        except BaseException:
            await self.close("aclose")
            raise

    async def close(self, reason: str, within: float | None = None) -> None:
        """Have runs come to rest, stop the actors, and close the data directory; harmless where it is not open.

        Args:
            reason: why, for the events.
            within: seconds that runs have to come to the end of their step, if not the usual; a closing that is under
                way only heeds 0.

        Raises:
            WrongLoopError: it was opened on another event loop.
            ForkedError: it was opened by the parent of this process.
        """
        if self._system is None:
            return
        self._system.place.require_loop("the runtime")
        if self._closing is None:
            patience = self._drain_timeout if within is None else within
            self._closing = Closing(self.directory, patience, reason, ended=self._ended)
        elif within == 0:
            self._closing.hurry()
        await self._closing.finished()

    async def _ended(self) -> None:
        """Nothing acts any more: let go of what is left."""
        store = self.directory.store
        self._directory = self._agents.directory = None
        self._end_watch()
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None
        try:
            if self._recovering is not None:
                await asyncio.gather(self._recovering, return_exceptions=True)
            await store.close()
        finally:
            self._system = self._closing = None

    def health(self) -> RuntimeHealth:
        """What is wrong, if anything.

        Raises:
            RuntimeClosedError: it is not open.
        """
        directory = self.directory
        actors = directory.system.health
        store, watchdog = directory.store, self._watchdog
        return RuntimeHealth(
            failures=actors.failures,
            restarts=actors.restarts,
            quarantined=store.quarantined(),
            has_room=store.has_room,
            held_runs=len(directory.held),
            stall=store.stalled(),
            loop_block=None if watchdog is None else watchdog.recent(),
            draining=self._closing is not None,
        )

    # ---- what is told

    def _restarted(self, restart: ActorRestart) -> None:
        """A new supervisor knows nothing of the runs of the one that failed until it reads them from the store."""
        directory = self._directory
        if directory is None:
            return
        told = {"actor": restart.name, "error": describe(restart.error), "restarts": restart.restarts}
        directory.announce("actor.restarted", told)
        if restart.name == SUPERVISOR and self._closing is None:
            recovering = asyncio.get_running_loop().create_task(directory.supervisor.ask(RecoverRuns(), timeout=None))
            self._recovering = recovering

    def _quarantined(self, record: QuarantinedRecord) -> None:
        """Tell of a record that cannot be read. The store calls this on whichever thread found it."""
        directory = self._directory
        if directory is None:
            return
        told = {name: getattr(record, name) for name in ("table", "key", "code", "message", "hint")}
        raw = ("store.record_quarantined", record.run_id, record.session_id, None, directory.clock.time(), None, told)
        directory.publish([raw])

    def _loop_blocked(self, block: LoopBlock) -> None:
        directory = self._directory
        if directory is None:
            return
        told = {name: getattr(block, name) for name in ("duration", "stack", "culprit", "step", "tool")}
        whose = (block.run_id, block.session_id, block.agent_id)
        directory.publish([("runtime.loop_blocked", *whose, directory.clock.time(), None, told)])


def _nothing() -> None:
    """What ends a watch that was never begun."""
