"""The group-commit writer: one thread that owns the write transaction.

Everything that waits is written in one transaction and made durable by one commit, so a hundred sessions share the
cost of one fsync. Committers on any thread put their batches into a queue; only the first of a group wakes the writer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from enum import Enum, auto
from queue import SimpleQueue
from typing import Any, Self, TypeAlias, cast

import pykka

from callboard_protocol.errors import CallboardError, StoreError, StoreFullError
from callboard_storage import chunks, overtaking, posting
from callboard_storage.acknowledgements import Answer, deliver
from callboard_storage.ballast import Ballast
from callboard_storage.batch import FrameBatch, Table
from callboard_storage.fencing import Refusals, Verdict, expected_token, holder_in, judge
from callboard_storage.lmdb_engine import translated
from callboard_storage.lmdb_environment import LmdbEnvironment
from callboard_storage.lmdb_transactions import ReadTransaction, WriteTransaction
from callboard_storage.locks import Owners
from callboard_storage.room import Room
from callboard_storage.standings import Standings
from callboard_storage.store_values import Fence
from callboard_storage.uploads import Rows, Upload
from callboard_storage.write_queue import Commit, Operation, WriteQueue

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_READER_CHECKS = 60.0

_Changes: TypeAlias = dict[Table, dict[bytes, bytes | None]]
_Answers: TypeAlias = dict[asyncio.AbstractEventLoop, list[Answer]]
_Written: TypeAlias = dict[tuple[str, bytes], bytes | None]
"""By which a transaction is recognised on disk: one record that it appends, or else all it changes."""


class Wake(Enum):
    """What the writer is told."""

    WRITE = auto()
    CHECK_READERS = auto()


class StoreWriter(pykka.ThreadingActor):
    """The actor that owns the write transaction.

    Its thread is a daemon, so that a process which never closed its store can end; `DataDirectory` stops it before
    the interpreter does, so no commit is cut off by that.

    Args:
        environment: where to write.
        queue: what to write.
        refusals: sessions that were refused and do not know it yet.
        owners: who has the directory open.
        room: what it may still write; kept up to date here.
        ballast: given up where a deletion needs its place.
    """

    use_daemon_thread = True

    def __init__(
        self,
        environment: LmdbEnvironment,
        queue: WriteQueue,
        refusals: Refusals,
        owners: Owners,
        room: Room,
        ballast: Ballast,
    ) -> None:
        super().__init__()
        self._environment = environment
        self._queue = queue
        self._refusals = refusals
        self._room = room
        self._ballast = ballast
        self._is_known_full = False
        self._owners = owners
        self._standings = Standings()
        self._last_transaction = 0
        self._readers_checked = time.monotonic()

    @staticmethod
    def _create_actor_inbox() -> SimpleQueue[Any]:
        """Pykka's extension point: a queue in C wakes the thread a quarter sooner than `queue.Queue`."""
        return SimpleQueue()

    @classmethod
    def start_unregistered(
        cls,
        environment: LmdbEnvironment,
        queue: WriteQueue,
        refusals: Refusals,
        owners: Owners,
        room: Room,
        ballast: Ballast,
    ) -> pykka.ActorRef[Self]:
        """Start it outside pykka's registry.

        The registry's `stop_all` belongs to everyone, and a user who stops their own actors with it must not stop the
        one that every durable run waits for.
        """
        reference = cls.start(environment, queue, refusals, owners, room, ballast)
        pykka.ActorRegistry.unregister(reference)
        return reference

    def on_receive(self, message: Any) -> None:
        """Write what waits, or look after the reader table."""
        if message is Wake.WRITE:
            self._drain()
        if message is Wake.CHECK_READERS or time.monotonic() - self._readers_checked > SECONDS_BETWEEN_READER_CHECKS:
            self._check_readers()

    def on_stop(self) -> None:
        """Write what still waits."""
        self._drain()

    def _drain(self) -> None:
        while (work := self._queue.take()) is not None:
            try:
                if isinstance(work, Operation):
                    self._operate(work)
                elif isinstance(work, Commit):
                    self._upload(work)
                else:
                    self._write(work)
            except Exception:  # an actor that ended here would leave every session waiting for good
                logger.exception("a transaction could not be answered")
                self._refuse(work, StoreError("the writer failed; the log says why"))
        if self._refusals:
            self._refusals.forget_delivered()

    def _write(self, group: list[Commit]) -> None:
        answers: _Answers = {}
        written: _Written = {}

        def is_there(snapshot: ReadTransaction) -> bool:
            return all(snapshot.get(table, key) == value for (table, key), value in written.items())

        error = self._transact(lambda transaction: self._apply(transaction, group, answers, written), is_there)
        for item in group:
            if item.upload is not None:
                self._discard(item.upload)
        if error is not None:
            self._refuse(group, error)
            return
        self._queue.batches += len(group)
        if not self._room.has_room:
            self._measure()  # a guess may have said so, and whoever is answered now acts on it
        for loop, of_loop in answers.items():
            _call(loop, deliver, loop, self._refusals, of_loop)

    def _upload(self, commit: Commit) -> None:
        """Bring a commit's large payloads a little further; once they are there, the commit is one like any other."""
        upload = cast(Upload, commit.upload)
        rows = upload.step()
        if rows is None:
            commit.batch, commit.is_uploaded = upload.uploaded(), True
            self._queue.end_upload(commit)
        elif rows:
            error = self._transact(lambda transaction: self._apply_chunks(transaction, commit, rows))
            if error is not None:
                self._discard(upload)
                self._refuse(commit, error)

    def _discard(self, upload: Upload) -> None:
        """Take back what went ahead of a batch and no row refers to: it was refused, or replaced at once."""
        while upload.has_leftovers and self._transact(upload.discard) is None:
            pass  # as far as it goes: where there was no room for it, there may be none to remove it

    def _apply_chunks(self, transaction: WriteTransaction, commit: Commit, rows: Rows) -> None:
        if self._room.is_due(time.monotonic()):
            self._measure()
        upload = cast(Upload, commit.upload)
        error = self._room.refusal(commit.batch, upload.written)
        if error is not None:
            raise error
        size = sum(len(frame) for _, frame in rows)
        self._room.count(size, size)
        upload.written += size
        transaction.write("blobs", rows)

    def _operate(self, operation: Operation) -> None:
        results: list[Any] = []
        self._standings.forget()

        def work(transaction: WriteTransaction) -> None:
            results.append(operation.work(transaction))

        error = self._transact(work)
        if isinstance(error, StoreFullError) and self._ballast.drop():
            error = self._transact(work)
        self._look_for_room()
        if error is not None:
            self._refuse(operation, error)
        else:
            _call(operation.loop, operation.done, results[-1], None)

    def _refuse(self, work: list[Commit] | Commit | Operation, error: CallboardError) -> None:
        """Answer everything with the same error, a fresh instance for each receiver."""
        if isinstance(work, Operation):
            _call(work.loop, work.done, None, error)
            return
        if isinstance(work, Commit):
            self._queue.give_up_upload(work)
            work = [work]
        answers: _Answers = {}
        for item in work:
            if item.fence is not None:
                self._refusals.refuse(item.batch.committer, error)
            answers.setdefault(item.loop, []).append((item.batch.committer, item.acknowledge, error.fresh()))
        for loop, of_loop in answers.items():
            _call(loop, deliver, loop, self._refusals, of_loop)

    def _transact(
        self,
        work: Callable[[WriteTransaction], None],
        is_there: Callable[[ReadTransaction], bool] = lambda _: False,
    ) -> CallboardError | None:
        """Do the work in one transaction. None once it is durable; the error if nothing of it is.

        Args:
            work: what to do.
            is_there: whether it is found on disk after a commit that failed; what need not be known counts as lost.
        """
        transaction: WriteTransaction | None = None
        is_committing = False
        self._standings.begin()
        turn = self._queue.turn
        try:
            turn.waits()
            transaction = self._environment.begin_write()
            turn.begins()
            if transaction.id != self._last_transaction + 1:
                # Another process has committed since.
                self._standings.forget()
                self._room.forget()
            work(transaction)
            is_committing = True
            transaction.commit()
        except Exception as failure:  # noqa: BLE001 - whatever it was, the group needs an answer
            self._standings.forget()
            self._room.forget()
            if transaction is not None:
                transaction.abort()
            if transaction is None or not is_committing or not self._is_there_after_all(is_there):
                self._standings.take_back()
                return self._as_ours(failure)
        finally:
            turn.ends()
        self._standings.settle()
        # One that changed nothing leaves its number to the next that does, which may be another process's.
        self._last_transaction = transaction.id if transaction.has_changes else transaction.id - 1
        self._queue.commits += 1
        return None

    def _apply(self, transaction: WriteTransaction, group: list[Commit], answers: _Answers, written: _Written) -> None:
        rows: Rows = []
        changes: _Changes = {}
        if self._room.is_due(time.monotonic()):
            self._measure()
        done_with: list[bytes] = []
        for item in group:
            error = self._take_in(transaction, item, rows, changes, written)
            batch = item.batch
            if error is None:
                done_with += batch.done_with
            if error is not None and item.fence is not None:
                self._refusals.refuse(batch.committer, error)
            answers.setdefault(item.loop, []).append((batch.committer, item.acknowledge, error))
        self._write_out(transaction, rows)
        self._change(transaction, changes)
        for prefix in done_with:
            letters = transaction.snapshot().session_rows("letters", prefix)
            self._change(transaction, {"letters": {key: None for key, _ in letters}})
        if not written:
            written.update({(table, key): value for table, values in changes.items() for key, value in values.items()})
            written.update({("locks", key): row for key, row in self._standings.locks_written().items()})

    @staticmethod
    def _change(transaction: WriteTransaction, changes: _Changes) -> None:
        for table, values in changes.items():
            if table in chunks.HOLDING_TABLES:
                for key, value in values.items():
                    chunks.before_change(transaction, table, key, value)
            transaction.write(table, [(key, value) for key, value in values.items() if value is not None])
            for key in [key for key, value in values.items() if value is None]:
                transaction.delete(table, key)

    def _take_in(
        self, transaction: WriteTransaction, item: Commit, rows: Rows, changes: _Changes, written: _Written
    ) -> CallboardError | None:
        """Add a batch to what the transaction writes; the error if it is refused."""
        batch, fence = item.batch, item.fence
        if fence is not None:
            verdict = self._judge(transaction, item, fence, rows)
            if verdict is Verdict.REPLAY:
                return None
            if verdict is not Verdict.WRITE:
                return verdict
        refusal: CallboardError | None = self._room.refusal(batch)
        if refusal is None and batch.posted:
            refusal = self._post(transaction, batch, changes)
        if refusal is None and batch.seen:
            refusal = self._overtaken(transaction, batch, changes)
        if refusal is not None:
            return refusal
        self._room.count(batch.size, batch.large_size)
        if fence is not None:
            if batch.log:
                rows += batch.log
                if not written:
                    written["log", batch.log[0][0]] = batch.log[0][1]
                self._standings.append(batch)
            if fence.lease is not None and (fence.takes or fence.gives):
                self._standings.pass_lock(transaction, batch, fence.lease, gives=fence.gives)
        for table, key, value in batch.changes:
            changes.setdefault(table, {})[key] = value
        if item.upload is not None:
            transaction.write("blobs", item.upload.missing(transaction))
        return None

    def _post(self, transaction: WriteTransaction, batch: FrameBatch, changes: _Changes) -> CallboardError | None:
        """Announce the letters a batch posts; the error if they are refused."""
        # What the group has changed so far counts: it may have ended the run, or decided the call.
        self._change(transaction, changes)
        refusal = posting.refusal(
            batch, transaction.get, lambda prefix: transaction.last_sequence(prefix, table="letters")
        )
        if refusal is None:
            transaction.announce({letter.run_id for letter in batch.posted.values()})
        return refusal

    def _overtaken(self, transaction: WriteTransaction, batch: FrameBatch, changes: _Changes) -> CallboardError | None:
        """Why the entries of a batch, which were decided on by how their runs stood, are not written."""
        if not changes.get("runs", {}).keys().isdisjoint(batch.seen):
            self._change(transaction, changes)
        return overtaking.refusal(batch, transaction.snapshot(), self._owners.is_alive)

    def _judge(self, transaction: WriteTransaction, item: Commit, fence: Fence, rows: Rows) -> Verdict | CallboardError:
        session_id = item.batch.session_id
        if self._refusals:
            refusal = self._refusals.standing(item.batch.committer, item.stamp)
            if refusal is not None:
                return refusal
        standing = self._standings.known(session_id)
        if standing is None:
            if self._standings.is_full:
                self._write_out(transaction, rows)
                self._standings.forget()
            standing = self._standings.ask(transaction, item.batch)
        if fence.follows == standing.end and standing.token == expected_token(fence):
            return Verdict.WRITE
        self._write_out(transaction, rows)
        return judge(
            item.batch,
            fence,
            standing.end,
            holder_in(transaction.get("locks", item.batch.prefix[:-1])),
            is_alive=self._owners.is_alive,
            frame_at=transaction.frame_at,
        )

    @staticmethod
    def _write_out(transaction: WriteTransaction, rows: Rows) -> None:
        """Write the group's rows so far, before the log is asked about something they may have changed."""
        if rows:
            transaction.write("log", rows)
            rows.clear()

    def _is_there_after_all(self, is_there: Callable[[ReadTransaction], bool]) -> bool:
        """Whether a transaction whose commit failed is on disk.

        What it wrote says so. Its number does not: another process may have committed under it since.
        """
        try:
            self._environment.reopen()
            found = self._environment.read(is_there)
        except (CallboardError, LmdbEnvironment.Error, OSError):
            logger.exception("the data directory cannot be opened again after a failed commit")
            return False
        logger.warning("a commit failed; opened anew, its transaction is %s disk", "on" if found else "not on")
        return found

    def _look_for_room(self) -> None:
        """Measure now, and set the ballast aside again once there is room for it."""
        self._measure()
        if self._room.has_room:
            self._ballast.lay()

    def _measure(self) -> None:
        try:
            space = self._environment.space()
        except (StoreError, OSError) as error:
            logger.warning("the room that is left cannot be measured: %s", error)
            return
        self._room.measured(space, time.monotonic())
        if self._room.has_room == self._is_known_full:
            self._is_known_full = not self._room.has_room
            what = "nothing begins before there is room again" if self._is_known_full else "there is room again"
            logger.warning("%s: %s", what, self._room.described())

    def _as_ours(self, failure: Exception) -> CallboardError:
        if isinstance(failure, LmdbEnvironment.Error):
            error = translated(failure, "the commit", self._environment.growth())
            if isinstance(error, StoreFullError):
                self._room.failed(time.monotonic())
            return error
        if isinstance(failure, CallboardError):
            return failure
        logger.error("a transaction failed", exc_info=failure)
        return StoreError(f"the writer failed: {failure!r}")

    def _check_readers(self) -> None:
        self._readers_checked = time.monotonic()
        try:
            freed = self._environment.check_readers()
        except LmdbEnvironment.Error as error:
            logger.warning("checking the reader table failed: %s", error)
        else:
            if freed:
                logger.warning("freed %d reader slots of dead processes", freed)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Call on a loop; one that was closed has nobody left to tell."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        logger.warning("an acknowledgement came after its event loop was closed")
