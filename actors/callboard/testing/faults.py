"""Striking at the fault points of the runtime: a process that dies there, or an error that is raised there."""

from __future__ import annotations

import difflib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

from callboard import fault_points
from callboard.fault_points import POINTS
from callboard_protocol.errors import UsageError

FAULT: Final = "CALLBOARD_FAULT"
"""The environment variable that names the passage at which a process is to die; see `told_to_die_at`."""

ANY_POINT: Final = "*"
"""Stands for every point: the n-th passage of anything."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage of a fault point.

    Attributes:
        point: one of `FAULT_POINTS`, or ``*`` for any.
        subject: whom it is about: a call id (``{run_id}:{step}``), a run id, a session id or an account's name; empty
            for anybody.
        number: which of the passages in that process that fit, from 1.

    Raises:
        UsageError: there is no such point, or passages are not counted like that.
    """

    point: str
    subject: str = ""
    number: int = 1

    def __post_init__(self) -> None:
        if self.point != ANY_POINT and self.point not in POINTS:
            near = difflib.get_close_matches(self.point, POINTS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(POINTS)}; or '*' for any"
            raise UsageError(f"there is no fault point {self.point!r}", hint=hint)
        if self.number < 1:
            raise UsageError(f"there is no passage {self.number}", hint="passages count from 1")

    def __str__(self) -> str:
        where = f"{self.point} of {self.subject}" if self.subject else self.point
        return f"{where}, passage {self.number}" if self.number > 1 else where

    @classmethod
    def parse(cls, text: str) -> Passage:
        """The passage that `written` wrote.

        Raises:
            UsageError: it is something else.
        """
        point, number, subject = (*text.split(" ", 2), "", "")[:3]
        if not number.isdecimal():
            raise UsageError(f"{text!r} names no passage", hint="'point number [subject]': 'step.recorded 2 run-7:3'")
        return cls(point, subject, int(number))

    def written(self) -> str:
        """The passage in a line of text."""
        return f"{self.point} {self.number} {self.subject}".rstrip()


@contextmanager
def watch_passages(seen: Callable[[Passage], object]) -> Iterator[None]:
    """Tell of every passage in this process, numbered among those of its point and subject.

    Args:
        seen: called with each as it is passed; what it raises is raised there.

    Raises:
        UsageError: the fault points of this process are watched already.
    """
    numbers: Counter[tuple[str, str]] = Counter()

    def reached(point: str, subject: str) -> None:
        numbers[point, subject] += 1
        seen(Passage(point, subject, numbers[point, subject]))

    if fault_points.armed is not None:
        raise UsageError("the fault points of this process are watched already", hint="one at a time")
    fault_points.armed = reached
    try:
        yield
    finally:
        fault_points.armed = None


@contextmanager
def raise_at(passage: Passage, error: BaseException) -> Iterator[None]:
    """Raise an error at one passage.

        with raise_at(Passage("step.outcome_received", number=2), ConnectionError("lost")):
            result = await runtime.run(agent, "...")

    Args:
        passage: where.
        error: what is raised there, once.

    Raises:
        UsageError: the fault points of this process are watched already.
    """
    is_it = _Counting(passage)

    def seen(passed: Passage) -> None:
        if is_it(passed):
            raise error

    with watch_passages(seen):
        yield


@contextmanager
def die_at(passage: Passage | None) -> Iterator[None]:
    """Have this process end by SIGKILL at one passage, as in a power cut: nothing is flushed, nobody is told.

    Args:
        passage: where; None for nowhere.

    Raises:
        UsageError: the fault points of this process are watched already.
    """
    if passage is None:
        yield
        return
    is_it = _Counting(passage)

    def seen(passed: Passage) -> None:
        if is_it(passed):
            die()

    with watch_passages(seen):
        yield


def told_to_die_at() -> Passage | None:
    """The passage at which the environment says this process is to die; see `environment_to_die_at`.

    Raises:
        UsageError: it says something else.
    """
    text = os.environ.get(FAULT, "")
    return Passage.parse(text) if text else None


def environment_to_die_at(passage: Passage) -> dict[str, str]:
    """What to add to a process's environment so that it dies there, if it says ``with die_at(told_to_die_at())``."""
    return {FAULT: passage.written()}


def die() -> NoReturn:
    """End this process by SIGKILL, now."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives SIGKILL")


class _Counting:
    """Whether a passage is the one that is looked for."""

    def __init__(self, wanted: Passage) -> None:
        self._wanted = wanted
        self._left = wanted.number

    def __call__(self, passed: Passage) -> bool:
        wanted = self._wanted
        if wanted.point in {ANY_POINT, passed.point} and wanted.subject in {"", passed.subject}:
            self._left -= 1
            return self._left == 0
        return False
