"""Large payloads: kept in chunks of their own beside the row they belong to.

A frame whose payload is longer than `LARGEST_IN_ROW` is stored without it: its row holds the header and the digest, 27
bytes that refer to chunks in the table `blobs`. The digest covers the row's key, so chunks belong to one row and to no
other: they go when the row goes or is replaced, and nothing has to count who else needs them. Chunks are on disk before
the row that refers to them is, or in its transaction. What a writer that was killed has left behind is referred to
by no row: `unreferenced` finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol, TypeVar

from callboard_protocol.errors import DamagedRecordError, UnknownSchemaError
from callboard_storage import codec, keys

ModelT = TypeVar("ModelT")

LARGEST_IN_ROW: Final = 64 * 1024
"""Bytes of a payload that stays in its row."""

CHUNK_BYTES: Final = 256 * 1024 - 64
"""Bytes of a payload in one chunk: with its frame and the engine's own header it fills whole pages."""

HOLDING_TABLES: Final = ("log", "heads", "checkpoints", "memory", "runs", "letters")
"""Tables whose rows are frames, so that they can be references."""


class Chunks(Protocol):
    """Where chunks are read."""

    def chunk(self, key: bytes) -> bytes | None:
        """The chunk under a key; None where there is none."""
        ...


class Tables(Protocol):
    """Where whole tables are read."""

    def entries(self, table: str) -> int:
        """Rows of a table."""
        ...

    def each(self, table: str) -> Iterable[tuple[bytes, bytes]]:
        """Every row of a table."""
        ...


class Writing(Protocol):
    """Where rows are written."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value under a key."""
        ...

    def delete_prefix(self, table: str, prefix: bytes) -> int:
        """Remove every row whose key begins so."""
        ...


def chunks_prefix(table: str, key: bytes) -> bytes:
    """What the keys of a row's chunks begin with: its session's prefix, or its run's."""
    return keys.run_prefix(key) if table == "runs" else key.partition(b"\0")[0] + b"\0"


def pieces(payload: bytes, size: int) -> Iterator[memoryview]:
    """A payload in pieces of a size; the last may be shorter."""
    view = memoryview(payload)
    return (view[start : start + size] for start in range(0, len(payload), size))


def rows(table: str, key: bytes, digest: bytes, payload: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a large payload, as they are stored.

    Args:
        table: where the row is that refers to them.
        key: that row's key.
        digest: the digest of the frame whose payload it is.
        payload: the payload.
    """
    for chunk_key, piece in places_of(table, key, digest, payload):
        yield chunk_key, codec.seal_chunk(chunk_key, piece)


def places_of(table: str, key: bytes, digest: bytes, payload: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The keys of a large payload's chunks, and what each of them holds; the arguments are those of `rows`."""
    prefix = chunks_prefix(table, key)
    for number, piece in enumerate(pieces(payload, CHUNK_BYTES)):
        yield keys.chunk_key(prefix, digest, number), piece


def stored(table: str, key: bytes, header: bytes, payload: bytes) -> tuple[bytes, Iterable[tuple[bytes, bytes]]]:
    """A frame's row, and its chunks where the payload is too long for that.

    Args:
        table: where the row is.
        key: its key.
        header: the frame's header.
        payload: the frame's payload.
    """
    if len(payload) <= LARGEST_IN_ROW:
        return codec.seal(key, header, payload), ()
    digest = codec.begin_digest(key, header)
    digest.update(payload)
    name = digest.digest()
    return header + name, rows(table, key, name, payload)


def place(table: str, key: bytes, row: bytes) -> bytes | None:
    """What the keys of the chunks begin with that a row refers to; None where it is a whole frame."""
    reference = codec.referenced(row)
    return None if reference is None else chunks_prefix(table, key) + reference[0]


def whole(snapshot: Chunks, table: str, key: bytes, row: bytes) -> bytes:
    """The frame a row holds or refers to.

    Raises:
        DamagedRecordError: a chunk is missing or damaged; the error names it.
    """
    reference = codec.referenced(row)
    if reference is None:
        return row
    digest, length = reference
    prefix = chunks_prefix(table, key)
    parts = [row]
    missing = length
    while missing > 0:
        number = len(parts) - 1
        chunk_key = keys.chunk_key(prefix, digest, number)
        frame = snapshot.chunk(chunk_key)
        if frame is None:
            raise DamagedRecordError(
                f"the record at {key!r} is incomplete: chunk {number} of its payload is missing",
                context={"what": f"is incomplete: chunk {number} of its payload is missing", "chunk": number},
            )
        try:
            parts.append(codec.open_chunk(chunk_key, frame))
        except DamagedRecordError as error:
            what = f"cannot be read: chunk {number} of its payload {error.what}"
            raise type(error)(f"the record at {key!r} {what}", context={"what": what, "chunk": number}) from error
        missing -= len(parts[-1])
    return b"".join(parts)


def read(snapshot: Chunks, table: str, key: bytes, row: bytes, expected: type[ModelT]) -> ModelT:
    """The model of a row, wherever its payload is.

    Raises:
        UnknownSchemaError: a newer release wrote it.
        DamagedRecordError: it is not what was written under this key, or does not decode.
    """
    return codec.decode(key, whole(snapshot, table, key, row), expected)


def is_whole(snapshot: Chunks, table: str, key: bytes, row: bytes, expected: type[object]) -> bool:
    """Whether a row and its chunks are what was written under this key, and of that model; they are not decoded."""
    try:
        return codec.is_whole(key, whole(snapshot, table, key, row), expected)
    except UnknownSchemaError:
        return True
    except DamagedRecordError:
        return False


def before_change(transaction: Writing, table: str, key: bytes, row: bytes | None) -> None:
    """Remove the chunks of what a row holds, before it holds `row`, or nothing."""
    old = transaction.get(table, key)
    if old is not None and old != row and (where := place(table, key, old)) is not None:
        transaction.delete_prefix("blobs", where)


def places(snapshot: Tables, tables: Iterable[str] = HOLDING_TABLES) -> set[bytes]:
    """The beginnings of the keys of all chunks that some row refers to."""
    return {
        where for table in tables for key, row in snapshot.each(table) if (where := place(table, key, row)) is not None
    }


def unreferenced(snapshot: Tables) -> list[bytes]:
    """Keys of the chunks that no row refers to: left behind by writers that were killed.

    Where somebody writes, they may only be early: chunks come before their row.
    """
    if not snapshot.entries("blobs"):
        return []
    wanted = places(snapshot)
    return [key for key, _ in snapshot.each("blobs") if keys.place_of_chunk(key) not in wanted]
