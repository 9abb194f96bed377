from __future__ import annotations

import pickle
from typing import Any

import pytest

from callboard_protocol.errors import ActorDied, BudgetExhaustedError, CallboardError, MailboxFull, ToolError
from callboard_protocol.failures import StepFailedError, describe, restore, text_of
from callboard_protocol.runs import ErrorDetails


def every_class(root: type[CallboardError] = CallboardError) -> list[type[CallboardError]]:
    ours = [one for one in root.__subclasses__() if one.__module__.startswith("callboard")]
    return [root, *(below for one in ours for below in every_class(one))]


ARGUMENTS: dict[type[CallboardError], dict[str, Any]] = {
    MailboxFull: {"unsent": object()},
    ActorDied: {"handled": "maybe"},
    BudgetExhaustedError: {"limit": "max_steps"},
}


@pytest.mark.parametrize("error_class", dict.fromkeys(every_class()), ids=lambda one: one.__name__)
def test_every_error_comes_back_as_it_was(error_class: type[CallboardError]):
    error = error_class("what was wrong", **ARGUMENTS.get(error_class, {}))
    error.hint = "what to do"
    error.retryable = True
    error.context["figure"] = 7
    back = restore(ErrorDetails.model_validate_json(describe(error).model_dump_json()))
    assert type(back) is error_class
    assert str(back) == str(error) == "what was wrong (what to do)"
    assert (back.code, back.message, back.hint, back.retryable) == (error.code, "what was wrong", "what to do", True)
    assert back.context == error.context
    assert back.args == ("what was wrong",)
    for name in set(vars(error)) - {"unsent"}:
        assert getattr(back, name) == getattr(error, name), name
    # Whoever catches it can do with it what can be done with the first one.
    assert type(back.fresh()) is error_class
    assert repr(back) == repr(error)
    raised = None
    try:
        raise back
    except error_class as caught:
        raised = caught
    assert raised is back


def test_codes_are_unique_and_plain():
    classes = [*dict.fromkeys(every_class())]
    codes = [one.code for one in classes]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)


def test_a_restored_mailbox_full_has_lost_only_what_cannot_be_stored():
    back = restore(describe(MailboxFull("full", unsent=object())))
    assert isinstance(back, MailboxFull)
    assert back.unsent is None


def test_an_exception_of_no_class_of_ours_keeps_its_name_and_words():
    details = describe(ZeroDivisionError("by nothing"))
    assert (details.code, details.message, details.retryable) == ("ZeroDivisionError", "by nothing", False)
    back = restore(details)
    assert type(back) is CallboardError
    assert back.message == "by nothing"
    assert describe(KeyError()).message == "KeyError"


def test_causes_are_kept_three_deep():
    error: BaseException = ValueError("cause 0")
    for n in range(1, 6):
        effect = ToolError(f"cause {n}")
        effect.__cause__ = error
        error = effect
    details: ErrorDetails | None = describe(error)
    messages = []
    while details is not None:
        messages.append(details.message)
        details = details.cause
    assert messages == ["cause 5", "cause 4", "cause 3", "cause 2"]
    back = restore(describe(error))
    assert isinstance(back.__cause__, ToolError)
    assert back.__cause__.message == "cause 4"


def test_a_suppressed_context_is_no_cause():
    shown = StepFailedError("shown")
    shown.__context__ = KeyError("hidden")
    assert describe(shown).cause == describe(KeyError("hidden"), depth=2)
    shown.__suppress_context__ = True
    assert describe(shown).cause is None


def test_a_class_of_the_users_own_comes_back_also_where_it_was_defined_late():
    assert restore(ErrorDetails(code="unit_test_late", message="x")).code == "callboard_error"

    class LateError(ToolError):
        code = "unit_test_late"

    assert type(restore(describe(LateError("x")))) is LateError


def test_a_class_without_a_code_of_its_own_comes_back_as_the_class_above_it():
    class NamelessError(ToolError):
        pass

    assert type(restore(describe(NamelessError("x")))) is ToolError


@pytest.mark.parametrize(
    "context",
    [
        {"when": object()},
        {"bytes": b"\xff"},
        {"text": "lone \ud800"},
        {7: {"set": {1}}},
        {"nan": float("nan")},
    ],
    ids=["an object", "bytes", "a lone surrogate", "a key that is no text", "not a number"],
)
def test_a_context_that_is_not_plain_never_hides_its_error(context: dict[Any, Any]):
    details = describe(ToolError("lone \ud800", context=context, hint="\udfff"))
    ErrorDetails.model_validate_json(details.model_dump_json())
    assert details.message.encode().startswith(b"lone ")


def test_an_exception_whose_words_fail_has_none():
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert text_of(Mute()) == ""
    assert describe(Mute()).message == "Mute"


def test_a_step_that_failed_can_cross_to_another_process():
    error = StepFailedError("x", context={"n": 1})
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  (our own bytes)
