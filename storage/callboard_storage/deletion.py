"""What goes when a session is deleted from disk."""

from __future__ import annotations

from collections.abc import Callable

from callboard_storage import keys
from callboard_storage.fencing import holder_in, refuse_if_locked
from callboard_storage.lmdb_transactions import WriteTransaction
from callboard_storage.store_values import Deletion


def delete_rows(transaction: WriteTransaction, session_id: str, is_alive: Callable[[bytes], bool]) -> Deletion:
    """Remove a session and all that goes with it. The entry of a run that has not ended stays.

    Args:
        transaction: where it is removed.
        session_id: the session.
        is_alive: whether an owner lives.

    Raises:
        SessionLockedError: someone alive has it locked.
    """
    prefix = keys.session_prefix(session_id)
    refuse_if_locked(session_id, holder_in(transaction.get("locks", prefix[:-1])), is_alive)
    runs = chunks = 0
    ended: set[bytes] = set()
    for key, _ in transaction.snapshot().session_rows("session_runs", prefix):
        run = key[len(prefix) :]
        if transaction.snapshot().get("unfinished", run) is None:
            ended.add(run)
            transaction.delete("session_runs", key)
            chunks += transaction.delete_prefix("blobs", keys.run_prefix(run))
            runs += int(transaction.delete("runs", run))
    transaction.delete("locks", prefix[:-1])
    transaction.write("arrivals", [(key, b"") for key, run in transaction.snapshot().rows("arrivals") if run in ended])
    return Deletion(
        records=transaction.delete_prefix("log", prefix),
        heads=int(transaction.delete("heads", prefix[:-1])),
        checkpoints=transaction.delete_prefix("checkpoints", prefix),
        memory=transaction.delete_prefix("memory", prefix),
        runs=runs,
        letters=transaction.delete_prefix("letters", prefix),
        chunks=chunks + transaction.delete_prefix("blobs", prefix),
    )
