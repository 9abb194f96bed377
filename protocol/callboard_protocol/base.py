"""What every protocol model shares: frozen models, checked identifiers, durations, plain JSON values."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict

from callboard_protocol.errors import InvalidIdentifierError, UsageError

MAX_IDENTIFIER_BYTES = 200
"""An id is part of ordered keys that must stay under LMDB's 511 bytes, beside another id and a sequence."""


class Frozen(BaseModel):
    """A value object: immutable, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


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
        raise InvalidIdentifierError(f"the {what} is a {type(value).__name__}, not a string")
    if not value:
        raise InvalidIdentifierError(f"the {what} is empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidIdentifierError(f"the {what} {value!r} holds a lone surrogate, which UTF-8 cannot carry") from None
    if size > MAX_IDENTIFIER_BYTES:
        raise InvalidIdentifierError(f"the {what} {value[:40]!r}... is {size} bytes long")
    if not value.isprintable() and any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise InvalidIdentifierError(f"the {what} {value!r} holds a control character")
    return value


def as_seconds(duration: float | timedelta) -> float:
    """A duration in seconds.

    Raises:
        UsageError: it is negative, infinite or not a number.
    """
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if not math.isfinite(seconds) or seconds < 0:
        raise UsageError(f"a duration of {duration!r} makes no sense", hint="give seconds >= 0 or a timedelta")
    return seconds


def _normalised(duration: float | timedelta) -> float | timedelta:
    return as_seconds(duration)


Duration: TypeAlias = Annotated[float | timedelta, AfterValidator(_normalised)]
"""Seconds or a `timedelta`; stored as seconds."""

JsonObject: TypeAlias = dict[str, Any]
