"""The record frame: what it refuses, and that it never yields wrong data."""

from __future__ import annotations

import dataclasses
import datetime as dt
import socket
import struct
import sys
from collections import OrderedDict, namedtuple
from decimal import Decimal
from enum import Enum, StrEnum
from hashlib import blake2b
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from pydantic import BaseModel, model_serializer

from callboard_protocol.base import Frozen
from callboard_protocol.commands import Live
from callboard_protocol.errors import DamagedRecordError, UnknownSchemaError, UnpersistableValueError
from callboard_protocol.messages import DataPart, Message, TextPart, ToolCall
from callboard_protocol.model_calls import ModelResponse, ValidatedResponse
from callboard_protocol.records import Record, RunBegan, StepCompleted
from callboard_protocol.runs import RunBudget, RunRequest
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionHead
from callboard_protocol.states import RunState
from callboard_protocol.tools import Allow, Deny
from callboard_storage.codec import MAX_DEPTH, OVERHEAD, Codec, decode, encode
from callboard_storage.schemas import Schema, Schemas

KEY = b"session\0\0\0\0\0\0\0\0\7"


def step(**fields: Any) -> StepCompleted:
    return StepCompleted(**({"run_id": "run", "ordinal": 1, "at": 1.5, "step": "1", "kind": "tool"} | fields))


def frame_of(body: Any, *, key: bytes = KEY, schema: int = 3, version: int = 1, frame_version: int = 1) -> bytes:
    """A frame whose digest holds, around whatever a test wants to be found inside."""
    payload = body if isinstance(body, bytes) else msgpack.packb(body)
    header = struct.pack(">2sBHHI", b"\xcb\x0a", frame_version, schema, version, len(payload))
    return header + blake2b(key + header + payload, digest_size=16).digest() + payload


def there_and_back(value: Any) -> Any:
    return decode(KEY, encode(KEY, step(value=value)), StepCompleted).value


def nested(depth: int, leaf: Any = 0) -> Any:
    for number in range(depth):
        leaf = [leaf] if number % 2 else {"in": leaf}
    return leaf


# ---- what comes back


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Zo\u00eb \U0001f600",
        b"\x00\xff",
        0,
        -(2**63),
        2**64 - 1,
        2**64,
        -(2**63) - 1,
        2**200,
        -(2**200),
        0.1,
        float("inf"),
        True,
        [],
        {},
        [1, [2, {"three": [None]}]],
        {1: "a", None: 2, 1.5: 3, False: 4, b"k": 5},
        Decimal("0.10"),
        Decimal("-1E+1000"),
        UUID(int=7),
        dt.datetime(2024, 2, 29, 12, 30, 15, 123456),  # noqa: DTZ001 - a user's data may have none
        dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC),
        dt.datetime(1901, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-5, seconds=17, microseconds=3))),
        dt.date(1, 1, 1),
        dt.time(23, 59, 59, 999999),
        dt.time(1, 2, tzinfo=dt.UTC),
        dt.timedelta(days=-3, microseconds=1),
        dt.timedelta.max,
        {"when": [dt.date(2024, 1, 1)], UUID(int=1): Decimal(1)},
    ],
    ids=repr,
)
def test_plain_data_comes_back_as_it_was(value):
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


def test_a_datetime_keeps_its_zone():
    moment = dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    back = there_and_back(moment)
    assert back == moment
    assert (back.tzinfo, back.fold, back.utcoffset()) == (moment.tzinfo, 1, dt.timedelta(hours=1))


def test_a_datetime_in_a_zone_this_host_lacks_keeps_its_instant():
    frame = frame_of(
        {
            "run_id": "run",
            "ordinal": 1,
            "at": 1.5,
            "step": "1",
            "kind": "tool",
            "value": msgpack.ExtType(1, b"2024-07-01T12:00:00+02:00[Mars/Olympus]"),
        }
    )
    back = decode(KEY, frame, StepCompleted).value
    assert back == dt.datetime(2024, 7, 1, 10, tzinfo=dt.UTC)
    assert back.utcoffset() == dt.timedelta(hours=2)


def test_not_a_number_comes_back():
    assert there_and_back(float("nan")) != there_and_back(float("nan"))


def test_tuples_come_back_as_lists():
    assert there_and_back((1, (2, {"three": (3,)}))) == [1, [2, {"three": [3]}]]


