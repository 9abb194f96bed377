from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runs.history import Conversation
from callboard_protocol.messages import Message, ToolCall


def asks(*names: str) -> Message:
    return Message.assistant("", tuple(ToolCall(name="look", id=name) for name in names))


def answers(name: str) -> Message:
    return Message.tool(f"answer {name}", tool_call_id=name, name="look")


def texts(messages: object) -> list[str]:
    return [message.text for message in messages]  # type: ignore[attr-defined]


def test_messages_stand_in_the_order_they_were_added():
    conversation = Conversation([Message.user("a"), Message.assistant("b")])
    conversation.add(Message.user("c"))
    assert texts(conversation.view()) == ["a", "b", "c"]
    assert len(conversation) == 3


def test_a_view_never_changes_whatever_is_added():
    conversation = Conversation([Message.user("go"), asks("1", "2")])
    before = conversation.view()
    conversation.add(answers("2"))
    with_second = conversation.view()
    conversation.add(answers("1"))
    conversation.add(Message.user("more"))
    assert texts(before) == ["go", ""]
    assert texts(with_second) == ["go", "", "answer 2"]
    assert texts(conversation.view()) == ["go", "", "answer 1", "answer 2", "more"]


def test_a_view_is_a_sequence_of_its_own_length():
    conversation = Conversation([Message.user(text) for text in "abcd"])
    view = conversation.view()
    conversation.add(Message.user("e"))
    assert len(view) == 4
    assert view[0].text == "a"
    assert view[-1].text == "d"
    assert texts(view[1:]) == ["b", "c", "d"]
    assert texts(view[-2:]) == ["c", "d"]
    assert texts(view[::-1]) == ["d", "c", "b", "a"]
    assert texts(view[2:99]) == ["c", "d"]
    assert Message.user("e") not in view
    assert texts(reversed(view)) == ["d", "c", "b", "a"]
    for outside in (4, -5):
        with pytest.raises(IndexError):
            view[outside]


def test_a_view_equals_any_sequence_of_the_same_messages_and_has_no_hash():
    view = Conversation([Message.user("a"), Message.user("b")]).view()
    assert view == [Message.user("a"), Message.user("b")]
    assert view == Conversation(view).view()
    assert view != [Message.user("a")]
    assert view != 7
    with pytest.raises(TypeError):
        hash(view)


def test_an_answer_stands_right_behind_its_turn_whatever_came_between():
    conversation = Conversation([asks("1"), answers("1"), asks("2"), answers("1"), Message.user("well?")])
    assert texts(conversation.view()) == ["", "answer 1", "", "answer 1", "well?"]
    conversation.add(answers("2"))
    assert texts(conversation.view()) == ["", "answer 1", "", "answer 2", "answer 1", "well?"]


def test_unanswered_names_the_open_calls_of_the_last_turn_in_order():
    conversation = Conversation()
    assert list(conversation.unanswered()) == []
    conversation.add(Message.user("go"))
    conversation.add(asks("1", "2", "3"))
    assert [call.id for call in conversation.unanswered()] == ["1", "2", "3"]
    conversation.add(answers("2"))
    assert [call.id for call in conversation.unanswered()] == ["1", "3"]
    conversation.add(answers("3"))
    conversation.add(answers("1"))
    assert list(conversation.unanswered()) == []
    conversation.add(Message.assistant("done"))
    assert list(conversation.unanswered()) == []


@given(st.lists(st.permutations(range(5)), max_size=4))
def test_answers_stand_in_the_order_of_the_calls_in_whatever_order_they_come(rounds: list[list[int]]):
    conversation = Conversation([Message.user("go")])
    expected, seen = ["go"], []
    for number, order in enumerate(rounds):
        names = [f"{number}.{rank}" for rank in range(5)]
        conversation.add(asks(*names))
        for rank in order:
            conversation.add(answers(names[rank]))
            view = conversation.view()
            seen.append((view, texts(view)))
        expected += ["", *(f"answer {name}" for name in names)]
    assert texts(conversation.view()) == expected
    assert all(texts(view) == before for view, before in seen)
