"""Scopes: where a step's identity comes from.

A step is ``{scope}{ordinal}[.item]``; its call id puts the run's id in front. Within a scope steps follow each other,
so the same pattern gives every step the same identity at each attempt. In a run that has begun afresh an ordinal is
``{attempt}-{ordinal}``, after the attempt that did: nothing of its earlier life can be taken for a step of the new one.
"""

from __future__ import annotations

from collections.abc import Callable

from callboard.clock import Timer
from callboard.runs.history import Conversation
from callboard_protocol.errors import ConcurrentStepError, UsageError


class Scope:
    """A sequence of steps, one at a time.

    Args:
        prefix: what its steps' identities begin with: empty for the root, ``files.a/`` or ``3.a/`` below it.
        conversation: the messages a model sees here.
        watch: starts a timer for a step by its identity; None where steps have no time limit.
        in_transcript: whether the root's messages go into the session's transcript.
        life: which attempt of the run began it, or began it afresh.

    Attributes:
        stem: what its steps' identities have in front of their number.
        known: messages by identity that a pattern may show again in a history of its own without saying them twice.
        counted: how many messages of the conversation `known` takes in.
    """

    __slots__ = (
        "clock",
        "conversation",
        "counted",
        "draws",
        "in_flight",
        "in_transcript",
        "known",
        "life",
        "names",
        "next_ordinal",
        "prefix",
        "readings",
        "round",
        "stem",
        "timer",
        "watch",
    )

    def __init__(
        self,
        prefix: str,
        conversation: Conversation,
        watch: Callable[[str], Timer] | None = None,
        *,
        in_transcript: bool = True,
        life: int = 1,
    ) -> None:
        self.prefix = prefix
        self.life = life
        self.stem = prefix if life == 1 else f"{prefix}{life}-"
        self.in_transcript = in_transcript and not prefix
        self.conversation = conversation
        self.next_ordinal = 0
        self.in_flight: str | None = None
        self.names: set[str] = set()
        self.round = 0
        self.known: dict[int, object] = {}
        self.counted = 0
        self.draws = 0
        self.readings: list[float] = []
        self.clock: tuple[float, ...] = ()
        self.watch = watch
        self.timer: Timer | None = None

    @property
    def upcoming(self) -> str:
        """The identity the next step will have."""
        return f"{self.stem}{self.next_ordinal}"

    def begin(self, what: str, *, timed: bool = True) -> str:
        """Begin a step.

        Args:
            what: the step's kind, for the error.
            timed: whether the time limit of a step applies; not to one that waits, or is made of steps.

        Returns:
            Its identity.

        Raises:
            ConcurrentStepError: another step of this scope is in flight.
        """
        self._refuse_second(what)
        self.in_flight = what
        step = f"{self.stem}{self.next_ordinal}"
        self.next_ordinal += 1
        # Clock readings ride on the record of the step that follows them.
        self.clock = tuple(self.readings) if self.readings else ()
        self.readings.clear()
        if self.watch is not None and timed:
            self.timer = self.watch(step)
        return step

    def end(self) -> None:
        """The step in flight has ended."""
        self.in_flight = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def begin_again(self) -> None:
        """The pattern starts over in this scope: it may give its branches the same names, which then mean others."""
        self.round += 1

    def draw(self) -> str:
        """The identity of the next random number. It takes no ordinal: no record will carry it, so readings of the
        clock before it must stay with the step that follows.

        Raises:
            ConcurrentStepError: a step of this scope is in flight.
        """
        self._refuse_second("random")
        self.draws += 1
        return f"{self.stem}random.{self.draws - 1}"

    def _refuse_second(self, what: str) -> None:
        if self.in_flight is not None:
            raise ConcurrentStepError(
                f"{what} began while {self.in_flight} is in flight in scope {self.prefix or 'root'!r}",
                context={"scope": self.prefix, "in_flight": self.in_flight, "began": what},
            )

    def below(self, name: str, within: str = "") -> Scope:
        """A scope of its own.

        Args:
            name: what tells it from its siblings.
            within: the step it belongs to, where it is an item of one.

        Raises:
            UsageError: the name is empty, holds ``/``, or was used here before.
        """
        if not name or "/" in name:
            raise UsageError(f"{name!r} cannot name a branch", hint="use a short name without '/'")
        again = f"/{self.round}/" if self.round else ""
        full = f"{within}.{name}/" if within else f"{self.prefix}{again}{name}/"
        if full in self.names:
            raise UsageError(f"the scope {full!r} exists already", hint="give every branch a name of its own")
        self.names.add(full)
        conversation = Conversation(self.conversation.view())
        return Scope(full, conversation, self.watch, in_transcript=False, life=self.life)
