r"""Ordered byte keys, all under LMDB's 511 bytes.

An id holds no NUL (it was checked at the door), so NUL ends it: ``a`` sorts before ``a\0...`` sorts before ``ab``, and
everything of one session lies together. Numbers are big-endian, so bytes sort as numbers do.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from callboard_protocol.base import check_identifier
from callboard_protocol.errors import DamagedRecordError, InvalidIdentifierError
from callboard_protocol.letters import Letter, PostedDecision, PostedSignal
from callboard_protocol.named_accounts import AccountCharge

MAX_KEY_BYTES = 511
"""LMDB's limit, fixed when it is built; every py-lmdb wheel has this one."""

DIGEST_SIZE = 16
"""Bytes of a frame's digest, which is also the name of its chunks where it has any."""

_SEQUENCE = struct.Struct(">Q")
_CHUNK_NUMBER = struct.Struct(">I")
pack_sequence = _SEQUENCE.pack
"""A number as eight ordered bytes."""

SEQUENCE_BYTES = _SEQUENCE.size

SIGNAL = b"s"
"""Which of a run's letters are signals."""


@lru_cache(maxsize=4096)
def session_prefix(session_id: str) -> bytes:
    """What every key of a session's log, checkpoints, memory and run index begins with."""
    return check_identifier(session_id, "session id").encode() + b"\0"


def after_prefix(prefix: bytes) -> bytes:
    """The first key behind all that begin with a prefix."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,))


def sequence_of(key: bytes) -> int:
    """The sequence at the end of a log key.

    Raises:
        DamagedRecordError: it is too short to be one.
    """
    if len(key) <= SEQUENCE_BYTES:
        raise DamagedRecordError(f"the log has a key that no record has: {key!r}", context=place("log", key))
    sequence: int = _SEQUENCE.unpack_from(key, len(key) - 8)[0]
    return sequence


def name_key(prefix: bytes, name: str, what: str) -> bytes:
    """A key of something that has a name within its session.

    Args:
        prefix: the session's prefix.
        name: a checkpoint's id, the name of a memory entry, a run's id.
        what: how to call it in the error.

    Raises:
        InvalidIdentifierError: the name is empty, not encodable, holds NUL, or is too long for a key.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise InvalidIdentifierError(f"the {what} {name!r} holds a lone surrogate, which UTF-8 cannot carry") from None
    if not encoded or b"\0" in encoded:
        raise InvalidIdentifierError(f"the {what} {name!r} is empty or holds NUL")
    if len(prefix) + len(encoded) > MAX_KEY_BYTES:
        raise InvalidIdentifierError(
            f"the {what} {name[:40]!r}... is {len(encoded)} bytes long",
            hint=f"{MAX_KEY_BYTES - len(prefix)} bytes are left for it beside the session id",
        )
    return prefix + encoded


def letters_prefix(prefix: bytes, run_id: str) -> bytes:
    """What the keys of a run's letters begin with.

    Args:
        prefix: its session's prefix.
        run_id: the run.
    """
    return prefix + blake2b(run_key(run_id), digest_size=DIGEST_SIZE).digest()


def letter_key(prefix: bytes, letter: Letter) -> bytes:
    """A letter's key: its run's, the kind of letter, and its place among those. A decision's place is what it is about,
    so that there is one.

    Args:
        prefix: its session's prefix.
        letter: the letter.
    """
    if isinstance(letter, PostedSignal):
        place = SIGNAL + pack_sequence(letter.number)
    elif isinstance(letter, PostedDecision):
        about = f"{letter.step}\0{letter.reason}\0{letter.attempt}\0".encode() + letter.arguments_digest
        place = b"d" + blake2b(about, digest_size=SEQUENCE_BYTES).digest()
    else:
        place = b"c" + pack_sequence(0)
    return letters_prefix(prefix, letter.run_id) + place


def account_key(name: str) -> bytes:
    """An account's key in the table of accounts."""
    return check_identifier(name, "account name").encode()


def account_prefix(name: str) -> bytes:
    """What the keys of the charges to an account begin with, and of what runs draw on it."""
    return account_key(name) + b"\0"


def charge_key(charge: AccountCharge) -> bytes:
    """A charge's key: each attempt of a run ends once."""
    return name_key(account_prefix(charge.account), f"{charge.run_id}\1{charge.attempt}", "run id")


def draw_key(account: str, run_id: str) -> bytes:
    """The key of what a run draws on an account."""
    return name_key(account_prefix(account), run_id, "run id")


def readable(table: str, key: bytes) -> str:
    """A key as people write it: ``session#sequence``, ``session/name``, or the id."""
    if table == "letters":
        session, _, name = key.partition(b"\0")
        return f"{session.decode(errors='replace')}/{name.hex()}"
    if table == "log" and len(key) > 9 and key[-9:-8] == b"\0":
        return f"{key[:-9].decode(errors='replace')}#{sequence_of(key)}"
    return key.replace(b"\0", b"/").decode(errors="replace")


def place(table: str, key: bytes) -> dict[str, Any]:
    """Where a row is, as the context of an error says it."""
    is_run = table in {"runs", "unfinished"}
    is_account = table in {"accounts", "charges", "draws"}
    return {
        "table": table,
        "key": readable(table, key),
        "session_id": None if is_run or is_account else key.partition(b"\0")[0].decode(errors="replace"),
        "run_id": key.decode(errors="replace") if is_run else None,
        "sequence": sequence_of(key) if table == "log" and len(key) > SEQUENCE_BYTES else None,
    }


def run_key(run_id: str) -> bytes:
    """A run's key in the table of runs."""
    return check_identifier(run_id, "run id").encode()


def run_prefix(key: bytes) -> bytes:
    """What the chunks of a run's entry begin with, which is found without knowing its session.

    No session's prefix begins with NUL.
    """
    return b"\0" + key + b"\0"


def chunk_key(prefix: bytes, digest: bytes, number: int) -> bytes:
    """A chunk's key: whose it is, the digest of the frame whose payload it belongs to, its place in that."""
    return prefix + digest + _CHUNK_NUMBER.pack(number)


def place_of_chunk(key: bytes) -> bytes:
    """A chunk's key without its number: what all chunks of one payload have in common."""
    return key[: -_CHUNK_NUMBER.size]
