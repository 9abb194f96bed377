"""Row ``upkeep``: how fast a data directory is verified, and what a hot backup costs those who commit meanwhile."""

import asyncio
import itertools
import time
from pathlib import Path

from bench.jobs import Job, Measurement
from bench.measures.latency import percentile
from callboard_protocol.records import LogRecord, StepCompleted
from callboard_protocol.sessions import SessionHead
from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store_values import Fence

RECORDS_PER_SESSION = 100
AT_ONCE = 50
"""Sessions filled together: their commits are shared."""
COMMITTERS = 20
"""Sessions that commit beside the backup, one record at a time."""
SMALL_RECORD, LARGE_RECORD = 200, 900
"""Bytes of a record, its frame and its key."""


async def verify_small(job: Job) -> Measurement:
    """Megabytes per second of a whole verification, of records of 200 bytes."""
    return await _verify(job, SMALL_RECORD)


async def verify_large(job: Job) -> Measurement:
    """Megabytes per second of a whole verification, of records of 900 bytes."""
    return await _verify(job, LARGE_RECORD)


async def backup(job: Job) -> Measurement:
    """The 99th percentile of a commit's latency, alone and beside a backup of the directory."""
    directory = job.room("data") / "store"
    await _fill(directory, LARGE_RECORD, job.size.upkeep_bytes)
    store = LmdbStore(directory)
    await store.open()
    quiet = await _latencies(store, asyncio.create_task(asyncio.sleep(job.size.seconds)))
    target = job.room("backup") / "copy"
    beside = await _latencies(store, asyncio.create_task(asyncio.to_thread(upkeep.backup, directory, target)))
    quiet += await _latencies(store, asyncio.create_task(asyncio.sleep(job.size.seconds)))
    await store.close()
    return Measurement({"p99_us": 1e6 * percentile(quiet, 0.99), "p99_beside_us": 1e6 * percentile(beside, 0.99)})


async def _verify(job: Job, record_bytes: int) -> Measurement:
    directory = job.room("data") / "store"
    await _fill(directory, record_bytes, job.size.upkeep_bytes)
    report = await asyncio.to_thread(upkeep.verify, directory)
    if not report.is_sound:
        message = f"{len(report.problems)} problems in a sound directory, such as {report.problems[0]}"
        raise AssertionError(message)
    return Measurement({"verify_mb_per_s": report.bytes_per_second / 1e6})


async def _fill(directory: Path, record_bytes: int, total: int) -> None:
    """Write sessions of records of one size until they come to ``total`` bytes."""
    store = LmdbStore(directory)
    await store.open()
    sessions = max(1, total // (record_bytes * RECORDS_PER_SESSION))
    value = "x" * (record_bytes - await _bytes_of_empty_record(store))
    for start in range(0, sessions, AT_ONCE):
        await asyncio.gather(
            *(_fill_session(store, f"s-{index:06}", value) for index in range(start, min(start + AT_ONCE, sessions)))
        )
    await store.close()


async def _fill_session(store: LmdbStore, session_id: str, value: str) -> None:
    batch = store.batch(session_id)
    head = SessionHead(session_id=session_id)
    for sequence in range(RECORDS_PER_SESSION):
        record = _record(sequence, value)
        batch.append(sequence, record)
        head = head.after(sequence, record)
    batch.put_head(head)
    await _commit(store, batch, Fence(-1))


async def _bytes_of_empty_record(store: LmdbStore) -> int:
    batch = store.batch("s-000000")
    batch.append(0, _record(0, ""))
    return sum(len(part) for part in batch.log[0])


def _record(sequence: int, value: str) -> LogRecord:
    return StepCompleted(
        run_id="run-0", ordinal=sequence, at=time.time(), step=f"{sequence:06}", kind="tool", name="lookup", value=value
    )


async def _latencies(store: LmdbStore, until: asyncio.Task[object]) -> list[float]:
    """Seconds that each commit took, of several sessions at once, while something lasts."""
    seconds: list[float] = []

    async def work(committer: int) -> None:
        lease = store.lease()
        session_id = f"committer-{committer}-{time.monotonic_ns()}"
        for sequence in itertools.count():
            if until.done():
                return
            batch = store.batch(session_id)
            batch.append(sequence, _record(sequence, "x" * SMALL_RECORD))
            began = time.perf_counter()
            await _commit(store, batch, Fence(sequence - 1, lease, takes=sequence == 0))
            seconds.append(time.perf_counter() - began)

    await asyncio.gather(*(work(committer) for committer in range(COMMITTERS)))
    await until
    return seconds


async def _commit(store: LmdbStore, batch: object, fence: Fence) -> None:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Exception | None] = loop.create_future()
    store.commit(batch, fence, loop, answer.set_result)
    error = await answer
    if error is not None:
        raise error
