"""Waiting until the store has room, for as long as it takes."""

from __future__ import annotations

import asyncio
import random

from callboard_storage.store import Store

FIRST_DELAY = 0.05
LONGEST_DELAY = 2.0


def next_delay(delay: float, longest: float = LONGEST_DELAY) -> float:
    """Seconds to wait after having waited `delay` in vain: twice as long, and never in step with everyone else."""
    return min(2 * delay, longest) * random.uniform(0.75, 1.0)  # noqa: S311  (a pace, no secret)


async def room_in(store: Store) -> None:
    """Return once work may begin.

    Args:
        store: looked at again and again, ever more patiently.

    Raises:
        StoreClosedError: it was closed meanwhile.
    """
    delay = FIRST_DELAY
    while not await store.find_room():
        await asyncio.sleep(delay)
        delay = next_delay(delay)
