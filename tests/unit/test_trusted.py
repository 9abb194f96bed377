"""`trusted` makes what the model's own constructor makes, without validating."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from callboard_protocol.base import Frozen
from callboard_protocol.commands import AppendRecords
from callboard_protocol.messages import Message
from callboard_protocol.records import IntentRecorded, StepCompleted
from callboard_protocol.runs import RunUsage
from callboard_protocol.sessions import SessionHead
from callboard_protocol.trusted import trusted
from callboard_storage.codec import decode, encode

STEP: dict[str, Any] = {"run_id": "r", "ordinal": 3, "at": 1.5, "step": "7.0", "kind": "tool", "name": "find"}


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (StepCompleted, STEP),
        (StepCompleted, {**STEP, "value": {"a": [1]}, "state": {"n": 1}, "state_changed": True, "clock": (1.0, 2.0)}),
        (Message, {"role": "tool", "content": "x", "tool_call_id": "c", "name": "find"}),
        (SessionHead, {"session_id": "s", "next_sequence": 4}),
        (AppendRecords, {"records": ()}),
    ],
)
def test_it_equals_what_the_constructor_makes(model: type[BaseModel], fields: dict[str, Any]):
    made, validated = trusted(model, **fields), model(**fields)
    assert made == validated
    assert validated == made
    assert made.model_dump() == validated.model_dump()
    assert made.model_copy() == validated
    assert copy.deepcopy(made) == validated


def test_it_is_stored_as_what_the_constructor_makes():
    made, validated = trusted(StepCompleted, **STEP), StepCompleted(**STEP)
    assert encode(b"key", made) == encode(b"key", validated)
    assert decode(b"key", encode(b"key", made), StepCompleted) == made


def test_it_is_frozen():
    made = trusted(Message, role="user", content="x")
    with pytest.raises(ValidationError, match="frozen"):
        made.content = "y"  # type: ignore[misc]


def test_a_missing_and_an_unknown_field_are_errors():
    with pytest.raises(TypeError, match="needs exactly"):
        trusted(Message, content="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="needs exactly"):
        trusted(Message, role="user", contents="x")  # type: ignore[call-arg]


def test_a_mutable_default_has_to_be_given_so_that_no_two_instances_share_it():
    fields = {"run_id": "r", "ordinal": 0, "at": 1.0, "step": "1", "tool": "t"}
    with pytest.raises(TypeError, match="needs exactly"):
        trusted(IntentRecorded, **fields)
    assert trusted(IntentRecorded, **fields, arguments={}) == IntentRecorded(**fields)


def test_a_copy_that_is_changed_leaves_other_instances_alone():
    class Point(Frozen):
        x: int
        y: int = 0
        usage: RunUsage = Field(default_factory=RunUsage)

    first, second = trusted(Point, x=1), trusted(Point, x=2)
    moved = first.model_copy(update={"y": 5})
    assert (first.y, second.y, moved.y) == (0, 0, 5)
    assert second.model_fields_set == set(Point.model_fields)
