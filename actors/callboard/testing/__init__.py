"""What tests of agents need: a clock that stands still, deaths at named moments, proofs by killing and by replay."""

from callboard.clock import Clock, Timer
from callboard.fault_points import POINTS as FAULT_POINTS
from callboard.testing.effects import Effects, note_effect
from callboard.testing.ending import Ending
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
from callboard.testing.kill_everywhere import Kill, KillReport, kill_everywhere
from callboard.testing.replay import Replayed, ReplayReport, replay

__all__ = [
    "Clock",
    "Effects",
    "Ending",
    "FAULT_POINTS",
    "FakeClock",
    "Kill",
    "KillReport",
    "Passage",
    "ReplayReport",
    "Replayed",
    "Timer",
    "die",
    "die_at",
    "environment_to_die_at",
    "kill_everywhere",
    "note_effect",
    "raise_at",
    "replay",
    "told_to_die_at",
    "watch_passages",
]
