import inspect
import runpy
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from callboard_protocol.errors import InvalidIdentifierError, UsageError
from callboard_protocol.event_base import Event, LiveEvent, RawEvent, RecordedEvent, RunEvent
from callboard_protocol.event_models_llm import LlmDelta, LlmSucceeded
from callboard_protocol.event_models_run import RunStarted
from callboard_protocol.event_models_runtime import ConfigReloaded
from callboard_protocol.event_models_tool import ToolFailed, ToolProgress
from callboard_protocol.events import (
    EVENT_NAMES,
    LIVE_ONLY,
    MODELS,
    RECORDED,
    RESERVED_PREFIXES,
    AnyEvent,
    CustomEvent,
    build_event,
    check_custom_name,
)
from callboard_protocol.messages import Usage
from callboard_protocol.runs import ErrorDetails, RunArtifact, RunUsage

DOCS = Path(__file__).parents[2] / "docs"
GENERATOR = runpy.run_path(str(DOCS / "generate.py"))
NOON = datetime(2026, 1, 2, 12, 0, 0, 250_000, tzinfo=UTC)

NAMES = [
    "run.requested",
    "run.queued",
    "run.validated",
    "run.started",
    "run.completed",
    "run.failed",
    "run.cancelled",
    "run.suspended",
    "run.parked",
    "run.record_saved",
    "run.checkpoint_saved",
    "run.checkpoint_failed",
    "run.resume_attempted",
    "run.resume_succeeded",
    "run.resume_exhausted",
    "run.durable_idempotency_warning",
    "session.acquired",
    "session.released",
    "session.rewound",
    "session.run.started",
    "session.run.completed",
    "context.created",
    "context.assemble.started",
    "context.assemble.completed",
    "context.compact.started",
    "context.compact.completed",
    "context.compact.failed",
    "memory.inject.started",
    "memory.inject.completed",
    "memory.inject.failed",
    "memory.writeback.started",
    "memory.writeback.completed",
    "memory.writeback.failed",
    "memory.compact.started",
    "memory.compact.completed",
    "memory.compact.failed",
    "tool.preflight",
    "tool.called",
    "tool.delta",
    "tool.progress",
    "tool.succeeded",
    "tool.failed",
    "tool.retry_requested",
    "tool.approval_needed",
    "tool.decided",
    "tool.in_doubt",
    "tool.cancelled",
    "tool.batch.started",
    "tool.batch.completed",
    "tool.background.submitted",
    "tool.background.polled",
    "tool.background.completed",
    "llm.called",
    "llm.delta",
    "llm.partial",
    "llm.succeeded",
    "llm.failed",
    "usage.updated",
    "budget.cost_skipped",
    "validation.retry",
    "step.restarted",
    "pattern.step_started",
    "pattern.step_finished",
    "pattern.phase",
    "pattern.plan_created",
    "artifact.emitted",
    "agent.delegated",
    "agent.transferred",
    "config.reloaded",
    "actor.restarted",
    "store.record_quarantined",
    "runtime.loop_blocked",
    "subscriber.lagged",
    "runtime.shutdown_requested",
    "runtime.shutdown_started",
    "runtime.shutdown_completed",
]

ERROR = {"code": "tool_timeout", "message": "no answer in 20 s", "hint": "raise the timeout", "retryable": True}

SAMPLES: dict[str, Any] = {
    "step": "7",
    "call_id": "run-1:7",
    "tool": "refund",
    "model": "gpt-5-mini",
    "error": ERROR,
    "text": "Your order",
    "usage": RunUsage(llm_calls=2),
    "artifact": RunArtifact(name="report", payload="done"),
    "memory": "window",
    "assembler": "full",
    "pattern": "react",
    "phase": "act",
    "steps": ("look", "answer"),
    "tools": ("refund", "find_order"),
    "actor": "EventBus",
    "path": "agents.yaml",
    "message": "give an order number",
    "checkpoint_id": "before-refund",
    "child_agent_id": "researcher",
    "child_session_id": "user-42/research",
    "decision": "allow",
    "cause": "crash",
    "status": "succeeded",
    "stop_reason": "completed",
    "reason": "slot",
    "ok": True,
    "done": 0.5,
    "duration": 0.25,
    "attempt": 2,
    "strikes": 3,
    "step_index": 4,
    "kind": "intent",
    "log_position": 12,
    "transcript_length": 5,
    "fence": 9,
    "run_count": 1,
    "retry": 1,
    "max_validation_retries": 3,
    "index": 0,
    "missed": 12,
    "succeeded": 2,
    "table": "log",
    "key": "user-42#7",
    "code": "damaged_record",
}


