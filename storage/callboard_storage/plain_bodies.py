"""Stored bodies that can be seen to fit their model, without having pydantic look at every field again.

Most records are flat: each value is of the very type that its field says, and validation would hand it back as it is.
Seeing that takes a fifth of the time that validating it takes, and reading a log is mostly that. Whatever is not seen
to fit, a nested model or a value of some other type, is left to pydantic to judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel

from callboard_protocol.trusted import trusted_from

ModelT = TypeVar("ModelT", bound=BaseModel)

_LEAVES: Final[frozenset[type[Any]]] = frozenset({str, int, float, bool, bytes, NoneType})
"""Types whose very instances validation hands back as they are."""

_ANYTHING: Final[frozenset[type[Any]]] = _LEAVES | {dict, list}
"""What a field that takes any value may hold; what else can be stored is rare enough to be left to pydantic."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a body of one model may look like.

    Attributes:
        types: the types each field takes, for those fields whose types say all there is to say.
        choices: the values of those that take a few strings only.
    """

    types: Mapping[str, frozenset[type[Any]]]
    choices: tuple[tuple[str, frozenset[Any]], ...]


class PlainBodies:
    """Knows the plain bodies of some models.

    Args:
        models: which.
    """

    __slots__ = ("_shapes",)

    def __init__(self, models: Iterable[type[BaseModel]]) -> None:
        self._shapes = {model: shape for model in models if (shape := _shape_of(model)) is not None}

    def recognise(self, model: type[ModelT], body: Any) -> ModelT | None:
        """The model of a body that validation would take as it is; None where only validation can tell."""
        shape = self._shapes.get(model)
        if shape is None or body.__class__ is not dict:
            return None
        types = shape.types
        for name, value in body.items():
            allowed = types.get(name)
            if allowed is None or value.__class__ not in allowed:
                return None
        for name, values in shape.choices:
            if name in body and body[name] not in values:
                return None
        try:
            return trusted_from(model, body)
        except TypeError:  # a field is missing: pydantic says which
            return None


def _shape_of(model: type[BaseModel]) -> _Shape | None:
    """None for a model that looks at its values with code of its own."""
    decorators = model.__pydantic_decorators__
    own_code = (
        decorators.validators,
        decorators.field_validators,
        decorators.root_validators,
        decorators.model_validators,
    )
    if any(own_code) or model.__pydantic_post_init__ is not None or model.__private_attributes__:
        return None
    types: dict[str, frozenset[type[Any]]] = {}
    choices: list[tuple[str, frozenset[Any]]] = []
    for name, field in model.model_fields.items():
        if field.alias is not None or field.validate_default:
            return None
        if field.metadata:
            continue
        if get_origin(field.annotation) is Literal and all(type(value) is str for value in get_args(field.annotation)):
            types[name] = frozenset({str})
            choices.append((name, frozenset(get_args(field.annotation))))
        elif (taken := _types_of(field.annotation)) is not None:
            types[name] = taken
    return _Shape(types, tuple(choices))


def _types_of(annotation: Any) -> frozenset[type[Any]] | None:
    """The types whose instances a field takes as they are; None where its values have to be looked into."""
    if annotation is Any:
        return _ANYTHING
    members: tuple[Any, ...] = (annotation,)
    if get_origin(annotation) in (Union, UnionType):
        members = get_args(annotation)
    return frozenset(members) if _LEAVES.issuperset(members) else None
