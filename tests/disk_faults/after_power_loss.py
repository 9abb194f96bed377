"""Says of directories as a power cut left them whether the store's promises hold: a server, see `forked.py`.

A job is ``{"directory": path, "told": [what the writer said before the cut, line by line]}``.
"""

from __future__ import annotations

import asyncio

from forked import Job, Outcome, serve
from writer import RECORDS_PER_BATCH, SESSIONS, Session, link_of, record

from callboard_protocol.records import StepCompleted
from callboard_storage import keys, reading
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.lmdb_transactions import ReadTransaction
from callboard_storage.upkeep.report import Problem
from callboard_storage.upkeep.walk import TABLES, Walk


def examine(job: Job) -> Outcome:
    """What is wrong, if anything."""
    return asyncio.run(_examine(job["directory"], job["told"]))


async def _examine(directory: str, told: list[str]) -> Outcome:
    store = LmdbStore(directory, map_size=1 << 30)
    await store.open()
    try:
        wrong = _walked(store)
        for session_id in (f"s{number}" for number in range(SESSIONS)):
            wrong += await _session(store, session_id, told)
        # And it can be written to: what the cut left of the pages in use and of the free ones is in order, too.
        await Session(store, "later").commit()
        wrong += _walked(store)
    finally:
        await store.close()
    return {"verdict": "bad" if wrong else "good", "what": "; ".join(wrong[:5])}


def _walked(store: LmdbStore) -> list[str]:
    """What `callboard store verify` would find."""
    problems: list[Problem] = []

    def walk(snapshot: ReadTransaction) -> None:
        walker = Walk(snapshot, TABLES, problem=problems.append, progress=lambda _: None)
        for table in TABLES:
            walker.check(table)

    store._opened().environment.read(walk)
    return [f"{one.table} {one.key} {one.what}" for one in problems]


async def _session(store: LmdbStore, session_id: str, told: list[str]) -> list[str]:
    log = await store.read_log(session_id)
    records = [stored.record for stored in log if isinstance(stored.record, StepCompleted)]
    wrong = _broken_chain(session_id, records)
    if len(log) % RECORDS_PER_BATCH:
        wrong.append(f"{session_id} has a batch in part: {len(log)} records")
    entries = [entry.value for entry in await store.read_memory(session_id)]
    if entries != ([len(log) - 1] if log else []):
        wrong.append(f"{session_id} has {len(log)} records and the memory {entries}")
    head, _ = store._opened().environment.read(
        lambda snapshot: reading.stored_head(snapshot, session_id, lambda damage: None)
    )
    stands_at = 0 if head is None else head.next_sequence
    if stands_at != len(log):
        wrong.append(f"{session_id} has {len(log)} records, and its head stands at {stands_at}")
    wrong += _lost(session_id, records, told)
    return wrong


def _broken_chain(session_id: str, records: list[StepCompleted]) -> list[str]:
    """Records that are not the very ones which were committed, in order."""
    if not records:
        return []
    life = records[0].value["life"]
    links = ["", *map(link_of, records)]
    for sequence, (one, link) in enumerate(zip(records, links, strict=False)):
        if one != record(session_id, life, sequence, link):
            return [f"{keys.session_prefix(session_id)!r} {sequence} is not what was committed there"]
    return []


def _lost(session_id: str, records: list[StepCompleted], told: list[str]) -> list[str]:
    """Whether the log ends before what the writer was told is on disk."""
    acknowledged, is_being_deleted = (0, 0), False
    for word, *rest in map(str.split, told):
        if rest[:1] == [session_id]:
            is_being_deleted = word == "deleting"
            if not is_being_deleted:
                acknowledged = int(rest[1]), int(rest[2]) if word == "committed" else 0
    life, length = (records[0].value["life"], len(records)) if records else (acknowledged[0], 0)
    if is_being_deleted and not records:
        return []
    return [] if (life, length) >= acknowledged else [f"{session_id} is at {life, length}, not at {acknowledged}"]


if __name__ == "__main__":
    serve(examine)
