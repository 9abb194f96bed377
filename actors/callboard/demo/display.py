"""What a person sees while the batches run: bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from callboard.demo.batch import Outcome, Watcher
from callboard.demo.books import Standing
from callboard.demo.worker import System

NAMES: dict[System, str] = {"handmade": "the loop people write", "callboard": "Callboard"}
EVERY = 5.0
"""Seconds between two plain lines about one batch."""


class Display(Watcher, Protocol):
    """A watcher that has a beginning and an end."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def reading(self, done: int) -> None:
        """The uncrashed pass has audited so many modules."""
        ...


class Bars:
    """A live bar per system.

    Args:
        console: the terminal.
        sessions: how many sessions each batch has.
        systems: which systems run, in order.
        interactive: whether to ask the user for the kills.
    """

    def __init__(self, console: Console, sessions: int, systems: tuple[System, ...], *, interactive: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<21}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:>4.0f}/{task.total:.0f}"),
            # As wide as its longest, so that the bars do not jump; 80 columns hold it all.
            TextColumn("{task.fields[note]:<34}"),
            console=console,
            expand=True,
        )
        self._interactive = interactive
        self._kills = dict.fromkeys(systems, 0)
        self._reading = self._progress.add_task("an uncrashed pass", total=sessions, note="to compare with")
        self._bars: dict[System, TaskID] = {
            system: self._progress.add_task(NAMES[system], total=sessions, note="", start=False) for system in systems
        }

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def reading(self, done: int) -> None:
        """The uncrashed pass has audited so many modules."""
        self._progress.update(self._reading, completed=done)

    def worker_started(self, system: System, pid: int) -> None:
        """A worker process runs."""
        self._progress.start_task(self._bars[system])
        if self._interactive:
            self._progress.console.print(f"[bold]your turn:[/bold] kill -9 {pid}")

    def worker_killed(self, system: System, kills: int) -> None:
        """A worker process died by a signal."""
        self._kills[system] = kills

    def standing(self, system: System, standing: Standing, seconds: float) -> None:
        """The tracker's figures."""
        note = (
            f"{standing.findings} filed, {standing.filed_twice} twice, [red]{self._kills[system]} kills[/red], "
            f"{seconds:.0f} s"
        )
        self._progress.update(self._bars[system], completed=standing.sessions, note=note)

    def finished(self, outcome: Outcome) -> None:
        """A batch is done."""
        self.standing(outcome.system, outcome.books, outcome.seconds)


class Lines:
    """The same as plain lines, for logs and pipes.

    Args:
        console: where they go.
        sessions: how many sessions each batch has.
        interactive: whether to ask the user for the kills.
    """

    def __init__(self, console: Console, sessions: int, *, interactive: bool) -> None:
        self._console = console
        self._sessions = sessions
        self._interactive = interactive
        self._said = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def reading(self, done: int) -> None:
        """The uncrashed pass has audited so many modules."""
        if done == self._sessions:
            self._say(f"an uncrashed pass over {done} modules, to compare with: done")

    def worker_started(self, system: System, pid: int) -> None:
        """A worker process runs."""
        self._say(f"{NAMES[system]}: worker {pid} started")
        if self._interactive:
            self._say(f"your turn: kill -9 {pid}")

    def worker_killed(self, system: System, kills: int) -> None:
        """A worker process died by a signal."""
        self._say(f"{NAMES[system]}: worker killed ({kills})")

    def standing(self, system: System, standing: Standing, seconds: float) -> None:
        """The tracker's figures."""
        if time.monotonic() - self._said > EVERY:
            self._say(f"{NAMES[system]}: {standing.sessions}/{self._sessions} sessions, {standing.findings} findings")

    def finished(self, outcome: Outcome) -> None:
        """A batch is done."""
        self._say(f"{NAMES[outcome.system]}: {outcome.sessions}/{self._sessions} sessions in {outcome.seconds:.1f} s")

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self._console.print(line, highlight=False, markup=False)


def display_for(console: Console, sessions: int, systems: tuple[System, ...], *, interactive: bool) -> Display:
    """Bars where they can be drawn, lines elsewhere."""
    if console.is_terminal and not console.is_dumb_terminal:
        return Bars(console, sessions, systems, interactive=interactive)
    return Lines(console, sessions, interactive=interactive)
