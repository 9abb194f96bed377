"""Decodes arbitrary bytes under arbitrary keys: ``python decode_target.py [libFuzzer options] CORPUS...``.

An input's first byte says how to read the rest. Even: it is a frame, whatever it is. Odd: a schema, a version and a key
follow, and what is left is the payload of a frame whose length and digest hold, so that mutations get past them.

Each input must give a model or a typed error, in bounded time and memory; a model must come back equal when it is
stored again. To fuzz it needs atheris; the tests call `one_input` without.
"""

from __future__ import annotations

import resource
import sys
import time
from contextlib import nullcontext

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["callboard_storage", "callboard_protocol"]) if atheris else nullcontext():
    from callboard_protocol.base import Frozen
    from callboard_protocol.errors import DamagedRecordError
    from callboard_storage import codec
    from callboard_storage.schemas import SCHEMAS

NUMBERS = [schema.id for schema in SCHEMAS]
KEY = b"golden\0\0\0\0\0\0\0\0\7"

BYTES_PER_BYTE = 1000
"""What decoding may take at most for each byte of a frame: an object of Python's for each byte of msgpack, and an
error of pydantic's for each of those."""

BYTES_AT_LEAST = 64 * 1024 * 1024
CHARACTERS_AT_MOST = 5000
SECONDS_PER_BYTE = 20e-6
SECONDS_AT_LEAST = 2.0


def sealed(key: bytes, number: int, version: int, payload: bytes) -> bytes:
    """A frame whose length and digest hold."""
    header = codec._HEADER.pack(codec._MAGIC, codec.FRAME_VERSION, number, version, len(payload))
    return codec.seal(key, header, payload)


def frame_in(data: bytes) -> tuple[bytes, bytes]:
    """The key and the frame that an input means."""
    if not data or not data[0] & 1:
        return KEY, data[1:]
    if len(data) < 4:
        return KEY, sealed(KEY, NUMBERS[0], 1, data[1:])
    key_end = 4 + data[3] % 64
    # Most schemas and versions should be ones that there are.
    number = NUMBERS[data[1] % len(NUMBERS)] if data[1] < 250 else data[1]
    return data[4:key_end], sealed(data[4:key_end], number, data[2] >> 6 or 1, data[key_end:])


def one_input(data: bytes) -> Frozen | None:
    """Decode one input and hold it to what is promised; returns the model, where it was one."""
    key, frame = frame_in(bytes(data))
    complaint = ""
    memory, began = _most_memory(), time.process_time()
    try:
        model = codec.decode(key, frame, Frozen)
    except DamagedRecordError as damage:  # and UnknownSchemaError, which is one
        model, complaint = None, str(damage)
    seconds, grown = time.process_time() - began, _most_memory() - memory
    assert seconds <= SECONDS_AT_LEAST + SECONDS_PER_BYTE * len(frame), f"{seconds} s for {len(frame)} bytes"
    assert grown <= BYTES_AT_LEAST + BYTES_PER_BYTE * len(frame), f"{grown} bytes for {len(frame)} bytes"
    assert len(complaint) < CHARACTERS_AT_MOST, f"an error of {len(complaint)} characters"
    if model is not None:
        again = codec.encode(key, model)
        assert codec.encode(key, codec.decode(key, again, type(model))) == again
    return model


def _most_memory() -> int:
    """The most memory this process ever had, in bytes: what an input adds to it, the input took."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main() -> None:
    """Fuzz."""
    if atheris is None:
        sys.exit("atheris is not installed: pip install 'callboard[fuzz]'")
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
