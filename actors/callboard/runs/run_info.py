"""Which run it is that code serves: what a deps factory is told, and what calls of the runtime from within can ask."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

run_at_work: ContextVar[str] = ContextVar("callboard_run_at_work", default="")
"""The run whose pattern, step or tool the current code is part of; empty outside any."""


@dataclass(frozen=True, slots=True)
class InheritedDeps:
    """Deps that the run above has opened, and closes: they are not a factory, whatever they look like.

    Attributes:
        value: what the agent's tools get, where it has no deps of its own.
    """

    value: Any


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a deps factory learns about the run it serves.

    Attributes:
        run_id: the run.
        session_id: its session.
        agent_id: its agent.
        attempt: 1 at the first start, more after a recovery.
        metadata: the request's.
    """

    run_id: str
    session_id: str
    agent_id: str
    attempt: int
    metadata: dict[str, Any]
