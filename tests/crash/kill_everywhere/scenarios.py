"""Agents that are killed everywhere: what they do to the world, they note there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from callboard import (
    Agent,
    Allow,
    AlreadyDecidedError,
    Happened,
    ModelRequest,
    NotHappened,
    RunBudget,
    RunContext,
    RunEndedError,
    RunState,
    Runtime,
    ScriptedModel,
    ToolCall,
    ToolContext,
    tool,
)
from callboard.memories import WindowMemory
from callboard.testing import note_effect

ACCOUNT = "account"


def account() -> Path:
    return Path(os.environ["CALLBOARD_WORLD"]) / ACCOUNT


@tool(read_only=True)
async def price(item: int) -> int:
    """What an item costs."""
    note_effect(f"looked up {item}", may_repeat=True)
    return 10 * item


@tool
async def deposit(ctx: ToolContext[None], amount: int) -> str:
    """Put money into the account."""
    with account().open("a") as file:
        file.write(f"{ctx.idempotency_key} {amount}\n")
    note_effect(f"deposited {amount}")
    return f"deposited {amount}"


@deposit.reconcile
async def _(ctx: ToolContext[None], amount: int) -> Happened[str] | NotHappened:
    if account().exists() and f"{ctx.idempotency_key} {amount}\n" in account().read_text():
        return Happened(f"deposited {amount}")
    return NotHappened()


def deposits(folder: Path) -> dict[str, int]:
    """An observer: what the bank says."""
    path = folder / ACCOUNT
    return {"deposits": len(path.read_text().splitlines()) if path.exists() else 0}


async def square(number: int) -> int:
    note_effect(f"squared {number}", may_repeat=True)
    return number * number


def think(request: ModelRequest) -> Any:
    last = request.messages[-1]
    if last.text == "How much is it?":
        return "It is what it is."
    said = [message for message in request.messages if message.role in {"assistant", "tool"}]
    if not said:
        return [ToolCall(name="price", arguments={"item": item}) for item in (3, 4)]
    if last.name == "price":
        prices = [int(message.text) for message in said if message.name == "price"]
        return ToolCall(name="deposit", arguments={"amount": sum(prices)})
    return f"I {last.text}."


async def with_a_planted_bug(ctx: RunContext[None]) -> str:
    """It writes a letter outside a step: whoever replays the pattern writes it again."""
    note_effect("wrote a letter")
    squared = await ctx.step("square", square, 2)
    return f"wrote about {squared}"


careless = Agent("careless", pattern=with_a_planted_bug)


async def with_a_guess(ctx: RunContext[None]) -> str:
    """Its answer depends on which process gives it."""
    await ctx.step("square", square, 2)
    return f"told by {os.getpid()}"


guessing = Agent("guessing", pattern=with_a_guess)


@tool
async def ring() -> str:
    """Ring the bell; nobody can tell afterwards whether it rang."""
    note_effect("rang")
    return "rang"


ringer = Agent("ringer", model=ScriptedModel([ToolCall(name="ring"), "done"]), tools=[ring])


def no_agent() -> str:
    return "nobody"


def broken() -> Agent[None, str]:
    raise LookupError("there is no configuration")


async def endless(ctx: RunContext[None]) -> str:
    await ctx.sleep(3600)
    return "at last"


waiting = Agent("waiting", pattern=endless)


@tool(approval=True, idempotent=True)
async def promote(name: str) -> str:
    """Promote somebody."""
    note_effect(f"promoted {name}", may_repeat=True)
    return f"promoted {name}"


async def ask_people(ctx: RunContext[None]) -> str:
    """It waits twice for people: for a decision, and for a word."""
    promoted = await ctx.call_tool("promote", name="Ann")
    return f"{promoted}, {await ctx.receive('words', str)}"


asking = Agent("asking", pattern=ask_people, tools=[promote])


async def decide_and_send(runtime: Runtime, run_id: str) -> None:
    """In every process from the beginning: what one before it has said already does no harm."""
    with contextlib.suppress(RunEndedError):
        await runtime.send(run_id, "words", "at last")
    while (result := await runtime.wait(run_id)).stop_reason == "suspended":
        for call in result.pending:
            try:
                await runtime.decide(call.call_id, Allow(), by="ann")
            except AlreadyDecidedError:
                continue  # in a process that died since


@tool(approval=True)
async def publish(ctx: ToolContext[None], text: str) -> str:
    """Publish something, once somebody has allowed it."""
    with account().open("a") as file:
        file.write(f"{ctx.idempotency_key} published\n")
    note_effect(f"published {text}")
    return f"published {text}"


@publish.reconcile
async def _(ctx: ToolContext[None], text: str) -> Happened[str] | NotHappened:
    if account().exists() and f"{ctx.idempotency_key} published\n" in account().read_text():
        return Happened(f"published {text}")
    return NotHappened()


async def everything(ctx: RunContext[None]) -> str:
    """Each kind of step: models, tools that read, that act and that need leave, signals, sleep, functions, branches,
    other agents, state, chance, events, artifacts; memory is asked before it, and told after it.
    """
    response = await ctx.generate()
    while response.tool_calls:
        await ctx.call_tools(response.tool_calls)
        response = await ctx.generate()
    first = await ctx.step("square", square, 2)
    ctx.state["squares"] = ctx.state.get("squares", 0) + first

    async def branch(below: RunContext[None], number: int) -> int:
        return await below.step("square", square, number) + len((await below.generate("How much is it?")).text)

    mapped = await ctx.map(branch, {"three": 3, "four": 4})
    ctx.state["squares"] += sum(mapped.values())
    await ctx.emit("scenario.squared", {"numbers": [2, 3, 4]})
    await ctx.sleep(0.001)
    published = await ctx.call_tool("publish", text="the sum")
    word = await ctx.receive("words", str)
    apart = await ctx.delegate("clerk", "Pay it in.")
    beside = await ctx.delegate("neighbour", "Look at it.", session="shared")
    await ctx.add_artifact("squares", {"sum": ctx.state["squares"], "chance": ctx.random()})
    return f"{response.text} {ctx.state['squares']}; {published}; {word}; {apart.output} {beside.output}"


async def look_at_it(ctx: RunContext[None]) -> str:
    """Works in its parent's session: sees the state there, and changes it."""
    ctx.state["squares"] += await ctx.step("square", square, 5)
    return f"It was {len(ctx.transcript)} messages long."


