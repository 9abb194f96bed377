"""What a deps factory learns of the run it serves."""

from dataclasses import dataclass
from typing import Any


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
