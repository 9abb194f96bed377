"""The steps beside models and tools: functions, time, chance, artifacts, events."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from callboard import fault_points
from callboard.live.live_run import LiveRun
from callboard.live.scopes import Scope
from callboard.runs.stops import StopRun
from callboard.steps.lifecycle_steps import lifecycle_record
from callboard.tools.results import to_plain
from callboard_protocol.base import JsonObject, check_name
from callboard_protocol.digests import fingerprint
from callboard_protocol.errors import CallboardError, UnpersistableValueError, UsageError
from callboard_protocol.events import check_custom_name
from callboard_protocol.failures import StepFailedError, describe, restore, text_of
from callboard_protocol.records import StepCompleted, StepKind
from callboard_protocol.runs import RunArtifact
from callboard_protocol.tools import PendingCall


async def run_function(
    run: LiveRun,
    scope: Scope,
    name: str,
    fn: Callable[..., Awaitable[Any]],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Any:
    """Run `fn` as a step; see `RunContext.step`."""
    check_name(name, "name of the step")
    if not callable(fn):
        raise UsageError(f"ctx.step({name!r}, ...) got {fn!r:.60}, which is no function", hint=_HOW)
    step = scope.begin(f"step {name!r}")
    run.boundary.begin()
    try:
        adapter = _returns(fn)
        fit = fingerprint((args, kwargs)) if args or kwargs else b""
        recorded = run.journal.recorded(step, "step", name, fit, (args, kwargs))
        if recorded is not None:
            run.state.apply(recorded)
        else:
            recorded = await _execute(run, scope, step, name, fn, args, kwargs, fit, adapter)
        if recorded.error is not None:
            raise restore(recorded.error)
        return adapter.validate_python(recorded.value)
    finally:
        scope.end()
        run.boundary.end()


async def _execute(
    run: LiveRun,
    scope: Scope,
    step: str,
    name: str,
    fn: Callable[..., Awaitable[Any]],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    fit: bytes,
    adapter: TypeAdapter[Any],
) -> StepCompleted:
    await run.be_ready()
    if fault_points.armed is not None:
        fault_points.reach("step.about_to_act", f"{run.run_id}:{step}")
    started = run.clock.monotonic()
    value: Any = None
    error: CallboardError | None = None
    try:
        value = await _awaitable(name, fn(*args, **kwargs))
    except CallboardError as problem:
        error = problem
    except (Exception, *NOT_MEANT_FOR_US) as problem:  # noqa: BLE001  (whatever it raises is the step's outcome)
        error = failed(f"step {name!r}", problem)
    else:
        try:
            value = to_plain(adapter.dump_python(adapter.validate_python(value), warnings="error"))
        except Exception as problem:  # noqa: BLE001  (pydantic's own errors, and those of a user's validators)
            error = _unfit(name, value, problem)
            value = None
    record = step_record(
        run, scope, step, "step", name, fit=fit, value=value, error=error, duration=run.clock.monotonic() - started
    )
    return await run.land(record)


def _awaitable(name: str, value: Any) -> Awaitable[Any]:
    if not inspect.isawaitable(value):
        raise UsageError(f"the function of step {name!r} returned a {type(value).__qualname__} at once", hint=_HOW)
    return value


def _unfit(name: str, value: Any, problem: Exception) -> UnpersistableValueError:
    kind = type(value).__qualname__
    if isinstance(problem, ValidationError):
        first = problem.errors(include_url=False, include_context=False)[0]
        where = "".join(f"[{part!r}]" for part in first["loc"])
        return UnpersistableValueError(
            f"step {name!r} returned a {kind}, which is not what its annotation says: {where or 'it'}: {first['msg']}",
            hint="correct the function's return annotation, or what it returns",
        )
    return UnpersistableValueError(f"step {name!r} returned a {kind} that cannot be stored: {text_of(problem)}")


_HOW = "give it an `async def` and its arguments: ctx.step('name', fn, argument)"

NOT_MEANT_FOR_US = (SystemExit, KeyboardInterrupt, asyncio.CancelledError)
"""What a user's function raises that asyncio would act on: it would end the process, or the run without a word."""


def failed(who: str, problem: BaseException) -> StepFailedError:
    """The error that what a user's function raised stands for.

    Raises:
        CancelledError: it is the task that is being cancelled.
    """
    task = asyncio.current_task()
    if isinstance(problem, asyncio.CancelledError) and task is not None and task.cancelling():
        raise problem
    said = text_of(problem)
    error = StepFailedError(f"{who} raised {type(problem).__name__}{f': {said}' if said else ''}")
    error.__cause__ = problem
    return error


@lru_cache(maxsize=1024)
def _returns(fn: Callable[..., Any]) -> TypeAdapter[Any]:
    """The function's return annotation as a validator; anything goes where it has none."""
    try:
        annotation = get_type_hints(fn).get("return", Any)
    except (TypeError, NameError):
        annotation = Any
    try:
        return TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError):
        raise UsageError(
            f"{getattr(fn, '__qualname__', fn)!r} says it returns {annotation!r}, which cannot be stored",
            hint="return plain data or a pydantic model, and annotate that",
        ) from None


