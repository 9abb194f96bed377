"""The limit on live bytes."""

from __future__ import annotations

from callboard_protocol.errors import StoreFullError
from callboard_storage.batch import FrameBatch
from callboard_storage.lmdb_environment import WriteTransaction


class Quota:
    """Refuses batches that start or continue work once live data has reached a limit; what ends work still gets in.

    Live bytes are known exactly from the tables' page counts. Counting takes a call per table, so it is done only when
    the last count, plus a generous guess at what was written since, may have reached the limit.

    Args:
        max_bytes: the limit; None is none.
    """

    __slots__ = ("_counted", "_max_bytes", "_since")

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._counted: int | None = None
        self._since = 0

    def measure(self, transaction: WriteTransaction) -> None:
        """Bring the count up to date where it matters. Called at the start of a transaction."""
        if self._max_bytes is None:
            return
        if self._counted is None or self._counted + 4 * self._since >= self._max_bytes:
            self._counted = transaction.bytes_used()
            self._since = 0

    def forget(self) -> None:
        """Count anew next time: something was deleted, or was not written after all."""
        self._counted = None

    def count(self, size: int) -> None:
        """Note how many bytes are about to be written."""
        self._since += size

    def refusal(self, batch: FrameBatch) -> StoreFullError | None:
        """The error for a batch that no longer gets in; None for one that does."""
        if self._max_bytes is None or not batch.grows:
            return None
        used = (self._counted or 0) + self._since
        if used < self._max_bytes:
            return None
        return StoreFullError(
            f"the store holds {used} bytes, its quota is {self._max_bytes}", context={"max_bytes": self._max_bytes}
        )
