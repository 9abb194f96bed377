"""Stored plain data as JSON, without loss: what JSON has no type for becomes an object with one ``$`` key."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

from callboard_storage import leaves

_LARGEST_EXACT = 2**53
"""Past this other JSON readers round whole numbers, so they are written as text."""

_TEXT_LEAVES = {1: "$datetime", 2: "$decimal", 5: "$date", 6: "$time"}
"""Leaves whose stored bytes are text already, by their number on disk."""


def to_json(value: Any) -> Any:  # noqa: PLR0911 - one per type
    """What stands for a stored value in JSON."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_LARGEST_EXACT <= value <= _LARGEST_EXACT else {"$int": str(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [to_json(item) for item in value]
    if kind is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: to_json(item) for key, item in value.items()}
        return {"$map": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    packed = leaves.pack(value)
    if packed is None:
        raise TypeError(f"a {kind.__qualname__} is not stored data")
    number, data = packed
    if number in _TEXT_LEAVES:
        return {_TEXT_LEAVES[number]: data.decode()}
    return {"$leaf": [number, data.hex()]}


def from_json(value: Any) -> Any:
    """The stored value again.

    Raises:
        ValueError: it is not what `to_json` wrote.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((name, held),) = value.items()
        if name.startswith("$"):
            return _tagged(name, held)
    return {key: from_json(item) for key, item in value.items()}


def _tagged(name: str, held: Any) -> Any:
    reader = _READERS.get(name)
    if reader is None:
        raise ValueError(f"{name} is unknown")
    try:
        return reader(held)
    except (TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{name} holds {held!r:.60}: {error}") from error


def _leaf_reader(number: int) -> Callable[[str], Any]:
    return lambda text: leaves.unpack(number, text.encode())


_READERS: dict[str, Callable[[Any], Any]] = {
    "$int": int,
    "$float": float,
    "$bytes": lambda text: base64.b64decode(text, validate=True),
    "$map": lambda pairs: {from_json(key): from_json(item) for key, item in pairs},
    "$leaf": lambda pair: leaves.unpack(pair[0], bytes.fromhex(pair[1])),
    **{name: _leaf_reader(number) for number, name in _TEXT_LEAVES.items()},
}
