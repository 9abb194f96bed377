"""Owners of sessions are stopped, continued and killed while others take their sessions over.

A writer that is stopped is alive, and nobody may take its sessions. One whose file in `alive/` is cleared away while it
is stopped counts as dead; when it goes on it is a zombie, in the middle of what it was writing.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from callboard_storage import upkeep

WRITERS = 3
SECONDS_FOR_A_STALL = 0.5
"""Who stands still for so long waits for one that was stopped inside a write transaction: it has to go on first."""


def stop_and_kill(writers: Any, rounds: int, chance: random.Random) -> tuple[list[str], Counter[str]]:
    """Stop, continue and kill owners; what that broke, as soon as it broke anything, and what was done."""
    done: Counter[str] = Counter()
    for _ in range(rounds):
        victim = chance.choice(writers.writers)
        others = [writer for writer in writers.writers if writer is not victim]
        writers.wait_for_batches(writers.writers, chance.randint(1, 8))
        if writers.wrong:
            break
        what = chance.choice(("killed", "stopped", "evicted", "evicted"))
        if what == "killed":
            writers.replace(victim)
        elif what == "stopped":
            victim.stop()
            done["stalled"] += not writers.wait_for_batches(others, 5, SECONDS_FOR_A_STALL)
            victim.go_on()
            writers.wait_for_batches([victim], 1)
        else:
            victim.stop()
            writers.evict(victim)
            done["taken over"] += writers.wait_for_takeover(victim, SECONDS_FOR_A_STALL)
            refused = writers.fenced
            victim.go_on()
            goal = victim.kept + 20
            writers.wait_until(
                lambda refused=refused, goal=goal, one=victim: writers.fenced > refused or one.kept > goal
            )
            writers.replace(victim)
        done[what] += 1
        if wrong := writers.check_on():
            return wrong, done
    writers.disband()
    return writers.check_all(), done


def no_zombie_writes(company: Any, rounds: int, seed: int) -> None:
    writers = company(WRITERS)
    wrong, done = stop_and_kill(writers, rounds, random.Random(seed))  # noqa: S311  (chance, no secret)
    assert wrong == []
    assert upkeep.verify(writers.data).is_sound
    assert {"killed", "stopped", "evicted", "taken over"} <= done.keys()
    assert done["taken over"] >= done["evicted"] / 4
    assert writers.figures["fenced"] >= done["taken over"] / 2, "too few zombies were refused to prove anything"


def test_no_zombie_writes_whoever_is_stopped_and_killed(company: Any) -> None:
    no_zombie_writes(company, 14, seed=1)


def test_without_the_fence_a_zombie_writes_and_is_caught(company: Any) -> None:
    wrong, done = stop_and_kill(company(WRITERS, is_fenced=False), 60, random.Random(2))  # noqa: S311
    assert done["evicted"]
    assert any("had taken over" in what or "and does not" in what for what in wrong), wrong


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [3, 4])
def test_no_zombie_writes_in_hundreds_of_rounds(company: Any, seed: int) -> None:
    no_zombie_writes(company, 400, seed=seed)
