"""The record frame: what every stored value looks like, and the only file that imports msgpack.

::

    magic 2 | frame version 1 | schema id 2 | schema version 2 | payload length 4 | digest 16 | payload

The digest is blake2b-128 over key, header and payload, so a frame that was damaged, cut short or moved to another key
is noticed before any of it is decoded. Magic, lengths and digest stay where they are in every frame version. A frame
whose payload is kept in chunks is stored without it, as the reference that header and digest are (see `chunks`). The
payload is msgpack of plain data: strict types, at most 64 containers deep, extension types for leaves only. Models come
back through `Schemas` alone: nothing is imported, called or constructed because stored bytes name it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, TypeVar, cast

import msgpack
from pydantic import ValidationError

from callboard_protocol.base import Frozen
from callboard_protocol.errors import DamagedRecordError, UnknownSchemaError, UnpersistableValueError
from callboard_storage import keys, leaves
from callboard_storage.plain import Flattener
from callboard_storage.plain_bodies import PlainBodies
from callboard_storage.schemas import CHUNK, PARTS, SCHEMAS, Schema, Schemas, unknown
from callboard_storage.unpersistable import Search

ModelT = TypeVar("ModelT")

FRAME_VERSION = 1
MAX_DEPTH = 64
MAX_PAYLOAD = 1 << 30
"""Bytes one record may hold. Encoding takes memory for twice that."""

_packb = cast("Callable[..., bytes]", msgpack.packb)

_MAGIC = b"\xcb\x0a"
_HEADER = struct.Struct(">2sBHHI")
OVERHEAD = _HEADER.size + keys.DIGEST_SIZE
"""Bytes a frame has beyond its payload."""

_NOT_CONTAINER = bytes(mark for mark in range(256) if not (0x80 <= mark <= 0x9F or 0xDC <= mark <= 0xDF))
"""Every byte that never begins a msgpack array or map. A payload with at most `MAX_DEPTH` of the other bytes cannot be
nested deeper than that; counting them is much quicker than walking it."""

_ERRORS_SHOWN = 5
_CHARACTERS_SHOWN = 2000

_PACK_ERRORS = (TypeError, ValueError, OverflowError, RecursionError)


class Codec:
    """Encodes and decodes models under a set of schemas.

    Args:
        schemas: what may be stored.
        parts: what stored models are made of.
    """

    __slots__ = ("_flattener", "_plain_bodies", "_schemas", "_search")

    def __init__(self, schemas: Schemas, parts: tuple[type[Any], ...] = ()) -> None:
        self._schemas = schemas
        self._flattener = Flattener((*(schema.model for schema in schemas), *parts))
        self._plain_bodies = PlainBodies(schema.model for schema in schemas)
        self._search = Search(MAX_DEPTH, _packs, self._comes_back, self._stored_form, self._size)

    def encode(self, key: bytes, model: Frozen) -> bytes:
        """The model's frame, bound to the key it will be stored under.

        Raises:
            UnpersistableValueError: it holds a value that cannot persist; the error names where.
        """
        return seal(key, *self.pack(model))

    def pack(self, model: Frozen) -> tuple[bytes, bytes]:
        """The header and the payload of the model's frame, which `seal` makes one.

        Raises:
            UnpersistableValueError: it holds a value that cannot persist; the error names where.
        """
        schema = self._schemas.of_model(type(model))
        if schema is None:
            raise UnpersistableValueError(f"a {type(model).__qualname__} has no schema, so it cannot be stored")
        body = stored = self._flattener.flatten(model)
        try:
            payload = _packb(body, strict_types=True)
        except _PACK_ERRORS:
            payload, stored = self._pack_odd(schema.model.__name__, body)
        if len(payload) > MAX_PAYLOAD:
            raise self._search.too_large(schema.model.__name__, stored, len(payload), MAX_PAYLOAD)
        if len(payload.translate(None, _NOT_CONTAINER)) > MAX_DEPTH and _depth_of(stored) > MAX_DEPTH:
            raise self._search.error(schema.model.__name__, body)
        return _HEADER.pack(_MAGIC, FRAME_VERSION, schema.id, schema.version, len(payload)), payload

    def decode(self, key: bytes, frame: bytes, expected: type[ModelT]) -> ModelT:
        """The model a frame holds.

        Args:
            key: the key it was found under.
            frame: the stored bytes.
            expected: what it must be; for the records of a log, their common base class.

        Raises:
            UnknownSchemaError: a newer release wrote it.
            DamagedRecordError: it is not what was written under this key, or does not decode.
        """
        payload, number, version = open_frame(key, frame)
        schema = self._schemas.of_id(number)
        try:
            body = _unpack(payload)
            deep = len(payload.translate(None, _NOT_CONTAINER)) > MAX_DEPTH and _depth_of(body) > MAX_DEPTH
            if version != schema.version:
                body = self._schemas.upcast(schema, version, body)
            model = self._plain_bodies.recognise(schema.model, body) or schema.model.model_validate(body)
        except UnknownSchemaError:
            raise
        except Exception as error:
            raise _undecodable(key, schema, error) from error
        if deep:
            raise _damaged(key, f"({schema.model.__name__}) is nested more than {MAX_DEPTH} deep")
        if not isinstance(model, expected):
            raise _damaged(key, f"is a {schema.model.__name__}, not a {expected.__name__}")
        return model

    def moved(self, key: bytes, frame: bytes, new_key: bytes) -> bytes:
        """A frame as it is stored under another key: the same payload, bound to that key.

        Args:
            key: the key it was found under.
            frame: the stored bytes.
            new_key: the key its copy gets.

        Raises:
            UnknownSchemaError: it has a frame version that a newer release wrote.
            DamagedRecordError: it is not what was written under `key`.
        """
        payload, _, _ = open_frame(key, frame)
        return seal(new_key, frame[: _HEADER.size], payload)

    def is_whole(self, key: bytes, frame: bytes, expected: type[Any]) -> bool:
        """Whether these are the bytes that were written under this key, and of that model; they are not decoded."""
        try:
            _, number, _ = open_frame(key, frame)
            return self._schemas.of_id(number).model is expected
        except UnknownSchemaError:
            return True  # a newer release's, which it is not for this one to judge
        except DamagedRecordError:
            return False

    def body(self, key: bytes, frame: bytes) -> tuple[Schema, int, dict[str, Any]]:
        """A frame's schema, the version it was written in, and its body as plain data of that version.

        Raises:
            UnknownSchemaError: a newer release wrote it.
            DamagedRecordError: it is not what was written under this key, or does not decode.
        """
        payload, number, version = open_frame(key, frame)
        schema = self._schemas.of_id(number)
        try:
            return schema, version, _unpack(payload)
        except Exception as error:
            raise _undecodable(key, schema, error) from error

    def revive(self, number: int, version: int, body: dict[str, Any], expected: type[ModelT]) -> ModelT:
        """The model of a body that `body` gave.

        Raises:
            UnknownSchemaError: a newer release wrote it.
            ValueError, TypeError: it is not such a body.
        """
        schema = self._schemas.of_id(number)
        if version != schema.version:
            body = self._schemas.upcast(schema, version, body)
        model = schema.model.model_validate(body)
        if not isinstance(model, expected):
            raise TypeError(f"it is a {schema.model.__name__}, not a {expected.__name__}")
        return model

    def is_behind(self, frame: bytes) -> bool:
        """Whether a frame, or a reference to one, says that an earlier version of its schema wrote it; it is not looked
        into any further.
        """
        if len(frame) < OVERHEAD:
            return False
        magic, frame_version, number, version, _ = _HEADER.unpack_from(frame)
        if magic != _MAGIC or frame_version != FRAME_VERSION:
            return False
        try:
            return bool(version < self._schemas.of_id(number).version)
        except UnknownSchemaError:
            return False

    def _pack_odd(self, record: str, body: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """Pack what plain msgpack refused: leaf types, and models, tuples or enums inside `Any`. Also gives what comes
        back of it.
        """
        try:
            payload = _packb(body, default=self._stored_form, strict_types=True)
            # Anything stored as a list or map can also be a dict's key; that packs and never comes back.
            return payload, _unpack(payload)
        except Exception as error:
            raise self._search.error(record, body) from error

    def _stored_form(self, value: object) -> object:
        packed = leaves.pack(value)
        return self._flattener.plain(value) if packed is None else msgpack.ExtType(*packed)

    def _size(self, value: object) -> int:
        return len(_packb(value, default=self._stored_form, strict_types=True))

    def _comes_back(self, key: object) -> bool:
        try:
            _unpack(_packb({key: None}, default=self._stored_form, strict_types=True))
        except Exception:  # noqa: BLE001 - as above
            return False
        return True


def _packs(value: object) -> bool:
    try:
        _packb(value, strict_types=True)
    except _PACK_ERRORS:
        return False
    return True


def _unpack(payload: bytes) -> Any:
    return msgpack.unpackb(payload, ext_hook=leaves.unpack, strict_map_key=False)


def seal(key: bytes, header: bytes, payload: bytes | memoryview) -> bytes:
    """The frame of a header and a payload, bound to the key it will be stored under."""
    digest = blake2b(b"".join((key, header, payload)), digest_size=keys.DIGEST_SIZE).digest()
    return b"".join((header, digest, payload))


def parted(frame: bytes) -> tuple[bytes, bytes]:
    """The header and the payload that `seal` made this frame of."""
    return frame[: _HEADER.size], frame[OVERHEAD:]


def begin_digest(key: bytes, header: bytes) -> blake2b:
    """The digest of a frame whose payload is still to be added, piece by piece."""
    return blake2b(key + header, digest_size=keys.DIGEST_SIZE)


def referenced(row: bytes) -> tuple[bytes, int] | None:
    """The digest of the frame a row refers to and the length of its payload; None where the row is a whole frame."""
    if len(row) != OVERHEAD or not row.startswith(_MAGIC):
        return None
    return row[_HEADER.size :], _HEADER.unpack_from(row)[4]


def seal_chunk(key: bytes, piece: bytes | memoryview) -> bytes:
    """The frame of a chunk."""
    return seal(key, _HEADER.pack(_MAGIC, FRAME_VERSION, CHUNK, 1, len(piece)), piece)


def open_chunk(key: bytes, frame: bytes) -> bytes:
    """What a chunk holds.

    Raises:
        UnknownSchemaError: a newer release wrote it.
        DamagedRecordError: it is not what was written under this key.
    """
    piece, number, version = open_frame(key, frame)
    if number != CHUNK:
        raise _damaged(key, "is not a chunk")
    if version != 1:
        raise unknown(f"has version {version}, this release reads 1")
    return piece


def open_frame(key: bytes, frame: bytes) -> tuple[bytes, int, int]:
    """Payload, schema id and schema version of a frame whose size and digest hold."""
    if len(frame) < OVERHEAD:
        raise _damaged(key, f"is cut short: {len(frame)} bytes")
    magic, frame_version, number, version, length = _HEADER.unpack_from(frame)
    if magic != _MAGIC or len(frame) != OVERHEAD + length:
        raise _damaged(key, f"is not a frame of its stated length: {len(frame)} bytes")
    payload = frame[OVERHEAD:]
    digest = blake2b(b"".join((key, frame[: _HEADER.size], payload)), digest_size=keys.DIGEST_SIZE).digest()
    if digest != frame[_HEADER.size : OVERHEAD]:
        raise _damaged(key, "fails its checksum")
    if frame_version != FRAME_VERSION:
        raise unknown(f"has frame version {frame_version}, this release reads {FRAME_VERSION}")
    return payload, number, version


def _damaged(key: bytes, what: str) -> DamagedRecordError:
    return DamagedRecordError(f"the record at {key!r} {what}", context={"what": what})


def _undecodable(key: bytes, schema: Schema, error: Exception) -> DamagedRecordError:
    if isinstance(error, ValidationError) and error.error_count() > _ERRORS_SHOWN:
        why = f"{error.error_count()} values do not fit"  # a megabyte of them would tell 200 megabytes of why
    else:
        why = str(error)[:_CHARACTERS_SHOWN]
    return _damaged(key, f"({schema.model.__name__}) does not decode: {why}")


def _depth_of(value: object) -> int:
    """How many containers deep plain data is, level by level; more than `MAX_DEPTH` is not counted out."""
    depth = 0
    level: list[Any] = [value]
    while depth <= MAX_DEPTH:
        level = [one for one in level if type(one) is dict or type(one) is list]
        if not level:
            break
        depth += 1
        level = [item for one in level for item in (one.values() if type(one) is dict else one)]
    return depth


CODEC = Codec(SCHEMAS, PARTS)
encode = CODEC.encode
pack = CODEC.pack
decode = CODEC.decode
moved = CODEC.moved
is_behind = CODEC.is_behind
is_whole = CODEC.is_whole
