"""What a tool returned, as plain data that can be stored, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from callboard_protocol.errors import ToolDefinitionError, UnpersistableValueError

ATOMS: Final = frozenset({str, int, float, bool, NoneType, bytes, Decimal, UUID})
"""Types that are stored as they are; so is a datetime with a zone."""

DEPTH_LIMIT: Final = 56
"""The store's codec allows 64 levels; a record around the value takes some."""

_AS_THEY_COME: Final = (None, Any, NoneType, str, int, float, bool, dict, list, dict[str, Any], list[Any])
"""Return annotations that need no adapter: what is stored already has the type."""


class ResultContract:
    """How one tool's results are stored and given back.

    Args:
        tool: the tool's name.
        annotation: what the tool says it returns; None where it does not say.

    Raises:
        ToolDefinitionError: no value of that type can be stored.
    """

    __slots__ = ("_adapter", "_tool")

    def __init__(self, tool: str, annotation: Any) -> None:
        self._tool = tool
        self._adapter: TypeAdapter[Any] | None = None
        if any(annotation is known or annotation == known for known in _AS_THEY_COME):
            return
        try:
            self._adapter = TypeAdapter(annotation)
        except (PydanticSchemaGenerationError, PydanticUserError, TypeError) as problem:
            raise ToolDefinitionError(
                f"tool {tool!r} says it returns {annotation!r}, which cannot be stored",
                hint="return plain data or a pydantic model, and annotate that",
            ) from problem

    def dump(self, value: Any) -> Any:
        """The value as plain data.

        Raises:
            UnpersistableValueError: there is no plain form of it.
        """
        if type(value) in ATOMS:
            return value
        try:
            if self._adapter is not None:
                # A value that is not what the tool announced is stored as what it is: the call has had its effect, and
                # to report it as failed would invite another.
                value = self._adapter.dump_python(value, warnings="none")
            return to_plain(value)
        except UnpersistableValueError as problem:
            raise UnpersistableValueError(f"tool {self._tool!r} returned {problem.message}") from None
        except (PydanticSerializationError, AttributeError, TypeError, ValueError) as problem:
            raise UnpersistableValueError(
                f"tool {self._tool!r} returned a {type(value).__name__} that cannot be stored: {problem}"
            ) from problem

    def load(self, plain: Any) -> Any:
        """What `dump` gave, as the type the tool announced; as it is where it does not fit that type."""
        if self._adapter is None:
            return plain
        try:
            return self._adapter.validate_python(plain, strict=False, by_alias=True, by_name=True)
        except ValidationError:
            return plain


def to_plain(value: Any, depth: int = 0) -> Any:  # noqa: PLR0911 - one line per kind of value
    """A copy of the value made of what the store accepts.

    Models and dataclasses become dicts, enums their values, sets and tuples lists; dates without a time, times, paths
    and addresses become text.

    Raises:
        UnpersistableValueError: it has no plain form, or is nested too deep; the message begins with what it is.
    """
    kind = type(value)
    if kind in ATOMS:
        return value
    if depth > DEPTH_LIMIT:
        raise UnpersistableValueError(f"a value nested deeper than {DEPTH_LIMIT} levels, or one that holds itself")
    depth += 1
    if kind is dict:
        return {
            key if type(key) is str else _as_key(key): item if type(item) in ATOMS else to_plain(item, depth)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [item if type(item) in ATOMS else to_plain(item, depth) for item in value]
    if isinstance(value, BaseModel):
        return to_plain(value.model_dump(warnings="none"), depth)
    if isinstance(value, Enum):
        return to_plain(value.value, depth)
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name), depth) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return to_plain(dict(value), depth)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Iterator):
        raise UnpersistableValueError(f"a {kind.__name__}, which can be read only once")
    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError):
        raise UnpersistableValueError(f"a {kind.__module__}.{kind.__qualname__}, which has no plain form") from None


def _as_key(key: Any) -> str:
    if isinstance(key, Enum):
        return _as_key(key.value)
    if isinstance(key, str):
        return str(key)
    if isinstance(key, bool) or key is None:
        return {True: "true", False: "false", None: "null"}[key]
    plain = to_plain(key)
    if isinstance(plain, list | dict | bytes):
        raise UnpersistableValueError(f"a dict with the key {key!r}, and keys are stored as text")
    return str(plain)