def test_enums_are_stored_as_their_values():
    class Colour(StrEnum):
        RED = "red"

    class Number(Enum):
        ONE = 1

    assert there_and_back([Colour.RED, {"n": Number.ONE}]) == ["red", {"n": 1}]


def test_models_and_dataclasses_inside_a_value_are_stored_in_full():
    class Order(BaseModel):
        number: int
        note: str = "none"
        lines: tuple[int, ...] = ()

    @dataclasses.dataclass
    class Line:
        order: Order
        count: int = 1

    assert there_and_back({"order": Order(number=7)}) == {"order": {"number": 7, "note": "none", "lines": []}}
    assert there_and_back(Line(Order(number=8))) == {
        "order": {"number": 8, "note": "none", "lines": []},
        "count": 1,
    }


def test_our_own_parts_inside_a_value_are_stored_too():
    assert there_and_back([Message.user("hi")]) == [{"role": "user", "content": "hi"}]


def test_the_validated_output_of_a_response_is_not_stored():
    response = ValidatedResponse[Any](text="hello", validated=socket)
    record = step(kind="generate").model_copy(update={"response": response})
    assert decode(KEY, encode(KEY, record), StepCompleted).response == ModelResponse[Any](text="hello")


def test_a_live_field_is_not_stored():
    class Carrier(Frozen):
        name: str
        load: Live[Any] = None

    codec = Codec(Schemas([Schema(900, 1, Carrier)]))
    assert codec.decode(KEY, codec.encode(KEY, Carrier(name="a", load=socket)), Carrier) == Carrier(name="a")


def test_any_kind_of_response_is_stored():
    class Answer(BaseModel):
        text: str

    for response in (ModelResponse(text="x"), ModelResponse[str](text="x"), ModelResponse[Answer](text="x")):
        record = step().model_copy(update={"response": response})
        back = decode(KEY, encode(KEY, record), StepCompleted).response
        assert back is not None
        assert back.text == "x"


def test_tags_of_unions_are_written_although_they_are_defaults():
    message = Message.user((TextPart(text="see"), DataPart(media_type="image/png", data=b"\x89")))
    request = RunRequest(
        agent_id="a", session_id="s", run_id="r", input_text="hi", approvals={"*": Deny("no"), "t": Allow()}
    )
    entry = RunEntry(request=request, request_digest=b"d", state=RunState.PARKED, order=2**60)
    assert decode(KEY, encode(KEY, step(messages=(message,))), StepCompleted).messages == (message,)
    assert decode(KEY, encode(KEY, entry), RunEntry) == entry


def test_a_subclass_is_stored_as_the_class_this_release_knows():
    class MyBudget(RunBudget):
        colour: str = "red"

    request = RunRequest(agent_id="a", session_id="s", run_id="r", budget=MyBudget(max_steps=3, colour="blue"))
    entry = RunEntry(request=request, request_digest=b"d", state=RunState.QUEUED, order=1)
    assert decode(KEY, encode(KEY, entry), RunEntry).request.budget == RunBudget(max_steps=3)


def test_defaults_are_not_written():
    assert len(encode(KEY, SessionHead(session_id="s"))) < OVERHEAD + 16


def test_a_frame_costs_its_overhead_and_no_more():
    one, two = (len(encode(KEY, step(value="x" * size))) for size in (1000, 2000))
    assert two - one == 1000
    assert OVERHEAD == 27


def test_the_same_model_has_the_same_frame():
    assert encode(KEY, step(value={"a": 1, "b": 2})) == encode(KEY, step(value={"a": 1, "b": 2}))


