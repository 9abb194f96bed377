"""How a run is stopped from within."""

from __future__ import annotations

from callboard_protocol.errors import CallboardError, RunCancelledError
from callboard_protocol.runs import StopReason
from callboard_protocol.tools import PendingCall


class SessionElsewhere(BaseException):
    """The attempt wrote nothing, because its session is in another process's hands; it begins again when it is free."""


class RunElsewhere(BaseException):
    """The attempt wrote nothing, because another process has the run: it had been submitted to two of them at once."""


class StruckRunWaits(BaseException):
    """The attempt wrote nothing, because another run that could have caused a crash is at work; it begins again in its
    turn.
    """


class ParkRun(BaseException):
    """The attempt cannot be made here, for want of something that may be there later.

    Args:
        reason: what is missing.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StopRun(BaseException):
    """Ends the attempt from inside a step. Not an `Exception`, so that no pattern swallows it by accident.

    Args:
        stop_reason: why the run stops.
        error: what went wrong, where something did.
        pending: what it waits for, where it is suspended.
    """

    def __init__(
        self,
        stop_reason: StopReason,
        error: CallboardError | None = None,
        pending: tuple[PendingCall, ...] = (),
    ) -> None:
        super().__init__(stop_reason)
        self.stop_reason: StopReason = stop_reason
        self.error = error
        self.pending = pending


def cancelled(run_id: str, by: str, reason: str) -> StopRun:
    """Somebody wants a run stopped."""
    why = f"run {run_id} was cancelled: {reason or 'no reason given'}"
    return StopRun("cancelled", RunCancelledError(why, hint="", context={"by": by}))
