"""Uploads: the chunks of a commit's large payloads, on their way to disk ahead of it.

They go a few at a time, in transactions of their own between those of other sessions, so that a large value costs its
own session time and nobody else. The last of them share the transaction of the commit itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

from callboard_storage import chunks, codec
from callboard_storage.batch import FrameBatch
from callboard_storage.chunks import chunks_prefix, pieces
from callboard_storage.lmdb_transactions import WriteTransaction

Rows: TypeAlias = list[tuple[bytes, bytes]]

UPLOADED_AT_ONCE: Final = 512 * 1024
"""Bytes of an upload one transaction takes, two chunks: as long as it lasts, other sessions wait."""

DIGESTED_AT_ONCE: Final = 1024 * 1024
"""How much of a payload is digested before other sessions have their turn."""

DISCARDED_AT_ONCE: Final = 8
"""Chunks removed in one transaction: removing takes room too, and there is little when it has to be done."""


class Upload:
    """What goes ahead of one batch.

    Args:
        batch: a batch with large frames.

    Attributes:
        written: bytes of it that were given to a transaction.
        has_leftovers: whether `discard` may have more to remove.
    """

    __slots__ = ("_batch", "_left", "_references", "_steps", "has_leftovers", "written")

    def __init__(self, batch: FrameBatch) -> None:
        self._batch = batch
        self._references: list[bytes] = []
        self._left: Rows = []
        self._steps = self._work()
        self.has_leftovers = True
        self.written = 0

    def step(self) -> Rows | None:
        """Do a little of the work; returns chunks to be written now, if any, and None once there is nothing left to do
        ahead of the batch.
        """
        return next(self._steps, None)

    def uploaded(self) -> FrameBatch:
        """The batch as it is to be written once `step` has given None: references in its rows, and the last chunks."""
        batch = self._batch.with_frames(self._references)
        for key, frame in self._left:
            batch.change("blobs", key, frame)
        return batch

    def missing(self, transaction: WriteTransaction) -> Rows:
        """Chunks that went ahead and are gone: another process has deleted the session, or was refused with the same
        value and took it back.
        """
        together = {key for key, _ in self._left}
        return [
            (key, codec.seal_chunk(key, piece))
            for large, reference in zip(self._batch.large, self._references, strict=True)
            for key, piece in chunks.places_of(large.table, large.key, reference[len(large.header) :], large.payload)
            if key not in together and not transaction.has("blobs", key)
        ]

    def discard(self, transaction: WriteTransaction) -> None:
        """Remove some of what it has written; `has_leftovers` says whether that was all.

        What a row refers to stays: the same batch may have been written before.
        """
        left = DISCARDED_AT_ONCE
        for large, reference in zip(self._batch.large, self._references, strict=False):
            if transaction.get(large.table, large.key) != reference:
                place = chunks_prefix(large.table, large.key) + reference[len(large.header) :]
                left -= transaction.delete_prefix("blobs", place, left)
        self.has_leftovers = left == 0

    def _work(self) -> Iterator[Rows]:
        rows: Rows = []
        size = 0
        for large in self._batch.large:
            digest = codec.begin_digest(large.key, large.header)
            for piece in pieces(large.payload, DIGESTED_AT_ONCE):
                digest.update(piece)
                if len(piece) == DIGESTED_AT_ONCE:
                    yield []
            name = digest.digest()
            self._references.append(large.header + name)
            for row in chunks.rows(large.table, large.key, name, large.payload):
                if size + len(row[1]) > UPLOADED_AT_ONCE:
                    yield rows
                    rows, size = [], 0
                rows.append(row)
                size += len(row[1])
        self._left = rows
