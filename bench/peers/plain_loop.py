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
    FakeModel,
    Lookup,
    LookupArguments,
    ReplyT,
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
        return script.lookup(arguments.customer, arguments.round)

    return {TOOL_NAME: (LookupArguments, lookup)}


def _bare_model(script: Script) -> FakeModel[dict[str, Any]]:
    def ask(lookup: Lookup) -> dict[str, Any]:
        call = {"id": lookup.call_id, "name": TOOL_NAME, "arguments": lookup.arguments}
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    return FakeModel(script, ask, answer=lambda text: {"role": "assistant", "content": text, "tool_calls": []})


async def _bare_agent(model: FakeModel[dict[str, Any]], tools: Tools, session: str, events: asyncio.Queue[Any]) -> str:
    async def call_model(messages: list[dict[str, Any]]) -> dict[str, Any]:
        return model.reply(len(messages) // 2 - 1, messages[1]["content"], messages[-1]["content"])

    messages: list[dict[str, Any]] = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": user_input(session)},
    ]
    while True:
        await events.put({"name": "llm.called", "session_id": session})
        answer = await call_model(messages)
        messages.append(answer)
        await events.put({"name": "llm.succeeded", "session_id": session})
        if not answer["tool_calls"]:
            return str(answer["content"])
        for call in answer["tool_calls"]:
            await events.put({"name": "tool.called", "session_id": session, "call": call})
            schema, tool = tools[call["name"]]
            result = await tool(schema.model_validate(call["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
            await events.put({"name": "tool.succeeded", "session_id": session, "call": call})


def _typed_model(script: Script) -> FakeModel[Message]:
    def ask(lookup: Lookup) -> Message:
        call = ToolCall(id=lookup.call_id, name=TOOL_NAME, arguments=json.dumps(lookup.arguments))
        return Message(role="assistant", tool_calls=[call])

    return FakeModel(script, ask, answer=lambda text: Message(role="assistant", content=text))


async def _typed_agent(model: FakeModel[Message], tools: Tools, session: str, events: asyncio.Queue[Any]) -> str:
    async def call_model(messages: list[Message]) -> Message:
        return model.reply(len(messages) // 2 - 1, messages[1].content, messages[-1].content)

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


Agent: TypeAlias = Callable[[FakeModel[ReplyT], Tools, str, asyncio.Queue[Any]], Awaitable[str]]


@asynccontextmanager
async def _open(setup: Setup, model: FakeModel[ReplyT], agent: Agent[ReplyT]) -> AsyncIterator[RunSession]:
    events: asyncio.Queue[Any] = asyncio.Queue(QUEUED_EVENTS)
    tools = _tools(setup.script)
    reader = asyncio.create_task(_drain(events))
    try:
        yield lambda session: agent(model, tools, session, events)
    finally:
        reader.cancel()


@asynccontextmanager
async def bare(setup: Setup) -> AsyncIterator[RunSession]:
    """Open the loop of dicts."""
    async with _open(setup, _bare_model(setup.script), _bare_agent) as run_session:
        yield run_session


@asynccontextmanager
async def typed(setup: Setup) -> AsyncIterator[RunSession]:
    """Open the loop of pydantic models."""
    async with _open(setup, _typed_model(setup.script), _typed_agent) as run_session:
        yield run_session
