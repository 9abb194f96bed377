"""What the store refuses or cannot do."""

from typing import ClassVar

from callboard_protocol.errors.base import CallboardError, Fault


class StoreError(CallboardError):
    """The data directory could not do what was asked."""

    code = "store"
    fault: ClassVar[Fault] = "store"


class StoreOpenError(StoreError):
    """The data directory cannot be opened."""

    code = "store_open"
    default_hint = "give a directory of its own, on a local disk, that this process may write to"


class StoreVersionError(StoreOpenError):
    """The directory was written by a newer release, or by another engine."""

    code = "store_version"


class StoreInUseError(StoreOpenError):
    """Another process has the directory."""

    code = "store_in_use"
    default_retryable = True


class StoreClosedError(StoreError):
    """The store was closed."""

    code = "store_closed"
    default_hint = "open it first, and use it no longer than the Runtime that has it"


class StoreFullError(StoreError):
    """The byte quota, the disk or the map is full."""

    code = "store_full"
    default_hint = "free space (retention, delete sessions) or raise max_bytes"
    default_retryable = True


class FencedError(StoreError):
    """A write was refused: another owner has the session's lock, or its log moved on past what the writer followed."""

    code = "fenced"
    default_hint = "this writer's view is stale: reload the session"


class RunOvertakenError(StoreError):
    """A run's entry was not written: since it was read, somebody else has taken the run in, begun it or ended it."""

    code = "run_overtaken"
    default_hint = "look at the run as it is now: runtime.runs.get(run_id)"
    default_retryable = True


class SessionLockedError(StoreError):
    """A session's lock is held by another open store, in this process or in another one on the same directory."""

    code = "session_locked"
    default_hint = "wait until the run that holds it has ended"
    default_retryable = True


class DamagedRecordError(StoreError):
    """A stored record fails its checksum or does not decode; it is quarantined, the rest goes on.

    The context says where it is: `table`, `key`, and `session_id`, `run_id` and `sequence` where it has them.
    """

    code = "damaged_record"
    default_hint = "run `callboard store verify`; restore a backup"

    @property
    def what(self) -> str:
        """What is wrong with it: the end of a sentence that begins with the record."""
        return str(self.context.get("what", self.message))


class UnknownSchemaError(DamagedRecordError):
    """A record names a schema, or a version of one, that this release does not know."""

    code = "unknown_schema"
    default_hint = "the release that wrote it reads it, and so does a newer one"
