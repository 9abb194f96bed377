"""Whatever a stored model holds comes back equal; whatever happens to its frame is noticed."""

from __future__ import annotations

import datetime as dt
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from callboard_protocol.errors import DamagedRecordError
from callboard_protocol.records import StepCompleted
from callboard_protocol.runs import ErrorDetails, RunRequest
from callboard_protocol.tools import Decision, Happened
from callboard_storage.codec import decode, encode
from callboard_storage.schemas import SCHEMAS

KEY = b"session\0\0\0\0\0\0\0\0\7"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
identifiers = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12)
zones = st.none() | st.just(dt.UTC) | st.integers(-1439, 1439).map(lambda n: dt.timezone(dt.timedelta(minutes=n)))

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=40)
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times(timezones=zones)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
keys = (
    texts | st.integers() | st.booleans() | st.none() | st.binary(max_size=8) | st.builds(UUID, int=st.integers(0, 9))
)
plain = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=25,
)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    Any: plain,
    str: texts,
    bytes: st.binary(max_size=40),
    bool: st.booleans(),
    int: st.integers(1, 2**62),
    float: st.floats(0, 1e12),
    type(None): st.none(),
    dt.timedelta: st.timedeltas(min_value=dt.timedelta(0)),
}


@cache
def of_type(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    if annotation in SCALARS:
        return SCALARS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None:
        return of_class(annotation)
    if origin is tuple and Ellipsis not in arguments:
        return st.tuples(*(of_type(one) for one in arguments))
    if origin is tuple:
        return st.lists(of_type(arguments[0]), max_size=3).map(tuple)
    makers = {
        Annotated: lambda: of_type(arguments[0]),
        Literal: lambda: st.sampled_from(arguments),
        Union: lambda: st.one_of([of_type(one) for one in arguments]),
        UnionType: lambda: st.one_of([of_type(one) for one in arguments]),
        dict: lambda: st.dictionaries(texts, of_type(arguments[1]), max_size=3),
        Happened: lambda: st.builds(Happened, result=plain),
    }
    return makers[origin]()


def of_class(model: type[Any]) -> st.SearchStrategy[Any]:
    """Instances of a class of the protocol."""
    if issubclass(model, Enum):
        return st.sampled_from(model)
    if model is RunRequest:
        return requests()
    if model is ErrorDetails:
        return st.recursive(
            of_fields(ErrorDetails, leave_out="cause"), lambda inner: of_fields(ErrorDetails, cause=inner), max_leaves=3
        )
    return of_fields(model)


def of_fields(model: type[Any], leave_out: str = "", **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Instances of a model or dataclass: required fields always, each of the others or its default."""
    if is_dataclass(model):
        hints = get_type_hints(model)
        return st.builds(model, **{one.name: of_type(hints[one.name]) for one in fields(model) if one.name != "kind"})
    required, optional = {}, {}
    for name, field in model.model_fields.items():
        if name != leave_out:
            (required if field.is_required() else optional)[name] = (
                given[name] if name in given else of_type(field.annotation)
            )
    return st.fixed_dictionaries(required, optional=optional).map(lambda values: model(**values))


def requests() -> st.SearchStrategy[RunRequest]:
    """Requests a user can make: ids that can be stored, one kind of input."""
    ids = dict.fromkeys(("agent_id", "session_id", "run_id"), identifiers)
    text = of_fields(RunRequest, leave_out="input_parts", **ids)
    return text | of_fields(RunRequest, leave_out="input_text", **ids)


@pytest.mark.parametrize("model", [schema.model for schema in SCHEMAS], ids=lambda model: model.__name__)
@given(data=st.data())
def test_every_stored_model_comes_back_equal(model, data):
    stored = data.draw(of_type(model))
    frame = encode(KEY, stored)
    back = decode(KEY, frame, model)
    assert back == stored
    assert encode(KEY, back) == frame


@given(plain)
def test_plain_data_comes_back_equal_and_of_the_same_types(value):
    back = decode(KEY, encode(KEY, step(value)), StepCompleted).value
    assert back == value
    assert shape(back) == shape(value)


@given(of_type(Decision))
def test_decisions_come_back_as_their_own_class(decision):
    back = decode(KEY, encode(KEY, step({"decision": decision})), StepCompleted).value["decision"]
    assert TypeAdapter(Decision).validate_python(back) == decision


@given(plain, st.data())
def test_a_changed_frame_never_decodes_to_something_else(value, data):
    frame = bytearray(encode(KEY, step(value)))
    for place in data.draw(st.lists(st.integers(0, len(frame) - 1), min_size=1, max_size=3, unique=True)):
        frame[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedRecordError):
        decode(KEY, bytes(frame), StepCompleted)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_damaged(frame):
    with pytest.raises(DamagedRecordError):
        decode(KEY, frame, StepCompleted)


def step(value: object) -> StepCompleted:
    return StepCompleted(run_id="run", ordinal=1, at=1.5, step="1", kind="tool", value=value)


def shape(value: object) -> object:
    """The types of plain data, all the way down."""
    if isinstance(value, list):
        return [shape(item) for item in value]
    if isinstance(value, dict):
        return sorted((repr(key), type(key).__name__, repr(shape(item))) for key, item in value.items())
    return type(value).__name__
