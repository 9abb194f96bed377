from __future__ import annotations

import dataclasses
import socket
from collections import OrderedDict
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr, computed_field

from callboard.tools.results import ATOMS, ResultContract, to_plain
from callboard_protocol.errors import ToolDefinitionError, UnpersistableValueError


class Size(IntEnum):
    SMALL = 1


class Mood(StrEnum):
    GOOD = "good"


class Shape(Enum):
    ROUND = (1, 2)


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Parcel:
    weight: float
    to: Point


class Order(BaseModel):
    id: str
    at: datetime | None = None
    due: date | None = None
    lines: tuple[int, ...] = ()
    tags: set[str] = set()
    size: Size = Size.SMALL


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    when: date
    pair: tuple[int, int]


class Aliased(BaseModel):
    order_id: str = Field(alias="orderId")


class Priced(BaseModel):
    net: int

    @computed_field
    def gross(self) -> int:
        return self.net * 2


ROUND_TRIPS: list[tuple[Any, Any]] = [
    (str, "text"),
    (int, 3),
    (bytes, b"\xff\x00"),
    (Decimal, Decimal("1.10")),
    (UUID, UUID(int=7)),
    (datetime, datetime(2024, 1, 2, 3, 4, 5, 6, UTC)),
    (datetime, datetime(2024, 1, 2, 3, 4, 5)),  # noqa: DTZ001 - also without a zone
    (date, date(2024, 1, 2)),
    (time, time(3, 4)),
    (timedelta, timedelta(days=1, seconds=3)),
    (Path, Path("/tmp/x")),  # noqa: S108
    (Mood, Mood.GOOD),
    (Size, Size.SMALL),
    (tuple[int, str], (1, "a")),
    (set[int], {1, 2}),
    (Point, Point(1, 2)),
    (Parcel, Parcel(1.5, Point(1, 2))),
    (list[Order], [Order(id="1", at=datetime(2024, 1, 2, tzinfo=UTC), due=date(2024, 1, 3), lines=(1,), tags={"a"})]),
    (Strict, Strict(when=date(2024, 1, 2), pair=(1, 2))),
    (Aliased, Aliased(orderId="1")),
    (Priced, Priced(net=2)),
    (dict[int, date], {1: date(2024, 1, 2)}),
    (Order | None, None),
    (dict[str, bytes], {"a": b"\xff"}),
]


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return type(value) in ATOMS or (type(value) is datetime and value.tzinfo is not None)


@pytest.mark.parametrize(("annotation", "value"), ROUND_TRIPS, ids=lambda one: str(one)[:40])
def test_a_result_comes_back_as_the_type_the_tool_announces(annotation: Any, value: Any):
    contract = ResultContract("act", annotation)
    plain = contract.dump(value)
    assert is_plain(plain)
    loaded = contract.load(plain)
    assert (loaded, type(loaded)) == (value, type(value))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({"a": (1, {2}), "b": Order(id="1")}, None),
        (OrderedDict(a=1), {"a": 1}),
        ({2: "a", None: "b", True: "c", Mood.GOOD: "d"}, None),
        (Shape.ROUND, [1, 2]),
        (bytearray(b"x"), b"x"),
        (Parcel(1.0, Point(1, 2)), {"weight": 1.0, "to": [1, 2]}),
        (timedelta(seconds=90), "PT1M30S"),
        (SecretStr("hidden"), "**********"),
    ],
)
def test_a_result_nobody_announced_is_stored_in_its_plain_form(value: Any, plain: Any):
    stored = ResultContract("act", None).dump(value)
    assert is_plain(stored)
    assert plain is None or stored == plain


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (socket.socket, "type"),
        ((x for x in "ab"), "generator"),
        (iter([1]), "list_iterator"),
        (object(), "object"),
        ({"deep": [object()]}, "object"),
        ({(1, 2): "x"}, "key"),
    ],
)
def test_what_has_no_plain_form_is_refused_by_tool_and_type(value: Any, named: str):
    with pytest.raises(UnpersistableValueError, match=f"tool 'act' returned .*{named}"):
        ResultContract("act", None).dump(value)


def test_an_open_file_and_a_socket_are_refused(tmp_path: Path):
    with (tmp_path / "file").open("w") as file, pytest.raises(UnpersistableValueError, match="TextIOWrapper"):
        ResultContract("act", Any).dump(file)
    with socket.socket() as connection, pytest.raises(UnpersistableValueError, match="socket"):
        ResultContract("act", Any).dump({"connection": connection})


def test_a_value_that_holds_itself_is_refused():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnpersistableValueError, match="holds itself"):
        ResultContract("act", list).dump(loop)


def test_a_return_type_that_can_never_be_stored_is_refused_at_definition():
    with pytest.raises(ToolDefinitionError, match="cannot be stored"):
        ResultContract("act", socket.socket)


def test_a_result_that_is_not_what_was_announced_is_kept_as_it_is_live_and_on_replay():
    contract = ResultContract("act", dict[str, int])
    plain = contract.dump({"a": "no number"})
    assert plain == {"a": "no number"}
    assert contract.load(plain) == {"a": "no number"}


def test_a_stored_result_is_a_copy():
    value = {"a": [1]}
    stored = ResultContract("act", dict[str, Any]).dump(value)
    value["a"].append(2)
    assert stored == {"a": [1]}


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.uuids(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(plain_values)
def test_plain_data_is_its_own_plain_form(value: Any):
    assert to_plain(value) == value


leaves = st.integers() | st.dates() | st.times() | st.timedeltas()
pairs = st.tuples(leaves, leaves)


@given(st.lists(leaves | pairs | st.frozensets(pairs, max_size=3), max_size=4))
def test_the_plain_form_of_a_plain_form_is_itself(value: Any):
    once = to_plain(value)
    assert is_plain(once)
    assert to_plain(once) == once
