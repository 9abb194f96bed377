"""Files of every released schema version decode today to the models they were written from.

A new schema, or a new version of one, gets a file of its own: run this module as a script and it writes those that are
missing. A file that exists is never written again.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import MISSING, fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints
from uuid import UUID

import pytest
from pydantic import BaseModel

from callboard_protocol import records
from callboard_protocol.base import Frozen
from callboard_protocol.letters import PostedCancellation, PostedDecision, PostedSignal
from callboard_protocol.messages import DataPart, LinkPart, Message, TextPart, ToolCall, Usage
from callboard_protocol.model_calls import ModelResponse
from callboard_protocol.named_accounts import AccountCharge, AccountDraw, AccountEntry
from callboard_protocol.records import Record
from callboard_protocol.runs import ErrorDetails, ErrorSnapshot, RunArtifact, RunBudget, RunRequest, RunUsage
from callboard_protocol.sessions import MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_protocol.states import RunState
from callboard_protocol.tools import Allow, Deny, Happened, NotHappened, PendingCall
from callboard_storage.codec import decode, encode
from callboard_storage.schemas import PARTS, SCHEMAS

GOLDEN = Path(__file__).parent.parent / "golden"
DEFAULTS = GOLDEN / "defaults.json"
KEY = b"golden\0" + (7).to_bytes(8, "big")

PLAIN = {
    "text": "Zo\u00eb",
    "bytes": b"\x00\xff",
    "numbers": [0, -1, 0.5, 2**63, -(2**70)],
    "nothing": None,
    "yes": True,
    "when": dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC),
    "day": dt.date(2024, 2, 29),
    "hour": dt.time(23, 59, 1),
    "span": dt.timedelta(days=1, seconds=2, microseconds=3),
    "price": Decimal("19.90"),
    "id": UUID(int=5),
    "keys": {7: "a number", b"k": "bytes", None: "nothing"},
}
"""Every kind of plain data there is."""

TALK = (
    Message.user((TextPart(text="look"), DataPart(media_type="image/png", data=b"\x89PNG", name="a.png"))),
    Message.user((LinkPart(url="https://example.org/a", media_type="text/html"),)),
    Message.assistant("let me see", (ToolCall(name="look", arguments={"at": [1, 2]}, id="call-1"),)),
    Message.tool("seen", tool_call_id="call-1", name="look"),
)
USAGE = RunUsage(
    llm_calls=3,
    tool_calls=2,
    input_tokens=100,
    output_tokens=20,
    input_tokens_cached=50,
    input_tokens_cache_creation=10,
    cost_usd=0.25,
    cost_breakdown={"model": 0.25},
    ttft=0.1,
    llm_latency_p50=0.5,
    llm_latency_p95=0.75,
    llm_retry_count=1,
)
ERROR = ErrorDetails(
    code="tool_failed",
    message="no luck",
    hint="try again",
    docs_url="https://example.org/docs",
    retryable=True,
    context=PLAIN,
    cause=ErrorDetails(code="ValueError", message="inner"),
)
SNAPSHOT = ErrorSnapshot(
    type="ValueError",
    message="no luck",
    traceback="Traceback ...",
    tool_calls=("look(call-1)",),
    last_messages=TALK[2:],
    usage=USAGE,
    state=PLAIN,
    at=10.5,
)
PENDING = PendingCall(
    reason="approval",
    call_id="run:3",
    tool="pay",
    arguments={"amount": 5},
    arguments_digest="abc",
    message="dear",
    attempt=2,
    expires_at=1800000000.5,
)
REQUEST = RunRequest(
    agent_id="agent",
    session_id="session",
    run_id="run",
    input_parts=(TextPart(text="look"), LinkPart(url="https://example.org")),
    parent_run_id="parent",
    metadata=PLAIN,
    context_hints={"short": True},
    approvals={"*": Deny("never"), "look": Allow(), "run:1": Happened({"ok": 1}), "run:2": NotHappened()},
    budget=RunBudget(
        max_steps=5,
        max_duration=dt.timedelta(minutes=1),
        max_tool_calls=6,
        max_total_tokens=7,
        max_cost_usd=0.5,
        max_validation_retries=1,
        max_resume_attempts=2,
    ),
    account="account",
    durable=False,
    on_busy="reject",
    on_crash="fail",
    resume_from_checkpoint="run:step:4",
)
AGENT = records.AgentSnapshot(
    version="2", model="model", instructions="be kind", tools=("look", "pay"), pattern="react"
)
RESPONSE = ModelResponse[Any](
    text="let me see",
    tool_calls=TALK[2].tool_calls,
    usage=Usage(input_tokens=9, output_tokens=8, input_tokens_cached=7, input_tokens_cache_creation=6, cost_usd=0.125),
    finish_reason="tool_calls",
    model="model-1",
)
COMMON = {"run_id": "run", "ordinal": 4, "at": 1700000000.25}

EXAMPLES: tuple[Frozen, ...] = (
    records.RunBegan(
        **COMMON,
        request=REQUEST,
        agent=AGENT,
        state_sequence=3,
        transcript_length=12,
        messages=TALK[:1],
        nested=True,
        attempt=3,
        strikes=1,
    ),
    records.RunResumed(**COMMON, attempt=2, strikes=1, agent=AGENT, in_flight="3", running=1.5),
    records.StepCompleted(
        **COMMON,
        step="a/2.1",
        kind="tool",
        name="look",
        fit=b"\x01" * 16,
        value=PLAIN,
        response=RESPONSE,
        error=ERROR,
        error_is_output=True,
        tool_call_id="call-1",
        in_transcript=True,
        messages=TALK,
        state=[PLAIN],
        state_changed=True,
        artifact=RunArtifact(name="report", kind="text/plain", payload=b"bytes", metadata=PLAIN),
        clock=(1.5, 2.5),
        duration=0.25,
        running=3.5,
        attempt=2,
    ),
    records.IntentRecorded(
        **COMMON,
        step="3",
        tool="pay",
        arguments={"amount": 5},
        arguments_digest=b"\x02" * 16,
        tool_call_id="call-2",
        attempt=2,
        clock=(1.5,),
    ),
    records.ReservationRecorded(**COMMON, step="3", tokens=1000, cost_usd=0.5),
    records.OutcomeVoided(**COMMON, step="3", reason="resumed"),
    records.RunSuspended(**COMMON, pending=(PENDING,)),
    records.DecisionMade(
        **COMMON,
        step="3",
        tool="pay",
        decision=Happened(PLAIN),
        reason="in_doubt",
        attempt=2,
        arguments_digest=b"\x03" * 16,
        by="ann",
        note="seen it",
    ),
    records.SignalReceived(**COMMON, channel="mail", value=PLAIN),
    records.SleepBegan(**COMMON, step="4", wake_at=1800000000.5, clock=(2.5,)),
    records.SessionRewound(
        **COMMON,
        checkpoint_id="mine",
        to_sequence=2,
        transcript_length=3,
        state_sequence=1,
        artifact_count=4,
        usage=USAGE,
        messages=TALK[2:],
        forked_from="source",
    ),
    records.TranscriptCompacted(**COMMON, replaced=2, summary=TALK[:1], assembler="head+tail"),
    records.RunEnded(
        **COMMON,
        stop_reason="failed",
        output=PLAIN,
        usage=USAGE,
        error_details=ERROR,
        error_snapshot=SNAPSHOT,
        messages=TALK[3:],
        running=9.5,
        cancelled_by="ann",
        reason="enough",
    ),
    SessionHead(
        session_id="session",
        next_sequence=8,
        transcript_length=7,
        artifact_count=6,
        state_sequence=5,
        usage=USAGE,
        run_count=4,
        active_run="run",
        last_run="run",
        fence=3,
        created_at=2.5,
        updated_at=3.5,
    ),
    SessionCheckpoint(
        checkpoint_id="run:step:4",
        session_id="session",
        run_id="run",
        step_index=4,
        log_position=7,
        state=PLAIN,
        transcript_length=6,
        artifact_count=5,
        usage=USAGE,
        created_at=4.5,
    ),
    RunEntry(
        request=REQUEST,
        request_digest=b"\x04" * 16,
        state=RunState.SUSPENDED,
        order=1700000000000000001,
        began_sequence=2,
        attempts=2,
        strikes=1,
        stop_reason="suspended",
        pending=(PENDING,),
        problem=ERROR,
        submitted_at=5.5,
        ended_at=6.5,
        spent=(3, 2, 1200, 4_500_000),
        charged=(1, 0, 200, 500_000),
        crashed=True,
        retries=2,
        budget=REQUEST.budget,
    ),
    MemoryEntry(name="note", value=PLAIN, updated_at=7.5),
    PostedDecision(
        run_id="run",
        at=8.5,
        step="3",
        reason="in_doubt",
        attempt=2,
        tool="pay",
        decision=Happened({"paid": 5}),
        arguments_digest=b"digest",
        by="ann",
        note="looked it up",
    ),
    PostedSignal(run_id="run", at=8.5, number=7, channel="mail", value=PLAIN),
    PostedCancellation(run_id="run", at=8.5, by="ann", reason="enough"),
    AccountEntry(
        name="team",
        budget=RunBudget(max_steps=9),
        spent=(3, 2, 1200, 4_500_000),
        opened_at=9.5,
        used=(2, 1, 300, 1_000_000),
        reserved=(1, 0, 4096, 1),
    ),
    AccountCharge(account="team", run_id="run", attempt=2, amount=(1, 0, 200, 500_000)),
    AccountDraw(account="team", run_id="run", owner=b"0123456789abcdef", used=(2, 1, 300, 7), reserved=(1, 0, 4096, 1)),
)
"""One model of every schema, with every field away from its default."""

BY_MODEL = {type(example): example for example in EXAMPLES}


def path_of(number: int, name: str, version: int) -> Path:
    return GOLDEN / f"{number:03}-{name}-v{version}.bin"


@pytest.mark.parametrize("schema", list(SCHEMAS), ids=lambda schema: schema.model.__name__)
def test_a_stored_frame_decodes_to_the_model_it_was_written_from(schema):
    for version in range(1, schema.version + 1):
        frame = path_of(schema.id, schema.model.__name__, version).read_bytes()
        assert decode(KEY, frame, schema.model) == BY_MODEL[schema.model]


@pytest.mark.parametrize("schema", list(SCHEMAS), ids=lambda schema: schema.model.__name__)
def test_a_changed_encoding_needs_a_new_version(schema):
    frame = path_of(schema.id, schema.model.__name__, schema.version).read_bytes()
    assert encode(KEY, BY_MODEL[schema.model]) == frame, (
        "stored records of this version look different: give the schema a new version and an upcaster"
    )


@pytest.mark.parametrize("schema", list(SCHEMAS), ids=lambda schema: schema.model.__name__)
def test_every_field_is_away_from_its_default(schema):
    example = BY_MODEL[schema.model]
    known = type(example).model_fields
    same = [
        name
        for name, field in known.items()
        if not field.is_required() and getattr(example, name) == field.get_default(call_default_factory=True)
    ]
    assert same == [], "extend the example, so that its file covers the field"


def test_a_changed_default_needs_a_new_version():
    """Bodies are written without defaults, so no file of examples can show that one changed."""
    assert defaults() == json.loads(DEFAULTS.read_text()), (
        "stored records mean something else: give every schema that holds the field a new version and an upcaster "
        "that writes the old default out, then write the file of defaults anew"
    )


def test_every_kind_of_record_has_a_schema():
    kinds = {kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, Record)}
    assert kinds - {Record} <= {schema.model for schema in SCHEMAS}
    assert set(get_args(records.LogRecord)) == kinds - {Record}


def test_everything_stored_models_are_made_of_is_registered():
    found: set[type[Any]] = set()

    def visit(annotation: Any) -> None:
        for argument in get_args(annotation):
            visit(argument)
        if isinstance(annotation, type) and annotation is not NoneType and annotation not in found:
            if issubclass(annotation, BaseModel):
                found.add(annotation.__pydantic_generic_metadata__["origin"] or annotation)
                for field in annotation.model_fields.values():
                    visit(field.annotation)
            elif is_dataclass(annotation):
                found.add(annotation)
                for hint in get_type_hints(annotation).values():
                    visit(hint)
        origin = getattr(annotation, "__origin__", None)
        if isinstance(origin, type) and is_dataclass(origin):
            visit(origin)

    models = {schema.model for schema in SCHEMAS}
    for model in models:
        visit(model)
    assert found - models == set(PARTS)


def test_no_file_is_left_over():
    expected = {
        path_of(schema.id, schema.model.__name__, version)
        for schema in SCHEMAS
        for version in range(1, schema.version + 1)
    }
    assert set(GOLDEN.glob("*.bin")) == expected


def defaults() -> dict[str, dict[str, str]]:
    """What every field of a stored model means where it is not written."""
    found: dict[str, dict[str, str]] = {}
    for model in [schema.model for schema in SCHEMAS] + list(PARTS):
        if is_dataclass(model):
            values = {one.name: one.default for one in fields(model) if one.default is not MISSING}
        else:
            values = {
                name: field.get_default(call_default_factory=True)
                for name, field in model.model_fields.items()
                if not field.is_required()
            }
        found[model.__name__] = {name: repr(value) for name, value in values.items()}
    return found


def write_missing() -> None:
    """Write the files of schema versions that have none."""
    GOLDEN.mkdir(exist_ok=True)
    for schema in SCHEMAS:
        path = path_of(schema.id, schema.model.__name__, schema.version)
        if not path.exists():
            path.write_bytes(encode(KEY, BY_MODEL[schema.model]))
    if not DEFAULTS.exists():
        DEFAULTS.write_text(json.dumps(defaults(), indent=1) + "\n")


if __name__ == "__main__":
    write_missing()
