"""What is said to the `RunSupervisor`."""

from collections.abc import Awaitable, Callable
from typing import Any

from callboard_protocol.amounts import Amount, Limits
from callboard_protocol.commands.base import Command, Live, Request


class SubmitRun(Request[Any]):
    """Take a run in. Answered once it is on disk (if it is durable) with its `RunTicket`.

    Attributes:
        request: the `RunRequest`.
        agent: the `Agent` as it is now; the run keeps it.
        model: the `Model` it uses, which may stand in for the agent's own.
        deps: what its tools get, where the caller brings its own; None otherwise.
        is_new: the run id was generated, so nobody can have submitted it before.
        awaited_by: the run whose code waits for this one; empty where no run does.
    """

    request: Live[Any]
    agent: Live[Any]
    model: Live[Any] = None
    deps: Live[Any] = None
    is_new: bool = False
    awaited_by: str = ""


class DelegateRun(Request[Any]):
    """Take in a run that another one waits for; that one leaves its slot until it asks to have it back. Answered with
    the `RunTicket` of the child: a new one, the one an earlier attempt began, or one that has ended. None while the
    runtime is closing.

    Attributes:
        parent_id: the run that waits, which is at work.
        request: the `RunRequest` of the child; its run id is the call's.
        agent: the `Agent` that does the work; None where none is registered, and the child, which is on disk, is parked
            until one is.
        model: the `Model` it uses.
        deps: what its tools get: what was given with the call, or else the `InheritedDeps` of the run that waits.
        shared: the `SharedSession`, where it works in its parent's session; None otherwise.
    """

    parent_id: str
    request: Live[Any]
    agent: Live[Any]
    model: Live[Any] = None
    deps: Live[Any] = None
    shared: Live[Any] = None


class StopDelegated(Request[None]):
    """Stop the runs that a run has delegated, with all below them. Answered once they have stopped.

    Attributes:
        parent_id: the run that delegated them.
        child_id: only this one; all where None.
        leaves: leave them to be carried on with the run itself, where it is only interrupted; they are cancelled
            otherwise.
        looks_them_up: whether there may be some on disk that nobody has taken over.
        reason: why; their results say it.
        by: who asked; their results say it.
    """

    parent_id: str
    child_id: str | None = None
    leaves: bool = False
    looks_them_up: bool = False
    reason: str = ""
    by: str = ""


class FindTicket(Request[Any]):
    """The `RunTicket` of an unfinished run of this process; None if there is none.

    Attributes:
        run_id: which.
    """

    run_id: str


class FollowRun(Request[Any]):
    """The `RunTicket` of an unfinished run that this process or another living one has; None if there is none.

    Attributes:
        run_id: which.
        awaited_by: the run whose code waits for this one; empty where no run does.
    """

    run_id: str
    awaited_by: str = ""


class RecoverRuns(Request[int]):
    """Take over every unfinished run that no living process has; answered with their number once each is queued or
    parked.

    Attributes:
        takes_over: whether it does; otherwise the supervisor only begins to heed what is posted to the runs it gets.
    """

    takes_over: bool = True


class ResumeRun(Request[Any]):
    """Start a run again that has ended in a way that can be resumed, or that nobody carries on. The answer is its
    `RunTicket`.

    Attributes:
        run_id: which.
        budget: a `RunBudget` in the place of its limits; None keeps them.
    """

    run_id: str
    budget: Live[Any] = None


class ResumeStruckRun(Request[bool]):
    """May a run that could have caused a crash go on? Only one of them does at a time. Answered with False where it has
    to wait: it is put to work again when its turn has come.

    Attributes:
        run_id: which.
    """

    run_id: str


class ClearStruckRun(Command):
    """A run that could have caused a crash has got further: the next one may go on.

    Attributes:
        run_id: which.
    """

    run_id: str


class DecideCall(Request[None]):
    """Decide a pending call, and let its run go on. Answered once the decision is on disk.

    Attributes:
        call_id: which call.
        decision: what was decided.
        by: who decided.
        note: why.
    """

    call_id: str
    decision: Live[Any]
    by: str
    note: str = ""


