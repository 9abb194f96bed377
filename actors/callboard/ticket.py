"""What the supervisor keeps of a run that has not ended, and what callers wait on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from callboard.agents import Agent
from callboard.boundary import StepBoundary
from callboard.clock import Timer
from callboard.mail import RunMail
from callboard.models.base import Model
from callboard.stops import StopRun
from callboard_protocol.errors import DamagedRecordError
from callboard_protocol.runs import RunBudget, RunRequest, RunResult
from callboard_protocol.sessions import RunEntry

if TYPE_CHECKING:
    from callboard.storage_hold import StorageHold


class RunTicket:
    """A run in this process.

    Attributes:
        entry: its row in the table of runs, as last written.
        agent: the agent it keeps, whatever is registered later.
        model: the model it asks; None where the agent has none.
        deps: what the caller brought for its tools; None where the agent's own are used.
        accepted: done once the run is on disk, or refused.
        result: done once the run has stopped.
        task: the attempt at work; None while it waits.
        stop: why the attempt is being stopped from outside; None while it is not.
        stopped_by: who asked for that.
        reason: why they asked.
        boundary: where its attempt can be left; None before it has opened its session.
        is_interrupting: whether a run that turns out to have its session is to be stopped for it.
        is_recovered: whether this is not the process's first look at it: an earlier process took it in, or it had ended
            and was resumed.
        deadline: the timer of its `max_duration`.
        has_slot: whether it holds one of the runtime's slots.
        is_at_work: whether its attempt has had its first turn.
        is_elsewhere: whether another living process carries it.
        parked_for: what it lacked when it was last parked, as written; empty where it never was.
        unreadable: why its session cannot be read; None while it can.
        hold: how its attempt waits for room in the store; None where it never has.
        may_wait: whether its attempt may still wait: for that, or for a tool to finish.
        last_waits: how its attempt, being stopped, waits for tool calls to end.
        mail: what was said to it from outside.
        has_mail: whether there may be letters that `mail` does not hold.
    """

    __slots__ = (
        "accepted",
        "agent",
        "boundary",
        "deadline",
        "deps",
        "entry",
        "has_mail",
        "has_slot",
        "hold",
        "is_at_work",
        "is_elsewhere",
        "is_interrupting",
        "is_recovered",
        "last_waits",
        "mail",
        "may_wait",
        "model",
        "parked_for",
        "reason",
        "result",
        "stop",
        "stopped_by",
        "task",
        "unreadable",
    )

    def __init__(
        self,
        entry: RunEntry,
        agent: Agent[Any, Any] | None,
        model: Model | None = None,
        deps: Any = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.entry = entry
        self.agent = agent
        self.model = model
        self.deps = deps
        self.is_interrupting = False
        self.is_recovered = False
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.result: asyncio.Future[RunResult[Any]] = loop.create_future()
        self.task: asyncio.Task[None] | None = None
        self.stop: StopRun | None = None
        self.stopped_by = ""
        self.reason = ""
        self.has_slot = False
        self.is_at_work = False
        self.is_elsewhere = False
        self.boundary: StepBoundary | None = None
        self.deadline: Timer | None = None
        self.parked_for = ""
        self.unreadable: DamagedRecordError | None = None
        self.hold: StorageHold | None = None
        self.may_wait = True
        self.last_waits: set[asyncio.Task[Any]] = set()
        self.mail = RunMail()
        self.has_mail = False

    @property
    def request(self) -> RunRequest:
        """What was asked."""
        return self.entry.request

    @property
    def run_id(self) -> str:
        """The run."""
        return self.entry.request.run_id

    @property
    def session_id(self) -> str:
        """Its session."""
        return self.entry.request.session_id

    def begin_again(self, entry: RunEntry) -> None:
        """The run has stopped, and goes on: who waits from now on waits for what comes of that.

        Args:
            entry: as it is in the queue.
        """
        self.entry = entry
        self.stop = None
        self.stopped_by = self.reason = ""
        self.has_mail = True
        if self.result.done():
            self.result = asyncio.get_running_loop().create_future()

    def limits(self, agent: Agent[Any, Any]) -> RunBudget:
        """What the run may use up: what it was last resumed with, what was asked for, or else the agent's."""
        return self.entry.budget or self.request.budget or agent.budget

    def stop_with(self, stop: StopRun) -> None:
        """Stop the attempt at work. Only the first call counts: a second cancellation would cut its ending short."""
        if self.task is not None and self.stop is None:
            self.stop = stop
            # A task that is cancelled before its first turn never runs; the attempt looks at `stop` when it begins.
            if self.is_at_work and (self.hold is None or not self.hold.is_suspended or self.hold.stop()):
                self.task.cancel()

    @property
    def is_held(self) -> bool:
        """Whether its attempt waits for room in the store."""
        return self.hold is not None and self.hold.is_suspended

    def leave(self) -> None:
        """Leave the run to a later start as soon as none of its steps is in flight. One that is not durable goes on: no
        start would know of it.
        """
        if not self.request.durable:
            return
        if self.boundary is None:
            self.interrupt()
        else:
            self.boundary.close()

    def interrupt(self) -> None:
        """Leave the run to a later start, now: what it holds for want of room is given up."""
        self.may_wait = False
        self.stop_with(StopRun("interrupted"))
        for waiting in tuple(self.last_waits):
            waiting.cancel()
        if self.hold is not None and self.hold.is_suspended:
            self.hold.give_up()

    def accept(self, problem: BaseException | None = None) -> None:
        """The run is on disk, or was refused; only the first answer counts."""
        if self.accepted.done():
            return
        if problem is None:
            self.accepted.set_result(None)
        else:
            self.accepted.set_exception(problem)
            # The refusal may have nobody to read it: whoever submitted a recovered run is gone.
            self.accepted.exception()

    def finish(self, result: RunResult[Any]) -> None:
        """The run has stopped."""
        self.accept()
        if not self.result.done():
            self.result.set_result(result)
