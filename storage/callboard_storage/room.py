"""Whether there is room: for work to begin, and for what has happened to be written. Pure rules over measured figures.

Two things bound what a store can hold: a quota on live bytes, and the space that is left to grow into. Each has two
marks. At the lower one, batches that *begin* work are refused; what lies between it and the end is kept for outcomes,
endings and decisions, because an effect that has happened must be written while one that has not can wait.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from callboard_protocol.errors import StoreFullError, UsageError
from callboard_storage.batch import FrameBatch

MIB: Final = 1 << 20

SMALLEST_QUOTA: Final = MIB
"""The least `max_bytes`: under that, a few tables and one run would fill it."""

DEFAULT_FREE_BYTES: Final = 64 * MIB
"""What is kept free unless told otherwise; a new data directory must have room for as much."""

SMALLEST_FREE_BYTES: Final = MIB
"""The least `min_free_bytes`."""

LARGEST_RESERVE: Final = 64 * MIB
"""The most of a quota that is kept for outcomes."""

SECONDS_BETWEEN_LOOKS: Final = 1.0
"""How long a measurement counts: others fill the same disk."""

_SHARE_KEPT: Final = 4
_BYTES_ON_DISK_PER_BYTE: Final = 2
_LARGE_PER_UNUSED: Final = 16
"""The least payload that goes into chunks fills sixteen pages, and may leave most of another empty."""

_PAGE: Final = 4096


class Space(NamedTuple):
    """What was measured.

    Attributes:
        used: bytes that hold live data.
        left: bytes that can still be written: pages to be reused, and what the file can grow by.
    """

    used: int
    left: int


def reserve_of(max_bytes: int) -> int:
    """The bytes of a quota that are kept for outcomes: a quarter, 64 MiB at most."""
    return min(max_bytes // _SHARE_KEPT, LARGEST_RESERVE)


class Room:
    """What a store may still write. The writer measures, counts and asks; anyone may look at `has_room`.

    Args:
        max_bytes: the quota on live bytes; None is none.
        min_free_bytes: the space that must be left for work to begin.

    Attributes:
        has_room: whether work may begin, as of the last measurement and what was written since.
    """

    __slots__ = (
        "_asked_at",
        "_failed_at",
        "_max_bytes",
        "_min_free_bytes",
        "_since",
        "_space",
        "_until_full",
        "_until_refusal",
        "has_room",
    )

    def __init__(self, max_bytes: int | None, min_free_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._space: Space | None = None
        self._since = 0
        self._until_refusal: float = 0
        self._until_full: float = 0
        self._asked_at = -math.inf
        self._failed_at = -math.inf
        self.has_room = True

    def is_due(self, now: float) -> bool:
        """Whether it is time to measure: the last figures are old, or a guess says that they no longer hold.

        Args:
            now: monotonic seconds.
        """
        return (
            self._space is None
            or now - self._asked_at > SECONDS_BETWEEN_LOOKS
            or self._since * _BYTES_ON_DISK_PER_BYTE >= self._until_refusal
        )

    def measured(self, space: Space, now: float) -> None:
        """Take over what was measured just now.

        Args:
            space: the figures.
            now: monotonic seconds.
        """
        self._space = space
        self._since = 0
        self._asked_at = now
        self._until_refusal = space.left - self._min_free_bytes
        self._until_full = math.inf
        if self._max_bytes is not None:
            self._until_full = self._max_bytes - space.used
            self._until_refusal = min(self._until_refusal, self._until_full - reserve_of(self._max_bytes))
        self.has_room = self._until_refusal > 0 and now - self._failed_at > SECONDS_BETWEEN_LOOKS

    def forget(self) -> None:
        """Measure before the next batch: something was deleted, or was not written after all."""
        self._space = None

    def failed(self, now: float) -> None:
        """The disk had no room, whatever was measured. That stands for a second: not every limit can be seen.

        Args:
            now: monotonic seconds.
        """
        self._space = None
        self._failed_at = now
        self.has_room = False

    def count(self, size: int, large_size: int) -> None:
        """Note how many bytes are about to be written, and how many of them are of large payloads."""
        self._since += _guess(size, large_size)
        if self._since >= self._until_refusal:
            self.has_room = False

    def refusal(self, batch: FrameBatch, written: int = 0) -> StoreFullError | None:
        """The error for a batch that does not get in; None for one that does.

        Args:
            batch: the batch.
            written: how many bytes of its large payloads went ahead of it.
        """
        size, large_size = max(0, batch.size - written), max(0, batch.large_size - written)
        if batch.begins_work and not self.has_room:
            return self._error("no work begins here until there is room again")
        if self._since + _guess(size, large_size) > self._until_full:
            return self._error(f"there is no room for {size} bytes more")
        return None

    def described(self) -> str:
        """What was measured last, in words."""
        space = self._space or Space(0, 0)
        quota = "" if self._max_bytes is None else f" of {self._max_bytes} (max_bytes)"
        disk = f", and {space.left} are left to write" if space.left < self._min_free_bytes else ""
        return f"the store holds {space.used} bytes{quota}{disk}"

    def _error(self, consequence: str) -> StoreFullError:
        space = self._space or Space(0, 0)
        return StoreFullError(
            f"{consequence}: {self.described()}",
            context={"used": space.used, "max_bytes": self._max_bytes, "left": space.left},
        )


def _guess(size: int, large_size: int) -> int:
    """What so many bytes take up in pages at the most, or nearly so, until it is counted.

    Rows share pages, which are filled by half at the least. Large payloads fill theirs but for the last one.
    """
    return (size - large_size) * _BYTES_ON_DISK_PER_BYTE + large_size + large_size // _LARGE_PER_UNUSED + _PAGE


def check_limits(max_bytes: int | None, min_free_bytes: int | None) -> None:
    """Raise unless the limits are ones a store can work with.

    Raises:
        UsageError: one is no number of bytes, or too small.
    """
    for name, given, least in (
        ("max_bytes", max_bytes, SMALLEST_QUOTA),
        ("min_free_bytes", min_free_bytes, SMALLEST_FREE_BYTES),
    ):
        if given is not None and (type(given) is not int or given < least):
            raise UsageError(f"{name}={given!r:.40} does not fit", hint=f"give a number of bytes, at least {least}")
