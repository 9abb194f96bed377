"""How a runtime is doing: its actors, its event loop, and its store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from callboard.kernel import SystemHealth
from callboard.loop_watchdog import LoopBlock
from callboard_storage.store_values import QuarantinedRecord, WriteStall


@dataclass(frozen=True, slots=True, repr=False)
class RuntimeHealth(SystemHealth):
    """What is wrong with a runtime, if anything. A runtime that is degraded goes on, with something to mend; one that
    is unhealthy has lost an actor it cannot do without, and should be opened anew.

    Attributes:
        quarantined: stored records that cannot be read, in the order they were found. They cost their own session or
            run, and nothing else.
        has_room: whether the store has room for work to begin.
        held_runs: runs that wait for such room, some perhaps with outcomes that are not on disk yet.
        stall: what keeps every commit waiting, and which process that is; None while commits go through.
        loop_block: the latest time something blocked the event loop, within the last minute.
        draining: whether it is about to close: it takes no more runs in.
    """

    quarantined: Sequence[QuarantinedRecord] = ()
    has_room: bool = True
    held_runs: int = 0
    stall: WriteStall | None = None
    loop_block: LoopBlock | None = None
    draining: bool = False

    @property
    def degraded(self) -> bool:
        """Whether something needs mending while everything else goes on."""
        return not self.has_room or bool(self.quarantined or self.held_runs or self.stall or self.loop_block)

    @property
    def status(self) -> Literal["healthy", "degraded", "draining", "unhealthy"]:
        """All of it in one word: the worst that applies, in the order unhealthy, draining, degraded."""
        if not self.healthy:
            return "unhealthy"
        if self.draining:
            return "draining"
        return "degraded" if self.degraded else "healthy"

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, in words; empty where nothing is."""
        said = [
            f"{one.name} failed {one.failures} times within {one.within:g} s, the last time with {one.error}"
            for one in self.failures
        ]
        if self.stall is not None:
            said.append(str(self.stall))
        if not self.has_room:
            said.append("the store has no room: no work begins")
        if self.held_runs:
            said.append(f"{self.held_runs} runs wait for room in the store")
        if self.loop_block is not None:
            said.append(str(self.loop_block))
        if self.quarantined:
            names = ", ".join(f"{one.table} {one.key}" for one in self.quarantined[:3])
            more = len(self.quarantined) - 3
            said.append(f"cannot be read: {names}{f' and {more} more' if more > 0 else ''}")
        return tuple(said)

    def __repr__(self) -> str:
        return f"<RuntimeHealth {self.status}{''.join(f'; {problem}' for problem in self.problems)}>"
