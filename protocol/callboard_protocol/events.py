"""The event taxonomy: every event by name, and how a plain tuple becomes a model.

Publishing is hot and mostly unobserved, so the bus moves `RawEvent` tuples; `build_event` makes the model for a
subscriber that reads. docs/EVENTS.md lists what each event says.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeAlias, get_args

from pydantic import Field, field_validator

from callboard_protocol.base import check_identifier
from callboard_protocol.errors import UsageError
from callboard_protocol.event_base import Event, LiveEvent, RawEvent, RecordedEvent
from callboard_protocol.event_models_context import (
    ContextAssembleCompleted,
    ContextAssembleStarted,
    ContextCompactCompleted,
    ContextCompactFailed,
    ContextCompactStarted,
    ContextCreated,
    MemoryCompactCompleted,
    MemoryCompactFailed,
    MemoryCompactStarted,
    MemoryInjectCompleted,
    MemoryInjectFailed,
    MemoryInjectStarted,
    MemoryWritebackCompleted,
    MemoryWritebackFailed,
    MemoryWritebackStarted,
)
from callboard_protocol.event_models_llm import (
    LlmCalled,
    LlmDelta,
    LlmFailed,
    LlmPartial,
    LlmSucceeded,
    PatternPhase,
    PatternPlanCreated,
    PatternStepFinished,
    PatternStepStarted,
)
from callboard_protocol.event_models_run import (
    RunCancelled,
    RunCheckpointFailed,
    RunCheckpointSaved,
    RunCompleted,
    RunDurableIdempotencyWarning,
    RunFailed,
    RunParked,
    RunQueued,
    RunRecordSaved,
    RunRequested,
    RunResumeAttempted,
    RunResumeExhausted,
    RunResumeSucceeded,
    RunStarted,
    RunSuspended,
    RunValidated,
    SessionAcquired,
    SessionReleased,
    SessionRewound,
    SessionRunCompleted,
    SessionRunStarted,
)
from callboard_protocol.event_models_runtime import (
    ActorRestarted,
    ConfigReloaded,
    RuntimeLoopBlocked,
    RuntimeShutdownCompleted,
    RuntimeShutdownRequested,
    RuntimeShutdownStarted,
    StoreRecordQuarantined,
    SubscriberLagged,
)
from callboard_protocol.event_models_step import (
    AgentDelegated,
    AgentTransferred,
    ArtifactEmitted,
    BudgetCostSkipped,
    StepRestarted,
    UsageUpdated,
    ValidationRetry,
)
from callboard_protocol.event_models_tool import (
    ToolApprovalNeeded,
    ToolBackgroundCompleted,
    ToolBackgroundPolled,
    ToolBackgroundSubmitted,
    ToolBatchCompleted,
    ToolBatchStarted,
    ToolCalled,
    ToolCancelled,
    ToolDecided,
    ToolDelta,
    ToolFailed,
    ToolInDoubt,
    ToolPreflight,
    ToolProgress,
    ToolRetryRequested,
    ToolSucceeded,
)

BuiltInEvent: TypeAlias = (
    RunRequested
    | RunQueued
    | RunValidated
    | RunStarted
    | RunCompleted
    | RunFailed
    | RunCancelled
    | RunSuspended
    | RunParked
    | RunRecordSaved
    | RunCheckpointSaved
    | RunCheckpointFailed
    | RunResumeAttempted
    | RunResumeSucceeded
    | RunResumeExhausted
    | RunDurableIdempotencyWarning
    | SessionAcquired
    | SessionReleased
    | SessionRewound
    | SessionRunStarted
    | SessionRunCompleted
    | UsageUpdated
    | BudgetCostSkipped
    | ValidationRetry
    | StepRestarted
    | ArtifactEmitted
    | AgentDelegated
    | AgentTransferred
    | ToolPreflight
    | ToolCalled
    | ToolDelta
    | ToolProgress
    | ToolSucceeded
    | ToolFailed
    | ToolRetryRequested
    | ToolApprovalNeeded
    | ToolDecided
    | ToolInDoubt
    | ToolCancelled
    | ToolBatchStarted
    | ToolBatchCompleted
    | ToolBackgroundSubmitted
    | ToolBackgroundPolled
    | ToolBackgroundCompleted
    | LlmCalled
    | LlmDelta
    | LlmPartial
    | LlmSucceeded
    | LlmFailed
    | PatternStepStarted
    | PatternStepFinished
    | PatternPhase
    | PatternPlanCreated
    | ContextCreated
    | ContextAssembleStarted
    | ContextAssembleCompleted
    | ContextCompactStarted
    | ContextCompactCompleted
    | ContextCompactFailed
    | MemoryInjectStarted
    | MemoryInjectCompleted
    | MemoryInjectFailed
    | MemoryWritebackStarted
    | MemoryWritebackCompleted
    | MemoryWritebackFailed
    | MemoryCompactStarted
    | MemoryCompactCompleted
    | MemoryCompactFailed
    | ConfigReloaded
    | ActorRestarted
    | StoreRecordQuarantined
    | RuntimeLoopBlocked
    | SubscriberLagged
    | RuntimeShutdownRequested
    | RuntimeShutdownStarted
    | RuntimeShutdownCompleted
)
"""Every event Callboard publishes by itself."""

MODELS: Final[Mapping[str, type[Event]]] = MappingProxyType(
    {model.model_fields["name"].default: model for model in get_args(BuiltInEvent)}
)
"""The model of each built-in event, by name."""

EVENT_NAMES: Final = frozenset(MODELS)
"""Every built-in name."""

LIVE_ONLY: Final = frozenset(name for name, model in MODELS.items() if issubclass(model, LiveEvent))
"""What is news only while it happens: never read again, and the first that a slow subscriber loses."""

RECORDED: Final = frozenset(name for name, model in MODELS.items() if issubclass(model, RecordedEvent))
"""What a durable run's log says, and so can be read again."""

