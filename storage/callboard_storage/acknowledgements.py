"""Telling the committers: one turn of their loop for everything a transaction settled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

from callboard_protocol.errors import CallboardError
from callboard_storage.fencing import Refusals
from callboard_storage.store import Acknowledge

Answer: TypeAlias = tuple[str, Acknowledge, CallboardError | None]
"""A batch's session, whom to tell, and what."""


def deliver(loop: asyncio.AbstractEventLoop, refusals: Refusals, answers: Sequence[Answer]) -> None:
    """Call every acknowledgement, in order; one that raises is reported to the loop and stops none of the others."""
    for session_id, acknowledge, error in answers:
        if error is not None:
            refusals.deliver(session_id)
        try:
            acknowledge(error)
        except Exception as failure:  # noqa: BLE001 - a committer's mistake must not cost another its answer
            loop.call_exception_handler(
                {"message": f"the acknowledgement of a batch for session {session_id!r} failed", "exception": failure}
            )
