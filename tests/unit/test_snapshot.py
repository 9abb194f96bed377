from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from callboard.runs.snapshot import redact, snapshot_of
from callboard_protocol.messages import Message, ToolCall
from callboard_protocol.runs import RunUsage


def snapshot(error: BaseException | None = None, messages: Any = (), state: Any = None, tool_calls: Any = ()) -> Any:
    return snapshot_of(error or ValueError("no"), RunUsage(llm_calls=3), messages, state, tool_calls)


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "PASSWORD",
        "db_password_old",
        "passwd",
        "passphrase",
        "secret",
        "client_secret",
        "token",
        "accessToken",
        "api_key",
        "apikey",
        "x-api_key",
        "Authorization",
        "cookie",
        "credentials",
        "private_key",
        "privatekey",
    ],
)
def test_what_a_secret_sounding_key_holds_is_left_out(key: str):
    assert redact({key: "s3cr3t", "user": "ann"}) == {key: "[redacted]", "user": "ann"}
    assert redact({key: {"nested": ["s3cr3t"]}}) == {key: "[redacted]"}


@pytest.mark.parametrize("key", ["user", "passenger", "key", "keyboard", "author", "monkey"])
def test_what_other_keys_hold_is_kept(key: str):
    assert redact({key: "value"}) == {key: "value"}


def test_secrets_are_found_however_deep_and_the_original_is_left_alone():
    ann = {"name": "ann", "password": "x"}
    value = {"users": [ann, ({"token": 1},)], 7: {"secret": None}}
    assert redact(value) == {
        "users": [{"name": "ann", "password": "[redacted]"}, [{"token": "[redacted]"}]],
        7: {"secret": "[redacted]"},
    }
    assert ann == {"name": "ann", "password": "x"}


def test_arguments_of_tool_calls_are_redacted_and_the_messages_given_are_not_changed():
    call = ToolCall(name="login", arguments={"user": "ann", "password": "x"}, id="1")
    message = Message.assistant("", (call,))
    shown = snapshot(messages=[message]).last_messages[0]
    assert shown.tool_calls[0].arguments == {"user": "ann", "password": "[redacted]"}
    assert shown.tool_calls[0].id == "1"
    assert message.tool_calls == (call,)


def test_the_state_is_shown_as_plain_data_without_secrets():
    class State(BaseModel):
        api_key: str = "x"
        seen: set[int] = {1}
        anything: Any = None

    class Odd:
        def __repr__(self) -> str:
            return "<odd>"

    assert snapshot(state=State(anything=Odd())).state == {"api_key": "[redacted]", "seen": [1], "anything": "<odd>"}


def test_a_state_that_cannot_be_shown_is_named_instead():
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    assert snapshot(state=Broken()).state.endswith("Broken>")


def test_an_error_is_shown_with_its_causes_and_the_innermost_frames():
    def inner() -> None:
        raise KeyError("inner")

    try:
        try:
            inner()
        except KeyError as problem:
            raise ValueError("outer") from problem
    except ValueError as error:
        shown = snapshot(error)
    assert (shown.type, shown.message) == ("ValueError", "outer")
    assert "KeyError: 'inner'" in shown.traceback
    assert shown.traceback.rstrip().endswith("ValueError: outer")


def test_a_long_traceback_keeps_its_end():
    def descend(n: int) -> None:
        if n == 0:
            raise ValueError("the end of it" + "." * 9000)
        descend(n - 1)

    try:
        descend(3)
    except ValueError as error:
        shown = snapshot(error)
    assert len(shown.traceback) == 8000
    assert shown.traceback.endswith(".\n")


def test_an_error_that_cannot_say_anything_does_not_hide_the_rest():
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    shown = snapshot(Mute(), tool_calls=["look(r:0)"])
    assert (shown.type, shown.message, shown.tool_calls) == ("Mute", "", ("look(r:0)",))
    assert shown.usage.llm_calls == 3


def test_only_the_end_of_the_conversation_is_shown():
    messages = [Message.user(str(n)) for n in range(20)]
    assert [message.text for message in snapshot(messages=messages).last_messages] == [str(n) for n in range(14, 20)]