RESERVED_PREFIXES: Final = frozenset(name.partition(".")[0] for name in EVENT_NAMES)
"""The first words of built-in names; no name of a user's own begins with one and a dot."""


def check_custom_name(name: str) -> str:
    """The name unchanged, if a user may give it to an event.

    Raises:
        UsageError: it is a built-in name, or begins like one and could become one.
        InvalidIdentifierError: it cannot be stored.
    """
    check_identifier(name, "event name")
    prefix, dot, _ = name.partition(".")
    if dot and prefix in RESERVED_PREFIXES:
        what = "is a built-in event" if name in EVENT_NAMES else f"begins with {prefix + dot!r}, as built-in events do"
        raise UsageError(
            f"the event name {name!r} {what}",
            hint=f"choose a first word of your own, such as {'my_' + name!r}",
            context={"name": name, "reserved": sorted(RESERVED_PREFIXES)},
        )
    return name


def check_known_name(name: str) -> str:
    """The name unchanged, if some event may have it: a built-in one, or one of a user's own.

    Raises:
        UsageError: it begins like a built-in event's and is none; the error names the nearest.
        InvalidIdentifierError: no event can have it.
    """
    check_identifier(name, "event name")
    prefix, dot, _ = name.partition(".")
    if dot and prefix in RESERVED_PREFIXES and name not in EVENT_NAMES:
        near = difflib.get_close_matches(name, EVENT_NAMES, n=1)
        siblings = ", ".join(sorted(known for known in EVENT_NAMES if known.startswith(prefix + dot)))
        raise UsageError(
            f"there is no event {name!r}", hint=f"did you mean {near[0]!r}?" if near else f"one of: {siblings}"
        )
    return name


class CustomEvent(Event, frozen=True):
    """An event of a user's own, from `ctx.emit`.

    Attributes:
        payload: what was emitted, as plain data.
    """

    payload: Any = None

    @field_validator("name")
    @classmethod
    def _own(cls, name: str) -> str:
        return check_custom_name(name)


AnyEvent: TypeAlias = Annotated[
    Annotated[BuiltInEvent, Field(discriminator="name")] | CustomEvent, Field(union_mode="left_to_right")
]
"""Every event there can be. A model or `TypeAdapter` of it reads events back from JSON."""


def build_event(raw: RawEvent) -> Event:
    """The model of an event the bus keeps as a tuple.

    A name this release does not know becomes a `CustomEvent`, also where a newer release reserved it.

    Raises:
        pydantic.ValidationError: the fields are not those of the event's model.
    """
    name, run_id, session_id, agent_id, seconds, sequence, fields = raw
    timestamp = datetime.fromtimestamp(seconds, UTC)
    model = MODELS.get(name)
    if model is None:
        return CustomEvent.model_construct(
            name=name,
            run_id=run_id,
            session_id=session_id,
            agent_id=agent_id,
            timestamp=timestamp,
            sequence=sequence,
            payload=fields,
        )
    values: dict[str, Any] = dict(fields) if fields else {}
    values["run_id"] = run_id
    values["session_id"] = session_id
    values["agent_id"] = agent_id
    values["timestamp"] = timestamp
    values["sequence"] = sequence
    return model.model_validate(values)
