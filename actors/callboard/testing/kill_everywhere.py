"""A run is killed at every moment that matters, once each, and must come to the same end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, Unpack

from callboard.agents import Agent
from callboard.requests import RunOptions
from callboard.testing.effects import Effects, noted_effects
from callboard.testing.ending import Ending
from callboard.testing.faults import Passage
from callboard.testing.naming import CodeName, name_of
from callboard.testing.stage import ENDING, OUTPUT, PASSAGES, Life, Scenario
from callboard_protocol.base import as_seconds
from callboard_protocol.errors import UsageError
from callboard_protocol.runs import RunRequest

RUN_ID: Final = "run"
SESSION_ID: Final = "session"

Verdict = Literal["same", "differs", "stuck", "not reached"]

_LONGEST_OUTPUT: Final = 2000
_MOST_DIFFERENCES: Final = 8


@dataclass(frozen=True, slots=True)
class Kill:
    """What became of one kill.

    Attributes:
        passage: where the process died.
        verdict: ``same`` as without a kill; ``differs``; ``stuck`` where the process started after it did not come to
            an end; ``not reached`` where the run went another way, never passed there, and ended all the same.
        differences: how it differs, or what the process said that is stuck.
    """

    passage: Passage
    verdict: Verdict
    differences: tuple[str, ...] = ()

    @property
    def is_bad(self) -> bool:
        """Whether the kill made a difference."""
        return self.verdict in {"differs", "stuck"}


@dataclass(frozen=True, slots=True)
class KillReport:
    """What `kill_everywhere` found.

    Attributes:
        reference: the end of the run that nobody killed.
        effects: what took place in it.
        passages: every fault point it passed, in order.
        kills: what became of each kill.
    """

    reference: Ending
    effects: Effects
    passages: tuple[Passage, ...]
    kills: tuple[Kill, ...]

    @property
    def bad(self) -> tuple[Kill, ...]:
        """The kills that made a difference."""
        return tuple(kill for kill in self.kills if kill.is_bad)

    def check(self) -> None:
        """Nothing, where no kill made a difference.

        Raises:
            AssertionError: one did; the message says which and how.
        """
        if self.bad:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        verdicts = Counter(kill.verdict for kill in self.kills)
        told = ", ".join(f"{times} {verdict}" for verdict, times in verdicts.items())
        lines = [f"{len(self.kills)} kills at {len(self.passages)} passages: {told}"]
        for kill in self.bad:
            lines.append(f"killed at {kill.passage}: {kill.verdict}")
            lines += [f"    {difference}" for difference in kill.differences[:_MOST_DIFFERENCES]]
            if len(kill.differences) > _MOST_DIFFERENCES:
                lines.append(f"    and {len(kill.differences) - _MOST_DIFFERENCES} more")
        return "\n".join(lines)


def kill_everywhere(
    agent: str | Callable[[], Agent[Any, Any] | Sequence[Agent[Any, Any]]],
    input: str,  # noqa: A002  (the public API's name)
    *,
    drive: str | Callable[..., Any] | None = None,
    observe: Callable[[Path], Mapping[str, int]] | None = None,
    ignore: Sequence[str] = (),
    at_most: int = 200,
    processes: int | None = None,
    timeout: float | timedelta = 60.0,
    folder: str | os.PathLike[str] | None = None,
    **options: Unpack[RunOptions],
) -> KillReport:
    """Run an agent to its end, then once more for every fault point it passed, each time in a process that dies there
    by SIGKILL and is started again, and compare the ends: results, transcripts, state, artifacts, usage, effects.

    Each story has a data directory of its own. Blocks until all are told; call it on a thread from async code.

    Args:
        agent: the agent, as other processes can import it: ``"module:attribute"``, ``"file.py:attribute"`` or a
            function at the top level of a module. It names an agent, a list of them, or a function that makes them;
            the first one runs, the others are there to be delegated to.
        input: what the user says.
        drive: decides, sends or cancels while the agent runs: an async function ``(runtime, run_id)``, named like
            `agent`. It begins anew in every process, so it looks at what is to be done before it does it.
        observe: counts effects outside the store, by name. It is called with the story's folder, where tools can leave
            what is to be counted: the environment variable ``CALLBOARD_WORLD`` names it there. What `note_effect`
            notes is counted anyway.
        ignore: what need not be the same, with wildcards: ``"runs.*.output"``, ``"sessions.*.state.seen_at"``.
        at_most: kills at most; of more passages, as many are taken at even distances from each point.
        processes: how many stories are played side by side; None for one per processor, four at most.
        timeout: seconds or a timedelta that one process may take; past it the story is stuck.
        folder: where the stories are kept, for a look at them; None for a temporary folder.
        **options: the run's other options, as for `Runtime.run`; not its ids.

    Returns:
        What each kill led to; `check` raises where one made a difference.

    Raises:
        UsageError: another process cannot import the agent; or the run did not end though nobody killed it, or ended
            in two ways; the error says how.
    """
    for name in ("run_id", "session_id", "resume_from_checkpoint"):
        if options.get(name) is not None:
            raise UsageError(f"{name} is not for kill_everywhere to choose", hint="leave it out: each story is new")
    beside = min(4, os.cpu_count() or 1) if processes is None else processes
    for name, figure in (("at_most", at_most), ("processes", beside)):
        if figure < 1:
            raise UsageError(f"{name}={figure} kills nobody", hint="at least 1")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    scenario = Scenario(
        agents=_agents_name(agent),
        drive=None if drive is None else name_of(drive),
        request=RunRequest(agent_id="agent", input_text=input, run_id=RUN_ID, session_id=SESSION_ID, **given),
        path=tuple(str(Path(entry).resolve()) for entry in sys.path),
        timeout=as_seconds(timeout),
    )
    with ExitStack() as stack:
        kept = nullcontext(folder) if folder is not None else tempfile.TemporaryDirectory(prefix="callboard-kills-")
        stories = _Stories(scenario, Path(stack.enter_context(kept)), observe, ignore)
        stages: queue.SimpleQueue[_Stage] = queue.SimpleQueue()
        stages.put(first := stack.enter_context(_Stage(scenario)))
        reference, effects, passages = stories.undisturbed(first)
        chosen = _sample(passages, at_most)
        for _ in range(min(beside, len(chosen)) - 1):
            stages.put(stack.enter_context(_Stage(scenario)))

        def tell(place: int, passage: Passage) -> Kill:
            stage = stages.get()
            try:
                return stories.killed(stage, f"{place:04}-{passage.point}", passage, reference, effects)
            finally:
                stages.put(stage)

        with ThreadPoolExecutor(beside) as pool:
            kills = tuple(pool.map(tell, range(len(chosen)), chosen))
    return KillReport(reference, effects, tuple(passages), kills)


class _Stage:
    """A process that plays lives, one at a time."""

    def __init__(self, scenario: Scenario) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from callboard.testing.stage import run_process; run_process()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(scenario.path)},
            text=True,
        )
        with ExitStack() as unless_ready:
            unless_ready.callback(self._end)
            self._prepare(scenario)
            unless_ready.pop_all()

    def _prepare(self, scenario: Scenario) -> None:
        problem = self._ask(scenario.model_dump_json()).get("problem")
        if problem is not None:
            raise UsageError(f"{scenario.agents} cannot be played in another process: {problem}")

    def play(self, life: Life) -> int:
        """Live it; its exit status."""
        return int(self._ask(life.model_dump_json())["status"])

    def _ask(self, line: str) -> dict[str, Any]:
        commands, answers = self._process.stdin, self._process.stdout
        assert commands is not None
        assert answers is not None
        with suppress(BrokenPipeError):  # then no answer comes
            commands.write(f"{line}\n")
            commands.flush()
        answer = answers.readline()
        if not answer:
            status = self._process.wait()
            raise UsageError(
                f"the process that imports the agent ended by itself ({_status(status)})",
                hint="what its modules do when they are imported must end, and leave the process alive",
            )
        said: dict[str, Any] = json.loads(answer)
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class _Stories:
    """Lives on one data directory each, and how they end."""

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        observe: Callable[[Path], Mapping[str, int]] | None,
        ignore: Sequence[str],
    ) -> None:
        self._scenario = scenario
        self._folder = folder
        self._observe = observe
        self._ignore = ignore

    def undisturbed(self, stage: _Stage) -> tuple[Ending, Effects, list[Passage]]:
        """The story without a kill.

        Raises:
            UsageError: it does not come to an end, or to another one the second time.
        """
        folder = self._undisturbed(stage, "reference")
        ending, effects = _ending(folder), self._effects(folder)
        again = self._undisturbed(stage, "reference-again")
        found = (*_ending(again).differences(ending, self._ignore), *self._effects(again).differences(effects))
        if found:
            raise UsageError(
                f"{self._scenario.agents} comes to different ends, though nobody kills it: {'; '.join(found)}",
                hint="have it take time and chance from ctx.now() and ctx.random(), or `ignore` what may differ",
            )
        passages = [Passage.parse(line) for line in (folder / PASSAGES).read_text().splitlines()]
        return ending, effects, passages

    def _undisturbed(self, stage: _Stage, name: str) -> Path:
        folder = self._new(name)
        status = stage.play(Life(folder=str(folder)))
        if status != 0:
            raise UsageError(
                f"{self._scenario.agents} does not come to an end, though nobody kills it "
                f"({_status(status)}): {_last_words(folder)}",
                hint="mend that first; `drive` decides and sends what it waits for, `timeout` gives it more time",
            )
        return folder

    def killed(self, stage: _Stage, name: str, passage: Passage, reference: Ending, effects: Effects) -> Kill:
        """The story with a kill, and how it differs."""
        folder = self._new(name)
        status = stage.play(Life(folder=str(folder), dies_at=passage.written()))
        was_killed = status == -signal.SIGKILL
        if was_killed:
            status = stage.play(Life(folder=str(folder)))
        if status != 0:
            return Kill(passage, "stuck", (f"{_status(status)}: {_last_words(folder)}",))
        found = (*_ending(folder).differences(reference, self._ignore), *self._effects(folder).differences(effects))
        if found:
            return Kill(passage, "differs", found)
        return Kill(passage, "same" if was_killed else "not reached")

    def _new(self, name: str) -> Path:
        folder = self._folder / name
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise UsageError(f"{folder} exists", hint="give a folder that is new, or empty") from None
        return folder

    def _effects(self, folder: Path) -> Effects:
        effects = noted_effects(folder)
        if self._observe is not None:
            effects.exact.update(self._observe(folder))
        return effects


def _agents_name(agent: object) -> CodeName:
    if isinstance(agent, Agent):
        raise UsageError(
            f"another process cannot be handed {agent!r}",
            hint="name it: 'module:attribute', or give the function at the top of a module that makes it",
        )
    return name_of(agent)


def _sample(passages: Sequence[Passage], at_most: int) -> list[Passage]:
    """As many passages as may be, of every point, at even distances."""
    if len(passages) <= at_most:
        return [*passages]
    by_point: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        by_point[passage.point].append(passage)
    left, chosen = at_most, set[Passage]()
    # The rarest points first: what they do not use of their share is the others'.
    for rank, of_point in enumerate(sorted(by_point.values(), key=len)):
        share = min(len(of_point), max(1, left // (len(by_point) - rank)), left)
        chosen.update(of_point[place * len(of_point) // share] for place in range(share))
        left -= share
    return [passage for passage in passages if passage in chosen]


def _ending(folder: Path) -> Ending:
    return Ending.model_validate_json((folder / ENDING).read_text())


def _status(status: int) -> str:
    if status == -signal.SIGALRM:
        return "it took longer than `timeout`"
    return f"it ended with {status}" if status >= 0 else f"it ended by {signal.Signals(-status).name}"


def _last_words(folder: Path) -> str:
    output = folder / OUTPUT
    said = output.read_text(errors="replace").strip() if output.exists() else ""
    return said[-_LONGEST_OUTPUT:] or "it said nothing"
