"""Posting letters: the rules, the same for every backend, and the way in.

A letter is for a run that has not ended, whoever carries it; a decision is made once; a signal follows those before it.
All of that is looked at in the transaction that writes the letter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from callboard_protocol.errors import AlreadyDecidedError, CallboardError, RunEndedError, StoreError
from callboard_protocol.letters import Letter, PostedDecision, PostedSignal
from callboard_storage import keys
from callboard_storage.batch import FrameBatch, Table
from callboard_storage.committing import commit
from callboard_storage.store import Store


class _Overtaken(StoreError):
    """Another process has posted a signal with a later number."""

    code = "signal_overtaken"
    retryable = True


def refusal(
    batch: FrameBatch, get: Callable[[Table, bytes], bytes | None], last_number: Callable[[bytes], int]
) -> CallboardError | None:
    """Why the letters of a batch are not posted; None if they are.

    Args:
        batch: the batch.
        get: the row under a key.
        last_number: the number at the end of the last key that begins so; -1 where there is none.
    """
    begun = {key for table, key, owner in batch.changes if table == "unfinished" and owner is not None}
    for key, letter in batch.posted.items():
        run_id = letter.run_id
        run = keys.run_key(run_id)
        if run not in begun and get("unfinished", run) is None:
            return RunEndedError(f"run {run_id!r} has ended", context={"run_id": run_id})
        if isinstance(letter, PostedDecision) and get("letters", key) is not None:
            call_id = f"{run_id}:{letter.step}"
            return AlreadyDecidedError(f"the call {call_id!r} was decided before", context={"call_id": call_id})
        if isinstance(letter, PostedSignal):
            last = last_number(key[: -keys.SEQUENCE_BYTES])
            if last >= letter.number:
                return _Overtaken(f"run {run_id!r} has been sent signal {last} already", context={"last": last})
    return None


async def post(store: Store, session_id: str, letter: Letter) -> None:
    """Post a letter; it is durable once this returns.

    Args:
        store: where.
        session_id: the session of the run it is for.
        letter: a decision or a cancellation; signals have numbers to be found, and go with `send`.

    Raises:
        RunEndedError: the run has ended.
        AlreadyDecidedError: the call was decided before.
        UnpersistableValueError: what it says cannot be stored.
        StoreError: the store refused.
    """
    batch = store.batch(session_id)
    batch.post(letter)
    await commit(store, batch)


async def send(store: Store, session_id: str, run_id: str, channel: str, value: Any) -> None:
    """Send a signal: behind all that were acknowledged before, by whichever process.

    Raises:
        RunEndedError: the run has ended.
        UnpersistableValueError: the value cannot be stored.
        StoreError: the store refused.
    """
    number = time.time_ns()
    while True:
        letter = PostedSignal(run_id=run_id, number=number, channel=channel, value=value, at=time.time())
        try:
            await post(store, session_id, letter)
        except _Overtaken as overtaken:
            number = overtaken.context["last"] + 1
        else:
            return
