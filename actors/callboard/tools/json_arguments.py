"""The check of arguments against a JSON schema that was given, not read from a function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from callboard_protocol.base import JsonObject
from callboard_protocol.errors import InvalidArgumentsError

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class JsonArguments:
    """The arguments of a tool whose JSON schema is given.

    Checked are ``type``, ``required``, ``properties``, ``additionalProperties: false``, ``items``, ``enum`` and
    ``const``, at any depth; what else the schema says is for the tool itself to check.

    Args:
        tool: the tool's name.
        schema: a JSON schema of an object.
    """

    __slots__ = ("_tool", "schema")

    def __init__(self, tool: str, schema: JsonObject) -> None:
        self._tool = tool
        self.schema = schema

    def validate(self, arguments: Any) -> dict[str, Any]:
        """The arguments as they came.

        Raises:
            InvalidArgumentsError: they do not fit; the message says where, so that a model can mend it.
        """
        problems = [
            {"field": field, "problem": problem, "expected": expected}
            for field, problem, expected in _misfits(arguments, {"type": "object", **self.schema}, "")
        ]
        if problems:
            text = "; ".join(
                f"{one['field']}: {one['problem']}" if one["field"] else one["problem"] for one in problems
            )
            raise InvalidArgumentsError(
                f"the arguments of {self._tool} do not fit: {text}",
                hint="call it again with arguments that fit its schema",
                context={"tool": self._tool, "problems": problems},
            )
        valid: dict[str, Any] = arguments
        return valid

    def dump(self, arguments: dict[str, Any]) -> Any:
        """The arguments as they are: they came as plain data."""
        return arguments


def _misfits(value: Any, schema: Any, where: str) -> Iterator[tuple[str, str, str]]:
    if not isinstance(schema, dict):
        return
    types = schema.get("type")
    names = [types] if isinstance(types, str) else types or []
    if names and not any(_is(value, name) for name in names):
        expected = " or ".join(names)
        yield where, f"expected {expected}, not {value!r:.80}", expected
        return
    if "enum" in schema and value not in schema["enum"]:
        expected = "one of " + ", ".join(repr(choice) for choice in schema["enum"])
        yield where, f"expected {expected}, not {value!r:.80}", expected
    if "const" in schema and value != schema["const"]:
        yield where, f"expected {schema['const']!r}, not {value!r:.80}", repr(schema["const"])
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                expected = str(properties.get(name, {}).get("type", "a value"))
                yield _inside(where, name), f"missing; expected {expected}", expected
        for name, item in value.items():
            if name in properties:
                yield from _misfits(item, properties[name], _inside(where, name))
            elif schema.get("additionalProperties") is False:
                takes = ", ".join(properties) or "no arguments"
                yield _inside(where, name), f"there is no such argument; it takes {takes}", takes
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _misfits(item, schema.get("items"), _inside(where, number))


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(name, (object,)))


def _inside(where: str, name: str | int) -> str:
    return f"{where}.{name}" if where else str(name)
