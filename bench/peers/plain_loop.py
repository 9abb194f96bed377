"""The asyncio loop people write themselves, twice.

``bare`` is a list of dicts, a dict of tools, pydantic for the arguments and dicts put on a queue: the least that can be
called an agent loop. ``typed`` is the same loop as services keep it: messages and events are pydantic models, arguments
arrive as JSON, each tool call has a deadline, and events carry a time and their run. Neither keeps anything, recovers
anything or limits anything.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, Field

from bench.workload import (
    INSTRUCTIONS,
    TOOL_NAME,
    Answer,
    Lookup,
    LookupArguments,
    RunSession,
    Script,
    Setup,
    user_input,
)

TOOL_SECONDS = 60
QUEUED_EVENTS = 10_000

Tools: TypeAlias = dict[str, tuple[type[LookupArguments], Callable[[LookupArguments], Awaitable[str]]]]


class ToolCall(BaseModel):
    """A tool call in an assistant's message."""

    id: str
    name: str
    arguments: str


class Message(BaseModel):
    """One message of the typed loop."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_call_id: str | None = None


class Event(BaseModel):
    """One event of the typed loop."""

    name: str
    session_id: str
    timestamp: datetime = Field(default_factory=lambda: datetime.now(UTC))
    data: dict[str, Any] = Field(default_factory=dict)


def _tools(script: Script) -> Tools:
    async def lookup(arguments: LookupArguments) -> str:
        return script.lookup(arguments.session, arguments.round)

    return {TOOL_NAME: (LookupArguments, lookup)}


async def _bare_agent(script: Script, tools: Tools, session: str, events: asyncio.Queue[Any]) -> str:
    async def call_model(messages: list[dict[str, Any]]) -> Lookup | Answer:
        return script.decide(messages[-1]["content"])

    messages: list[dict[str, Any]] = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": user_input(session)},
    ]
    while True:
        await events.put({"name": "llm.called", "session_id": session})
        decision = await call_model(messages)
        await events.put({"name": "llm.succeeded", "session_id": session})
        if isinstance(decision, Answer):
            messages.append({"role": "assistant", "content": decision.text})
            return decision.text
        call = {"id": decision.call_id, "name": TOOL_NAME, "arguments": decision.arguments}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        await events.put({"name": "tool.called", "session_id": session, "call": call})
        schema, tool = tools[TOOL_NAME]
        result = await tool(schema.model_validate(decision.arguments))
        messages.append({"role": "tool", "tool_call_id": decision.call_id, "content": result})
        await events.put({"name": "tool.succeeded", "session_id": session, "call": call})


async def _typed_agent(script: Script, tools: Tools, session: str, events: asyncio.Queue[Any]) -> str:
    async def call_model(messages: list[Message]) -> Message:
        decision = script.decide(messages[-1].content)
        if isinstance(decision, Answer):
            return Message(role="assistant", content=decision.text)
        call = ToolCall(id=decision.call_id, name=TOOL_NAME, arguments=json.dumps(decision.arguments))
        return Message(role="assistant", tool_calls=[call])

    messages = [
        Message(role="system", content=INSTRUCTIONS),
        Message(role="user", content=user_input(session)),
    ]
    while True:
        await events.put(Event(name="llm.called", session_id=session, data={"messages": len(messages)}))
        answer = await call_model(messages)
        messages.append(answer)
        await events.put(Event(name="llm.succeeded", session_id=session, data={"calls": len(answer.tool_calls)}))
        if not answer.tool_calls:
            return answer.content
        for call in answer.tool_calls:
            await events.put(Event(name="tool.called", session_id=session, data={"call": call}))
            schema, tool = tools[call.name]
            async with asyncio.timeout(TOOL_SECONDS):
                result = await tool(schema.model_validate_json(call.arguments))
            messages.append(Message(role="tool", content=result, tool_call_id=call.id))
            await events.put(Event(name="tool.succeeded", session_id=session, data={"call_id": call.id}))


async def _drain(events: asyncio.Queue[Any]) -> None:
    while True:
        await events.get()


Agent: TypeAlias = Callable[[Script, Tools, str, asyncio.Queue[Any]], Awaitable[str]]


@asynccontextmanager
async def _open(setup: Setup, agent: Agent) -> AsyncIterator[RunSession]:
    events: asyncio.Queue[Any] = asyncio.Queue(QUEUED_EVENTS)
    tools = _tools(setup.script)
    reader = asyncio.create_task(_drain(events))
    try:
        yield lambda session: agent(setup.script, tools, session, events)
    finally:
        reader.cancel()


@asynccontextmanager
async def bare(setup: Setup) -> AsyncIterator[RunSession]:
    """Open the loop of dicts."""
    async with _open(setup, _bare_agent) as run_session:
        yield run_session


@asynccontextmanager
async def typed(setup: Setup) -> AsyncIterator[RunSession]:
    """Open the loop of pydantic models."""
    async with _open(setup, _typed_agent) as run_session:
        yield run_session
