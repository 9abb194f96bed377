"""Reading an exported session in: all of it or nothing."""

from __future__ import annotations

import asyncio
import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar, cast

from callboard_protocol.base import check_identifier
from callboard_protocol.errors import CallboardError, RunConflictError, StoreVersionError, UsageError
from callboard_protocol.letters import Letter, Posted
from callboard_protocol.records import LogRecord, Record, RunBegan, SessionRewound
from callboard_protocol.runs import RunRequest
from callboard_protocol.sessions import (
    MemoryEntry,
    RunEntry,
    SessionCheckpoint,
    SessionHead,
    step_checkpoint_id,
    step_of_checkpoint,
)
from callboard_protocol.states import UNFINISHED
from callboard_storage.codec import CODEC
from callboard_storage.committing import commit
from callboard_storage.store import Batch, Store
from callboard_storage.store_values import Fence
from callboard_storage.upkeep.exporting import FORMAT
from callboard_storage.upkeep.plain_json import from_json
from callboard_storage.upkeep.report import ImportReport

ModelT = TypeVar("ModelT", bound=Any)


async def import_session(
    store: Store,
    file: str | os.PathLike[str],
    *,
    session_id: str | None = None,
    with_unfinished: bool = False,
) -> ImportReport:
    """Read a session that `export_session` wrote into an open store, in one transaction.

    Under a new id the session's runs get new ids too, because a store knows each run id once: ``{run}@{session}``.
    Ids inside values (a tool's results, say) stay as they are.

    Args:
        store: an open store.
        file: what was exported.
        session_id: the id it gets here; None keeps its own.
        with_unfinished: whether a session with runs that have not ended may come in. They go on in this store, so the
            store they come from must not carry them on as well.

    Raises:
        UsageError: the file is not a whole export, or the session is here already, or has runs that have not ended.
        RunConflictError: one of its runs is here already.
        StoreVersionError: a newer release exported it.
        UnknownSchemaError: it holds records this release does not know.
        StoreError: the store could not write it.
    """
    session = await asyncio.get_running_loop().run_in_executor(None, read_session, file, session_id)
    unfinished = [entry.run_id for entry in session.runs if entry.state in UNFINISHED]
    if unfinished and (not with_unfinished or session_id is not None):
        raise UsageError(
            f"run {unfinished[0]!r} of session {session.old_id!r} has not ended",
            hint="it would go on here and where it came from: let it end first"
            + ("" if session_id is not None else ", or say that it goes on here alone (with_unfinished)"),
        )
    await _check_absent(store, session)
    batch = store.batch(session.id)
    session.fill(batch)
    await commit(store, batch, Fence(-1) if session.log else None)
    return ImportReport(session_id=session.id, runs=session.new_runs, rows=session.rows)


def read_session(file: str | os.PathLike[str], session_id: str | None = None) -> ExportedSession:
    """Read what `export_session` wrote. Blocks: call it on a thread.

    Args:
        file: what was exported.
        session_id: the id it is to have; None keeps its own.

    Raises:
        UsageError: the file is not a whole export.
        StoreVersionError: a newer release exported it.
        UnknownSchemaError: it holds records this release does not know.
    """
    return ExportedSession(_content(file), str(file), session_id)