# ---- what is refused on the way in


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (socket.gethostname, "value is a builtin_function_or_method"),
        ({"items": [1, 2, 3, sys]}, r"value\.items\[3\] is a module"),
        ({"a key": {7: [object()]}}, r"value\['a key'\]\[7\]\[0\] is a object"),
        ((1, {2, 3}), r"value\[1\] is a set, which has no order"),
        (frozenset(), "value is a frozenset, which has no order"),
        ("\ud800", "value is a str with a lone surrogate"),
        ({"k": "\ud800"}, r"value\.k is a str with a lone surrogate"),
        ({"\ud800": 1}, "has a str as its key"),
        ({(1, 2): 3}, r"value\[\(1, 2\)\] has a tuple as its key"),
        ({Allow(): 3}, "has a Allow as its key"),
        ({"in": {frozenset(): 1}}, r"value\.in\[frozenset\(\)\] has a frozenset as its key"),
        (OrderedDict(a=1), "value is a OrderedDict"),
        (namedtuple("Point", "x y")(1, 2), "value is a Point"),  # noqa: PYI024
        (complex(1, 2), "value is a complex"),
        (range(3), "value is a range"),
        (ValueError("no"), "value is a ValueError"),
        (type, "value is a type"),
        (nested(MAX_DEPTH), f"is nested more than {MAX_DEPTH} deep"),
        (nested(400), f"is nested more than {MAX_DEPTH} deep"),
        (nested(5000), f"is nested more than {MAX_DEPTH} deep"),
        ([nested(MAX_DEPTH, (1, 2))], f"is nested more than {MAX_DEPTH} deep"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_value_that_cannot_persist_is_named(value, message):
    with pytest.raises(UnpersistableValueError, match=message):
        encode(KEY, step(value=value))


def test_a_value_that_holds_itself_is_refused():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnpersistableValueError, match="nested"):
        encode(KEY, step(value=loop))


def test_what_a_users_model_raises_is_the_reason():
    class Broken(BaseModel):
        at: object

    with pytest.raises(UnpersistableValueError, match=r"value\.at is a object"):
        encode(KEY, step(value=Broken(at=object())))


def test_an_enum_of_something_else_is_refused():
    class Odd(Enum):
        ONE = object()

    with pytest.raises(UnpersistableValueError, match="value is a object"):
        encode(KEY, step(value=Odd.ONE))


def test_a_model_that_fails_to_dump_is_the_reason():
    class Moody(BaseModel):
        @model_serializer
        def refuse(self) -> str:
            raise ArithmeticError("not today")

    with pytest.raises(UnpersistableValueError, match=r"value is a Moody that fails: .*not today"):
        encode(KEY, step(value=Moody()))


def test_a_model_without_a_schema_is_refused():
    class Stranger(Frozen):
        name: str = ""

    with pytest.raises(UnpersistableValueError, match="Stranger has no schema"):
        encode(KEY, Stranger())


def test_a_very_long_path_is_cut():
    with pytest.raises(UnpersistableValueError) as raised:
        encode(KEY, step(value={"k" * 500: object()}))
    assert len(raised.value.message) < 300


def test_the_deepest_value_that_is_allowed_comes_back():
    # The record itself is one level.
    value = nested(MAX_DEPTH - 1, "leaf")
    assert there_and_back(value) == value


def test_flat_values_of_any_width_are_not_taken_for_deep():
    value = [{"n": [number]} for number in range(500)]
    assert there_and_back(value) == value
    assert there_and_back("\u6c49" * 5000) == "\u6c49" * 5000


# ---- what is refused on the way out


def test_no_changed_byte_goes_unnoticed():
    record = step(value={"amount": 10, "note": "pay"}, fit=b"\1" * 16, in_transcript=True)
    frame = encode(KEY, record)
    for place in range(len(frame)):
        for change in (0x01, 0x80, 0xFF):
            changed = bytearray(frame)
            changed[place] ^= change
            with pytest.raises(DamagedRecordError):
                decode(KEY, bytes(changed), StepCompleted)


def test_no_cut_or_longer_frame_is_taken():
    frame = encode(KEY, step(value="text"))
    for length in range(len(frame)):
        with pytest.raises(DamagedRecordError):
            decode(KEY, frame[:length], StepCompleted)
    with pytest.raises(DamagedRecordError):
        decode(KEY, frame + b"\0", StepCompleted)


def test_a_frame_under_another_key_is_refused():
    with pytest.raises(DamagedRecordError, match="checksum"):
        decode(KEY[:-1] + b"\x08", encode(KEY, step()), StepCompleted)