def raw_event(name: str, fields: dict[str, Any] | None = None, *, sequence: int | None = None) -> RawEvent:
    return (name, "run-1", "user-42", "helper", NOON.timestamp(), sequence, fields)


def required_fields(model: type[Event]) -> dict[str, Any]:
    shared = {"name", "run_id", "session_id", "agent_id", "timestamp"}
    return {
        name: SAMPLES[name] for name, info in model.model_fields.items() if info.is_required() and name not in shared
    }


# ---- the taxonomy


def test_the_taxonomy_has_these_names_and_no_others():
    assert sorted(EVENT_NAMES) == sorted(NAMES)


def test_what_is_live_only_is_calls_deltas_progress_and_partial_text():
    assert {"tool.called", "tool.delta", "tool.progress", "llm.called", "llm.delta", "llm.partial"} == LIVE_ONLY


def test_nothing_is_both_live_and_recorded():
    assert not LIVE_ONLY & RECORDED
    assert {"run.started", "tool.succeeded", "llm.succeeded", "run.completed"} <= RECORDED


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_called_what_its_event_is_called(name: str):
    assert MODELS[name].__name__ == "".join(word.capitalize() for word in name.replace(".", "_").split("_"))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_says_when_it_is_published_and_describes_each_of_its_fields(name: str):
    model = MODELS[name]
    first_line = (inspect.getdoc(model) or "").split("\n")[0]
    assert first_line != inspect.getdoc(model.__bases__[0]).split("\n")[0]  # type: ignore[union-attr]
    assert list(GENERATOR["described_fields"](model)) == GENERATOR["own_fields"](model)


def test_the_document_lists_these_events():
    text = (DOCS / "EVENTS.md").read_text(encoding="utf-8")
    assert GENERATOR["with_blocks"](text, GENERATOR["BLOCKS"]["EVENTS.md"]) == text, "run: python docs/generate.py"
    assert [name for name in NAMES if f"\n| `{name}`<br>" not in text] == []


# ---- from a tuple to a model


@pytest.mark.parametrize("name", NAMES)
def test_every_event_is_built_from_its_tuple_and_survives_json(name: str):
    event = build_event(raw_event(name, required_fields(MODELS[name]), sequence=7))
    assert type(event) is MODELS[name]
    assert (event.name, event.run_id, event.session_id, event.agent_id) == (name, "run-1", "user-42", "helper")
    assert (event.timestamp, event.sequence) == (NOON, 7)
    assert event.timestamp.utcoffset() == timedelta(0)
    assert TypeAdapter(AnyEvent).validate_json(event.model_dump_json()) == event


def test_what_an_event_says_is_typed():
    fields = {"call_id": "run-1:3", "tool": "refund", "error": ERROR, "duration": 20.0}
    failed = build_event(raw_event("tool.failed", fields, sequence=3))
    assert isinstance(failed, ToolFailed)
    assert failed.error == ErrorDetails(
        code="tool_timeout", message="no answer in 20 s", hint="raise the timeout", retryable=True
    )
    usage = Usage(input_tokens=900, output_tokens=80, cost_usd=0.002)
    answered = build_event(raw_event("llm.succeeded", {"call_id": "run-1:4", "model": "gpt-5-mini", "usage": usage}))
    assert isinstance(answered, LlmSucceeded)
    assert answered.usage is usage
    assert answered.finish_reason == "stop"


def test_a_live_event_says_where_in_which_attempt_of_which_step_it_belongs():
    fields = {"call_id": "run-1:4", "model": "m", "text": "order", "step": "4", "attempt": 2, "offset": 5}
    delta = build_event(raw_event("llm.delta", fields, sequence=3))
    assert isinstance(delta, LlmDelta)
    assert isinstance(delta, LiveEvent)
    assert (delta.sequence, delta.step, delta.attempt, delta.offset) == (3, "4", 2, 5)


def test_an_event_of_the_runtime_belongs_to_no_run():
    event = build_event(("config.reloaded", None, None, None, NOON.timestamp(), None, {"path": "agents.yaml"}))
    assert isinstance(event, ConfigReloaded)
    assert (event.run_id, event.session_id, event.agent_id, event.sequence) == (None, None, None, None)


def test_an_event_of_a_run_names_its_run():
    with pytest.raises(ValidationError, match="run_id"):
        build_event(("run.started", None, "user-42", "helper", NOON.timestamp(), 0, None))


