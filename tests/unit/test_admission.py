from __future__ import annotations

from callboard.supervision.admission import Admission


def admitted(admission: Admission) -> list[str]:
    names = []
    while (run_id := admission.admit()) is not None:
        names.append(run_id)
    return names


def test_runs_of_different_sessions_are_admitted_in_order_up_to_the_slots():
    admission = Admission(2)
    for order, name in ((3, "c"), (1, "a"), (2, "b")):
        admission.enqueue(order, name, f"session of {name}")
    assert (admission.queued, admission.free_slots) == (3, 2)
    assert admitted(admission) == ["a", "b"]
    assert (admission.queued, admission.free_slots) == (1, 0)
    admission.leave_slot()
    assert admitted(admission) == ["c"]


def test_a_session_is_given_to_one_run_at_a_time():
    admission = Admission(9)
    for order, name in enumerate("abc"):
        admission.enqueue(order, name, "s")
    assert admitted(admission) == ["a"]
    assert (admission.holder_of("s"), admission.queued_in("s")) == ("a", 2)
    admission.leave_slot()
    assert admitted(admission) == [], "a slot alone does not free the session"
    admission.release("a", "s")
    assert admitted(admission) == ["b"]


def test_a_session_nobody_uses_is_forgotten():
    admission = Admission(1)
    admission.enqueue(1, "a", "s")
    assert admitted(admission) == ["a"]
    admission.release("a", "s")
    assert (admission.holder_of("s"), admission.queued_in("s")) == (None, 0)
    assert not admission._lines


def test_only_the_holder_can_release_a_session():
    admission = Admission(2)
    admission.enqueue(1, "a", "s")
    admission.enqueue(2, "b", "s")
    assert admitted(admission) == ["a"]
    admission.release("b", "s")
    admission.release("a", "elsewhere")
    assert admission.holder_of("s") == "a"


def test_a_run_that_is_withdrawn_is_never_admitted():
    admission = Admission(9)
    for order, name in enumerate("abcd"):
        admission.enqueue(order, name, "s")
    assert admission.withdraw("a", "s")
    assert admission.withdraw("c", "s")
    assert not admission.withdraw("a", "s")
    assert not admission.withdraw("a", "nowhere")
    assert admission.queued == 2
    assert admitted(admission) == ["b"]
    admission.release("b", "s")
    assert admitted(admission) == ["d"]
    assert admission.queued == 0


def test_a_run_that_was_withdrawn_can_come_again():
    admission = Admission(9)
    admission.enqueue(1, "a", "s")
    admission.withdraw("a", "s")
    admission.enqueue(2, "a", "s")
    assert admitted(admission) == ["a"]
    assert admission.queued == 0


def test_a_run_that_returns_to_its_slot_goes_before_those_that_never_had_one():
    admission = Admission(1)
    admission.enqueue(1, "sleeper", "s")
    assert admitted(admission) == ["sleeper"]
    admission.leave_slot()
    admission.enqueue(2, "a", "t")
    admission.enqueue(3, "b", "u")
    assert admitted(admission) == ["a"]
    admission.ask_back("sleeper")
    admission.leave_slot()
    assert admitted(admission) == ["sleeper"]
    assert admission.holder_of("s") == "sleeper"


def test_a_return_that_is_forgotten_takes_no_slot():
    admission = Admission(1)
    admission.ask_back("a")
    assert admission.forget_return("a")
    assert not admission.forget_return("a")
    assert admitted(admission) == []
    assert admission.free_slots == 1


def test_a_held_session_keeps_others_waiting_and_costs_no_slot():
    admission = Admission(1)
    admission.hold("suspended", "s")
    admission.enqueue(1, "later", "s")
    assert admitted(admission) == []
    assert admission.free_slots == 1
    admission.release("suspended", "s")
    assert admitted(admission) == ["later"]


def test_a_waiting_run_can_take_its_session_without_a_slot():
    admission = Admission(1)
    admission.enqueue(1, "first", "s")
    admission.enqueue(2, "second", "s")
    admission.hold("first", "s")
    assert (admission.holder_of("s"), admission.queued) == ("first", 1)
    assert admitted(admission) == []
    admission.release("first", "s")
    assert admitted(admission) == ["second"]


def test_a_holder_that_is_queued_again_goes_before_the_others_of_its_session():
    admission = Admission(2)
    admission.hold("parked", "s")
    admission.enqueue(5, "later", "s")
    admission.enqueue(6, "elsewhere", "t")
    admission.requeue(1, "parked", "s")
    assert admission.queued == 3
    assert admitted(admission) == ["parked", "elsewhere"]
    admission.release("parked", "s")
    admission.leave_slot()
    assert admitted(admission) == ["later"]
