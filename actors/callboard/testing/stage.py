"""The process in which `kill_everywhere` plays its scenario: once more for each life, each in a fork of its own.

The agent's code is imported once, and a life begins with a copy of a process in which nothing has run yet. Its standard
input brings a `Scenario` and then a `Life` a line; its standard output says how each began or ended.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final

from callboard.agents import Agent
from callboard.runtime import Runtime
from callboard.testing.effects import WORLD
from callboard.testing.ending import read_ending
from callboard.testing.faults import Passage, die, watch_passages
from callboard.testing.naming import CodeName
from callboard_protocol.base import Frozen
from callboard_protocol.errors import CallboardError, UsageError
from callboard_protocol.runs import RunRequest

PASSAGES: Final = "passages"
ENDING: Final = "ending.json"
OUTPUT: Final = "output"
STORE: Final = "store"

_GRACE: Final = 10.0
"""Seconds that a life gets beyond its time, to say what it waits for; then it is ended from outside."""

Drive = Callable[[Runtime, str], Awaitable[object]]


class Scenario(Frozen):
    """What is played.

    Attributes:
        agents: names an agent, several of them, or a function that makes them; the first one runs.
        drive: names what decides, sends and cancels meanwhile.
        request: what is submitted; its agent's id is filled in.
        path: where modules are imported from.
        timeout: seconds a life may take.
    """

    agents: CodeName
    drive: CodeName | None = None
    request: RunRequest
    path: tuple[str, ...] = ()
    timeout: float = 60.0


class Life(Frozen):
    """One process.

    Attributes:
        folder: of the story it belongs to: data directory, effects, and what it leaves.
        dies_at: the passage at which it dies, as `Passage.written`; empty where it lives to the end.
    """

    folder: str
    dies_at: str = ""


def main(commands: IO[str], answers: IO[str]) -> None:
    """Play lives until nobody asks for more.

    Args:
        commands: a scenario, then lives, a line each.
        answers: a line for each: ``{}`` once the scenario is ready, or ``{"problem": ...}``; then exit statuses.
    """
    scenario = Scenario.model_validate_json(commands.readline())
    signal.alarm(round(scenario.timeout + _GRACE))
    sys.path[:] = [*scenario.path]
    try:
        cast, drive = _cast(scenario), None if scenario.drive is None else _drive(scenario.drive)
        import callboard_storage.lmdb_store  # noqa: F401, PLC0415  (so that no life has to)
    except BaseException as problem:  # noqa: BLE001  (a user's module may raise anything; whoever asked is told)
        said = str(problem) if isinstance(problem, CallboardError) else traceback.format_exc()
        print(json.dumps({"problem": said}), file=answers, flush=True)
        return
    signal.alarm(0)
    print(json.dumps({}), file=answers, flush=True)
    for line in commands:
        life = Life.model_validate_json(line)
        child = os.fork()
        if child == 0:
            _be_born(commands, life, scenario)
            os._exit(_live(life, scenario, cast, drive))
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), file=answers, flush=True)


def _cast(scenario: Scenario) -> Callable[[], Sequence[Agent[Any, Any]]]:
    """What makes the agents; made once here, so that what is wrong with them is said at once."""
    named = scenario.agents.load()

    def agents() -> Sequence[Agent[Any, Any]]:
        made = named() if callable(named) else named
        several = [made] if isinstance(made, Agent) else [*made] if isinstance(made, Sequence) else []
        if not several or not all(isinstance(one, Agent) for one in several):
            raise UsageError(
                f"{scenario.agents} gives {made!r:.80}, which is no agent",
                hint="an Agent, a list of them, or a function without arguments that makes them",
            )
        return several

    agents()
    return agents


def _drive(name: CodeName) -> Drive:
    drive: Drive = name.load()
    if not inspect.iscoroutinefunction(drive):
        raise UsageError(f"{name} is no async function", hint="async def drive(runtime, run_id): ...")
    return drive


def _be_born(commands: IO[str], life: Life, scenario: Scenario) -> None:
    """A process of its own: its own output, nobody to read from, an end in any case."""
    signal.alarm(round(scenario.timeout + _GRACE))
    folder = Path(life.folder)
    output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, commands.fileno()), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.environ[WORLD] = str(folder)


def _live(life: Life, scenario: Scenario, cast: Callable[[], Sequence[Agent[Any, Any]]], drive: Drive | None) -> int:
    folder = Path(life.folder)
    dies_at = Passage.parse(life.dies_at) if life.dies_at else None
    passages = os.open(folder / PASSAGES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def passed(passage: Passage) -> None:
        os.write(passages, f"{passage.written()}\n".encode())
        if passage == dies_at:
            die()

    try:
        with watch_passages(passed):
            asyncio.run(_play(folder, scenario, cast(), drive))
    except BaseException:  # noqa: BLE001  (whatever ends the life early is in its output)
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


async def _play(folder: Path, scenario: Scenario, agents: Sequence[Agent[Any, Any]], drive: Drive | None) -> None:
    request = scenario.request.model_copy(update={"agent_id": agents[0].id})
    async with Runtime(agents, store=folder / STORE) as runtime:
        try:
            async with asyncio.timeout(scenario.timeout):
                await runtime.submit(request)
                if drive is not None:
                    await drive(runtime, request.run_id)
                for entry in await runtime.runs.list():
                    await runtime.wait(entry.run_id)
        except TimeoutError as problem:
            raise TimeoutError(f"it takes longer than `timeout`: {await _what_waits(runtime)}") from problem
        ending = await read_ending(runtime)
    (folder / ENDING).write_text(ending.model_dump_json())


async def _what_waits(runtime: Runtime) -> str:
    told: list[str] = []
    for entry in await runtime.runs.list():
        waits = "".join(f", for {call.reason} of {call.call_id}" for call in entry.pending)
        done = ", ".join(f"{step.kind} {step.step}" for step in await runtime.runs.steps(entry.run_id))
        told.append(f"run {entry.run_id!r} is {entry.state.value}{waits}, and has made these steps: {done or 'none'}")
    return "; ".join(told)


def run_process() -> None:
    """Play what standard input asks for; the whole of a process."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # What an agent's module prints must not be taken for an answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    main(sys.stdin, answers)
