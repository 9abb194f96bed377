"""Where sessions' logs end and who has their locks, as one write transaction after another leaves them.

What is known of a session is kept until another process may have changed it, so that a batch is judged without a look
at the tables. A lease learns of its lock while the transaction is still being written, because the batches behind it
are judged by that; should the transaction fail, each lease is as it was before.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from callboard_storage.batch import FrameBatch
from callboard_storage.fencing import Holder, holder_in
from callboard_storage.lmdb_transactions import WriteTransaction
from callboard_storage.store_values import Lease

MOST_SESSIONS: Final = 65_536
"""How many sessions are known at a time; past that everything is forgotten, and the tables are asked."""


class Standing(NamedTuple):
    """How a session stands.

    Attributes:
        end: the sequence its log ends at; -1 for an empty one.
        token: of its lock; 0 where it has none, -1 where the lock's row is damaged.
    """

    end: int
    token: int


class _Passing(NamedTuple):
    """A lock that a transaction passes on.

    Attributes:
        lease: the lease that takes it or gives it back.
        token_before: that lease's token, should the transaction fail.
        key: the lock's key.
        row: what is written under that; None for a lock that is given back.
    """

    lease: Lease
    token_before: int
    key: bytes
    row: bytes | None


class Standings:
    """What the writer knows of sessions at work. It belongs to the writer's thread."""

    def __init__(self) -> None:
        self._known: dict[str, Standing] = {}
        self._passed: list[_Passing] = []

    @property
    def is_full(self) -> bool:
        """Whether everything is to be forgotten before another session is asked for."""
        return len(self._known) >= MOST_SESSIONS

    def begin(self) -> None:
        """A transaction begins."""
        self._passed.clear()

    def forget(self) -> None:
        """Others may have changed anything, or the transaction has failed."""
        self._known.clear()

    def take_back(self) -> None:
        """The transaction is not on disk: its leases have what they had before."""
        for passing in reversed(self._passed):
            passing.lease.token = passing.token_before

    def settle(self) -> None:
        """The transaction is on disk. Of a session whose lock was given back nothing needs to be known: it may be long
        until it has another run.
        """
        for passing in self._passed:
            if passing.row is None:
                self._known.pop(passing.key.decode(), None)

    def known(self, session_id: str) -> Standing | None:
        """How a session stands; None where the tables have to be asked."""
        return self._known.get(session_id)

    def ask(self, transaction: WriteTransaction, batch: FrameBatch) -> Standing:
        """How a batch's session stands in the tables."""
        holder = holder_in(transaction.get("locks", batch.prefix[:-1]))
        # A damaged row has no token, but is no missing row either.
        token = 0 if holder is None else holder.token or -1
        standing = self._known[batch.session_id] = Standing(transaction.last_sequence(batch.prefix), token)
        return standing

    def append(self, batch: FrameBatch) -> None:
        """The records of a batch are written behind where its session stood."""
        self._known[batch.session_id] = Standing(batch.last, self._known[batch.session_id].token)

    def pass_lock(self, transaction: WriteTransaction, batch: FrameBatch, lease: Lease, *, gives: bool) -> None:
        """Take the session's lock with a batch that is written, or give it back."""
        key = batch.prefix[:-1]
        standing, before = self._known[batch.session_id], lease.token
        if gives:
            if standing.token:
                transaction.delete("locks", key)
            lease.token = 0
            self._passed.append(_Passing(lease, before, key, None))
        elif before != standing.token or not before:
            lease.token = transaction.next_token()
            row = Holder(lease.token, lease.owner).pack()
            transaction.write("locks", [(key, row)])
            self._passed.append(_Passing(lease, before, key, row))
        self._known[batch.session_id] = Standing(standing.end, lease.token)

    def locks_written(self) -> dict[bytes, bytes | None]:
        """The rows of the table of locks as the transaction leaves them; None for those it removes."""
        return {passing.key: passing.row for passing in self._passed}
