"""Trying again: how often, on what, and how long to wait. The one module that knows tenacity."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from callboard_protocol.base import as_seconds
from callboard_protocol.errors import CallboardError, UsageError

if TYPE_CHECKING:
    from tenacity import AsyncRetrying, RetryCallState


@dataclass(frozen=True, slots=True)
class Retry:
    """How a failed call is tried again.

    Attributes:
        attempts: how often in all, the first time included.
        on: the exceptions worth another try.
        delay: seconds or a timedelta before the second attempt; doubled before each further one, with jitter.
        max_delay: seconds or a timedelta it grows to at most.

    Raises:
        UsageError: fewer than one attempt, nothing to retry on, or a duration that makes no sense.
    """

    attempts: int = 3
    on: type[Exception] | tuple[type[Exception], ...] = (ConnectionError, TimeoutError)
    delay: float | timedelta = 0.5
    max_delay: float | timedelta = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise UsageError(f"Retry(attempts={self.attempts}) never calls", hint="attempts count the first call too")
        kinds: tuple[object, ...] = self.on if isinstance(self.on, tuple) else (self.on,)
        if not kinds or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise UsageError(f"Retry(on={self.on!r}) names no exceptions", hint="on=(ConnectionError, TimeoutError)")
        object.__setattr__(self, "delay", as_seconds(self.delay))
        object.__setattr__(self, "max_delay", as_seconds(self.max_delay))


def retrying(
    retry: Retry,
    worth_it: Callable[[BaseException], bool],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncRetrying:
    """A loop over the attempts; the last error is raised as it came.

    Args:
        retry: how often and how long to wait.
        worth_it: whether an error is worth another attempt.
        sleep: waits so many seconds.
    """
    # Most processes never try anything again, and importing Callboard should not cost them this.
    from tenacity import (  # noqa: PLC0415
        AsyncRetrying,
        retry_if_exception,
        stop_after_attempt,
        wait_exponential,
        wait_random,
    )

    delay = as_seconds(retry.delay)
    backoff = wait_exponential(multiplier=delay, max=as_seconds(retry.max_delay)) + wait_random(0, delay / 2)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        return max(backoff(state), retry_after(error))

    return AsyncRetrying(
        stop=stop_after_attempt(retry.attempts),
        wait=wait,
        sleep=sleep,
        retry=retry_if_exception(worth_it),
        reraise=True,
    )


def retry_after(error: BaseException | None) -> float:
    """Seconds the other side asked to wait, and so the least to wait (RFC 9110, section 10.2.3); 0 if it said nothing.

    Read from the error, then from its cause: `retry_after` of its context, or of the exception itself.
    """
    for one in (error, None if error is None else error.__cause__):
        asked = one.context.get("retry_after") if isinstance(one, CallboardError) else None
        asked = getattr(one, "retry_after", None) if asked is None else asked
        seconds = asked.total_seconds() if isinstance(asked, timedelta) else asked
        if isinstance(seconds, int | float) and seconds > 0:
            return float(seconds)
    return 0.0
