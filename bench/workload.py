"""The shared work: one agent loop, written so that every system does exactly the same steps.

A session asks the model; the model asks for one lookup; the lookup returns ``result_bytes`` bytes; that is one round.
After ``rounds`` rounds the model answers. Each model call and each tool call is a step, so a session is
``2 * rounds + 1`` steps.

The fake model keeps no state of its own. What it says is built before the measurement, in each system's own types, and
chosen by the length of the history: a model that built its answers, or read the history, would add a cost of its own
and hide the one under measurement. The tool's result is made anew at each call, as a real tool's is.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from pydantic import BaseModel

INSTRUCTIONS = "Look up each order, one after the other, then say how many there were."
TOOL_NAME = "lookup"
TOOL_DESCRIPTION = "Look one order of a customer up."
CUSTOMER = "c-1042"


class LookupArguments(BaseModel):
    """The tool's arguments, for the systems that leave validation to their user."""

    customer: str
    round: int


class Lookup(NamedTuple):
    """The model asks for a tool call."""

    round: int

    @property
    def call_id(self) -> str:
        """An id that is unique within the session."""
        return f"call_{self.round}"

    @property
    def arguments(self) -> dict[str, str | int]:
        """The arguments as the model would send them."""
        return {"customer": CUSTOMER, "round": self.round}


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
        arguments = LookupArguments(customer=CUSTOMER, round=self.rounds).model_dump_json()
        return (self.result_bytes + len(arguments) + len(TOOL_NAME)) / 2

    @property
    def answer(self) -> str:
        """What the model says after the last round."""
        return f"{self.rounds} orders"


def ignore(_said: str) -> None:
    """The default observer: nothing is recorded."""


@dataclass(frozen=True)
class Script:
    """What happens in a session, shared by every system."""

    work: Work = field(default_factory=Work)
    observe: Callable[[str], None] = ignore
    """Told at each model call what the user said, which tells the sessions apart."""

    def lookup(self, customer: str, round: int) -> str:  # noqa: A002 - the model names the argument
        """Do the tool's work: a result of ``result_bytes`` bytes that says which round comes next."""
        return f"{round + 1}|{customer}|".ljust(self.work.result_bytes, "x")


ReplyT = TypeVar("ReplyT")


class FakeModel(Generic[ReplyT]):
    """The fake model: its replies are built once, in a system's own types.

    Args:
        script: the session.
        ask: builds a reply that asks for a tool call.
        answer: builds the reply that ends the session.
    """

    def __init__(self, script: Script, ask: Callable[[Lookup], ReplyT], answer: Callable[[str], ReplyT]) -> None:
        rounds = script.work.rounds
        self._observe = script.observe
        self._replies = [*(ask(Lookup(index)) for index in range(rounds)), answer(script.work.answer)]
        self._newest_begins = [f"{done}|" for done in range(rounds + 1)]

    def reply(self, done: int, said: str, newest: str) -> ReplyT:
        """Say what comes next.

        Args:
            done: rounds in the history, by its length.
            said: the text of the user's message.
            newest: the text of the newest message: the user's, or a tool's result.

        Raises:
            AssertionError: the newest message is not the one that belongs there.
        """
        self._observe(said)
        if not newest.startswith(self._newest_begins[done]):
            message = f"after {done} rounds the model was shown {newest[:40]!r}"
            raise AssertionError(message)
        return self._replies[done]


def user_input(session: str) -> str:
    """The message that starts a session."""
    return f"0|{session}|Please look the orders up."


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
    model = FakeModel(script, ask=lambda lookup: lookup.round, answer=len)
    said = user_input("s-000")
    began = time.perf_counter()
    for _ in range(samples):
        script.lookup(CUSTOMER, model.reply(0, said, said))
    return (time.perf_counter() - began) / (2 * samples)
