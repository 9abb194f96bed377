"""The events of the runtime itself; most belong to no run."""

from typing import Literal

from callboard_protocol.event_base import Event
from callboard_protocol.runs import ErrorDetails


class ConfigReloaded(Event, frozen=True):
    """A configuration file was read again. Runs in flight keep the agent they began with.

    Attributes:
        path: the file.
        added: ids of agents that are new.
        changed: ids of agents that differ.
        removed: ids of agents that are gone.
    """

    name: Literal["config.reloaded"] = "config.reloaded"
    path: str
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class ActorRestarted(Event, frozen=True):
    """An actor failed and a new one took its place, its state reloaded from the store.

    Attributes:
        actor: which one.
        error: why it failed.
        restarts: how often it was restarted within the window that bounds restarts.
    """

    name: Literal["actor.restarted"] = "actor.restarted"
    actor: str
    error: ErrorDetails
    restarts: int = 1


class StoreRecordQuarantined(Event, frozen=True):
    """A stored record cannot be read. It costs nothing else, and its bytes stay where they are.

    The event's session and run are those the record belongs to, as far as its place says.

    Attributes:
        table: where it is: ``log``, ``heads``, ``checkpoints``, ``memory`` or ``runs``.
        key: which one: ``session#sequence``, ``session/name``, or an id.
        code: ``damaged_record``, or ``unknown_schema`` where a newer release wrote it.
        message: what is wrong with it.
        hint: what to do about it.
    """

    name: Literal["store.record_quarantined"] = "store.record_quarantined"
    table: str
    key: str
    code: str
    message: str
    hint: str = ""


class RuntimeLoopBlocked(Event, frozen=True):
    """Something kept the event loop from turning: every session waited for it. Published once the loop turns again.

    The event's run, session and agent are those whose code that was, as far as the stack says.

    Attributes:
        duration: seconds the loop stood still.
        stack: where the loop's thread was meanwhile, the innermost frame last.
        culprit: the innermost line of it.
        step: the step of the run.
        tool: the tool that was called in it.
    """

    name: Literal["runtime.loop_blocked"] = "runtime.loop_blocked"
    duration: float
    stack: str = ""
    culprit: str = ""
    step: str | None = None
    tool: str | None = None


class SubscriberLagged(Event, frozen=True):
    """A subscriber reads too slowly and lost events; this stands where they would have been.

    Attributes:
        missed: how many it lost here.
        subscriber: its name, where it has one.
    """

    name: Literal["subscriber.lagged"] = "subscriber.lagged"
    missed: int
    subscriber: str = ""


class RuntimeShutdownRequested(Event, frozen=True):
    """The runtime is to close: it takes no new runs from here on.

    Attributes:
        reason: who asked, such as ``aclose`` or the name of a signal.
        active_runs: runs that are running.
        queued_runs: runs that wait for their turn, and stay in the queue for the next start.
        suspended_runs: runs that wait for a decision or for room in the store.
    """

    name: Literal["runtime.shutdown_requested"] = "runtime.shutdown_requested"
    reason: str = ""
    active_runs: int = 0
    queued_runs: int = 0
    suspended_runs: int = 0


class RuntimeShutdownStarted(Event, frozen=True):
    """Runs have until the drain timeout to reach the end of their step, and those that are not durable their own end.

    Attributes:
        active_runs: runs that are running.
        drain_timeout: seconds they have.
    """

    name: Literal["runtime.shutdown_started"] = "runtime.shutdown_started"
    active_runs: int = 0
    drain_timeout: float = 0.0


class RuntimeShutdownCompleted(Event, frozen=True):
    """No run is at work any more; the runtime is closed.

    Attributes:
        interrupted_runs: runs that the next start carries on, those that were queued included.
        duration: seconds since it was requested.
    """

    name: Literal["runtime.shutdown_completed"] = "runtime.shutdown_completed"
    interrupted_runs: int = 0
    duration: float = 0.0