def test_a_field_that_an_event_does_not_have_is_refused():
    with pytest.raises(ValidationError, match="dura_tion"):
        build_event(raw_event("run.started", {"dura_tion": 1.0}))


def test_building_leaves_the_tuple_as_it_was():
    fields = {"call_id": "run-1:3", "tool": "t", "done": 1.0}
    raw = raw_event("tool.progress", {**fields, "step": "3"})
    assert isinstance(build_event(raw), ToolProgress)
    assert raw == raw_event("tool.progress", {**fields, "step": "3"})


def test_an_event_cannot_be_changed():
    event = build_event(raw_event("run.started"))
    assert isinstance(event, RunStarted)
    with pytest.raises(ValidationError, match="frozen"):
        event.waited = 3.0  # type: ignore[misc]
    assert event.waited == 0.0


def test_a_timestamp_without_a_zone_is_refused():
    ids = {"run_id": "r", "session_id": "s", "agent_id": "a"}
    with pytest.raises(ValidationError, match="timezone"):
        RunStarted(**ids, timestamp=NOON.replace(tzinfo=None))
    elsewhere = RunStarted(**ids, timestamp=NOON.astimezone(timezone(timedelta(hours=2))))
    assert elsewhere == RunStarted(**ids, timestamp=NOON)


def test_importing_the_taxonomy_builds_no_model():
    code = (
        "from callboard_protocol.events import MODELS, build_event\n"
        "assert not any(model.__pydantic_complete__ for model in MODELS.values())\n"
        "build_event(('run.started', 'r', 's', 'a', 0.0, 0, None))\n"
        "assert [name for name, model in MODELS.items() if model.__pydantic_complete__] == ['run.started']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- names of a user's own


def test_a_name_of_a_users_own_becomes_a_custom_event_with_its_payload():
    event = build_event(raw_event("billing.invoice_sent", {"amount": 12}, sequence=5))
    assert type(event) is CustomEvent
    assert (event.name, event.payload, event.sequence) == ("billing.invoice_sent", {"amount": 12}, 5)
    assert (event.run_id, event.session_id, event.agent_id) == ("run-1", "user-42", "helper")
    assert event.timestamp == NOON
    assert TypeAdapter(AnyEvent).validate_json(event.model_dump_json()) == event


def test_an_event_of_a_newer_release_arrives_as_a_custom_event():
    event = build_event(raw_event("run.not_thought_of_yet", {"amount": 12}))
    assert isinstance(event, CustomEvent)
    assert event.payload == {"amount": 12}


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_name_cannot_be_emitted(name: str):
    with pytest.raises(UsageError, match=f"'{name}' is a built-in event"):
        check_custom_name(name)


@pytest.mark.parametrize("prefix", sorted(RESERVED_PREFIXES))
def test_a_name_that_begins_like_a_built_in_one_cannot_be_emitted(prefix: str):
    with pytest.raises(UsageError, match=rf"begins with '{prefix}\.'.*such as 'my_{prefix}\.mine'"):
        check_custom_name(f"{prefix}.mine")


@pytest.mark.parametrize("name", ["billing.invoice_sent", "running.late", "runs", "run", "my_run.started", "événement"])
def test_any_other_name_can_be_emitted(name: str):
    assert check_custom_name(name) == name
    ids = {"run_id": None, "session_id": None, "agent_id": None}
    assert CustomEvent(name=name, **ids, timestamp=NOON).name == name


def test_a_name_that_cannot_be_stored_cannot_be_emitted():
    with pytest.raises(InvalidIdentifierError, match="the event name is empty"):
        check_custom_name("")


def test_a_custom_event_cannot_be_made_under_a_built_in_name():
    with pytest.raises(ValidationError, match=r"'run\.started' is a built-in event"):
        CustomEvent(name="run.started", run_id="r", session_id="s", agent_id="a", timestamp=NOON)


def test_every_recorded_and_every_live_event_belongs_to_a_run():
    assert issubclass(RecordedEvent, RunEvent)
    assert issubclass(LiveEvent, RunEvent)
    assert {name for name in NAMES if not issubclass(MODELS[name], RunEvent)} == {
        "session.acquired",
        "session.released",
        "config.reloaded",
        "actor.restarted",
        "store.record_quarantined",
        "runtime.loop_blocked",
        "subscriber.lagged",
        "runtime.shutdown_requested",
        "runtime.shutdown_started",
        "runtime.shutdown_completed",
    }
