"""A run with four values of ten megabytes: `python archivist.py DIRECTORY hold | finish`.

Its model's answer, its tool's result, its session's state and an artifact are that long. With ``hold`` it says
``held`` once all of them are on disk, and stays there to be killed; with ``finish`` it carries that run to its end, has
another run look at the state it left, and writes what it saw to its standard output, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from hashlib import blake2b

from callboard import Agent, ModelRequest, RunContext, Runtime, ScriptedModel, tool

TEN_MB = 10_000_000
done: list[str] = []


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def filled_with(word: str) -> str:
    return word * (TEN_MB // len(word) + 1)


def digest(value: str) -> str:
    return blake2b(value.encode(), digest_size=8).hexdigest()


@tool(read_only=True)
async def dig() -> str:
    """Dig the archive out."""
    done.append("dig")
    return filled_with("tool result ")


def think(_: ModelRequest) -> str:
    done.append("think")
    return filled_with("model answer ")


async def hold() -> None:
    say("held")
    if sys.argv[2] == "hold":
        await asyncio.Event().wait()


async def archive(ctx: RunContext[None]) -> str:
    if ctx.input_text == "look":
        return digest(ctx.state["archive"])
    answer = await ctx.generate()
    found = await ctx.call_tool("dig")
    ctx.state["archive"] = filled_with("session state ")
    await ctx.add_artifact("archive", filled_with("an artifact "))
    await ctx.step("hold", hold)
    values = [answer.text, found, ctx.state["archive"], ctx.artifacts[0].payload]
    return " ".join(digest(value) for value in values)


async def main() -> None:
    agent = Agent("archivist", model=ScriptedModel(think), tools=[dig], pattern=archive, state_type=dict)
    async with Runtime([agent], store=sys.argv[1]) as runtime:
        handle = await runtime.submit(agent, "archive", run_id="archive", session_id="s")
        result = await handle.result()
        looked = await runtime.run(agent, "look", session_id="s")
        seen = {"values": result.output.split(" "), "state": looked.output, "done": done}
        say(json.dumps(seen))


if __name__ == "__main__":
    asyncio.run(main())
