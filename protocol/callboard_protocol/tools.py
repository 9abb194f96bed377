"""What is said about tool calls: how they behave, what came of them, what was decided."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field

from callboard_protocol.base import Frozen, JsonObject

ResultT = TypeVar("ResultT")

OnInDoubt = Literal["ask", "tell", "retry", "fail"]
Isolation = Literal["loop", "thread", "process"]
Question = Literal["approval", "in_doubt"]
"""What can be asked about a call: whether to make it, and whether it took effect."""


@dataclass(frozen=True)
class Allow:
    """Let the call go ahead."""

    kind: Literal["allow"] = "allow"


@dataclass(frozen=True)
class Deny:
    """Do not make the call; the model is told why.

    Attributes:
        reason: what the model reads.
    """

    reason: str = ""
    kind: Literal["deny"] = "deny"


@dataclass(frozen=True)
class Happened(Generic[ResultT]):
    """The call in doubt did take effect.

    Attributes:
        result: what it returned.
    """

    result: ResultT
    kind: Literal["happened"] = "happened"


@dataclass(frozen=True)
class NotHappened:
    """The call in doubt took no effect: it can be made again."""

    kind: Literal["not_happened"] = "not_happened"


@dataclass(frozen=True)
class Unknown:
    """Nobody can say whether the call took effect."""

    kind: Literal["unknown"] = "unknown"


Decision = Annotated[Allow | Deny | Happened[Any] | NotHappened, Field(discriminator="kind")]
Reconciliation = Happened[Any] | NotHappened | Unknown


class PendingCall(Frozen):
    """What a suspended or parked run waits for.

    Attributes:
        reason: ``approval`` or ``in_doubt`` for a call; ``parked`` where the run cannot start; ``retry`` where it
            is tried again after an error that can pass; ``storage_full`` where the store has no room for it.
        call_id: the call to decide; empty where none is.
        tool: the tool's name.
        arguments: what it was called with.
        arguments_digest: what a decision is bound to.
        message: why, in a sentence.
        attempt: which attempt of the call is asked about.
        expires_at: when nobody will be asked any more and the call is denied, in unix seconds; None is never.
    """

    reason: Question | Literal["parked", "retry", "storage_full"]
    call_id: str = ""
    tool: str = ""
    arguments: JsonObject = {}
    arguments_digest: str = ""
    message: str = ""
    attempt: int = 1
    expires_at: float | None = None


class ToolSpecification(Frozen):
    """A tool's declared behaviour, as records and events show it.

    Attributes:
        name: its name.
        read_only: it changes nothing, so it may be called again freely.
        idempotent: calling it twice with the same idempotency key has one effect.
        on_in_doubt: what to do when nobody knows whether it took effect; the agent's answer where None.
        timeout: seconds one attempt may take; None is no limit.
        isolation: where it runs.
    """

    name: str
    read_only: bool = False
    idempotent: bool = False
    on_in_doubt: OnInDoubt | None = None
    timeout: float | None = None
    isolation: Isolation = "loop"

    @property
    def may_be_repeated(self) -> bool:
        """Whether a call whose outcome is unknown can simply be made again."""
        return self.read_only or self.idempotent


class BatchItem(Frozen):
    """One call of a batch.

    Attributes:
        item: the caller's name for it; results keep the order of the items.
        tool: the tool's name.
        arguments: what to call it with.
    """

    item: str
    tool: str
    arguments: JsonObject = {}


class BackgroundJob(Frozen):
    """A tool call that goes on after the step that submitted it.

    Attributes:
        job_id: the call id of the submitting step.
        run_id: the run that submitted it.
        session_id: its session.
        tool: the tool's name.
        reference: what the tool needs to find the job again.
        status: where it stands.
        result: what it returned, once succeeded.
        error: what went wrong, once failed.
    """

    job_id: str
    run_id: str
    session_id: str
    tool: str
    reference: Any = None
    status: Literal["submitted", "running", "succeeded", "failed", "cancelled"] = "submitted"
    result: Any = None
    error: str | None = None