def test_damage_is_seen_before_anything_is_decoded():
    frame = bytearray(frame_of(b"\xc1 is never used in msgpack"))
    frame[-1] ^= 1
    with pytest.raises(DamagedRecordError, match="checksum"):
        decode(KEY, bytes(frame), StepCompleted)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x81\xa1a",
        msgpack.packb({}) + b"\0",
        msgpack.packb([1, 2]),
        msgpack.packb("text"),
        msgpack.packb({"run_id": "run"}),
        msgpack.packb({"run_id": "r", "ordinal": 1, "at": 1.5, "step": "1", "kind": "tool", "colour": "red"}),
        msgpack.packb({"run_id": "r", "ordinal": 1, "at": 1.5, "step": "1", "kind": "no such kind"}),
        b"\x81\x90\x00",  # a list as a key
        msgpack.packb({"value": msgpack.ExtType(99, b"")}),
        msgpack.packb({"value": msgpack.ExtType(1, b"no date")}),
        msgpack.packb({"value": msgpack.ExtType(2, b"no number")}),
        msgpack.packb({"value": msgpack.ExtType(3, b"short")}),
        msgpack.packb({"value": msgpack.ExtType(7, b"x")}),
        b"\x91" * 2000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",  # four billion items are announced
        b"\xdb\xff\xff\xff\xff",
    ],
    ids=repr,
)
def test_a_payload_that_is_not_the_models_is_damaged(payload):
    with pytest.raises(DamagedRecordError) as raised:
        decode(KEY, frame_of(payload), StepCompleted)
    assert not isinstance(raised.value, UnknownSchemaError)


def test_a_payload_nested_too_deep_is_damaged():
    body = {"run_id": "r", "ordinal": 1, "at": 1.5, "step": "1", "kind": "tool", "value": nested(MAX_DEPTH)}
    with pytest.raises(DamagedRecordError, match="nested"):
        decode(KEY, frame_of(body), StepCompleted)


def test_a_record_of_another_kind_is_refused():
    with pytest.raises(DamagedRecordError, match="is a MemoryEntry, not a Record"):
        decode(KEY, encode(KEY, MemoryEntry(name="note")), Record)


def test_what_a_newer_release_wrote_is_unknown_and_not_damaged():
    for frame in (frame_of({}, schema=999), frame_of({}, version=2), frame_of({}, frame_version=2)):
        with pytest.raises(UnknownSchemaError):
            decode(KEY, frame, StepCompleted)


# ---- migrations, on a schema of the test's own


class Parcel(Frozen):
    weight: float
    unit: str = "kg"


def test_upcasters_run_one_version_after_the_other():
    def with_weight(body: dict[str, Any]) -> dict[str, Any]:
        return {"weight": body["grams"] / 1000}

    def with_pounds(body: dict[str, Any]) -> dict[str, Any]:
        return body | {"unit": "kg" if body["weight"] < 100 else "t"}

    now = Codec(Schemas([Schema(900, 3, Parcel, {1: with_weight, 2: with_pounds})]))
    assert now.decode(KEY, frame_of({"grams": 2500}, schema=900, version=1), Parcel) == Parcel(weight=2.5)
    assert now.decode(KEY, frame_of({"weight": 200.0}, schema=900, version=2), Parcel) == Parcel(weight=200, unit="t")
    assert now.decode(KEY, frame_of({"weight": 1.0}, schema=900, version=3), Parcel) == Parcel(weight=1)
    assert now.decode(KEY, now.encode(KEY, Parcel(weight=3)), Parcel) == Parcel(weight=3)


def test_a_version_no_upcaster_starts_from_is_unknown():
    codec = Codec(Schemas([Schema(900, 3, Parcel, {2: dict})]))
    with pytest.raises(UnknownSchemaError, match="no upcaster starts from"):
        codec.decode(KEY, frame_of({}, schema=900, version=1), Parcel)


def test_an_upcaster_that_fails_leaves_the_record_damaged():
    codec = Codec(Schemas([Schema(900, 2, Parcel, {1: lambda body: {"weight": body["absent"]}})]))
    with pytest.raises(DamagedRecordError, match="does not decode"):
        codec.decode(KEY, frame_of({}, schema=900, version=1), Parcel)


def test_an_id_or_a_model_is_registered_once():
    with pytest.raises(ValueError, match="twice"):
        Schemas([Schema(900, 1, Parcel), Schema(900, 1, RunBegan)])
    with pytest.raises(ValueError, match="twice"):
        Schemas([Schema(900, 1, Parcel), Schema(901, 1, Parcel)])


def test_a_tool_call_keeps_its_arguments_to_the_letter():
    call = ToolCall(name="pay", arguments={"amount": 0, "to": "", "flags": [], "none": None}, id="c1")
    record = step(kind="generate", response=ModelResponse[Any](tool_calls=(call,)))
    back = decode(KEY, encode(KEY, record), StepCompleted)
    assert back == record
