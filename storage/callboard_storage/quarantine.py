"""What a store cannot read: where it is, what to do about it, and who is told.

A record that fails its checksum or does not decode costs nothing else. The read that needs it raises, a read of many
leaves it out, and either way it is known here from then on, once. Its bytes stay where they are: a restore, a newer
release or whoever mends the disk may still want them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from callboard_protocol._version import __version__
from callboard_protocol.errors import DamagedRecordError, UnknownSchemaError
from callboard_storage import keys
from callboard_storage.batch import FrameBatch
from callboard_storage.store_values import QuarantinedRecord

logger = logging.getLogger(__name__)

SetAside: TypeAlias = Callable[[DamagedRecordError], None]
"""Takes what a read of many leaves out."""

MOST_KEPT: Final = 10_000
"""How many records are kept; what is found beyond that is only logged."""

_SUBJECTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "log": "record {sequence} of session {session_id!r}",
        "heads": "the head of session {session_id!r}",
        "checkpoints": "checkpoint {name!r} of session {session_id!r}",
        "memory": "the memory entry {name!r} of session {session_id!r}",
        "runs": "the entry of run {run_id!r}",
        "letters": "a letter to a run of session {session_id!r}",
        "accounts": "the account {key!r}",
        "charges": "a charge to an account ({key!r})",
        "draws": "what a run draws on an account ({key!r})",
    }
)

_HINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "log": "fork the session at a checkpoint before it: runtime.sessions.fork(source, target, checkpoint_id); or "
        "restore a backup, or delete the session",
        "heads": "nothing is lost: it is rebuilt from the session's log",
        "checkpoints": "return to another checkpoint of the session; the session itself goes on",
        "memory": "restore a backup, or delete the session",
        "runs": "restore a backup; until then the run is left alone and is not lost",
        "letters": "cancel the run it was for, or restore a backup",
        "accounts": "open it anew: runtime.accounts.open(name, budget); or restore a backup",
        "charges": "restore a backup, or close the account and open it anew",
        "draws": "restore a backup, or close the account and open it anew",
    }
)


def located(error: DamagedRecordError, table: str, key: bytes, newest_release: str) -> DamagedRecordError:
    """An error of the codec, which knows a frame, as one that says which record it is and what to do about it.

    Args:
        error: what the codec raised.
        table: where the frame was found.
        key: under which key.
        newest_release: the newest release that has had the directory; empty where that is not known.
    """
    where = keys.place(table, key)
    name = key.partition(b"\0")[2].decode(errors="replace")
    subject = _SUBJECTS.get(table, "a row of {table}").format(name=name, **where)
    hint: str | None = _HINTS.get(table)
    if isinstance(error, UnknownSchemaError):
        is_known = newest_release not in {"", __version__}
        hint = f"Callboard {newest_release} has had this directory: it can read it" if is_known else None
    return type(error)(
        f"{subject} {error.what}",
        hint=hint,
        context=error.context | where | {"what": error.what},
    )


class Quarantine:
    """The records that a store has found it cannot read. Any thread may use it."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], QuarantinedRecord] = {}
        self._watchers: list[Callable[[QuarantinedRecord], None]] = []
        self._lock = threading.Lock()

    def add(self, error: DamagedRecordError) -> None:
        """Keep what `located` made; told and logged only where it was not known."""
        where = error.context
        record = QuarantinedRecord(
            table=where["table"],
            key=where["key"],
            session_id=where["session_id"],
            run_id=where["run_id"],
            sequence=where["sequence"],
            code=error.code,
            message=error.message,
            hint=error.hint,
        )
        place = record.table, record.key
        with self._lock:
            if place in self._records:
                return
            watchers = [*self._watchers]
            if len(self._records) < MOST_KEPT:
                self._records[place] = record
        logger.warning("quarantined: %s", error)
        for told in watchers:
            told(record)

    def records(self) -> tuple[QuarantinedRecord, ...]:
        """All of them, in the order they were found."""
        with self._lock:
            return tuple(self._records.values())

    def watch(self, told: Callable[[QuarantinedRecord], None]) -> Callable[[], None]:
        """Have `told` called, on whichever thread found it, with each record from now on; returns how to end that."""
        with self._lock:
            self._watchers.append(told)

        def end() -> None:
            with self._lock:
                if told in self._watchers:
                    self._watchers.remove(told)

        return end

    def written(self, batch: FrameBatch) -> None:
        """Forget what a batch writes anew; should it be refused, the next read finds the old record again."""
        if self._records:
            self._forget((table, keys.readable(table, key)) for table, key, _ in batch.changes)

    def deleted(self, session_id: str, has_run: Callable[[str], bool]) -> None:
        """Forget what went with a session.

        Args:
            session_id: the session that is gone.
            has_run: whether there still is such a run: of one that cannot be read, its session is not known.
        """
        for place, record in [*self._records.items()]:
            if record.session_id == session_id or (record.run_id is not None and not has_run(record.run_id)):
                self._forget([place])

    def _forget(self, places: Iterable[tuple[str, str]]) -> None:
        with self._lock:
            for place in places:
                self._records.pop(place, None)
