"""What every protocol model shares: frozen models, checked identifiers, durations, plain JSON values."""

import difflib
import math
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from callboard_protocol.errors import InvalidIdentifierError, UsageError

MAX_IDENTIFIER_BYTES = 200
"""An id is part of ordered keys that must stay under LMDB's 511 bytes, beside another id and a sequence."""


class Frozen(BaseModel):
    """A value object: immutable, and unknown fields are errors."""

    # Built by `build_models` or on first use: to build all of them took a fifth of the time that importing us takes.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


_building = threading.Lock()


def build_models() -> None:
    """Have pydantic build the validators of all value objects that have none yet. Whoever has several threads use them
    calls this before: on first use pydantic builds them in whichever thread that is, which not each of its releases
    does under a lock.
    """
    with _building:
        for model in _below(Frozen):
            model.model_rebuild(raise_errors=False)


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for below in model.__subclasses__():
        yield below
        yield from _below(below)


class Given(Frozen):
    """A value object that users write out: what does not fit is a `UsageError` that names the field."""

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as problem:
            raise _misuse(type(self), problem) from None

    # Only who calls the class comes this way; what is read back from disk is validated without it.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def _misuse(model: type[BaseModel], problem: ValidationError) -> UsageError:
    """The first thing that is wrong with what a model was given, and what to give instead."""
    first = problem.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UsageError) and type(cause) is not UsageError:
        return cause
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown_option(field, model.model_fields, of=model.__name__)
    if first["type"] == "missing":
        return UsageError(f"{model.__name__} needs {field!r}", hint=f"{model.__name__}({field}=...)")
    top = model.model_fields.get(str(first["loc"][0])) if first["loc"] else None
    if isinstance(cause, UsageError):
        return UsageError(f"{model.__name__}: {first['loc'][0]}: {cause.message}", hint=cause.hint)
    message = first["msg"].removeprefix("Value error, ")
    if not field:
        return UsageError(f"{model.__name__}: {message}", hint=f"see the fields of {model.__name__}")
    hint = (top.description if top is not None else None) or f"{message[:1].lower()}{message[1:]}"
    return UsageError(f"{model.__name__}: {field}={shortened(first['input'])} does not fit", hint=hint)


def unknown_option(name: str, known: Iterable[str], *, of: str) -> UsageError:
    """The error for an option that does not exist; it names the nearest one."""
    names = [*known]
    near = difflib.get_close_matches(name, names, n=1)
    return UsageError(
        f"{of} has no option {name!r}", hint=f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(names)}"
    )


def shortened(value: object, length: int = 60) -> str:
    """A value as an error shows it.

    Args:
        value: what was wrong.
        length: characters of it to show at most.
    """
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def check_identifier(value: str, what: str = "id") -> str:
    """The id unchanged, if it can be stored and printed.

    Args:
        value: the id as the caller gave it.
        what: how to call it in the error, such as ``"session id"``.

    Raises:
        InvalidIdentifierError: it is not a string, empty, over 200 bytes of UTF-8, or holds NUL, control characters
            or lone surrogates.
    """
    if not isinstance(value, str):
        raise InvalidIdentifierError(f"the {what} is of type {type(value).__name__}, not a string")
    if not value:
        raise InvalidIdentifierError(f"the {what} is empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidIdentifierError(f"the {what} {value!r} holds a lone surrogate, which UTF-8 cannot carry") from None
    if size > MAX_IDENTIFIER_BYTES:
        raise InvalidIdentifierError(f"the {what} {value[:40]!r}... is {size} bytes long")
    if not value.isprintable() and any(unicodedata.category(character) == "Cc" for character in value):
        raise InvalidIdentifierError(f"the {what} {value!r} holds a control character")
    return value


def check_name(value: str, what: str) -> str:
    """A name that no key is made of, unchanged, if it can be stored: any text but an empty one.

    Raises:
        InvalidIdentifierError: it is not a string, empty, or holds lone surrogates.
    """
    if not isinstance(value, str):
        raise InvalidIdentifierError(f"the {what} is of type {type(value).__name__}, not a string", hint="give a str")
    if not value or value.encode(errors="replace").decode() != value:
        why = "holds a lone surrogate, which UTF-8 cannot carry" if value else "is empty"
        raise InvalidIdentifierError(f"the {what} {value!r} {why}", hint="give a name of UTF-8 text")
    return value


def as_seconds(duration: float | timedelta) -> float:
    """A duration in seconds.

    Raises:
        UsageError: it is negative, infinite or not a number.
    """
    try:
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise UsageError(f"a duration of {shortened(duration)} makes no sense", hint="give seconds >= 0 or a timedelta")
    return seconds


def _normalised(duration: float | timedelta) -> float | timedelta:
    return as_seconds(duration)


Duration: TypeAlias = Annotated[float | timedelta, BeforeValidator(_normalised)]
"""Seconds or a `timedelta`; stored as seconds."""

JsonObject: TypeAlias = dict[str, Any]
