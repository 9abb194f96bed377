"""A run's last record, with its entry and its checkpoint: written in one transaction."""

from __future__ import annotations

from typing import Any

from callboard.attempts.run_opening import RunOpening
from callboard.live.live_run import LiveRun
from callboard.runs.entries import moved, result_of
from callboard.runs.snapshot import snapshot_of
from callboard.steps.lifecycle_steps import state_after_last_step
from callboard_protocol.amounts import Amount, less
from callboard_protocol.failures import describe
from callboard_protocol.messages import Message, render_for_model
from callboard_protocol.records import RunEnded
from callboard_protocol.runs import RunResult, StopReason
from callboard_protocol.sessions import RunEntry, SessionCheckpoint, step_checkpoint_id
from callboard_protocol.states import STOP_INPUTS
from callboard_protocol.trusted import trusted


async def write_end(
    opening: RunOpening,
    run: LiveRun,
    ordinal: int,
    stop_reason: StopReason,
    *,
    output: Any,
    error: BaseException | None,
    keeps_snapshot: bool,
) -> RunResult[Any]:
    """Write how a run ended; what it came to.

    Args:
        opening: what the attempt stands on.
        run: what it has in its hands.
        ordinal: the last record's place among the run's, or the place of what goes before it.
        stop_reason: why the run ends.
        output: what came of it, where it completed.
        error: what went wrong, where something did.
        keeps_snapshot: whether the circumstances of an error are kept.

    Raises:
        UnpersistableValueError: the output, the error, the snapshot or the state cannot be stored.
        StoreError: the store refused.
    """
    ticket, journal = run.ticket, run.journal
    plain = run.agent.output.dump(output) if stop_reason == "completed" else None
    details = None if error is None else describe(error)
    snapshot = None
    if error is not None and stop_reason != "cancelled" and keeps_snapshot:
        snapshot = snapshot_of(
            error, run.meter.usage(), opening.conversation.view(), run.state.value, journal.tool_calls
        )
    closing = () if ticket.is_nested else _closing_messages(run, stop_reason, plain)
    tail = state_after_last_step(run, ordinal) if stop_reason == "completed" else ()
    record = trusted(
        RunEnded,
        run_id=run.run_id,
        ordinal=ordinal + len(tail),
        at=run.clock.time(),
        stop_reason=stop_reason,
        output=plain,
        usage=run.meter.usage(),
        error_details=details,
        error_snapshot=snapshot,
        messages=closing,
        running=run.running(),
        cancelled_by=ticket.stopped_by,
        reason=ticket.reason,
    )
    entry = _ended_entry(run, record)
    steps = journal.steps + len(tail)
    checkpoint = trusted(
        SessionCheckpoint,
        checkpoint_id=step_checkpoint_id(run.run_id, steps),
        session_id=run.session_id,
        run_id=run.run_id,
        step_index=steps,
        created_at=record.at,
    )
    await journal.append(*opening.way_back, *tail, record, run=entry, checkpoint=checkpoint)
    ticket.entry = entry
    return result_of(entry, record, tuple(journal.artifacts), output)


def _ended_entry(run: LiveRun, ended: RunEnded) -> RunEntry:
    was = run.ticket.entry
    spent = run.spent()
    return moved(
        was,
        STOP_INPUTS[ended.stop_reason],
        stop_reason=ended.stop_reason,
        ended_at=ended.at,
        pending=(),
        problem=None,
        spent=(*spent,),
        charged=(*less(spent, Amount(*was.spent)),),
    )


def _closing_messages(run: LiveRun, stop_reason: StopReason, output: Any) -> tuple[Message, ...]:
    """What the run's end adds to the transcript: answers for calls left open, and its own if that is not there."""
    journal = run.journal
    closing = [
        Message.tool(f"not answered: the run ended as {stop_reason}", tool_call_id=call_id, name=name)
        for call_id, name in journal.open_calls.items()
    ]
    if stop_reason == "completed":
        answer = render_for_model(output)
        if journal.last_answer is None or (run.agent.output.is_text and journal.last_answer != answer):
            closing.append(Message.assistant(answer))
    return tuple(closing)
