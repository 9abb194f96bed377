"""The steps a run takes by itself, around its pattern: memory in, memory out, what is left of the state."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from callboard.kernel import Ref
from callboard.live.journal import Unfit
from callboard.live.live_run import LiveRun
from callboard.memory import Exchange, Memory, MemoryActor, MemoryOutcome
from callboard_protocol.commands import AbandonMemoryCall, InjectMemory, KeepMemory, Request, WriteBackMemory
from callboard_protocol.failures import describe, restore
from callboard_protocol.messages import Message, render_for_model
from callboard_protocol.records import StepCompleted


class MemorySteps:
    """What a run asks of its session's memory; each answer is a step, so that a replay asks nothing again.

    Args:
        run: the run.
        actor: the session's memory actor; None where the agent has no memory.
    """

    def __init__(self, run: LiveRun, actor: Ref[MemoryActor] | None) -> None:
        self._run = run
        self._actor = actor

    async def inject(self, message: Message) -> None:
        """Put what the memory has to say into the run's instructions."""
        run = self._run
        memory = run.agent.memory
        if memory is None or self._actor is None:
            return
        name = type(memory).__name__
        recorded = run.journal.completed.get("/inject")
        if recorded is None:
            run.publish(("memory.inject.started", None, {"memory": name}))
            started = run.clock.monotonic()
            texts = await self._ask(InjectMemory(message=message), memory, "memory.inject.failed")
            recorded = await run.land(
                lifecycle_record(run, "/inject", "inject", name, value=list(texts), started=started)
            )
            if recorded.error is not None:
                self._failed(memory, "memory.inject.failed", restore(recorded.error))
        self.take_over(recorded.value or ())

    def take_over(self, texts: Sequence[str]) -> None:
        """Put what the memory had to say into the run's instructions."""
        run = self._run
        run.instructions = "\n\n".join(part for part in (run.instructions, *texts) if part)

    async def write_back(self, output: Any) -> None:
        """Let the memory keep what it wants of the run, in the transaction of the step that says so."""
        run = self._run
        memory = run.agent.memory
        if memory is None or self._actor is None:
            return
        name = type(memory).__name__
        if "/writeback" in run.journal.completed:
            return
        run.publish(("memory.writeback.started", None, {"memory": name}))
        started = run.clock.monotonic()
        exchange = Exchange(
            run.run_id, run.request.input_message().text, render_for_model(run.agent.output.dump(output))
        )
        entries = await self._ask(WriteBackMemory(exchange=exchange), memory, "memory.writeback.failed")
        record = lifecycle_record(run, "/writeback", "writeback", name, value=len(entries), started=started)
        landed = await run.land(record, memory=entries)
        if landed.error is not None:
            self._failed(memory, "memory.writeback.failed", restore(landed.error))
        else:
            self._actor.tell(KeepMemory(entries=entries))

    async def _ask(self, request: Request[Any], memory: Memory, failed: str) -> tuple[Any, ...]:
        """Ask the memory, and call that off if the run is stopped meanwhile; nothing where it failed and may.

        Args:
            request: what it is asked.
            memory: the agent's memory.
            failed: the event that says so if it fails.
        """
        assert self._actor is not None
        try:
            outcome: MemoryOutcome = await self._actor.ask(request, timeout=None)
        except asyncio.CancelledError:
            if self._actor.is_alive():
                self._actor.tell(AbandonMemoryCall())
            raise
        if outcome.error is not None:
            self._failed(memory, failed, outcome.error)
        return outcome.answer

    def _failed(self, memory: Memory, event: str, error: Exception) -> None:
        self._run.publish(
            (
                event,
                None,
                {"memory": type(memory).__name__, "error": describe(error), "on_error": memory.on_error},
            )
        )
        if memory.on_error == "fail":
            raise error


def lifecycle_record(
    run: LiveRun,
    step: str,
    kind: Any,
    name: str,
    *,
    value: Any,
    started: float | None = None,
    messages: tuple[Message, ...] = (),
) -> StepCompleted:
    """A step of the runtime's own. Its identity begins with a slash, which no scope of a pattern's can."""
    return StepCompleted(
        run_id=run.run_id,
        ordinal=run.journal.claim_ordinal(),
        at=run.clock.time(),
        step=step,
        kind=kind,
        name=name,
        value=value,
        messages=messages,
        duration=0.0 if started is None else run.clock.monotonic() - started,
        running=run.running(),
        attempt=run.attempt,
    )


def state_after_last_step(run: LiveRun, ordinal: int) -> tuple[StepCompleted, ...]:
    """What the pattern changed in the session's state when no step was left to carry it."""
    changed, state = run.state.changed()
    if not changed:
        return ()
    if isinstance(state, Unfit):
        raise state.problem
    return (
        StepCompleted(
            run_id=run.run_id,
            ordinal=ordinal,
            at=run.clock.time(),
            step="/state",
            kind="step",
            name="state",
            state=state,
            state_changed=True,
            running=run.running(),
            attempt=run.attempt,
        ),
    )
