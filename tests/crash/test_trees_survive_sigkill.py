"""A worker is killed again and again while runs that it delegated are in flight, until their tree is done."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

CLERKS = {"run:0.a/0", "run:0.b/0", "run:0.c/0", "run:0.d/0:0"}
DEPOSITS = 3
MODEL_CALLS = 7


def kill_and_carry_on(theatre: Any, kills: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  (chance, no secret)
    for number in range(kills):
        life = theatre.life("tree", seed=seed + number)
        life.wait_for(chance.choice(["model", "price", "asked-to-deposit", "deposit"]), chance.randint(1, 6))
        if life.process.poll() is not None:
            life.end()
            break
        life.kill()
    theatre.survives("tree", seed=seed)


def check(theatre: Any, laws: Any) -> None:
    assert theatre.results() == {"run": ["completed", "; ".join(["deposited 75"] * len(CLERKS))]}
    deposits = theatre.count("deposit")
    assert set(deposits.values()) == {1}, "an effect happened twice"
    assert Counter(call.rpartition(":")[0] for call in deposits) == Counter(dict.fromkeys(CLERKS, DEPOSITS))
    # The whole budget was needed, and no crash has made it look spent.
    assert theatre.count("spent").keys() == {str(len(CLERKS) * MODEL_CALLS)}
    remains = theatre.read()
    assert set(remains.entries) == CLERKS | {"run", "run:0.d/0"}
    laws.are_whole(remains)
    assert [message.text for message in remains.transcripts["s"]][:1] == ["go"]
    assert len(remains.transcripts["s"]) == 2, "a clerk wrote into the transcript"


def test_eight_kills_of_a_tree_lose_nothing_and_repeat_nothing(theatre: Any, laws: Any) -> None:
    kill_and_carry_on(theatre, 8, seed=7)
    check(theatre, laws)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10))
def test_many_kills_of_many_trees_lose_nothing_and_repeat_nothing(theatre: Any, laws: Any, seed: int) -> None:
    kill_and_carry_on(theatre, 25, seed=1000 * seed)
    check(theatre, laws)
