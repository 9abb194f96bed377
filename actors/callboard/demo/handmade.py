"""The loop people write themselves: asyncio, and a transcript in SQLite that is saved after every step.

It is meant to be a good one. Every message is its own row, written when it is there and flat in cost; each row is on
disk before the next step begins (WAL, `synchronous=FULL`); a restart reads the transcript and goes on behind its last
row, in the middle of a reply's tool calls if that is where it was.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Message = dict[str, Any]
AskModel = Callable[[str, list[Message]], Awaitable[Message]]
RunTool = Callable[[str, dict[str, Any]], Awaitable[Any]]


class Transcripts:
    """Every session's messages, one row each."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS messages (session TEXT, n INTEGER, message TEXT, PRIMARY KEY (session, n))"
        )

    def load(self, session: str) -> list[Message]:
        """A session's messages so far."""
        rows = self._db.execute("SELECT message FROM messages WHERE session = ? ORDER BY n", (session,))
        return [json.loads(row[0]) for row in rows]

    def save(self, session: str, n: int, message: Message) -> None:
        """Put a session's `n`th message on disk."""
        self._db.execute("INSERT INTO messages VALUES (?, ?, ?)", (session, n, json.dumps(message)))

    def close(self) -> None:
        """Close the database."""
        self._db.close()


async def run_session(transcripts: Transcripts, session: str, task: str, ask_model: AskModel, run_tool: RunTool) -> str:
    """Carry one session to its answer, from wherever its transcript ends."""
    messages = transcripts.load(session)

    def add(message: Message) -> None:
        transcripts.save(session, len(messages), message)
        messages.append(message)

    if not messages:
        add({"role": "user", "content": task})
    while True:
        answered = {message["tool_call_id"] for message in messages if message["role"] == "tool"}
        last = next((message for message in reversed(messages) if message["role"] == "assistant"), None)
        for call in last["tool_calls"] if last else []:
            if call["id"] not in answered:
                result = await run_tool(call["name"], call["arguments"])
                add({"role": "tool", "tool_call_id": call["id"], "name": call["name"], "content": json.dumps(result)})
        if last and not last["tool_calls"]:
            return str(last["content"])
        add(await ask_model(session, messages))


async def run_batch(
    path: Path, tasks: dict[str, str], ask_model: AskModel, run_tool: RunTool, concurrency: int
) -> dict[str, str]:
    """Carry every session to its answer, so many at a time."""
    transcripts = Transcripts(path)
    free = asyncio.Semaphore(concurrency)

    async def one(session: str, task: str) -> str:
        async with free:
            return await run_session(transcripts, session, task, ask_model, run_tool)

    try:
        answers = await asyncio.gather(*(one(session, task) for session, task in tasks.items()))
    finally:
        transcripts.close()
    return dict(zip(tasks, answers, strict=True))
