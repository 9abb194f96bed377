"""A worker is killed at instants nobody chose, again and again, until its runs are done."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import pytest

from callboard.testing import Passage

PHASES = {
    "opening": "opening",
    "started": "recovering",
    "submitted": "queue",
    "model": "model",
    "price": "tool",
    "asked-to-deposit": "tool",
    "deposit": "tool",
    "fetch": "step",
    "acknowledged": "commit",
}
"""What a worker has just noted, and where that leaves it."""


def kill_again_and_again(theatre: Any, kills: int, seed: int) -> Counter[str]:
    """Kill a worker, start another, so many times; then let the last one finish. Where the kills struck."""
    chance = random.Random(seed)  # noqa: S311  (chance, no secret)
    struck: Counter[str] = Counter()
    for number in range(kills):
        life = theatre.life("many_runs", seed=seed + number)
        word = [*PHASES][number % len(PHASES)]
        life.wait_for(word, 1 if word in {"opening", "started"} else chance.randint(1, 6))
        instant = time.monotonic() + chance.uniform(0, 0.02 if word in {"opening", "started"} else 0.004)
        while time.monotonic() < instant:
            pass
        struck[PHASES.get(life.kill(), "elsewhere")] += 1
    theatre.world.with_suffix(".stop").touch()
    theatre.survives("many_runs", seed=seed)
    return struck


def check_results(theatre: Any, remains: Any) -> None:
    results = theatre.results()
    assert results.keys() == remains.entries.keys()
    for run_id, (stop_reason, output) in results.items():
        expected = "planned 29" if remains.entries[run_id].request.agent_id == "planner" else "deposited 75"
        assert (stop_reason, output) == ("completed", expected), run_id


def check_all(theatre: Any, laws: Any) -> None:
    remains = laws.hold(theatre)
    laws.order_holds(remains)
    check_results(theatre, remains)
    deposits = Counter(call.split(":")[0] for call in theatre.count("deposit"))
    clerks = [run_id for run_id, entry in remains.entries.items() if entry.request.agent_id == "clerk"]
    assert deposits == Counter(dict.fromkeys(clerks, 3))


def test_thirty_kills_lose_nothing_and_repeat_nothing(theatre: Any, laws: Any) -> None:
    struck = kill_again_and_again(theatre, 30, seed=20)
    assert len(struck) >= 4, f"too few phases were hit: {struck}"
    check_all(theatre, laws)


@pytest.mark.parametrize("point", ["run.entry_recorded", "run.began"])
def test_a_run_on_disk_is_seen_through_although_whoever_submitted_it_was_never_told(
    theatre: Any, laws: Any, point: str
) -> None:
    theatre.dies("many_runs", dies_at=Passage(point))
    assert len(theatre.count("submitted")) == (4 if point == "run.entry_recorded" else 0)
    theatre.world.with_suffix(".stop").touch()
    theatre.survives("many_runs")
    check_all(theatre, laws)
    assert len(theatre.results()) == len(theatre.count("submitted")) >= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hundreds_of_kills_lose_nothing_and_repeat_nothing(theatre: Any, laws: Any, seed: int) -> None:
    struck = kill_again_and_again(theatre, 100, seed=1000 * seed)
    assert set(PHASES.values()) <= struck.keys(), f"too few phases were hit: {struck}"
    check_all(theatre, laws)
