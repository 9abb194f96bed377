"""Digests by which two values are told apart: arguments, messages, requests."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from pydantic_core import to_json

DIGEST_BYTES = 12
"""Enough to tell accidents apart; it guards against changed code, not against an adversary."""


def fingerprint(value: Any) -> bytes:
    """A digest of a value's JSON form: equal values give equal digests, in any process.

    Args:
        value: plain data, models, dataclasses; anything else counts by its type's name.
    """
    return blake2b(_json(value), digest_size=DIGEST_BYTES).digest()


def _json(value: Any) -> bytes:
    return to_json(value, fallback=_type_name, bytes_mode="base64", inf_nan_mode="constants")


def _type_name(value: Any) -> str:
    return f"<{type(value).__qualname__}>"
