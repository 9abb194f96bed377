"""Many runs, and runs of many steps, after the process that had them was killed.

How long something takes is counted in the process's own time: a machine that is busy elsewhere makes no difference.
"""

from __future__ import annotations

from typing import Any

import pytest

MOST_MS_OF_REPLAY = 100.0
MOST_MS_UNTIL_READY = 2000.0


@pytest.mark.parametrize("count", [24, pytest.param(1000, marks=pytest.mark.slow)])
def test_three_crashes_by_one_run_of_many_fail_that_run_alone(theatre: Any, count: int) -> None:
    for _ in range(3):
        theatre.dies("crowd", count=count)
    theatre.survives("crowd", count=count)
    results = theatre.results()
    assert len(results) == count
    failed = {run_id for run_id, (stop_reason, _) in results.items() if stop_reason != "completed"}
    assert failed == {f"run{count // 2}"}
    assert theatre.count("exploded") == {f"run{count // 2}:0": 3}


def test_a_thousand_recorded_steps_are_replayed_within_a_tenth_of_a_second(theatre: Any) -> None:
    theatre.dies("long_run", count=1000, dies="before the last step")
    theatre.survives("long_run", count=1000, dies="before the last step")
    [(_, took)] = [line for line in theatre.happened if line[0] == "replayed"]
    assert float(took) <= MOST_MS_OF_REPLAY


@pytest.mark.slow
def test_a_runtime_is_ready_within_two_seconds_of_ten_thousand_unfinished_runs(theatre: Any) -> None:
    theatre.dies("backlog", count=10_000, dies="with a backlog")
    theatre.survives("backlog", count=10_000, dies="with a backlog")
    took, recovered = [line[1:] for line in theatre.happened if line[0] == "ready"][-1]
    assert int(recovered) == 10_000
    assert float(took) <= MOST_MS_UNTIL_READY
