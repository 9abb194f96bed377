"""Several processes write to the same sessions and are killed at instants nobody chose."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from callboard_storage import upkeep

WRITERS = 3


def kill_again_and_again(company: Any, wait_a_moment: Callable[[random.Random], None], kills: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  (chance, no secret)
    writers = company(WRITERS)
    for number in range(kills):
        victim = chance.choice(writers.writers)
        assert writers.wait_for_batches([victim], chance.randint(1, 30)), writers.wrong or "they stand still"
        wait_a_moment(chance)
        writers.replace(victim)
        assert writers.check_on() == [], f"after {number + 1} kills"
    writers.disband()
    assert writers.check_all() == []
    assert upkeep.verify(writers.data).is_sound
    figures = writers.figures
    assert figures["on disk and nobody was told"] > 0, "no kill struck between a commit and its acknowledgement"
    assert figures["changes of hands"] > kills
    assert figures["writers of one session"] > kills / 2


def test_what_three_processes_were_told_is_kept_survives_thirty_kills(company: Any, wait_a_moment: Any) -> None:
    kill_again_and_again(company, wait_a_moment, 30, seed=7)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_three_processes_were_told_is_kept_survives_a_thousand_kills(company: Any, wait_a_moment: Any) -> None:
    kill_again_and_again(company, wait_a_moment, 1000, seed=8)
