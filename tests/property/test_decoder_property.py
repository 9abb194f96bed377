"""Whatever bytes are decoded, under whichever schema: a model or a typed error, and a model can be stored again."""

from __future__ import annotations

import runpy
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard_storage.codec import OVERHEAD
from callboard_storage.schemas import SCHEMAS

FUZZ = Path(__file__).parent.parent / "fuzz"

target = runpy.run_path(str(FUZZ / "decode_target.py"))
payloads = {file.name.split("-")[1]: file.read_bytes()[OVERHEAD:] for file in (FUZZ.parent / "golden").glob("*.bin")}

extensions = st.builds(msgpack.ExtType, st.integers(1, 9), st.binary(max_size=24))
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
leaves = scalars | st.binary(max_size=8) | extensions
bodies = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars | extensions, inner, max_size=4),
    max_leaves=12,
)


def sealed(number: int, payload: bytes) -> bytes:
    """An input of the fuzz target: this payload under a digest that holds."""
    return bytes([1, target["NUMBERS"].index(number), 0, 0]) + payload


schemas = pytest.mark.parametrize("schema", list(SCHEMAS), ids=lambda schema: schema.model.__name__)


@schemas
@given(data=st.data())
def test_a_body_of_wrong_values_gives_a_model_or_a_typed_error(schema, data):
    body = dict(msgpack.unpackb(payloads[schema.model.__name__], strict_map_key=False))
    for name in data.draw(st.lists(st.sampled_from([*schema.model.model_fields]), min_size=1, max_size=3)):
        body[name] = data.draw(bodies)
    target["one_input"](sealed(schema.id, msgpack.packb(body)))


@schemas
@given(data=st.data())
def test_a_body_of_changed_bytes_gives_a_model_or_a_typed_error(schema, data):
    payload = bytearray(payloads[schema.model.__name__])
    for place in data.draw(st.lists(st.integers(0, len(payload) - 1), min_size=1, max_size=4)):
        payload[place] = data.draw(st.integers(0, 255))
    target["one_input"](sealed(schema.id, bytes(payload)))


@given(st.binary(max_size=300))
def test_any_bytes_give_a_model_or_a_typed_error(data):
    target["one_input"](data)
