"""Row ``guards``: what checksummed frames and fencing tokens cost of a durable step."""

import time
from collections.abc import Callable

from bench.jobs import Job, Measurement
from bench.measures.throughput import concurrent
from callboard_protocol.base import Frozen
from callboard_protocol.records import StepCompleted
from callboard_storage import codec
from callboard_storage.batch import FrameBatch
from callboard_storage.chunks import HOLDING_TABLES
from callboard_storage.fencing import Holder, Verdict, check_shape, judge
from callboard_storage.lmdb_environment import ReadOnlyEnvironment
from callboard_storage.store_values import Fence, Lease

ROUNDS = 5
"""Each part is timed so often, and the least is taken: what else the machine does can only add."""
JUDGED = 10_000
OWNER = b"o" * 16


async def share_of_a_step(job: Job) -> Measurement:
    """Microseconds of the shared work's durable step, and those of them that go into frames and fences.

    The work runs as it is. Then every frame it left on disk is sealed once more (a header, and the digest over key,
    header and payload), and fences are judged as the store and the writer judge them. Encoding the payload is shown as
    well: it has to be done with or without a frame.
    """
    step_us = (await concurrent(job)).metrics["us_per_step"]
    environment = ReadOnlyEnvironment(job.scratch / "data" / "store")
    frames = environment.read(
        lambda snapshot: [row for table in HOLDING_TABLES for row in snapshot.each(table)],
    )
    sessions = environment.read(lambda snapshot: snapshot.entries("heads"))
    environment.close()
    steps = sessions * job.size.work.steps_per_session
    encode_us = 1e6 * _least_seconds(_encoding(frames)) / steps
    frame_us = 1e6 * _least_seconds(_sealing(frames)) / steps
    fence_us = 1e6 * _least_seconds(_judging()) / JUDGED
    guards_us = frame_us + fence_us
    return Measurement(
        {
            "guards_us": guards_us,
            "frame_us": frame_us,
            "fence_us": fence_us,
            "with_encoding_us": guards_us + encode_us,
            "step_us": step_us,
        }
    )


def _encoding(frames: list[tuple[bytes, bytes]]) -> Callable[[], None]:
    models = [codec.decode(key, frame, Frozen) for key, frame in frames]

    def pack() -> None:
        for model in models:
            codec.pack(model)

    return pack


def _sealing(frames: list[tuple[bytes, bytes]]) -> Callable[[], None]:
    parts = [(key, *codec.parted(frame)) for key, frame in frames]

    def seal() -> None:
        for key, header, payload in parts:
            codec.seal(key, header, payload)

    return seal


def _judging() -> Callable[[], None]:
    batch = FrameBatch("session", OWNER)
    batch.append(7, StepCompleted(run_id="run", ordinal=7, at=1.0, step="7", kind="tool"))
    lease = Lease(OWNER)
    lease.token = 1
    fence, holder = Fence(6, lease), Holder(1, OWNER)

    def look() -> None:
        for _ in range(JUDGED):
            frames = check_shape(batch, fence, OWNER)
            verdict = judge(frames, fence, 6, holder, is_alive=bool, frame_at=lambda _: None)
            assert verdict is Verdict.WRITE

    return look


def _least_seconds(work: Callable[[], None]) -> float:
    least = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - began)
    return least
