"""How much a runtime takes on, and how much it has in hand."""

from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, Field

from callboard_protocol.base import Duration, Frozen, Given, as_seconds


def _at_least_a_beat(duration: float | timedelta) -> float | timedelta:
    if as_seconds(duration) < _SHORTEST_BLOCK:
        raise ValueError(f"at least {_SHORTEST_BLOCK} s, or None for never")
    return duration


_SHORTEST_BLOCK = 0.01
"""Seconds; to notice less, the loop would have to be disturbed all the time."""


class RuntimeLimits(Given):
    """What a runtime takes on at a time.

    Attributes:
        max_concurrent_runs: runs at work; more wait in the queue.
        max_queued_runs: runs waiting, in the whole runtime; one more is refused.
        max_queued_per_session: runs waiting for one session; one more is refused.
        max_active_sessions: sessions kept in memory; past it, the idle one used longest ago is parked.
        session_idle: seconds or a timedelta after which an idle session is parked.
        max_tool_processes: calls of tools with ``isolation="process"`` at work; more wait, outside their timeouts.
        max_delegation_depth: how many runs may wait for each other, from the first that delegates to the last.
        max_store_bytes: live data the store may hold, at least 1 MiB; None is no limit. No work begins past three
            quarters of it (or 64 MiB before it): the rest is kept for the outcomes of what has begun.
        min_free_bytes: space that must be left on the store's disk for work to begin, at least 1 MiB; None is 64 MiB.
        loop_blocked_after: seconds or a timedelta, at least 0.01 s, that the event loop may stand still before that is
            told (`runtime.loop_blocked`, a warning in the log, `runtime.health()`); None watches nothing.
    """

    max_concurrent_runs: int = Field(default=1000, ge=1)
    max_queued_runs: int = Field(default=100_000, ge=0)
    max_queued_per_session: int = Field(default=1000, ge=0)
    max_active_sessions: int = Field(default=10_000, ge=1)
    session_idle: Duration = 300.0
    max_tool_processes: int = Field(default=4, ge=1)
    max_delegation_depth: int = Field(default=8, ge=0)
    max_store_bytes: int | None = Field(default=None, ge=1 << 20)
    min_free_bytes: int | None = Field(default=None, ge=1 << 20)
    loop_blocked_after: Annotated[Duration, AfterValidator(_at_least_a_beat)] | None = 1.0


class RuntimeStats(Frozen):
    """What a runtime has in hand right now.

    Attributes:
        running: runs at work.
        queued: runs that wait for a slot or for their session.
        suspended: runs that wait for a decision, or for room in the store.
        parked: runs that wait for their agent, for its deps, or for their session to be readable.
        active_sessions: sessions in memory.
        free_slots: runs that could start at once.
        completed: runs that completed since the runtime was opened.
        stopped: runs that ended in any other way since then.
        recovered: runs taken over from an earlier process.
        quarantined: stored records that were found to be unreadable.
    """

    running: int = 0
    queued: int = 0
    suspended: int = 0
    parked: int = 0
    active_sessions: int = 0
    free_slots: int = 0
    completed: int = 0
    stopped: int = 0
    recovered: int = 0
    quarantined: int = 0
