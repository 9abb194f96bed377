"""Leaf types: single values that msgpack has no type for. Each number is on disk for good."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Leaf: TypeAlias = tuple[int, Callable[[Any], bytes], Callable[[bytes], Any]]
"""The number of an extension type, how a value is written, how it is read."""

_MOST_DIGITS = 1_000_000
_TIMEDELTA = struct.Struct(">iii")


def pack(value: object) -> tuple[int, bytes] | None:
    """The extension type and bytes of a leaf; None for a value that is none."""
    leaf = _BY_TYPE.get(type(value))
    return None if leaf is None else (leaf[0], leaf[1](value))


def unpack(number: int, data: bytes) -> Any:
    """The leaf that was written.

    Raises:
        ValueError: there is no such extension type.
    """
    leaf = _BY_NUMBER.get(number)
    if leaf is None:
        raise ValueError(f"extension type {number} is unknown")
    return leaf[2](data)


def _write_datetime(value: datetime) -> bytes:
    zone = value.tzinfo
    name = f"[{zone.key}]" if isinstance(zone, ZoneInfo) and zone.key else ""
    return (value.isoformat() + name).encode()


def _read_datetime(data: bytes) -> datetime:
    text, _, name = data.decode().partition("[")
    moment = datetime.fromisoformat(text)
    if not name:
        return moment
    try:
        return moment.astimezone(ZoneInfo(name.removesuffix("]")))
    except (ZoneInfoNotFoundError, ValueError):
        return moment  # a host without that zone: the same instant, at the offset it had


def _write_int(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _read_int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _write_timedelta(value: timedelta) -> bytes:
    return _TIMEDELTA.pack(value.days, value.seconds, value.microseconds)


def _read_timedelta(data: bytes) -> timedelta:
    days, seconds, microseconds = _TIMEDELTA.unpack(data)
    return timedelta(days, seconds, microseconds)


def _write_decimal(value: Decimal) -> bytes:
    return str(_in_range(value)).encode()


def _read_decimal(data: bytes) -> Decimal:
    return _in_range(Decimal(data.decode()))


def _in_range(value: Decimal) -> Decimal:
    """The number, if it is one that arithmetic in Python's default context can give.

    A field of type `int` makes as many digits of it as it says, however few bytes it was stored in.
    """
    if value.is_finite() and abs(value.adjusted()) > _MOST_DIGITS:
        raise ValueError(f"a Decimal with an exponent of {value.adjusted()} is not stored")
    return value


_BY_TYPE: dict[type[Any], Leaf] = {
    datetime: (1, _write_datetime, _read_datetime),
    Decimal: (2, _write_decimal, _read_decimal),
    UUID: (3, lambda value: bytes(value.bytes), lambda data: UUID(bytes=data)),
    int: (4, _write_int, _read_int),
    date: (5, lambda value: value.isoformat().encode(), lambda data: date.fromisoformat(data.decode())),
    time: (6, lambda value: value.isoformat().encode(), lambda data: time.fromisoformat(data.decode())),
    timedelta: (7, _write_timedelta, _read_timedelta),
}
_BY_NUMBER: dict[int, Leaf] = {leaf[0]: leaf for leaf in _BY_TYPE.values()}
