from __future__ import annotations

import pytest

from callboard.live.scopes import Scope
from callboard.runs.history import Conversation
from callboard_protocol.errors import ConcurrentStepError, UsageError
from callboard_protocol.messages import Message


@pytest.fixture
def root() -> Scope:
    return Scope("", Conversation([Message.user("hello")]))


def step(scope: Scope, what: str = "step") -> str:
    identity = scope.begin(what)
    scope.end()
    return identity


def test_steps_of_a_scope_are_counted_from_0(root: Scope):
    assert root.upcoming == "0"
    assert [step(root), step(root), root.upcoming] == ["0", "1", "2"]


def test_a_scope_below_has_a_count_of_its_own(root: Scope):
    step(root)
    side, item = root.below("side"), root.below("a", within="0")
    deeper = side.below("deeper")
    assert [step(side), step(side), step(item), step(deeper)] == ["side/0", "side/1", "0.a/0", "side/deeper/0"]
    assert step(root) == "1"
    assert (root.in_transcript, side.in_transcript) == (True, False)


def test_steps_of_a_run_that_began_afresh_are_none_of_its_earlier_life():
    root = Scope("", Conversation([]), life=3)
    identity = step(root)
    item, side = root.below("a", within=identity), root.below("side")
    assert [identity, step(item), step(side), root.draw()] == ["3-0", "3-0.a/3-0", "side/3-0", "3-random.0"]
    # Not even where a branch is called as the ordinals are.
    assert step(Scope("", Conversation([])).below("3-0.a")) == "3-0.a/0"


def test_a_second_step_in_flight_is_refused_and_names_the_first(root: Scope):
    root.begin("generate")
    for begin in (lambda: root.begin("tool 'look'"), root.draw):
        with pytest.raises(ConcurrentStepError, match="while generate is in flight in scope 'root'") as refused:
            begin()
    assert refused.value.context == {"scope": "", "in_flight": "generate", "began": "random"}
    root.end()
    assert step(root) == "1", "what was refused takes no ordinal"


def test_a_branch_needs_a_name_of_its_own(root: Scope):
    root.below("a")
    for bad in ("", "a/b", "/"):
        with pytest.raises(UsageError, match="cannot name a branch"):
            root.below(bad)
    with pytest.raises(UsageError, match="exists already"):
        root.below("a")
    root.below("a", within="3")
    with pytest.raises(UsageError, match="exists already"):
        root.below("3.a")


def test_a_pattern_that_begins_again_can_use_its_names_again_and_means_others(root: Scope):
    first = root.below("a")
    root.begin_again()
    second = root.below("a")
    root.begin_again()
    third = root.below("a")
    assert len({step(scope) for scope in (first, second, third)}) == 3
    with pytest.raises(UsageError, match="exists already"):
        root.below("a")


def test_a_scope_below_sees_the_conversation_as_it_stands_and_keeps_what_it_adds(root: Scope):
    side = root.below("side")
    root.conversation.add(Message.user("to the root"))
    side.conversation.add(Message.user("to the side"))
    assert [message.text for message in root.conversation.view()] == ["hello", "to the root"]
    assert [message.text for message in side.conversation.view()] == ["hello", "to the side"]


def test_clock_readings_ride_on_the_step_that_follows_them(root: Scope):
    root.readings.extend([1.0, 2.0])
    assert root.draw() == "random.0"
    assert root.draw() == "random.1"
    root.begin("step")
    assert root.clock == (1.0, 2.0)
    root.end()
    root.begin("step")
    assert root.clock == ()
    root.end()
    assert root.below("side").draw() == "side/random.0"
