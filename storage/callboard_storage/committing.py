"""A commit that is waited for."""

from __future__ import annotations

import asyncio

from callboard_protocol.errors import CallboardError
from callboard_storage.store import Batch, Store
from callboard_storage.store_values import Fence


async def commit(store: Store, batch: Batch, fence: Fence | None = None) -> None:
    """Have a batch written, and wait until it is. A cancellation ends the waiting, never the commit.

    Raises:
        StoreError: the store refused, and nothing of the batch is written; `FencedError` where the log ends elsewhere.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[CallboardError | None] = loop.create_future()
    store.commit(batch, fence, loop, answered.set_result)
    error = await asyncio.shield(answered)
    if error is not None:
        raise error
