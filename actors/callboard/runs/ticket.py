"""What the supervisor keeps of a run that has not ended, and what callers wait on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from callboard.agents import Agent
from callboard.events.partial_answer import PartialAnswer
from callboard.models.base import Model
from callboard.runs.boundary import StepBoundary
from callboard.runs.deadline import Deadline
from callboard.runs.history import MessageView
from callboard.runs.mail import RunMail
from callboard.runs.stops import StopRun
from callboard_protocol.amounts import ZERO, Amount, raised
from callboard_protocol.errors import DamagedRecordError
from callboard_protocol.messages import Message
from callboard_protocol.runs import RunBudget, RunRequest, RunResult
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import FINAL, RunState

if TYPE_CHECKING:
    from callboard.live.storage_hold import StorageHold


_STILL_WAITS = frozenset({RunState.SUSPENDED, RunState.PARKED})
"""A run that stopped like this goes on as soon as what it waits for has come."""


@dataclass(frozen=True, slots=True)
class SharedSession:
    """What a run that works in the session of the run that delegated it sees of that session.

    Attributes:
        conversation: the messages of the scope it was delegated from, as they stood then.
        state: the session's state then, as plain data.
    """

    conversation: MessageView
    state: Any

    def without_instructions(self) -> Sequence[Message]:
        """The messages without the instructions of the agent that delegated."""
        view = self.conversation
        return view[1:] if len(view) and view[0].role == "system" else view


class RunTicket:
    """A run in this process.

    Attributes:
        entry: its row in the table of runs, as last written.
        agent: the agent it keeps, whatever is registered later.
        model: the model it asks; None where the agent has none.
        deps: what the caller brought for its tools; None where the agent's own are used.
        accepted: done once the run is on disk, or refused.
        being_written: done once the entry by which it is taken in is on disk or refused; None while none is on its way.
        result: done once the run has stopped.
        ended: done once it has ended for good, or this process lets go of it; not while it only waits for something.
        task: the attempt at work; None while it waits.
        stop: why the attempt is being stopped from outside; None while it is not.
        stopped_by: who asked for that.
        reason: why they asked.
        boundary: where its attempt can be left; None before it has opened its session.
        is_interrupting: whether a run that turns out to have its session is to be stopped for it.
        is_recovered: whether this is not the process's first look at it: an earlier process took it in, or it had ended
            and was resumed.
        deadline: of its `max_duration`; None where that has no limit.
        has_slot: whether it holds one of the runtime's slots.
        is_at_work: whether its attempt has begun, and is to be cancelled in order to stop it.
        is_pausing: whether a branch of its attempt waits, so that no time counts.
        is_elsewhere: whether another living process carries it.
        parked_for: what it lacked when it was last parked, as written; empty where it never was.
        unreadable: why its session cannot be read; None while it can.
        hold: how its attempt waits for room in the store; None where it never has.
        may_wait: whether its attempt may still wait: for that, or for a tool to finish.
        last_waits: how its attempt, being stopped, waits for tool calls to end.
        mail: what was said to it from outside.
        partials: answers that models are writing for whoever watches it, by call id.
        has_mail: whether there may be letters that `mail` does not hold.
        parent: the run that delegated it; None for all others.
        children: runs it delegated that have not ended.
        awaits: those of them that it waits for now.
        shared: what it sees of the session it shares with its parent; None where it has one of its own.
        spent_below: what each run that it delegated had spent when that was last counted, by run id.
        spent_before: what it had spent itself before it last began afresh.
    """

    __slots__ = (
        "_told",
        "accepted",
        "agent",
        "awaits",
        "being_written",
        "boundary",
        "children",
        "deadline",
        "deps",
        "ended",
        "entry",
        "has_mail",
        "has_slot",
        "hold",
        "is_at_work",
        "is_elsewhere",
        "is_interrupting",
        "is_pausing",
        "is_recovered",
        "last_waits",
        "mail",
        "may_wait",
        "model",
        "parent",
        "parked_for",
        "partials",
        "reason",
        "result",
        "shared",
        "spent_before",
        "spent_below",
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
        self.being_written: asyncio.Future[None] | None = None
        self.result: asyncio.Future[RunResult[Any]] = loop.create_future()
        self.ended: asyncio.Future[RunResult[Any]] = loop.create_future()
        self.task: asyncio.Task[None] | None = None
        self.stop: StopRun | None = None
        self.stopped_by = ""
        self.reason = ""
        self.has_slot = False
        self.is_at_work = False
        self.is_pausing = False
        self.is_elsewhere = False
        self.boundary: StepBoundary | None = None
        self.deadline: Deadline | None = None
        self.parked_for = ""
        self.unreadable: DamagedRecordError | None = None
        self.hold: StorageHold | None = None
        self.may_wait = True
        self.last_waits: set[asyncio.Task[Any]] = set()
        self.mail = RunMail()
        self.partials: dict[str, PartialAnswer] = {}
        self.has_mail = False
        self.parent: RunTicket | None = None
        self.children: dict[str, RunTicket] = {}
        self.awaits: set[str] = set()
        self.shared: SharedSession | None = None
        self.spent_below: dict[str, Amount] = {}
        self.spent_before = ZERO
        self._told: Callable[[bool, bool], object] | None = None

    @property
    def request(self) -> RunRequest:
        """What was asked."""
        return self.entry.request

    @property
    def account(self) -> str | None:
        """The named account that it draws on, or the root of its tree; None where that draws on none."""
        return self.request.account if self.parent is None else self.parent.account

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
        loop = asyncio.get_running_loop()
        if self.result.done():
            self.result = loop.create_future()
        if self.ended.done():
            self.ended = loop.create_future()
        self.tell_whether_it_waits()

    @property
    def is_nested(self) -> bool:
        """Whether it works in the session of the run that delegated it, under that run's lock."""
        return self.parent is not None and self.parent.session_id == self.session_id

    @property
    def depth(self) -> int:
        """How many runs above it wait for it."""
        return 0 if self.parent is None else self.parent.depth + 1

    def limits(self, agent: Agent[Any, Any]) -> RunBudget:
        """What the run may use up: what it was last resumed with, what was asked for, or else the agent's; and what it
        had spent before it began afresh, which counts for whatever it draws on and not for itself.
        """
        return raised(self.entry.budget or self.request.budget or agent.budget, self.spent_before)

    def stop_with(self, stop: StopRun, *, by: str = "", reason: str = "") -> None:
        """Stop the attempt at work. Only the first call counts: a second cancellation would cut its ending short.

        Args:
            stop: how.
            by: who asked for it.
            reason: why they asked.
        """
        if self.task is not None and self.stop is None:
            self.stop, self.stopped_by, self.reason = stop, by, reason
            # A task that is cancelled before its first turn never runs; an attempt looks at `stop` when it begins.
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

    def answer(self, result: RunResult[Any]) -> None:
        """Tell whoever waits for the run; what it still has to write follows."""
        self.accept()
        if not self.result.done():
            self.result.set_result(result)

    def finish(self, result: RunResult[Any]) -> None:
        """The run has stopped."""
        self._leave_parent()
        self.answer(result)
        if self.entry.state in _STILL_WAITS:
            self.tell_whether_it_waits()
        elif not self.ended.done():
            self.ended.set_result(result)

    def fail(self, error: BaseException) -> None:
        """The run has stopped, and nothing can be said of it but the error."""
        self._leave_parent()
        self.accept(error)
        for waiting in (self.result, self.ended):
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # there may be nobody to read it

    def why_below(self) -> tuple[str, str]:
        """Why the runs that it delegated are stopped with it, and who asked for that: in a tree, whoever stopped the
        topmost, and for their own reason.
        """
        if self.stop is None:
            return f"run {self.run_id}, which delegated it, waits for it no more", ""
        if self.stop.stop_reason == "cancelled":
            return self.reason or f"run {self.run_id}, which delegated it, was cancelled", self.stopped_by
        return f"run {self.run_id}, which delegated it, ended as {self.stop.stop_reason}", self.stopped_by

    def pause(self, pauses: bool) -> None:
        """A branch of its attempt waits from now on, or none does any more: meanwhile its time stands still."""
        self.is_pausing = pauses
        if self.deadline is not None:
            (self.deadline.pause if pauses else self.deadline.go_on)()
        self.tell_whether_it_waits()

    def tell_parent(self, told: Callable[[bool, bool], object] | None) -> None:
        """Have whoever waits for this run told whether it only waits itself, and whether its time stands still, now and
        whenever that changes; None for nobody any more.
        """
        self._told = told
        self.tell_whether_it_waits()

    def tell_whether_it_waits(self) -> None:
        """It has gone to work, or has stopped, or waits for something."""
        if self._told is not None:
            self._told(self.task is None and self.entry.state in _STILL_WAITS, self.task is None or self.is_pausing)

    def _leave_parent(self) -> None:
        parent = self.parent
        if parent is None or self.entry.state in _STILL_WAITS:
            return
        parent.awaits.discard(self.run_id)
        if self.entry.state in FINAL:
            parent.children.pop(self.run_id, None)
            parent.spent_below[self.run_id] = Amount(*self.entry.spent)