def pay_in(request: ModelRequest) -> Any:
    last = request.messages[-1]
    return f"I {last.text}." if last.role == "tool" else ToolCall(name="deposit", arguments={"amount": 1})


def remember(request: ModelRequest) -> str:
    """What it was told beside the conversation: what memory has kept."""
    return request.messages[0].text.rpartition("You answered: ")[2]


def company() -> list[Agent[Any, Any]]:
    """One that takes every kind of step, two that it gives work to, and one that runs behind it in its session."""
    careful = Agent(
        "careful",
        model=ScriptedModel(think),
        tools=[price, deposit, publish],
        pattern=everything,
        memory=WindowMemory(),
        budget=RunBudget(max_total_tokens=100_000),
        state_type=dict,
        version="7",
    )
    clerk = Agent("clerk", model=ScriptedModel(pay_in), tools=[deposit])
    neighbour = Agent("neighbour", pattern=look_at_it, state_type=dict)
    reminder = Agent("reminder", model=ScriptedModel(remember), instructions="Remember.", memory=WindowMemory())
    return [careful, clerk, neighbour, reminder]


async def see_through(runtime: Runtime, run_id: str) -> None:
    """Opens an account, answers for people, and has another run draw on the account behind the first one."""
    await runtime.accounts.open("company", RunBudget(max_steps=10))
    await decide_and_send(runtime, run_id)
    await runtime.run("reminder", "What was it?", session_id="session", run_id="reminder", account="company")


async def cancel(runtime: Runtime, run_id: str) -> None:
    """Whoever drives begins anew in every process, and looks first."""
    if (await runtime.runs.get(run_id)).state != RunState.CANCELLED:
        await runtime.cancel(run_id, reason="enough")


async def nothing_noted() -> None:
    pass


async def more_when_nobody_is_killed(ctx: RunContext[None]) -> str:
    if "reference" in os.environ["CALLBOARD_WORLD"]:
        await ctx.step("think", nothing_noted)
    return "done"


changing = Agent("changing", pattern=more_when_nobody_is_killed)


def unable_to_start_twice() -> Agent[None, str]:
    """Its second process finds what the first one left, and gives up."""
    left = Path(os.environ.get("CALLBOARD_WORLD", "nowhere")) / "lock"
    if left.exists():
        raise BlockingIOError("the lock is still there")
    if left.parent.exists():
        left.touch()
    return careless
