"""DBOS Transact on SQLite, its default database: each session a workflow, each model call and tool call a step.

Durability is DBOS's own: each step's output is committed before the workflow goes on. It leaves SQLite's pragmas at
their defaults (rollback journal, ``synchronous=FULL``), so each commit is synced. Workflows are awaited directly, so
that no polling interval of a handle is charged to it.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID

from bench.workload import INSTRUCTIONS, FakeModel, LookupArguments, RunSession, Setup, user_input

Message = dict[str, Any]


@asynccontextmanager
async def durable(setup: Setup) -> AsyncIterator[RunSession]:
    """Launch DBOS on a database file of its own."""
    script = setup.script
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": f"sqlite:///{setup.directory / 'dbos.sqlite'}",
        "log_level": logging.getLevelName(logging.ERROR),
    }
    DBOS(config=config)

    model: FakeModel[Message] = FakeModel(
        script,
        ask=lambda call: {"role": "assistant", "content": "", "id": call.call_id, "arguments": call.arguments},
        answer=lambda text: {"role": "assistant", "content": text},
    )

    # A step's arguments are part of a workflow's code and are not stored: the history goes in whole.
    @DBOS.step()
    async def call_model(messages: list[Message]) -> Message:
        return model.reply(len(messages) // 2 - 1, messages[1]["content"], messages[-1]["content"])

    @DBOS.step()
    async def lookup(customer: str, round: int) -> str:  # noqa: A002 - the model names the argument
        return script.lookup(customer, round)

    @DBOS.workflow()
    async def agent(session: str) -> str:
        messages: list[Message] = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": user_input(session)},
        ]
        while True:
            answer = await call_model(messages)
            messages.append(answer)
            if "arguments" not in answer:
                return str(answer["content"])
            arguments = LookupArguments.model_validate(answer["arguments"])
            result = await lookup(arguments.customer, arguments.round)
            messages.append({"role": "tool", "tool_call_id": answer["id"], "content": result})

    DBOS.launch()

    async def run_session(session: str) -> str:
        with SetWorkflowID(session):
            return await agent(session)

    try:
        yield run_session
    finally:
        DBOS.destroy(destroy_registry=True)
