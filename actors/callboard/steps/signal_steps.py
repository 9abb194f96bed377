"""The steps that wait for something outside: time, and signals. A run holds no slot meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from callboard import fault_points
from callboard.live.live_run import LiveRun
from callboard.live.scopes import Scope
from callboard.output import readable
from callboard.steps.plain_steps import step_record
from callboard_protocol.base import as_seconds, check_name
from callboard_protocol.commands import LeaveSlot, RegainSlot
from callboard_protocol.errors import ReceiveTimeoutError, UnexpectedSignalError, UsageError
from callboard_protocol.failures import restore
from callboard_protocol.letters import PostedSignal
from callboard_protocol.records import SleepBegan, StepCompleted


@contextlib.asynccontextmanager
async def without_slot(run: LiveRun) -> AsyncIterator[None]:
    """Give the run's slot to another while it waits; it has one again when this ends without an error. Waiting does not
    count as running.
    """
    run.heed_stop()
    run.directory.supervisor.tell(LeaveSlot(run_id=run.run_id))
    run.pause()
    try:
        yield
        await run.directory.supervisor.ask(RegainSlot(run_id=run.run_id), timeout=None)
    finally:
        run.unpause()


async def sleep(run: LiveRun, scope: Scope, duration: float | timedelta) -> None:
    """Sleep durably; see `RunContext.sleep`."""
    seconds = as_seconds(duration)
    step = scope.begin("sleep", timed=False)
    try:
        if fault_points.armed is not None and step not in run.journal.sleeps:
            fault_points.reach("step.about_to_act", f"{run.run_id}:{step}")
        left = await _instant(run, scope, step, seconds) - run.clock.time()
        if left > 0:
            async with without_slot(run):
                await run.clock.sleep(left)
    finally:
        scope.end()


async def receive(run: LiveRun, scope: Scope, channel: str, type_: Any, timeout: float | timedelta | None) -> Any:
    """Receive a signal; see `RunContext.receive`."""
    check_name(channel, "name of the channel")
    seconds = None if timeout is None else as_seconds(timeout)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(type_)
    except (PydanticSchemaGenerationError, PydanticUserError):
        raise UsageError(
            f"ctx.receive({channel!r}, {type_!r}): no signal can be of that type", hint="plain data or a pydantic model"
        ) from None
    step = scope.begin(f"receive {channel!r}", timed=False)
    try:
        record = run.journal.recorded(step, "receive", channel, b"")
        if record is None:
            record = await _received(run, scope, step, channel, adapter, seconds)
        if record.error is not None:
            raise restore(record.error)
        return adapter.validate_python(record.value)
    finally:
        scope.end()


async def _received(
    run: LiveRun, scope: Scope, step: str, channel: str, adapter: TypeAdapter[Any], seconds: float | None
) -> StepCompleted:
    """The step's record: it and the removal of the signal are one transaction."""
    began = run.clock.monotonic()
    if fault_points.armed is not None:
        fault_points.reach("step.about_to_act", f"{run.run_id}:{step}")
    until = None if seconds is None else await _instant(run, scope, step, seconds)
    signal = await _next(run, scope, step, channel, until)
    error: ReceiveTimeoutError | UnexpectedSignalError | None = None
    if signal is None:
        error = ReceiveTimeoutError(f"nothing came over channel {channel!r} within {seconds:g} s")
    else:
        error = _misfit(channel, signal.value, adapter)
    value = None if signal is None or error is not None else signal.value
    duration = run.clock.monotonic() - began
    record = step_record(run, scope, step, "receive", channel, value=value, error=error, duration=duration)
    return await run.land(record, taken=signal)


async def _next(run: LiveRun, scope: Scope, step: str, channel: str, until: float | None) -> PostedSignal | None:
    """The next signal of a channel; None where none came in time."""
    waiting = asyncio.ensure_future(run.mail.next_signal(channel))
    try:
        await asyncio.sleep(0)
        if waiting.done():
            return waiting.result()
        if until is None:
            # It may wait for long, and through crashes that are none of its doing: the log says that it only waits.
            await _instant(run, scope, step, math.inf)
        async with without_slot(run):
            await _until_done(run, waiting, until)
        return waiting.result() if waiting.done() else None
    except BaseException:
        if waiting.done() and not waiting.cancelled():
            run.mail.put_back(waiting.result())
        raise
    finally:
        waiting.cancel()


async def _until_done(run: LiveRun, waiting: asyncio.Future[Any], until: float | None) -> None:
    """Return once it is done, or the time has come."""
    if until is None:
        await asyncio.wait([waiting])
        return
    sleeping = asyncio.ensure_future(run.clock.sleep(until - run.clock.time()))
    try:
        await asyncio.wait([waiting, sleeping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        sleeping.cancel()


def _misfit(channel: str, value: Any, adapter: TypeAdapter[Any]) -> UnexpectedSignalError | None:
    try:
        adapter.validate_python(value)
    except ValidationError as problem:
        return UnexpectedSignalError(f"what came over channel {channel!r} does not fit: {readable(problem)}")
    return None


async def _instant(run: LiveRun, scope: Scope, step: str, seconds: float) -> float:
    """When the waiting ends, in unix seconds: on disk from its beginning, so that a restart does not prolong it."""
    began = run.journal.sleep(step)
    if began is None or began.wake_at == math.inf != seconds:
        began = SleepBegan(
            run_id=run.run_id,
            ordinal=run.journal.claim_ordinal(),
            at=run.clock.time(),
            step=step,
            wake_at=run.clock.time() + seconds,
            clock=scope.clock,
        )
        await run.journal.append(began)
    return began.wake_at
