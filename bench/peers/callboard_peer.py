"""Callboard: one agent with one tool, as its README shows, on a `Model` whose responses are built beforehand.

Durable: ``store=`` a directory; every step is committed, and synced, before the next one starts. ``durable_intents`` is
the same with the tool left undeclared, so that an intent is committed before each tool call as well.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.workload import INSTRUCTIONS, TOOL_NAME, FakeModel, Lookup, RunSession, Script, Setup, user_input
from callboard import (
    Agent,
    Model,
    ModelRequest,
    ModelResponse,
    RunBudget,
    Runtime,
    RuntimeLimits,
    ToolCall,
    Usage,
    tool,
)

ROOM_FOR_RUNS = 100_000
"""No row is about admission, so no limit may be met."""
SHOWN_FIRST = 2
"""Messages before the first round: the instructions and the user's."""


class ScriptModel(Model):
    """Answers with prebuilt responses."""

    name = "script"

    def __init__(self, script: Script) -> None:
        usage = Usage(input_tokens=1, output_tokens=1)

        def ask(lookup: Lookup) -> ModelResponse[Any]:
            call = ToolCall(name=TOOL_NAME, arguments=lookup.arguments, id=lookup.call_id)
            return ModelResponse(tool_calls=(call,), usage=usage, finish_reason="tool_calls", model="script")

        def answer(text: str) -> ModelResponse[Any]:
            return ModelResponse(text=text, usage=usage, model="script")

        self._fake: FakeModel[ModelResponse[Any]] = FakeModel(script, ask, answer)

    async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
        messages = request.messages
        done = (len(messages) - SHOWN_FIRST) // 2
        return self._fake.reply(done, messages[1].text, messages[-1].text)


def bench_agent(script: Script, *, model: Model | None = None, read_only: bool = True) -> Agent[None, str]:
    """The agent every Callboard row runs."""

    @tool(read_only=read_only)
    async def lookup(customer: str, round: int) -> str:  # noqa: A002 - the model names the argument
        """Look one order of a customer up.

        Args:
            customer: whose order it is.
            round: which of them.
        """
        return script.lookup(customer, round)

    return Agent(
        "bench",
        model=model or ScriptModel(script),
        instructions=INSTRUCTIONS,
        tools=[lookup],
        budget=RunBudget(max_steps=script.work.rounds + 1),
    )


def roomy_limits() -> RuntimeLimits:
    """Limits that no row meets."""
    return RuntimeLimits(
        max_concurrent_runs=ROOM_FOR_RUNS,
        max_queued_runs=ROOM_FOR_RUNS,
        max_active_sessions=ROOM_FOR_RUNS,
        session_idle=3_600,
    )


@asynccontextmanager
async def _open(setup: Setup, store: Path | None, *, read_only: bool) -> AsyncIterator[RunSession]:
    agent = bench_agent(setup.script, read_only=read_only)
    async with Runtime([agent], store=store, limits=roomy_limits()) as runtime:

        async def run_session(session: str) -> str:
            return (await runtime.run(agent, user_input(session), session_id=session)).output

        yield run_session


@asynccontextmanager
async def durable(setup: Setup) -> AsyncIterator[RunSession]:
    """Every step on disk before the next."""
    async with _open(setup, setup.directory / "store", read_only=True) as run_session:
        yield run_session


@asynccontextmanager
async def durable_intents(setup: Setup) -> AsyncIterator[RunSession]:
    """The tool is undeclared: its intent is on disk before it acts."""
    async with _open(setup, setup.directory / "store", read_only=False) as run_session:
        yield run_session


@asynccontextmanager
async def in_memory(setup: Setup) -> AsyncIterator[RunSession]:
    """``store=None``: the same records and frames, without the disk."""
    async with _open(setup, None, read_only=True) as run_session:
        yield run_session