def read_clock(run: LiveRun, scope: Scope) -> float:
    """The time in unix seconds: what an earlier attempt read at this point, or now."""
    recorded = run.clocks.get(scope.upcoming, ())
    taken = len(scope.readings)
    reading = recorded[taken] if taken < len(recorded) else run.clock.time()
    scope.readings.append(reading)
    return reading


def keep_map_readings(run: LiveRun, scope: Scope, step: str) -> None:
    """Let the first record of a map's branches bring along the clock readings taken before the map."""
    if scope.clock and step not in run.journal.completed:
        run.journal.owe(step_record(run, scope, step, "map", ""))


def keep_branch_readings(run: LiveRun, scope: Scope) -> None:
    """Let the next record of any scope bring along the clock readings taken before a branch, which may use them."""
    step = f"{scope.upcoming}@{len(scope.readings)}"
    if scope.readings and step not in run.journal.completed:
        record = step_record(run, scope, step, "map", "")
        run.journal.owe(record.model_copy(update={"clock": tuple(scope.readings)}))


def patched(run: LiveRun, name: str) -> bool:
    """Whether changed code applies to this run; see `RunContext.patched`."""
    check_name(name, "name of the patch")
    known = run.journal.is_patched(name)
    if known is not None:
        return known
    run.heed_stop()
    run.journal.patch(name)
    run.journal.owe(lifecycle_record(run, f"/patched.{name}", "patched", name, value=True))
    return True


def draw(run: LiveRun, scope: Scope) -> float:
    """A number drawn by the draw's identity; it leaves no record."""
    identity = f"{run.run_id}:{scope.draw()}"
    return random.Random(identity).random()  # noqa: S311  (reproducible on purpose, not secret)


async def add_artifact(run: LiveRun, scope: Scope, artifact: RunArtifact) -> RunArtifact:
    """Keep an artifact; see `RunContext.add_artifact`."""
    step = scope.begin("add_artifact")
    try:
        fit = fingerprint((artifact.kind, artifact.payload))
        recorded = run.journal.recorded(step, "artifact", artifact.name, fit, artifact.payload)
        if recorded is None:
            recorded = step_record(run, scope, step, "artifact", artifact.name, fit=fit, artifact=artifact)
            await run.complete(recorded)
        if recorded.error is not None:
            raise restore(recorded.error)
        assert recorded.artifact is not None
        run.artifacts.append(recorded.artifact)
        return recorded.artifact
    finally:
        scope.end()


async def emit(run: LiveRun, scope: Scope, name: str, payload: JsonObject) -> None:
    """Publish a user's event; see `RunContext.emit`."""
    check_custom_name(name)
    given: object = payload
    if not isinstance(given, dict):
        raise UsageError(
            f"the payload of event {name!r} is of type {type(given).__name__}", hint="give a dict: {'key': value}"
        )
    step = scope.begin("emit")
    try:
        fit = fingerprint(payload)
        recorded = run.journal.recorded(step, "emit", name, fit, payload)
        if recorded is None:
            await run.complete(step_record(run, scope, step, "emit", name, fit=fit, value=payload))
        elif recorded.error is not None:
            raise restore(recorded.error)
    finally:
        scope.end()


async def first_failure(tasks: Sequence[asyncio.Future[Any]], asked: Sequence[PendingCall] = ()) -> None:
    """Wait until all are done, or one has failed; then raise its error.

    A task that waits for somebody's decision has not failed: the others go on, so that none of them is cut short for
    it, and what they all wait for is raised together.

    Args:
        tasks: what to wait for.
        asked: calls beside them that wait for a decision.

    Raises:
        StopRun: some wait for a decision.
    """
    pending = [*asked]
    left = set(tasks)
    while left:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task in done:
                try:
                    task.result()
                except StopRun as stop:
                    if stop.stop_reason != "suspended":
                        raise
                    pending += stop.pending
    if pending:
        raise StopRun("suspended", pending=tuple(pending))


def step_record(
    run: LiveRun,
    scope: Scope,
    step: str,
    kind: StepKind,
    name: str,
    *,
    fit: bytes = b"",
    value: Any = None,
    error: CallboardError | None = None,
    artifact: RunArtifact | None = None,
    duration: float = 0.0,
) -> StepCompleted:
    """The record of a step that has its outcome, with what it changed of the session's state."""
    changed, state = run.state.changed()
    return StepCompleted(
        run_id=run.run_id,
        ordinal=run.journal.claim_ordinal(),
        at=run.clock.time(),
        step=step,
        kind=kind,
        name=name,
        fit=fit,
        value=value,
        error=None if error is None else describe(error),
        artifact=artifact,
        state=state,
        state_changed=changed,
        clock=scope.clock,
        duration=duration,
        running=run.running(),
        attempt=run.attempt,
    )
