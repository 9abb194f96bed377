"""The registry of what may be stored: schema ids, their models, their versions.

The numbers are on disk. An id is never given to another model, and a version is never changed once released: a
changed model gets the next version and an upcaster in `callboard_storage.migrations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from callboard_protocol import letters, messages, model_calls, named_accounts, records, runs, sessions, tools
from callboard_protocol.base import Frozen
from callboard_protocol.errors import UnknownSchemaError
from callboard_storage.migrations import UPCASTERS, Upcaster

CHUNK: Final = 64
"""The schema id of a chunk of a large payload: bytes, and no model."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A kind of stored model.

    Attributes:
        id: its number on disk.
        version: the version this release writes.
        model: what it decodes to.
        upcasters: by the version they start from.
    """

    id: int
    version: int
    model: type[Frozen]
    upcasters: Mapping[int, Upcaster] = field(default_factory=lambda: MappingProxyType({}))


class Schemas:
    """Every schema one release knows, by id and by model.

    Args:
        schemas: the schemas; ids and models must differ.
    """

    __slots__ = ("_by_id", "_by_model")

    def __init__(self, schemas: Iterable[Schema]) -> None:
        self._by_id: dict[int, Schema] = {}
        self._by_model: dict[type[Any], Schema] = {}
        for schema in schemas:
            if schema.id in self._by_id or schema.model in self._by_model:
                raise ValueError(f"schema {schema.id} ({schema.model.__name__}) is registered twice")
            self._by_id[schema.id] = schema
            self._by_model[schema.model] = schema

    def __iter__(self) -> Iterator[Schema]:
        return iter(self._by_id.values())

    def of_model(self, model: type[Any]) -> Schema | None:
        """The schema a model is written under; a subclass is written as the registered class it derives from."""
        schema = self._by_model.get(model)
        if schema is None:
            schema = next((self._by_model[base] for base in model.__mro__ if base in self._by_model), None)
        return schema

    def of_id(self, number: int) -> Schema:
        """The schema of an id found on disk.

        Raises:
            UnknownSchemaError: this release knows no such id.
        """
        schema = self._by_id.get(number)
        if schema is None:
            raise unknown(f"has schema {number}, which this release does not know")
        return schema

    def upcast(self, schema: Schema, version: int, body: dict[str, Any]) -> dict[str, Any]:
        """The body as the schema's own version has it.

        Raises:
            UnknownSchemaError: the version is newer than this release, or older than its oldest upcaster.
        """
        if version > schema.version:
            raise unknown(f"has version {version} of {schema.model.__name__}, this release reads {schema.version}")
        while version < schema.version:
            upcaster = schema.upcasters.get(version)
            if upcaster is None:
                raise unknown(f"has version {version} of {schema.model.__name__}, which no upcaster starts from")
            body = upcaster(body)
            version += 1
        return body


def unknown(what: str) -> UnknownSchemaError:
    """The error for a record that another release wrote; `what` ends the sentence that begins with the record."""
    return UnknownSchemaError(f"the record {what}", context={"what": what})


def _schema(number: int, version: int, model: type[Frozen]) -> Schema:
    return Schema(number, version, model, UPCASTERS.get(number, MappingProxyType({})))


SCHEMAS = Schemas(
    (
        _schema(1, 1, records.RunBegan),
        _schema(2, 1, records.RunResumed),
        _schema(3, 1, records.StepCompleted),
        _schema(4, 1, records.IntentRecorded),
        _schema(5, 1, records.ReservationRecorded),
        _schema(6, 1, records.OutcomeVoided),
        _schema(7, 1, records.RunSuspended),
        _schema(8, 1, records.DecisionMade),
        _schema(9, 1, records.SignalReceived),
        _schema(10, 1, records.SleepBegan),
        _schema(11, 1, records.SessionRewound),
        _schema(12, 1, records.TranscriptCompacted),
        _schema(13, 1, records.RunEnded),
        _schema(32, 1, sessions.SessionHead),
        _schema(33, 1, sessions.SessionCheckpoint),
        _schema(34, 1, sessions.RunEntry),
        _schema(35, 1, sessions.MemoryEntry),
        _schema(36, 1, letters.PostedDecision),
        _schema(37, 1, letters.PostedSignal),
        _schema(38, 1, letters.PostedCancellation),
        _schema(39, 1, named_accounts.AccountEntry),
        _schema(40, 1, named_accounts.AccountCharge),
        _schema(41, 1, named_accounts.AccountDraw),
    )
)
"""What this release reads and writes."""

PARTS: tuple[type[Any], ...] = (
    messages.DataPart,
    messages.LinkPart,
    messages.Message,
    messages.TextPart,
    messages.ToolCall,
    messages.Usage,
    model_calls.ModelResponse,
    records.AgentSnapshot,
    runs.ErrorDetails,
    runs.ErrorSnapshot,
    runs.RunArtifact,
    runs.RunBudget,
    runs.RunRequest,
    runs.RunUsage,
    tools.Allow,
    tools.Deny,
    tools.Happened,
    tools.NotHappened,
    tools.PendingCall,
)
"""What stored models are made of. Like them, these are written without their defaults."""
