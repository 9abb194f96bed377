"""Digests by which two values are told apart: arguments, messages, requests."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

DIGEST_BYTES = 12
"""Enough to tell accidents apart; it guards against changed code, not against an adversary."""


def fingerprint(value: Any) -> bytes:
    """A digest of a value's JSON form: equal values give equal digests, in any process.

    Args:
        value: plain data, models, dataclasses; anything else counts by its type's name. What JSON cannot say at all
            (a lone surrogate, a value that holds itself) has a digest too: whether it can be stored is not asked here.
    """
    return blake2b(_json(value), digest_size=DIGEST_BYTES).digest()


def _json(value: Any) -> bytes:
    try:
        return to_json(value, fallback=_type_name, bytes_mode="base64", inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError, RecursionError):
        return _ADDRESS.sub("", _in_python(value)).encode(errors="backslashreplace")


def _in_python(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - nested without end, or a class of the user's whose __repr__ fails
        return _type_name(value)


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""What tells two instances apart in a repr, and one process from the next."""


def _type_name(value: Any) -> str:
    return f"<{type(value).__qualname__}>"
