"""A proof by killing: it lets sound agents pass, and tells on those that are not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from callboard import Agent, UsageError
from callboard.testing import FAULT_POINTS, KillReport, kill_everywhere

SCENARIOS = Path(__file__).with_name("scenarios.py")


def scenario(name: str) -> str:
    return f"{SCENARIOS}:{name}"


def deposits(folder: Path) -> dict[str, int]:
    """An observer: what the bank says."""
    account = folder / "account"
    return {"deposits": len(account.read_text().splitlines()) if account.exists() else 0}


def reported(report: KillReport) -> dict[str, str]:
    return {str(kill.passage): "; ".join(kill.differences) for kill in report.bad}


STEPS = {
    "run:/inject": "memory is asked",
    "run:0": "a model",
    "run:1.0": "tools that read",
    "run:1.1": "tools that read",
    "run:3.0": "a tool that acts",
    "run:5": "a function",
    "run:6.three/0": "a function in a branch",
    "run:6.four/1": "a model in a branch",
    "run:7": "an event",
    "run:9": "a tool that needs an approval",
    "run:10": "a signal",
    "run:11": "another agent",
    "run:11:1.0": "its tool that acts",
    "run:12": "another agent in this session",
    "run:12:0": "its function",
    "run:13": "an artifact",
    "run:/writeback": "memory is told",
}

POINTS = {
    "run.began",
    "run.suspended",
    "run.resumed",
    "run.ended",
    "step.about_to_act",
    "step.reservation_recorded",
    "step.intent_recorded",
    "step.outcome_received",
    "step.recorded",
    "sleep.recorded",
    "decision.recorded",
    "letter.posted",
    "account.recorded",
    "account.drawn",
}


def check_every_kind_of_step(at_most: int) -> KillReport:
    """Kill a company whose run takes every kind of step, and hold every end to the one that nobody killed."""
    report = kill_everywhere(
        scenario("company"), "go", drive=scenario("see_through"), observe=deposits, at_most=at_most
    )
    report.check()
    assert {kill.verdict for kill in report.kills} == {"same"}
    said = "I deposited 70. 88; published the sum; at last; I deposited 1. It was 8 messages long."
    assert report.reference.runs["run"]["output"] == report.reference.runs["reminder"]["output"] == said
    assert {run["stop_reason"] for run in report.reference.runs.values()} == {"completed"}
    assert report.reference.runs.keys() == {"run", "run:11", "run:12", "reminder"}
    assert report.reference.sessions["session"]["state"] == {"squares": 88}
    assert report.reference.accounts["company"]["steps"] == 1
    assert report.effects.exact == {"deposited 70": 1, "deposited 1": 1, "published the sum": 1, "deposits": 3}
    assert {passage.subject for passage in report.passages if passage.point == "step.recorded"} >= STEPS.keys()
    assert {kill.passage.point for kill in report.kills} == {passage.point for passage in report.passages} == POINTS
    return report


def test_a_run_with_every_kind_of_step_comes_to_the_same_end_wherever_it_is_killed() -> None:
    check_every_kind_of_step(at_most=48)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_with_every_kind_of_step_survives_a_kill_at_each_moment_there_is() -> None:
    report = check_every_kind_of_step(at_most=1000)
    assert len(report.kills) == len(report.passages)


def test_a_side_effect_outside_a_step_is_told_on() -> None:
    report = kill_everywhere(scenario("careless"), "go")
    again = "effect 'wrote a letter' took place 2 times instead of 1"
    assert reported(report) == {
        "step.about_to_act of run:0": again,
        "step.outcome_received of run:0": again,
        "step.recorded of run:0": again,
    }
    with pytest.raises(
        AssertionError, match=r"killed at step\.recorded of run:0: differs\n    effect 'wrote a letter'"
    ):
        report.check()


@pytest.mark.slow
def test_a_call_that_nobody_can_settle_is_told_on() -> None:
    """The tool has no `reconcile`: killed in mid-call, the run waits for somebody to decide."""
    report = kill_everywhere(scenario("ringer"), "go")
    assert [*reported(report)] == [
        "step.intent_recorded of run:1.0",
        "step.about_to_act of run:1.0",
        "step.outcome_received of run:1.0",
    ]
    assert "runs.run.stop_reason is 'suspended' instead of 'completed'" in reported(report).popitem()[1]


@pytest.mark.slow
def test_whoever_drives_the_run_drives_it_in_every_process() -> None:
    report = kill_everywhere(scenario("waiting"), "go", drive=scenario("cancel"))
    report.check()
    assert report.reference.runs["run"]["stop_reason"] == "cancelled"
    assert "run.ended" in {kill.passage.point for kill in report.kills if kill.verdict == "same"}


def test_a_run_that_waits_for_people_comes_to_the_same_end_wherever_it_is_killed() -> None:
    report = kill_everywhere(scenario("asking"), "go", drive=scenario("decide_and_send"))
    report.check()
    assert report.reference.runs["run"]["output"] == "promoted Ann, at last"
    assert {"run.suspended", "letter.posted", "decision.recorded"} <= {kill.passage.point for kill in report.kills}


def test_a_process_that_cannot_go_on_after_a_kill_is_told_on_with_what_it_said() -> None:
    report = kill_everywhere(scenario("unable_to_start_twice"), "go", at_most=2)
    assert {kill.verdict for kill in report.kills} == {"stuck"}
    assert "BlockingIOError: the lock is still there" in report.kills[0].differences[0]


@pytest.mark.slow
def test_a_run_that_goes_another_way_is_not_taken_for_one_that_was_killed() -> None:
    report = kill_everywhere(scenario("changing"), "go")
    assert {str(kill.passage): kill.verdict for kill in report.kills} == {
        "run.began of run": "same",
        "step.about_to_act of run:0": "not reached",
        "step.outcome_received of run:0": "not reached",
        "step.recorded of run:0": "not reached",
        "run.ended of run": "same",
    }


@pytest.mark.slow
def test_of_many_passages_as_many_are_taken_as_may_be_and_of_every_point(tmp_path: Path) -> None:
    report = kill_everywhere(
        scenario("company"), "go", drive=scenario("see_through"), at_most=14, folder=tmp_path / "stories"
    )
    killed = Counter(kill.passage.point for kill in report.kills)
    assert killed.total() == 14
    assert {*killed} == {passage.point for passage in report.passages} <= {*FAULT_POINTS}
    assert len([*(tmp_path / "stories").iterdir()]) == 14 + 2


def test_an_agent_that_ends_in_two_ways_by_itself_is_refused() -> None:
    with pytest.raises(UsageError, match=r"different ends.*runs\.run\.output is 'told by") as refused:
        kill_everywhere(scenario("guessing"), "go")
    assert "ctx.now()" in refused.value.hint


@pytest.mark.slow
def test_what_may_differ_is_left_out() -> None:
    kill_everywhere(scenario("guessing"), "go", ignore=["runs.*.output", "sessions.*.transcript*"], at_most=2).check()


@pytest.mark.parametrize(
    ("agent", "options", "says"),
    [
        ("nowhere", {}, "names nothing that can be imported"),
        ("no_such_module:agent", {}, "No module named 'no_such_module'"),
        (scenario("nobody_by_that_name"), {}, "there is no 'nobody_by_that_name'"),
        (scenario("no_agent"), {}, "which is no agent"),
        (scenario("broken"), {}, "there is no configuration"),
        (
            scenario("waiting"),
            {"timeout": 1},
            "`timeout`: run 'run' is running, and has made these steps: none",
        ),
        (scenario("waiting"), {"drive": scenario("deposits")}, "is no async function"),
        (scenario("company"), {"at_most": 0}, "kills nobody"),
        (scenario("company"), {"processes": 0}, "kills nobody"),
        (f"{SCENARIOS.with_name('exits.py')}:agent", {}, "ended by itself (it ended with 3)"),
        (scenario("company"), {"run_id": "mine"}, "run_id is not for kill_everywhere to choose"),
        (lambda: None, {}, "it is made when its function runs"),
        (Agent("here"), {}, "cannot be handed <Agent 'here'"),
        (7, {}, "is no name and no function"),
    ],
)
def test_what_another_process_cannot_play_is_refused(agent: Any, options: Any, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        kill_everywhere(agent, "go", **options)
    assert says in str(refused.value)
