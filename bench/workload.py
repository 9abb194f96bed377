"""The shared work: one agent loop, written so that every system does exactly the same steps.

A session asks the model; the model asks for one lookup; the lookup returns ``result_bytes`` bytes; that is one round.
After ``rounds`` rounds the model answers. Each model call and each tool call is a step, so a session is
``2 * rounds + 1`` steps.

The fake model keeps no state of its own. It decides from the newest message alone, because a model that scanned the
history would add a cost that grows with it and hide the cost under measurement.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

INSTRUCTIONS = "Look up each order, one after the other, then say how many there were."
TOOL_NAME = "lookup"
TOOL_DESCRIPTION = "Look one order of a session up."


class LookupArguments(BaseModel):
    """The tool's arguments, for the systems that leave validation to their user."""

    session: str
    round: int


class Lookup(NamedTuple):
    """The model asks for a tool call."""

    session: str
    round: int

    @property
    def call_id(self) -> str:
        """An id that is unique within the process, as a provider's is."""
        return f"call_{self.session}_{self.round}"

    @property
    def arguments(self) -> dict[str, str | int]:
        """The arguments as the model would send them."""
        return {"session": self.session, "round": self.round}


class Answer(NamedTuple):
    """The model answers."""

    text: str


@dataclass(frozen=True)
class Work:
    """How much of the shared work to do."""

    sessions: int = 100
    rounds: int = 10
    result_bytes: int = 200

    @property
    def steps_per_session(self) -> int:
        """Model calls and tool calls of one session."""
        return 2 * self.rounds + 1

    @property
    def payload_bytes_per_step(self) -> float:
        """What one step has to keep at the least: the tool's result and its arguments, spread over the two steps."""
        arguments = LookupArguments(session="s-000", round=self.rounds).model_dump_json()
        return (self.result_bytes + len(arguments) + len(TOOL_NAME)) / 2


def ignore(_session: str) -> None:
    """The default observer: nothing is recorded."""


@dataclass(frozen=True)
class Script:
    """The fake model and the tool, shared by every system."""

    work: Work = field(default_factory=Work)
    observe: Callable[[str], None] = ignore
    """Told the session at each model call, before the model decides."""

    def decide(self, newest: str) -> Lookup | Answer:
        """Decide what the model says next.

        Args:
            newest: the text of the newest message: the user's input, or a tool's result.
        """
        position, session, _ = newest.split("|", 2)
        self.observe(session)
        done = int(position)
        if done < self.work.rounds:
            return Lookup(session, done)
        return Answer(expected_answer(session, done))

    def lookup(self, session: str, round: int) -> str:  # noqa: A002 - the model names the argument
        """Do the tool's work: a result of ``result_bytes`` bytes that says which round comes next."""
        return f"{round + 1}|{session}|".ljust(self.work.result_bytes, "x")


def user_input(session: str) -> str:
    """The message that starts a session."""
    return f"0|{session}|Please look the orders up."


def expected_answer(session: str, rounds: int) -> str:
    """The answer a session that did all its rounds gives."""
    return f"{session}: {rounds} orders"


RunSession = Callable[[str], Awaitable[str]]
"""Runs one session, by id, to its answer."""


@dataclass(frozen=True)
class Setup:
    """What a peer is opened with."""

    script: Script
    directory: Path
    """An empty directory on the disk under measurement; peers in memory leave it alone."""


Peer = Callable[[Setup], AbstractAsyncContextManager[RunSession]]
"""Opens one system and yields the function that runs a session in it."""


def bare_step_seconds(work: Work, samples: int = 20_000) -> float:
    """Seconds per step of the fake model and the tool alone: what no system can do without."""
    script = Script(work)
    newest = user_input("s-000")
    began = time.perf_counter()
    for _ in range(samples):
        decision = script.decide(newest)
        if isinstance(decision, Lookup):
            script.lookup(decision.session, decision.round)
    return (time.perf_counter() - began) / (2 * samples)
