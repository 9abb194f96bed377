"""A worker is killed again and again while a tree is at work in which runs begin afresh after a crash."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from callboard import RunState

CLERKS = 4
DEPOSITS = 3
MOST_IN_FLIGHT = 4
"""Model calls that a kill can cut off: one of each clerk."""


def kill_and_carry_on(theatre: Any, kills: int, seed: int, begins_afresh: str) -> int:
    """How many lives were ended."""
    chance = random.Random(seed)  # noqa: S311  (chance, no secret)
    for number in range(kills):
        life = theatre.life("tree", seed=seed + number, begins_afresh=begins_afresh)
        life.wait_for(chance.choice(["model", "price", "asked-to-deposit", "deposit"]), chance.randint(1, 6))
        if life.process.poll() is not None:
            life.end()
            return number
        life.kill()
    theatre.survives("tree", seed=seed, begins_afresh=begins_afresh)
    return kills


def check(theatre: Any, laws: Any, lives: int) -> None:
    assert theatre.results() == {"run": ["completed", "; ".join(["deposited 75"] * CLERKS)]}
    deposits = theatre.count("deposit")
    assert set(deposits.values()) == {1}, "an effect happened twice under one id"
    asked = theatre.count("model").total()
    [spent] = theatre.count("spent")
    assert asked - MOST_IN_FLIGHT * lives <= int(spent) <= asked, "what was spent is lost, or counted twice"
    remains = theatre.read()
    laws.are_whole(remains)
    assert {entry.state for entry in remains.entries.values()} <= {RunState.COMPLETED, RunState.CANCELLED}
    assert [message.text for message in remains.transcripts["s"]][:1] == ["go"]
    assert len(remains.transcripts["s"]) == 2, "a clerk wrote into the transcript"


def begun_by(run_id: str) -> int:
    """Which attempt of the boss began the life that a run belongs to."""
    found = re.match(r"run:(\d+)-", run_id)
    return int(found[1]) if found else 1


def check_last_life(theatre: Any) -> None:
    """Its boss began afresh after each crash: all clerks worked in its last life, and nothing of the others goes on."""
    entries = theatre.read().entries
    del entries["run"]
    last = max(map(begun_by, entries))
    theirs = {run_id: entry.state for run_id, entry in entries.items() if begun_by(run_id) == last}
    assert (len(theirs), {*theirs.values()}) == (CLERKS + 1, {RunState.COMPLETED})
    counted = [begun_by(call_id) for call_id in theatre.count("deposit").elements()]
    assert counted == sorted(counted), "an earlier life went on beside a later one"
    assert counted.count(last) == CLERKS * DEPOSITS


def check_children(theatre: Any) -> None:
    """Its boss was carried on: it delegated once, and each of its clerks worked under the id that it had."""
    entries = theatre.read().entries
    of_boss = {run_id: entry.state for run_id, entry in entries.items() if entry.request.parent_run_id == "run"}
    assert of_boss == dict.fromkeys(["run:0.a/0", "run:0.b/0", "run:0.c/0", "run:0.d/0"], RunState.COMPLETED)


CHECKS = {"root": check_last_life, "children": check_children}


@pytest.mark.parametrize("begins_afresh", CHECKS)
def test_kills_of_a_tree_that_begins_afresh_leave_nothing_behind_at_work(
    theatre: Any, laws: Any, begins_afresh: str
) -> None:
    lives = kill_and_carry_on(theatre, 3, seed=11, begins_afresh=begins_afresh)
    check(theatre, laws, lives)
    CHECKS[begins_afresh](theatre)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("begins_afresh", CHECKS)
@pytest.mark.parametrize("seed", range(5))
def test_many_kills_of_trees_that_begin_afresh_leave_nothing_behind_at_work(
    theatre: Any, laws: Any, seed: int, begins_afresh: str
) -> None:
    lives = kill_and_carry_on(theatre, 25, seed=1000 * seed, begins_afresh=begins_afresh)
    check(theatre, laws, lives)
    CHECKS[begins_afresh](theatre)
