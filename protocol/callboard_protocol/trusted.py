"""Models that the runtime makes of its own values, without having them validated.

Validation is for what comes from outside: from users, providers and the disk. A step makes half a dozen models of
values that the runtime itself has just made or checked; to validate those again was a fifth of what a step cost.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ModelT = TypeVar("ModelT", bound=BaseModel)
P = ParamSpec("P")

_set = object.__setattr__
"""Frozen models refuse plain assignment."""

_shapes: dict[Any, tuple[dict[str, Any], set[str]]] = {}
"""By model: the defaults of the fields that need not be given, and the names of all its fields."""


def trusted(model: Callable[P, ModelT], /, *_: P.args, **fields: P.kwargs) -> ModelT:
    """An instance of `model` with these fields taken as they are; type checkers hold them against its signature.

    It equals ``model(**fields)`` where each value is of the very type its field says, and validators would change
    nothing. It is what `BaseModel.model_construct` does, in a quarter of the time: it sets the four attributes that
    pydantic documents as an instance's state.

    Args:
        model: the model's class.
        **fields: its fields by name; one with a mutable default counts as required.

    Raises:
        TypeError: a required field is missing, or there is no such field.
    """
    shape = _shapes.get(model)
    if shape is None:
        shape = _shapes[model] = _shape_of(model)
    defaults, names = shape
    values = defaults | fields
    if len(values) != len(names):
        raise TypeError(f"{model!r} needs exactly {', '.join(sorted(names))}; got {', '.join(fields)}")
    made: ModelT = object.__new__(model)  # type: ignore[arg-type]  # a class, seen by its constructor's signature
    _set(made, "__dict__", values)
    # One set for all: it says which fields were given, is copied with a copy, and a frozen instance never adds to it.
    _set(made, "__pydantic_fields_set__", names)
    _set(made, "__pydantic_extra__", None)
    _set(made, "__pydantic_private__", None)
    return made


def trusted_from(model: type[ModelT], fields: dict[str, Any]) -> ModelT:
    """`trusted`, for fields that are a dict already.

    Raises:
        TypeError: as `trusted`.
    """
    return trusted(model, **fields)


def _shape_of(model: Any) -> tuple[dict[str, Any], set[str]]:
    defaults: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if default is not PydanticUndefined and not isinstance(default, dict | list | set):
            defaults[name] = default
    return defaults, set(model.model_fields)
