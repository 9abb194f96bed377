"""How types flow from an agent into results, tools and contexts. Type-checked, never run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import assert_type

from callboard import (
    Agent,
    Happened,
    ModelResponse,
    NotHappened,
    RunContext,
    RunInfo,
    RunResult,
    Runtime,
    ToolContext,
    tool,
)


class Bank:
    balance: int = 0


class Verdict:
    good: bool = True


@asynccontextmanager
async def open_bank(info: RunInfo) -> AsyncIterator[Bank]:
    yield Bank()


@tool(read_only=True)
async def look_up(order_id: str) -> int:
    return len(order_id)


@tool
async def bare(order_id: str) -> str:
    return order_id


@tool(timeout=20)
async def pay(ctx: ToolContext[Bank], amount: int) -> str:
    return str(ctx.deps.balance + amount)


@pay.reconcile
async def _(ctx: ToolContext[Bank], amount: int) -> Happened[str] | NotHappened:
    return Happened(str(amount))


async def pattern(ctx: RunContext[Bank]) -> Verdict:
    assert_type(ctx.deps, Bank)
    response = await ctx.generate()
    assert_type(response, ModelResponse[str])
    typed = await ctx.generate("judge", output_type=Verdict)
    assert_type(typed.output, Verdict)

    async def count(words: list[str]) -> int:
        return len(words)

    assert_type(await ctx.step("count", count, ["a"]), int)

    async def one(branch: RunContext[Bank], item: int) -> str:
        return str(item)

    assert_type(await ctx.map(one, {"a": 1}), dict[str, str])
    assert_type(await ctx.delegate(texts, "look it up"), RunResult[str])
    assert_type(await ctx.delegate(judge, "judge", session="shared", deps=Bank()), RunResult[Verdict])
    assert_type((await ctx.delegate(judge, "judge")).output, Verdict)
    return typed.output


texts = Agent("texts", tools=[look_up, bare])
judge = Agent("judge", output_type=Verdict, tools=[look_up, pay], deps=open_bank, pattern=pattern)


async def use(runtime: Runtime) -> None:
    assert_type(await runtime.run(texts, "hello"), RunResult[str])
    assert_type((await runtime.run(judge, "hello")).output, Verdict)
    handle = await runtime.submit(judge, "hello", session_id="s")
    assert_type(await handle.result(), RunResult[Verdict])
    async with runtime.stream(judge, "hello") as stream:
        assert_type(await stream.result(), RunResult[Verdict])
    assert_type(await look_up("7"), int)
