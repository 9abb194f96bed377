"""Where a runtime's actors are found. A supervised actor may be replaced by a new one, so it is looked up each time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from callboard.clock import SYSTEM_CLOCK, Clock
from callboard.kernel import ActorSystem, Ref
from callboard.limits import RuntimeStats
from callboard_protocol.base import JsonObject
from callboard_protocol.commands import PublishEvents
from callboard_protocol.errors import ActorError
from callboard_protocol.event_base import RawEvent
from callboard_storage.store import Store

if TYPE_CHECKING:
    from callboard.agents import Agent
    from callboard.event_bus import EventBus, Watchers
    from callboard.live.storage_hold import StorageHold
    from callboard.model_gateway import ModelGateway
    from callboard.supervisor import RunSupervisor
    from callboard.tool_executor import ToolExecutor

SUPERVISOR = "run_supervisor"
EXECUTOR = "tool_executor"
GATEWAY = "model_gateway"
BUS = "event_bus"


class Directory:
    """The actors of one runtime, by what they do.

    Args:
        system: the runtime's actor system.
        store: where its sessions last.
        watchers: who watches which run.
        agents: the registered agents, by id.
        clock: what its runs go by.

    Attributes:
        describe: what is in hand right now; the supervisor at work provides it.
        attempts: runs at work, whichever supervisor started them.
        held: runs that wait for room in the store, and how.
    """

    __slots__ = ("agents", "attempts", "clock", "describe", "held", "store", "system", "watchers")

    def __init__(
        self,
        system: ActorSystem,
        store: Store,
        watchers: Watchers,
        agents: Mapping[str, Agent[Any, Any]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.system = system
        self.store = store
        self.watchers = watchers
        self.agents = agents
        self.clock = clock
        self.attempts: set[asyncio.Task[None]] = set()
        self.held: dict[str, StorageHold] = {}
        self.describe: Callable[[], RuntimeStats] = RuntimeStats

    def publish(self, events: Sequence[RawEvent]) -> None:
        """Tell the bus. Publishing never fails a run: while a failed bus is being replaced, events are lost."""
        with contextlib.suppress(ActorError):
            self.bus.tell(PublishEvents(events=events))

    def announce(self, name: str, fields: JsonObject) -> None:
        """Publish an event of the runtime as a whole."""
        self.publish([(name, None, None, None, self.clock.time(), None, fields)])

    @property
    def supervisor(self) -> Ref[RunSupervisor]:
        """Admission, session locks, budgets."""
        return cast("Ref[RunSupervisor]", self.system.ref(SUPERVISOR))

    @property
    def executor(self) -> Ref[ToolExecutor]:
        """Tool calls in flight."""
        return cast("Ref[ToolExecutor]", self.system.ref(EXECUTOR))

    @property
    def gateway(self) -> Ref[ModelGateway]:
        """Model calls in flight."""
        return cast("Ref[ModelGateway]", self.system.ref(GATEWAY))

    @property
    def bus(self) -> Ref[EventBus]:
        """Events and who watches them."""
        return cast("Ref[EventBus]", self.system.ref(BUS))
