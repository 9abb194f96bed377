"""Telling the committers: one turn of their loop for everything a transaction settled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

from callboard_protocol.errors import CallboardError
from callboard_storage.fencing import Committer, Refusals
from callboard_storage.store_values import Acknowledge

Answer: TypeAlias = tuple[Committer, Acknowledge, CallboardError | None]
"""Whose batch it was, whom to tell, and what."""


def deliver(loop: asyncio.AbstractEventLoop, refusals: Refusals, answers: Sequence[Answer]) -> None:
    """Call every acknowledgement, in order; one that raises is reported to the loop and stops none of the others."""
    for committer, acknowledge, error in answers:
        if error is not None:
            refusals.deliver(committer)
        try:
            acknowledge(error)
        except Exception as failure:  # noqa: BLE001 - a committer's mistake must not cost another its answer
            loop.call_exception_handler(
                {"message": f"the acknowledgement of a batch for session {committer[1]!r} failed", "exception": failure}
            )