class SendSignal(Request[None]):
    """Send a value to a run. Answered once it is on disk, if the run is durable.

    Attributes:
        run_id: which.
        channel: the channel.
        value: plain data.
    """

    run_id: str
    channel: str
    value: Live[Any]


class CancelRun(Request[bool]):
    """Stop a run. Answered with whether there was one to stop.

    Attributes:
        run_id: which.
        reason: why.
        by: who asked.
    """

    run_id: str
    reason: str = ""
    by: str = ""


class AdoptAgent(Command):
    """An agent is registered: runs parked for want of it can go on.

    Attributes:
        agent: the `Agent`.
    """

    agent: Live[Any]


class DropAgent(Command):
    """An agent is no longer registered; runs in flight keep it.

    Attributes:
        agent_id: which.
    """

    agent_id: str


class OpenRunAccount(Request[Limits]):
    """A run's attempt begins: open its account and arm its deadline. Answered with what is left of its budget and of
    all those above it: where nothing is limited, steps need no reservations.

    Attributes:
        run_id: the run.
        spent: what earlier attempts spent, and the runs they delegated.
        running: seconds they spent running.
    """

    run_id: str
    spent: Live[Amount]
    running: float = 0.0


class ReserveBudget(Request[Any]):
    """Take an amount out of a run's budget before it is used. Answered with `Granted` or `Refused`, after waiting for
    reservations beside it where they are in the way.

    Attributes:
        run_id: the run.
        amount: the most the work can cost.
        can_cap_tokens: whether it may be told to write less.
        output: what of `amount` is for tokens yet to be written.
        is_spent: the work costs exactly this, so it counts as spent at once and needs no settling.
        claim: the `Claim` by which an asker that is cancelled while it waits gives up what it may be granted.
    """

    run_id: str
    amount: Live[Amount]
    can_cap_tokens: bool = False
    output: Live[Amount | None] = None
    is_spent: bool = False
    claim: Live[Any] = None


class SettleBudget(Command):
    """Put what a piece of work cost in the place of what was reserved for it.

    Attributes:
        run_id: the run.
        reserved: as granted.
        true: what it came to.
    """

    run_id: str
    reserved: Live[Amount]
    true: Live[Amount]


class OpenAccount(Request[Any]):
    """Give a named account a budget. The answer is the `Account`.

    Attributes:
        name: which.
        budget: its `RunBudget`.
        opens: make it where it is missing.
    """

    name: str
    budget: Live[Any]
    opens: bool


class ReadAccount(Request[Any]):
    """How a named account stands. The answer is the `Account`.

    Attributes:
        name: which.
    """

    name: str


class CloseAccount(Request[Any]):
    """Forget a named account on which no run draws. The answer is the `Account` as it stood.

    Attributes:
        name: which.
    """

    name: str


class LeaveSlot(Command):
    """The run waits for something and holds no slot meanwhile.

    Attributes:
        run_id: the run.
    """

    run_id: str


class RegainSlot(Request[None]):
    """The run goes on; answered once it has a slot.

    Attributes:
        run_id: the run.
    """

    run_id: str


class CheckpointSession(Request[Any]):
    """Keep a checkpoint of a session under a name of the caller's own. The answer is the `SessionCheckpoint`.

    Attributes:
        session_id: which.
        name: the checkpoint's id.
    """

    session_id: str
    name: str


class ReleaseSession(Request[bool]):
    """Park an idle session now. Answered with whether it was idle.

    Attributes:
        session_id: which.
    """

    session_id: str


class UseSessionAlone(Request[Any]):
    """Do something with a session that no run may use meanwhile. Answered with what came of it.

    Attributes:
        session_id: which; it is parked first.
        work: an async function without arguments that does it.
    """

    session_id: str
    work: Live[Callable[[], Awaitable[Any]]]


class DrainRuns(Request[int]):
    """Admit nothing more and bring every run to a step boundary; answered, once none is left, with how many a later
    start carries on. Sent again, it can only shorten the time.

    Attributes:
        within: seconds after which runs are stopped where they are.
    """

    within: float
