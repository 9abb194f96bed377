import runpy
from pathlib import Path
from typing import get_args

import pytest

from callboard_protocol.errors import IllegalTransitionError, UsageError
from callboard_protocol.runs import StopReason
from callboard_protocol.states import (
    FINAL,
    STOP_INPUTS,
    TRANSITIONS,
    UNFINISHED,
    RunInput,
    RunState,
    advance,
    legal_inputs,
    state_for,
)

DOCS = Path(__file__).parents[2] / "docs"
ILLEGAL = [(state, event) for state in RunState for event in RunInput if (state, event) not in TRANSITIONS]


def walk(*events: RunInput) -> list[RunState]:
    state, path = RunState.QUEUED, []
    for event in events:
        state = advance(state, event)
        path.append(state)
    return path


def test_a_run_that_goes_well_is_started_and_completes():
    assert walk(RunInput.START, RunInput.COMPLETE) == [RunState.RUNNING, RunState.COMPLETED]


def test_a_run_found_running_after_a_crash_is_interrupted_then_queued_then_started_again():
    assert walk(RunInput.START, RunInput.INTERRUPT, RunInput.REQUEUE, RunInput.START) == [
        RunState.RUNNING,
        RunState.INTERRUPTED,
        RunState.QUEUED,
        RunState.RUNNING,
    ]


def test_a_suspended_run_wakes_into_a_free_slot_or_queues_for_one():
    assert advance(RunState.SUSPENDED, RunInput.WAKE) is RunState.RUNNING
    assert advance(RunState.SUSPENDED, RunInput.REQUEUE) is RunState.QUEUED


def test_a_queued_run_that_cannot_run_here_is_parked_until_it_can():
    assert walk(RunInput.PARK, RunInput.UNPARK) == [RunState.PARKED, RunState.QUEUED]


def test_a_parked_run_cannot_fail():
    with pytest.raises(IllegalTransitionError):
        advance(RunState.PARKED, RunInput.FAIL)


@pytest.mark.parametrize("state", sorted(UNFINISHED))
def test_every_unfinished_run_can_be_cancelled(state: RunState):
    assert advance(state, RunInput.CANCEL) is RunState.CANCELLED


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.TIMED_OUT, RunState.EXHAUSTED])
def test_a_run_that_ended_short_of_its_output_can_only_be_resumed(state: RunState):
    assert legal_inputs(state) == (RunInput.RESUME,)
    assert advance(state, RunInput.RESUME) is RunState.QUEUED


@pytest.mark.parametrize("state", [RunState.COMPLETED, RunState.CANCELLED])
def test_nothing_moves_a_completed_or_cancelled_run(state: RunState):
    assert legal_inputs(state) == ()
    with pytest.raises(IllegalTransitionError, match="nothing moves a run from here"):
        advance(state, RunInput.RESUME)


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_an_illegal_move_names_the_state_the_input_and_what_is_legal(state: RunState, event: RunInput):
    with pytest.raises(IllegalTransitionError) as caught:
        advance(state, event)
    assert f"{state.value!r} cannot take the input {event.value!r}" in str(caught.value)
    assert caught.value.context["state"] == state.value
    assert caught.value.context["input"] == event.value
    assert set(caught.value.context["legal"]) == {e.value for e in RunInput if (state, e) in TRANSITIONS}


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        TRANSITIONS[RunState.COMPLETED, RunInput.START] = RunState.RUNNING  # type: ignore[index]
    assert (RunState.COMPLETED, RunInput.START) not in TRANSITIONS


def test_every_state_can_be_reached_from_queued():
    reached = {RunState.QUEUED}
    for _ in RunState:
        reached |= {target for (source, _), target in TRANSITIONS.items() if source in reached}
    assert reached == set(RunState)


def test_every_unfinished_state_can_still_lead_to_a_result():
    ending = set(FINAL)
    for _ in RunState:
        ending |= {source for (source, _), target in TRANSITIONS.items() if target in ending}
    assert ending >= UNFINISHED


def test_every_input_moves_some_run():
    assert {event for _, event in TRANSITIONS} == set(RunInput)


def test_states_and_inputs_are_the_strings_that_are_on_disk():
    assert advance(RunState("suspended"), RunInput("wake")) == "running"
    assert {state.value for state in FINAL} == {"completed", "failed", "cancelled", "timed_out", "exhausted"}
    assert {state.value for state in UNFINISHED} == {"queued", "running", "suspended", "interrupted", "parked"}


def test_every_stop_reason_has_a_state():
    assert set(STOP_INPUTS) == set(get_args(StopReason))
    assert {reason: state_for(reason).value for reason in STOP_INPUTS} == {
        "completed": "completed",
        "failed": "failed",
        "cancelled": "cancelled",
        "timeout": "timed_out",
        "max_steps": "exhausted",
        "budget_exhausted": "exhausted",
        "suspended": "suspended",
        "interrupted": "interrupted",
    }


def test_an_unknown_stop_reason_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"'finished' is not a stop reason \(one of: completed, "):
        state_for("finished")  # type: ignore[arg-type]


def test_the_document_draws_this_table():
    generator = runpy.run_path(str(DOCS / "generate.py"))
    text = (DOCS / "RUN-STATES.md").read_text(encoding="utf-8")
    assert generator["with_blocks"](text, generator["BLOCKS"]["RUN-STATES.md"]) == text, "run: python docs/generate.py"


def test_the_document_explains_every_state_and_every_input():
    text = (DOCS / "RUN-STATES.md").read_text(encoding="utf-8")
    assert [name for name in [*RunState, *RunInput] if f"\n| `{name}` | " not in text] == []
