"""A process whose runs draw on one account, there to be killed: `python account_worker.py DIRECTORY CALLS [ends]`.

Each model call is noted in the file CALLS before it is made. With ``ends`` it sees every unfinished run through and
leaves; otherwise it submits runs until the account has nothing left.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from callboard import Agent, ModelRequest, RunBudget, RunContext, Runtime, ScriptedModel, Usage
from callboard_storage.lmdb_store import LmdbStore

ACCOUNT = "team"
LIMIT = RunBudget(max_total_tokens=40_000)
PER_CALL = Usage(input_tokens=40, output_tokens=60)
CALLS_PER_RUN = 6
AT_A_TIME = 4


async def main(directory: str, calls: str, *, ends: bool) -> None:
    descriptor = os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    async def think(request: ModelRequest) -> str:
        os.write(descriptor, f"{request.run_id}\n".encode())
        await asyncio.sleep(0.002)
        return "fine"

    async def pattern(ctx: RunContext[Any]) -> str:
        for _ in range(CALLS_PER_RUN):
            await ctx.generate()
        return "done"

    budget = RunBudget(max_resume_attempts=10_000)
    agent = Agent("worker", pattern=pattern, model=ScriptedModel(think, usage=PER_CALL), budget=budget)
    async with Runtime([agent], store=LmdbStore(directory, map_size=1 << 30)) as runtime:
        await runtime.accounts.open(ACCOUNT, LIMIT)
        if ends:
            for entry in await runtime.runs.list():
                await runtime.wait(entry.run_id)
            return

        async def spend() -> None:
            while (await runtime.run(agent, "go", account=ACCOUNT)).stop_reason == "completed":
                pass

        await asyncio.gather(*(spend() for _ in range(AT_A_TIME)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], ends="ends" in sys.argv))
