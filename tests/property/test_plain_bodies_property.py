"""A body that is recognised is one that pydantic takes, and comes back as the very same model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from callboard_protocol.records import IntentRecorded, SignalReceived, SleepBegan, StepCompleted
from callboard_protocol.sessions import MemoryEntry
from callboard_storage.plain_bodies import PlainBodies
from callboard_storage.schemas import SCHEMAS

BODIES = PlainBodies(schema.model for schema in SCHEMAS)

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False),
    st.sampled_from(["", "tool", "generate", "completed", "text"]),
    st.binary(max_size=4),
    st.lists(st.integers(0, 2), max_size=2),
    st.dictionaries(st.sampled_from(["a", "kind"]), st.integers(0, 2), max_size=2),
)


def bodies_of(model: Any) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from([*model.model_fields, "unheard_of"])
    return st.dictionaries(names, VALUES, max_size=len(model.model_fields))


def plain_step(**fields: Any) -> dict[str, Any]:
    return {"run_id": "r", "ordinal": 1, "at": 1.0, "step": "1", "kind": "tool", **fields}


@given(
    st.sampled_from([schema.model for schema in SCHEMAS]).flatmap(
        lambda model: st.tuples(st.just(model), bodies_of(model))
    )
)
def test_what_is_recognised_is_what_validation_would_give(given_body: tuple[Any, dict[str, Any]]) -> None:
    model, body = given_body
    recognised = BODIES.recognise(model, dict(body))
    if recognised is None:
        return
    validated = model.model_validate(dict(body))
    assert recognised == validated
    assert [type(value) for value in vars(recognised).values()] == [
        type(getattr(validated, name)) for name in vars(recognised)
    ]


@given(st.dictionaries(st.sampled_from(["value", "name", "in_transcript", "duration", "fit", "state"]), VALUES))
def test_no_step_is_recognised_that_validation_refuses(fields: dict[str, Any]) -> None:
    body = plain_step(**fields)
    try:
        validated = StepCompleted.model_validate(dict(body))
    except ValidationError:
        assert BODIES.recognise(StepCompleted, body) is None
    else:
        assert BODIES.recognise(StepCompleted, body) in (None, validated)


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (StepCompleted, plain_step(value={"deep": [1, {"er": None}]})),
        (StepCompleted, plain_step(in_transcript=True, fit=b"x", tool_call_id=None)),
        (SignalReceived, {"run_id": "r", "ordinal": 1, "at": 1.0, "channel": "c"}),
        (MemoryEntry, {"name": "note", "value": [1]}),
    ],
)
def test_ordinary_records_are_recognised(model: Any, body: dict[str, Any]) -> None:
    assert BODIES.recognise(model, dict(body)) == model.model_validate(dict(body))


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (StepCompleted, plain_step(kind="no such kind")),
        (StepCompleted, plain_step(ordinal=True)),
        (StepCompleted, plain_step(at=1)),
        (StepCompleted, plain_step(messages=[])),
        (StepCompleted, {"run_id": "r"}),
        (SleepBegan, {"run_id": "r", "ordinal": 1, "at": 1.0, "step": "1", "wake_at": "soon"}),
        (IntentRecorded, {"run_id": "r", "ordinal": 1, "at": 1.0, "step": "1", "tool": "t"}),
        (StepCompleted, ["not a body"]),
    ],
)
def test_whatever_needs_a_closer_look_is_left_to_validation(model: Any, body: Any) -> None:
    assert BODIES.recognise(model, body) is None
