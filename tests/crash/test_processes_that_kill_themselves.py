"""A process that dies at a moment of its own choosing: what the next one does, moment by moment."""

from __future__ import annotations

from typing import Any

import pytest

from callboard.testing import Passage

DEPOSITED = ["completed", "deposited 75"]
PLANNED = ["completed", "planned 29"]

IN_THE_MODEL = Passage("step.outcome_received", "run:0")
AFTER_THE_EFFECT = Passage("step.outcome_received", "run:3.0")
AT_THE_END = Passage("run.ended")


# ---- at a named moment


@pytest.mark.parametrize(
    "death",
    [
        {"dies_at": IN_THE_MODEL},
        {"dies": "inside a read-only tool"},
        {"dies": "before the tool's effect"},
        {"dies_at": AFTER_THE_EFFECT},
        {"dies_at": AT_THE_END},
        {"dies": "with the result in hand"},
    ],
)
def test_a_run_with_tools_goes_on_from_any_moment_and_each_effect_happens_once(
    theatre: Any, laws: Any, death: dict[str, Any]
) -> None:
    theatre.dies("clerk_alone", **death)
    theatre.survives("clerk_alone")
    laws.hold(theatre)
    assert theatre.results() == {"run": DEPOSITED}
    assert [*theatre.count("deposit").values()] == [1, 1, 1]


def test_reconcile_is_asked_about_the_call_that_was_in_flight_and_about_no_other(theatre: Any) -> None:
    theatre.dies("clerk_alone", dies_at=AFTER_THE_EFFECT)
    theatre.survives("clerk_alone")
    first = next(words[1] for words in theatre.happened if words[0] == "deposit")
    assert theatre.count("reconcile") == {first: 1}
    assert theatre.count("asked-to-deposit")[first] == 1, "what has happened is not asked for again"


def test_an_effect_that_reconcile_rules_out_is_made_after_all(theatre: Any) -> None:
    theatre.dies("clerk_alone", dies="before the tool's effect")
    theatre.survives("clerk_alone")
    [first] = theatre.count("reconcile")
    assert theatre.count("asked-to-deposit")[first] == 2
    assert theatre.count("deposit")[first] == 1


def test_only_the_model_call_in_flight_is_made_again(theatre: Any) -> None:
    theatre.dies("clerk_alone", dies_at=IN_THE_MODEL)
    theatre.survives("clerk_alone")
    assert theatre.count("model") == {
        "run:0": 2,
        "run:2": 1,
        "run:4": 1,
        "run:6": 1,
        "run:8": 1,
        "run:10": 1,
        "run:12": 1,
    }


@pytest.mark.parametrize(
    "moment", [f"{when} the effect of {value}" for when in ("before", "after") for value in (2, 3)]
)
def test_a_function_step_in_flight_is_run_again_and_the_others_are_not(theatre: Any, laws: Any, moment: str) -> None:
    theatre.dies("planner_alone", dies=moment)
    theatre.survives("planner_alone")
    laws.hold(theatre)
    assert theatre.results() == {"run": PLANNED}
    again = "run:0" if moment.endswith("2") else "run:1.item3/0"
    # The branch beside it may have been in flight, too; nothing else was.
    assert theatre.count("fetch")[again] == 2
    assert all(times == 1 for call, times in theatre.count("fetch").items() if call not in {again, "run:1.item4/0"})


def test_a_run_that_ended_on_disk_is_not_carried_on(theatre: Any) -> None:
    theatre.dies("clerk_alone", dies_at=AT_THE_END)
    before = len(theatre.happened)
    theatre.survives("clerk_alone")
    assert [words[0] for words in theatre.happened[before:]] == ["opening", "result"]


def test_a_sleep_ends_when_it_was_to_end_whoever_sleeps_it(theatre: Any) -> None:
    theatre.dies("sleeper", dies="in its sleep")
    theatre.survives("sleeper")
    resumed = [float(words[1]) for words in theatre.happened if words[0] == "resumed"]
    [woke] = [float(words[1]) for words in theatre.happened if words[0] == "woke"]
    assert woke - resumed[0] >= 1.0
    assert woke - resumed[1] < 1.0, "it slept anew"


# ---- a call that acts and cannot say whether it did


@pytest.mark.parametrize(
    ("on_in_doubt", "rang", "result"),
    [
        ("ask", 1, ["suspended", None]),
        ("tell", 1, ["completed", "told: the call of 'ring' (run:1.0) began, and a crash hid whether it took effect"]),
        ("retry", 2, ["completed", "told: rang"]),
        ("fail", 1, ["failed", None]),
    ],
)
def test_a_call_in_doubt_is_never_repeated_unless_the_agent_says_so(
    theatre: Any, laws: Any, on_in_doubt: str, rang: int, result: list[Any]
) -> None:
    theatre.dies("undeclared", dies="while the bell rings", on_in_doubt=on_in_doubt)
    theatre.survives("undeclared", on_in_doubt=on_in_doubt)
    assert theatre.count("rang") == {"run:1.0": rang}
    assert theatre.results() == {"run": result}
    remains = theatre.read()
    if on_in_doubt == "ask":
        [pending] = remains.entries["run"].pending
        assert (pending.reason, pending.call_id, pending.tool) == ("in_doubt", "run:1.0", "ring")
    else:
        laws.hold(theatre)


# ---- over each commit in turn


@pytest.mark.parametrize(
    ("task", "at_commits", "when"),
    [
        ("clerk_alone", (1, 2), "after"),
        ("planner_alone", (2,), "before"),
        pytest.param("clerk_alone", (2,), "before", marks=pytest.mark.slow),
        pytest.param("planner_alone", (1, 2), "after", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_over_every_commit_gets_there_step_by_step(
    theatre: Any, laws: Any, task: str, at_commits: tuple[int, ...], when: str
) -> None:
    """A life commits that it has resumed, perhaps that a tool is about to act again, and what is new."""
    deaths = theatre.lives_until_done(task, at_commits=at_commits, when=when)
    assert deaths >= 6, "it died over too few commits to prove anything"
    laws.hold(theatre)
    assert theatre.results() == {"run": DEPOSITED if task == "clerk_alone" else PLANNED}


# ---- while it starts


def test_a_process_killed_while_it_resumes_leaves_the_run_to_the_next_one(theatre: Any, laws: Any) -> None:
    theatre.dies("clerk_alone", dies_at=AFTER_THE_EFFECT)
    for when in ("before", "after", "before"):
        theatre.dies("clerk_alone", at_commit=0, when=when)
    theatre.survives("clerk_alone")
    laws.hold(theatre)
    assert theatre.results() == {"run": DEPOSITED}


def test_a_directory_whose_making_was_cut_off_opens_the_next_time(theatre: Any, laws: Any) -> None:
    for _ in range(6):
        life = theatre.life("clerk_alone")
        life.wait_for("opening", 1)
        life.kill()
    theatre.survives("clerk_alone")
    laws.hold(theatre)
    assert theatre.results() == {"run": DEPOSITED}


# ---- a run that is to blame


def test_a_run_that_ends_every_process_fails_and_the_others_have_gone_on(theatre: Any, laws: Any) -> None:
    deaths = theatre.lives_until_done("deadly")
    assert theatre.results()["deadly"] == ["failed", "poisonous_run"]
    assert theatre.count("exploded") == {"deadly:1.0": deaths}
    remains = laws.hold(theatre)
    assert remains.entries["innocent"].state == "completed"
