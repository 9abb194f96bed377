"""Models as plain data, on their way to disk.

A stored model becomes a dict of its fields without those that hold their default: a step's record has two dozen fields
and uses eight. Fields of type `Any` are left exactly as they are; nothing inside them is dropped.

pydantic's own ``to_python(exclude_defaults=True)`` would take the same time, but it also drops defaults of user models
inside `Any` fields, and the literal tags by which a union of parts tells its members apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from enum import Enum
from types import NoneType
from typing import Any, Literal, TypeAlias, get_args, get_origin

from pydantic import BaseModel, SkipValidation
from pydantic_core import PydanticUndefined

Plan: TypeAlias = tuple[tuple[str, object], ...]
"""Fields in their order, each with the default that is not written."""

_LEAVES = frozenset({str, int, float, bool, bytes, NoneType, dict, list})
"""Types taken as they are: what a dict or list holds is checked by msgpack itself, in C."""

_ALWAYS_WRITTEN = object()

_EMPTY_MODEL = object()
"""A default that is a model of defaults only: its body is empty, which is quicker to see than that models are equal."""


class Flattener:
    """Turns models into plain dicts.

    Args:
        models: the models to write without their defaults; any other is written in full.
    """

    __slots__ = ("_plans",)

    def __init__(self, models: Iterable[type[Any]]) -> None:
        self._plans: dict[type[Any], Plan] = {model: _plan_of(model) for model in models}

    def flatten(self, model: object) -> dict[str, Any]:
        """The model as a dict without its defaults; of parts only those in typed fields are dicts already."""
        plan = self._plan_for(type(model))
        if plan is None:
            raise TypeError(f"{type(model).__name__} has no schema")
        return self._body(model, plan)

    def plain(self, value: object) -> object:
        """One level of a value that msgpack does not take: what stands for it on disk, to be looked at again.

        Raises:
            TypeError: nothing stands for it.
        """
        kind = type(value)
        if kind is tuple:
            return list(value)  # type: ignore[call-overload]  # just seen to be a tuple
        plan = self._plan_for(kind)
        if plan is not None:
            return self._body(value, plan)
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, BaseModel):
            return value.__pydantic_serializer__.to_python(value, round_trip=True, warnings=False)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        raise TypeError(f"a {kind.__qualname__} is not plain data")

    def _body(self, model: object, plan: Plan) -> dict[str, Any]:
        values = model.__dict__
        body: dict[str, Any] = {}
        for name, default in plan:
            value = values[name]
            if value is default:
                continue
            if type(value) in _LEAVES:
                if default is not None and value == default:
                    continue
            else:
                value = self._nested(value)
                if default is _EMPTY_MODEL and not value:
                    continue
            body[name] = value
        return body

    def _nested(self, value: Any) -> Any:
        kind = type(value)
        if kind is tuple:
            return [item if type(item) in _LEAVES else self._nested(item) for item in value]
        plan = self._plan_for(kind)
        if plan is not None:
            return self._body(value, plan)
        return value.value if isinstance(value, Enum) else value

    def _plan_for(self, kind: type[Any]) -> Plan | None:
        plan = self._plans.get(kind)
        if plan is None:
            base = next((base for base in kind.__mro__ if base in self._plans), None)
            if base is not None:
                plan = self._plans[kind] = self._plans[base]
        return plan


def _plan_of(model: type[Any]) -> Plan:
    if dataclasses.is_dataclass(model):
        return tuple(
            (one.name, _ALWAYS_WRITTEN if one.name == "kind" or one.default is dataclasses.MISSING else one.default)
            for one in dataclasses.fields(model)
        )
    plan: list[tuple[str, object]] = []
    for name, field in model.model_fields.items():
        if any(SkipValidation in (mark, type(mark)) for mark in field.metadata):
            continue  # live: passed by reference within a process, never stored
        default = field.get_default(call_default_factory=True)
        is_tag = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
        if is_tag or default is PydanticUndefined:
            default = _ALWAYS_WRITTEN
        elif isinstance(default, BaseModel) and _holds_defaults(default):
            default = _EMPTY_MODEL
        plan.append((name, default))
    return tuple(plan)


def _holds_defaults(model: BaseModel) -> bool:
    """Whether a model is one of defaults only; not by making another, for which pydantic would build its validator."""
    values = vars(model)
    return all(
        values[name] == field.get_default(call_default_factory=True) for name, field in type(model).model_fields.items()
    )
