"""Row ``actors``: the price of a message and of an actor."""

import time
from typing import cast

from bench.child import load
from bench.jobs import Job, Measurement
from bench.peers.actor_kit import ActorPeer
from bench.resident import resident_bytes

WARM_UP = 50


async def messages(job: Job) -> Measurement:
    """Microseconds per ask, tell and start; bytes per idle actor."""
    peer = cast("ActorPeer", load(str(job.peer)))
    size = job.size
    async with peer() as kit:
        await kit.ask(WARM_UP)
        await kit.tell(WARM_UP)
        await kit.start(WARM_UP)

        began = time.perf_counter()
        await kit.ask(size.asks)
        asked = time.perf_counter()
        await kit.tell(size.tells)
        told = time.perf_counter()
        before = resident_bytes()
        starting = time.perf_counter()
        await kit.start(size.actors)
        started = time.perf_counter()
        held = resident_bytes() - before
    return Measurement(
        {
            "ask_us": 1e6 * (asked - began) / size.asks,
            "tell_us": 1e6 * (told - asked) / size.tells,
            "start_us": 1e6 * (started - starting) / size.actors,
            "bytes_per_actor": held / size.actors,
        }
    )


async def idle(job: Job) -> Measurement:
    """Bytes per idle actor alone, under the name the ``residence`` row compares it by."""
    peer = cast("ActorPeer", load(str(job.peer)))
    count = job.size.resident_threads
    async with peer() as kit:
        await kit.start(WARM_UP)
        before = resident_bytes()
        await kit.start(count)
        return Measurement({"active_bytes": (resident_bytes() - before) / count})
