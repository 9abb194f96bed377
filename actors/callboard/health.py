"""How a runtime is doing: its actors, and what its store cannot read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from callboard.kernel import SystemHealth
from callboard_storage.store import QuarantinedRecord


@dataclass(frozen=True, slots=True)
class RuntimeHealth(SystemHealth):
    """Whether every supervised actor runs, and whether every stored record that was asked for could be read.

    Attributes:
        quarantined: the records that could not, in the order they were found. They cost their own session or run,
            and nothing else: a runtime that has some is degraded, not unhealthy.
    """

    quarantined: Sequence[QuarantinedRecord] = ()

    @property
    def degraded(self) -> bool:
        """Whether something needs mending while everything else goes on."""
        return bool(self.quarantined)

    @property
    def status(self) -> Literal["healthy", "degraded", "unhealthy"]:
        """All of it in one word."""
        if not self.healthy:
            return "unhealthy"
        return "degraded" if self.degraded else "healthy"
