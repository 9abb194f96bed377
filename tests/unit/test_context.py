from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.context import FullContext, SlidingWindow, resolve_assembler
from callboard.runs.history import Conversation
from callboard_protocol.errors import AgentDefinitionError, UsageError
from callboard_protocol.messages import Message, ToolCall


def turn(*ids: str) -> list[Message]:
    calls = tuple(ToolCall(name="look", id=one) for one in ids)
    return [Message.assistant("asking", calls), *(Message.tool(one, tool_call_id=one, name="look") for one in ids)]


def texts(messages: Sequence[Message]) -> list[str]:
    return [message.text for message in messages]


def test_the_full_context_is_the_history_itself():
    history = Conversation([Message.user("a")]).view()
    assert FullContext().assemble(history) is history


def test_a_window_shows_the_instructions_and_the_last_messages():
    messages = [Message.system("rules"), *(Message.user(text) for text in "abcde")]
    assert texts(SlidingWindow(2).assemble(messages)) == ["rules", "d", "e"]
    assert texts(SlidingWindow(9).assemble(messages)) == ["rules", *"abcde"]
    assert texts(SlidingWindow(2).assemble(messages[1:])) == ["d", "e"]
    assert SlidingWindow(2).assemble([]) == []


def test_a_window_never_begins_with_an_answer_to_a_call_it_does_not_show():
    messages = [Message.user("go"), *turn("1", "2"), Message.assistant("so"), Message.user("on")]
    assert texts(SlidingWindow(4).assemble(messages)) == ["so", "on"]
    assert texts(SlidingWindow(5).assemble(messages)) == ["asking", "1", "2", "so", "on"]


def test_a_window_of_nothing_but_answers_shows_the_turn_that_asked_for_them():
    messages = [Message.system("rules"), Message.user("go"), *turn("1", "2", "3")]
    assert texts(SlidingWindow(2).assemble(messages)) == ["rules", "asking", "1", "2", "3"]


@given(
    st.integers(1, 8),
    st.lists(st.one_of(st.just([Message.user("u")]), st.integers(0, 4).map(lambda n: turn(*map(str, range(n)))))),
)
def test_what_a_window_shows_is_a_well_formed_end_of_the_history(size: int, turns: list[list[Message]]):
    messages = [Message.system("rules"), *(message for one in turns for message in one)]
    shown = SlidingWindow(size).assemble(messages)
    assert shown[0] == messages[0]
    assert shown[1:] == messages[len(messages) - len(shown) + 1 :]
    assert len(shown) == 1 or shown[1].role != "tool"
    assert (len(shown) > 1) == (len(messages) > 1), "a history is never shown as nothing"
    longest = max((len(one) for one in turns), default=0)
    assert len(shown) - 1 <= max(size, longest)


@pytest.mark.parametrize("size", [0, -1])
def test_a_window_of_nothing_is_refused(size: int):
    with pytest.raises(UsageError, match="shows nothing"):
        SlidingWindow(size)


def test_an_assembler_is_found_by_name_or_taken_as_it_is():
    window = SlidingWindow(3)
    assert resolve_assembler(window, "agent") is window
    assert isinstance(resolve_assembler("full", "agent"), FullContext)


@pytest.mark.parametrize(
    ("context", "says"), [("ful", "did you mean 'full'"), ("x", "one of: full"), (7, "no assembler")]
)
def test_an_assembler_that_does_not_exist_is_refused_with_what_there_is(context: object, says: str):
    with pytest.raises(AgentDefinitionError, match="helper") as refused:
        resolve_assembler(context, "helper")  # type: ignore[arg-type]
    assert says in str(refused.value)
