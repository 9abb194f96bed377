"""Callboard: one agent with one tool on ``ScriptedModel``, as its README shows.

Durable: ``store=`` a directory; every step is committed, and synced, before the next one starts. ``durable_intents`` is
the same with the tool left undeclared, so that an intent is committed before each tool call as well.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from bench.workload import INSTRUCTIONS, TOOL_NAME, Answer, RunSession, Script, Setup, user_input
from callboard import (
    Agent,
    ModelRequest,
    RunBudget,
    Runtime,
    RuntimeLimits,
    ScriptedModel,
    ToolCall,
    tool,
)

ROOM_FOR_RUNS = 100_000
"""No row is about admission, so no limit may be met."""


def model_function(script: Script) -> Callable[[ModelRequest], str | ToolCall]:
    """The fake model as ``ScriptedModel`` takes it."""

    def respond(request: ModelRequest) -> str | ToolCall:
        decision = script.decide(request.messages[-1].text)
        if isinstance(decision, Answer):
            return decision.text
        return ToolCall(name=TOOL_NAME, arguments=decision.arguments, id=decision.call_id)

    return respond


def bench_agent(script: Script, *, model: ScriptedModel | None = None, read_only: bool = True) -> Agent[None, str]:
    """The agent every Callboard row runs."""

    @tool(read_only=read_only)
    async def lookup(session: str, round: int) -> str:  # noqa: A002 - the model names the argument
        """Look one order of a session up.

        Args:
            session: the session the order belongs to.
            round: which order of the session.
        """
        return script.lookup(session, round)

    return Agent(
        "bench",
        model=model or ScriptedModel(model_function(script)),
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
