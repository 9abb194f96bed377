"""What is said to a `SessionActor`."""

from collections.abc import Callable, Sequence
from typing import Any

from callboard_protocol.commands.base import Command, Live, Request


class OpenSession(Request[Any]):
    """Read where the session stands and all that a run needs of its past. The answer is an `OpenedSession`.

    Attributes:
        run_id: the run that opens it; its own records are read too if it began before.
        resume_from_checkpoint: the checkpoint it goes back to, unless it began before; None to stay.
        is_nested: another run has the session open, and this one works within it. Only its own records are read.
        began_sequence: a sequence none of a nested run's records lies before; None for one that has not begun.
        begins_afresh: whether it leaves behind what it has recorded.
        failure: `ErrorDetails` of the error over which it is tried again.
    """

    run_id: str
    resume_from_checkpoint: str | None = None
    is_nested: bool = False
    began_sequence: int | None = None
    begins_afresh: bool = False
    failure: Live[Any] = None


class AppendRecords(Request[int]):
    """Append records to the session's log in one transaction; answered once it is on disk with the first sequence.

    Attributes:
        records: in order.
        run: the run's entry, where it changed.
        seen: how the run stood when that was decided, where no earlier record says that it is this process's.
        memory: entries of the session's memory that changed; a value of None removes the entry.
        taken: a letter that these records take in; it goes in the same transaction.
        checkpoint: a `SessionCheckpoint` to keep, of which the session fills in where it stands after these records.
        hold: told where the records have to wait for room in the store; they are refused instead where None.
    """

    records: Live[Sequence[Any]]
    run: Live[Any] = None
    seen: Live[Any] = None
    memory: Live[Sequence[Any]] = ()
    checkpoint: Live[Any] = None
    taken: Live[Any] = None
    hold: Live[Any] = None


class AppendUnawaited(Command):
    """Append records that nobody waits for: what stands on them is appended behind them.

    Attributes:
        records: in order.
        hold: as for `AppendRecords`.
        landed: called with the records once they are on disk.
    """

    records: Live[Sequence[Any]]
    hold: Live[Any] = None
    landed: Live[Callable[[Sequence[Any]], object]]


class GiveUpHeld(Command):
    """Let go of the records that wait for room in the store; whoever appended them is told that they are not on disk.

    Attributes:
        run_id: the run that wrote them.
    """

    run_id: str


class SettleAppends(Request[None]):
    """Wait until everything appended so far is on disk or refused."""


class SaveCheckpoint(Request[Any]):
    """Keep a checkpoint under a name of the caller's own. The answer is the `SessionCheckpoint`.

    Attributes:
        name: its checkpoint id.
    """

    name: str


class CloseRun(Command):
    """The session's run has ended: what only it needed can go.

    Attributes:
        run_id: which run.
    """

    run_id: str