class ExportedSession:
    """An export, read and checked.

    Attributes:
        old_id: the session's id where it was exported.
        id: its id here.
        log: its records in order.
        heads: where it stood.
        checkpoints: its checkpoints.
        memory: what its memory held.
        runs: the entries of its runs.
        letters: what was posted to those that have not ended.
        rows: how many rows of each table that was.
    """

    def __init__(self, content: bytes, name: str, new_id: str | None) -> None:
        self.rows: dict[str, int] = {}
        self.log: list[LogRecord] = []
        self.heads: list[SessionHead] = []
        self.checkpoints: list[SessionCheckpoint] = []
        self.memory: list[MemoryEntry] = []
        self.runs: list[RunEntry] = []
        self.letters: list[Letter] = []
        header, *lines = _lines(content, name)
        self.old_id = check_identifier(str(header.get("session_id")), "session id")
        self.id = self.old_id if new_id is None else check_identifier(new_id, "session id")
        for number, line in enumerate(lines, 2):
            try:
                self._take(line)
            except (ValueError, TypeError, KeyError) as error:
                if isinstance(error, CallboardError):
                    raise
                raise _not_whole(name, f"line {number} does not hold a row: {error}") from error
        self.new_runs = {
            run_id: run_id if new_id is None else check_identifier(f"{run_id}@{new_id}", "run id")
            for run_id in [entry.run_id for entry in self.runs]
        }

    def fill(self, batch: Batch) -> None:
        """Put all of it in a batch, under its id here."""
        for sequence, record in enumerate(self.log):
            batch.append(sequence, self._renamed_record(record))
        for head in self.heads:
            active, last = self._run(head.active_run), self._run(head.last_run)
            batch.put_head(_with(head, session_id=self.id, active_run=active, last_run=last))
        for one in self.checkpoints:
            name = self._checkpoint(one.checkpoint_id)
            batch.put_checkpoint(_with(one, session_id=self.id, run_id=self._run(one.run_id), checkpoint_id=name))
        for entry in self.memory:
            batch.put_memory(entry)
        for run_entry in self.runs:
            batch.put_run(_with(run_entry, request=self._renamed_request(run_entry.request)))
        for letter in self.letters:
            batch.post(letter)

    def _take(self, line: dict[str, Any]) -> None:
        table = line["table"]
        body = from_json(line["body"])
        schema, version = int(line["schema"]), int(line["version"])
        if table == "log":
            if line["sequence"] != len(self.log):
                raise ValueError(f"record {line['sequence']} stands where {len(self.log)} should")
            self.log.append(cast(LogRecord, CODEC.revive(schema, version, body, Record)))
        elif table == "heads":
            self.heads.append(CODEC.revive(schema, version, body, SessionHead))
        elif table == "checkpoints":
            self.checkpoints.append(CODEC.revive(schema, version, body, SessionCheckpoint))
        elif table == "memory":
            self.memory.append(CODEC.revive(schema, version, body, MemoryEntry))
        elif table == "runs":
            self.runs.append(CODEC.revive(schema, version, body, RunEntry))
        elif table == "letters":
            self.letters.append(cast(Letter, CODEC.revive(schema, version, body, Posted)))
        else:
            raise ValueError(f"there is no table {table!r}")
        self.rows[table] = self.rows.get(table, 0) + 1

    def _run(self, run_id: str | None) -> str | None:
        return None if run_id is None else self.new_runs.get(run_id, run_id)

    def _checkpoint(self, checkpoint_id: str) -> str:
        step = step_of_checkpoint(checkpoint_id)
        return checkpoint_id if step is None else step_checkpoint_id(self.new_runs.get(step[0], step[0]), step[1])

    def _renamed_record(self, record: LogRecord) -> LogRecord:
        if self.id == self.old_id:
            return record
        renamed = _with(record, run_id=self._run(record.run_id))
        if isinstance(renamed, RunBegan):
            return _with(renamed, request=self._renamed_request(renamed.request))
        if isinstance(renamed, SessionRewound):
            return _with(renamed, checkpoint_id=self._checkpoint(renamed.checkpoint_id))
        return renamed

    def _renamed_request(self, request: RunRequest) -> RunRequest:
        # A nested run's request may name another session; only this one's name changes.
        session_id = self.id if request.session_id == self.old_id else request.session_id
        return _with(
            request,
            session_id=session_id,
            run_id=self._run(request.run_id),
            parent_run_id=self._run(request.parent_run_id),
            resume_from_checkpoint=request.resume_from_checkpoint and self._checkpoint(request.resume_from_checkpoint),
        )


async def _check_absent(store: Store, session: ExportedSession) -> None:
    is_here = (
        await store.read_head(session.id) is not None
        or await store.read_memory(session.id)
        or await store.read_checkpoints(session.id)
        or any(entry.session_id == session.id for entry in await store.read_unfinished())
    )
    if is_here:
        raise UsageError(
            f"session {session.id!r} is in this store already", hint="import it under another id: session_id='...'"
        )
    for run_id in session.new_runs.values():
        if await store.read_run(run_id) is not None:
            raise RunConflictError(
                f"run {run_id!r} of session {session.old_id!r} is in this store already",
                hint="import the session under another id: session_id='...'",
            )


def _content(file: str | os.PathLike[str]) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"{os.fspath(file)} cannot be read: {error.strerror}") from error


def _lines(content: bytes, name: str) -> list[dict[str, Any]]:
    """Header and rows of an export whose last line vouches for the others."""
    encoded = content.splitlines(keepends=True)
    try:
        lines = [json.loads(line) for line in encoded]
    except ValueError:
        raise _not_whole(name, "it is cut short, or is something else") from None
    if not all(isinstance(line, dict) for line in lines) or not lines or lines[0].get("callboard") != "session":
        raise _not_whole(name, "it is something else")
    header, last = lines[0], lines[-1]
    if header.get("format") != FORMAT:
        raise StoreVersionError(
            f"{name} has export format {header.get('format')}, this release reads {FORMAT}",
            hint="import it with the release that exported it, or a newer one",
        )
    digest = blake2b(b"".join(encoded[:-1]), digest_size=32).hexdigest()
    if last.get("end") is not True:
        raise _not_whole(name, "its last line is missing")
    if last.get("blake2b") != digest:
        raise _not_whole(name, "it was changed: its digest differs")
    return lines[:-1]


def _not_whole(name: str, why: str) -> UsageError:
    return UsageError(f"{name} is not a whole export of a session: {why}", hint="export the session again")


def _with(model: ModelT, **fields: Any) -> ModelT:
    return cast(ModelT, model.model_copy(update=fields))
