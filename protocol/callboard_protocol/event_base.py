"""What every event shares, and the plain tuple an event is until somebody reads it."""

from typing import TypeAlias

from pydantic import AwareDatetime, BaseModel, ConfigDict

from callboard_protocol.base import JsonObject

RawEvent: TypeAlias = tuple[str, str | None, str | None, str | None, float, int | None, JsonObject | None]
"""An event as the bus keeps it: ``(name, run_id, session_id, agent_id, timestamp, sequence, fields)``.

The timestamp is in unix seconds; `fields` holds the model's other fields by name, None standing for none of them. For a
user's own event, which is always its record's first, it is the payload. Nobody may change it once it is published.
"""


class Event(BaseModel, frozen=True):
    """Something that happened.

    Attributes:
        name: what, such as ``tool.succeeded``.
        run_id: the run it belongs to; None where it belongs to no single run.
        session_id: the session it belongs to, if any.
        agent_id: the agent it belongs to, if any.
        timestamp: when, in UTC.
        sequence: which of the run's records it comes from, from 0 and without gaps; None where there is no record.
            For a live event: the run's last record by then.
        place: which of that record's events it is, from 0.
    """

    # Built on first use: a process that reads no events should not pay for eighty validators when it imports us.
    model_config = ConfigDict(extra="forbid", defer_build=True)

    name: str
    run_id: str | None
    session_id: str | None
    agent_id: str | None
    timestamp: AwareDatetime
    sequence: int | None = None
    place: int = 0

    @property
    def cursor(self) -> str | None:
        """Where a reader stands who has read it, for `runtime.events(run_id, after=cursor)`; None where it is in no
        record.
        """
        return None if self.sequence is None else f"r{self.sequence}.{self.place}"


class RunEvent(Event, frozen=True):
    """Something that happened in a run and is told once: no record keeps it."""

    run_id: str
    session_id: str
    agent_id: str


class RecordedEvent(RunEvent, frozen=True):
    """Something a record of the run says. It is published after the record is on disk and can be read again.

    Events of one record share its `sequence`. A run that is not durable has no records, and `sequence` is None.
    """


class LiveEvent(RunEvent, frozen=True):
    """Something that is news only while it happens: never read again, and the first that a slow subscriber loses.

    Attributes:
        step: the step it belongs to: scope and ordinal within the run.
        attempt: which attempt of that step, from 1.
        offset: how much of the step's stream came before: characters of a model's text, chunks of a tool's output.
    """

    step: str
    attempt: int = 1
    offset: int = 0
