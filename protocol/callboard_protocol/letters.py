"""Letters: what is said to a run from outside, kept on disk until the run has taken it in.

Whoever is on the data directory may post one, also while the run waits for nobody, is carried by another process, or by
none. Only who carries the run reads them, and writes into the session's log what came of them.
"""

from typing import Any, TypeAlias

from pydantic import ConfigDict

from callboard_protocol.base import Frozen
from callboard_protocol.tools import Decision, Question


class Posted(Frozen):
    """What every letter carries.

    Attributes:
        run_id: the run it is for.
        at: when it was posted, in unix seconds.
    """

    # Built on first use: importing Callboard should not pay for validators that the process may never need.
    model_config = ConfigDict(defer_build=True)

    run_id: str
    at: float = 0.0


class PostedDecision(Posted):
    """Somebody decided a pending call. It stays until the run has ended, so that a call is decided once.

    Attributes:
        step: the call.
        reason: what was asked about it.
        attempt: which attempt of the call that was about.
        tool: the tool's name.
        decision: what was decided.
        arguments_digest: the arguments that were shown.
        by: who decided.
        note: why.
    """

    step: str
    reason: Question
    attempt: int = 1
    tool: str = ""
    decision: Decision
    arguments_digest: bytes = b""
    by: str = ""
    note: str = ""


class PostedSignal(Posted):
    """A value sent to a run. It goes in the transaction in which the run receives it.

    Attributes:
        number: its place among the run's signals.
        channel: order holds per channel.
        value: plain data.
    """

    number: int
    channel: str
    value: Any = None


class PostedCancellation(Posted):
    """Somebody wants a run stopped that another process carries.

    Attributes:
        by: who asks.
        reason: why.
    """

    by: str = ""
    reason: str = ""


Letter: TypeAlias = PostedDecision | PostedSignal | PostedCancellation
