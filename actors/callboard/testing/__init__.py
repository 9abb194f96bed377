"""What tests of agents need: a clock that stands still, deaths at named moments, proofs by killing and by replay."""

from callboard.clock import Clock, Timer
from callboard.fault_points import POINTS as FAULT_POINTS
from callboard.testing.fake_clock import FakeClock
from callboard.testing.faults import (
    Passage,
    die,
    die_at,
    environment_to_die_at,
    raise_at,
    told_to_die_at,
    watch_passages,
)

__all__ = [
    "Clock",
    "FAULT_POINTS",
    "FakeClock",
    "Passage",
    "Timer",
    "die",
    "die_at",
    "environment_to_die_at",
    "raise_at",
    "told_to_die_at",
    "watch_passages",
]
