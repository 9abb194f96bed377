"""Which events a record stands for: published once it is on disk, and told again to whoever reads the log later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from callboard_protocol.event_base import RawEvent
from callboard_protocol.records import (
    DecisionMade,
    IntentRecorded,
    LogRecord,
    OutcomeVoided,
    ReservationRecorded,
    RunBegan,
    RunEnded,
    RunResumed,
    RunSuspended,
    SessionRewound,
    SignalReceived,
    SleepBegan,
    StepCompleted,
    TranscriptCompacted,
)
from callboard_protocol.sessions import step_checkpoint_id

Told = tuple[str, dict[str, Any]]

_SAVED: dict[type[LogRecord], str] = {
    IntentRecorded: "intent",
    SleepBegan: "sleep",
    ReservationRecorded: "reservation",
    OutcomeVoided: "voided",
    SignalReceived: "signal",
}
"""Records that no event of their own tells of."""


def events_of(record: LogRecord, session_id: str, agent_id: str, steps: int) -> list[RawEvent]:
    """The record's events, in order; each carries the record's ordinal as its sequence, and those behind the first
    their place among them. Never empty, so that the sequences a subscriber sees have no gaps.

    Args:
        record: a record of the run.
        session_id: its session.
        agent_id: its agent.
        steps: the run's completed steps, this one included.
    """
    run_id, at, ordinal = record.run_id, record.at, record.ordinal
    return [
        (name, run_id, session_id, agent_id, at, ordinal, {**fields, "place": place} if place else fields)
        for place, (name, fields) in enumerate(_told(record, steps))
    ]


def _told(record: LogRecord, steps: int) -> Iterator[Told]:
    if isinstance(record, StepCompleted):
        yield from _step(record)
        yield _checkpoint(record, steps)
    elif isinstance(record, RunBegan):
        if record.attempt > 1:
            yield "run.resume_attempted", {"attempt": record.attempt, "strikes": record.strikes, "in_flight": None}
        yield "run.started", {}
        yield _checkpoint(record, steps)
    elif isinstance(record, RunResumed):
        yield (
            "run.resume_attempted",
            {"attempt": record.attempt, "strikes": record.strikes, "in_flight": record.in_flight},
        )
    elif isinstance(record, RunEnded):
        yield _ended(record)
    elif isinstance(record, RunSuspended):
        for call in record.pending:
            if call.reason == "approval":
                yield (
                    "tool.approval_needed",
                    {
                        "call_id": call.call_id,
                        "tool": call.tool,
                        "arguments": call.arguments,
                        "arguments_digest": call.arguments_digest,
                        "message": call.message,
                    },
                )
        yield "run.suspended", {"pending": record.pending}
    elif isinstance(record, DecisionMade):
        yield (
            "tool.decided",
            {
                "call_id": f"{record.run_id}:{record.step}",
                "tool": record.tool,
                "decision": record.decision.kind,
                "by": record.by,
                "note": record.note,
            },
        )
    elif isinstance(record, TranscriptCompacted):
        yield "context.compact.completed", {"assembler": record.assembler, "messages_before": record.replaced}
    elif isinstance(record, SessionRewound):
        yield (
            "session.rewound",
            {
                "checkpoint_id": record.checkpoint_id,
                "log_position": record.to_sequence,
                "transcript_length": record.transcript_length,
            },
        )
    else:
        yield "run.record_saved", {"kind": _SAVED[type(record)]}


def _checkpoint(record: StepCompleted | RunBegan, steps: int) -> Told:
    return "run.checkpoint_saved", {"checkpoint_id": step_checkpoint_id(record.run_id, steps), "step_index": steps}


def _step(record: StepCompleted) -> Iterator[Told]:
    call_id = f"{record.run_id}:{record.step}"
    if record.kind == "generate":
        if record.response is not None:
            response = record.response
            yield (
                "llm.succeeded",
                {
                    "call_id": call_id,
                    "model": response.model or record.name,
                    "text": response.text,
                    "tool_calls": response.tool_calls,
                    "usage": response.usage,
                    "finish_reason": response.finish_reason,
                    "duration": record.duration,
                },
            )
        else:
            yield (
                "llm.failed",
                {"call_id": call_id, "model": record.name, "error": record.error, "duration": record.duration},
            )
    elif record.kind == "tool":
        if record.error is None:
            yield (
                "tool.succeeded",
                {"call_id": call_id, "tool": record.name, "result": record.value, "duration": record.duration},
            )
            return
        if record.error.code in ("model_retry", "invalid_arguments"):
            yield (
                "tool.retry_requested",
                {"call_id": call_id, "tool": record.name, "message": record.error.message},
            )
        yield (
            "tool.failed",
            {"call_id": call_id, "tool": record.name, "error": record.error, "duration": record.duration},
        )
    elif record.kind == "artifact" and record.artifact is not None:
        yield "artifact.emitted", {"call_id": call_id, "artifact": record.artifact}
    elif record.kind == "emit":
        yield record.name, record.value
    elif record.kind == "inject":
        yield (
            "memory.inject.completed",
            {"memory": record.name, "messages": len(record.value or ()), "duration": record.duration},
        )
    elif record.kind == "writeback":
        yield (
            "memory.writeback.completed",
            {"memory": record.name, "entries": record.value or 0, "duration": record.duration},
        )
    elif record.kind == "validation":
        yield "validation.retry", record.value


def _ended(record: RunEnded) -> Told:
    usage: dict[str, Any] = {"usage": record.usage, "duration": record.running}
    if record.stop_reason == "completed":
        return "run.completed", {"final_output": record.output, **usage}
    if record.stop_reason == "cancelled":
        return "run.cancelled", {"reason": record.reason, **usage}
    return "run.failed", {"stop_reason": record.stop_reason, "error": record.error_details, **usage}
