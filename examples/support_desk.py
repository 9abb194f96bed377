"""A support desk: an agent that looks orders up and pays refunds, durably.

    python examples/support_desk.py

Kill it at any moment and start it again: it carries on, and no refund is paid twice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from callboard import (
    Agent,
    Happened,
    ModelRequest,
    NotHappened,
    RunBudget,
    RunInfo,
    Runtime,
    ScriptedModel,
    ToolCall,
    ToolContext,
    tool,
)

DATA = Path("support-desk-data")


class Bank:
    """Stands in for a payment provider: what it paid is in a file of its own, outside Callboard's store."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def paid(self) -> dict[str, int]:
        """Refunds by idempotency key."""
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def pay(self, key: str, amount: int) -> None:
        """Pay once for a key."""
        self._path.write_text(json.dumps({**self.paid(), key: amount}))


@asynccontextmanager
async def open_bank(info: RunInfo) -> AsyncIterator[Bank]:
    """Opened at every start of a run, recoveries included."""
    yield Bank(DATA / "bank.json")


@tool(read_only=True)
async def find_order(order_id: str) -> dict[str, object]:
    """Look an order up.

    Args:
        order_id: the order's number.
    """
    return {"order_id": order_id, "price": 40, "status": "lost in the post"}


@tool(timeout=20)
async def refund(ctx: ToolContext[Bank], order_id: str, amount: int) -> str:
    """Pay a customer back.

    Args:
        ctx: the call.
        order_id: the order's number.
        amount: how much, in euros.
    """
    ctx.deps.pay(ctx.idempotency_key, amount)
    return f"paid {amount} euros back for order {order_id}"


@refund.reconcile
async def _(ctx: ToolContext[Bank], order_id: str, amount: int) -> Happened[str] | NotHappened:
    if ctx.idempotency_key in ctx.deps.paid():
        return Happened(f"paid {amount} euros back for order {order_id}")
    return NotHappened()


def think(request: ModelRequest) -> str | ToolCall:
    """What a model would decide, from what the tools returned."""
    answers = [message for message in request.messages if message.role == "tool"]
    if not answers:
        return ToolCall(name="find_order", arguments={"order_id": "7"})
    if len(answers) == 1:
        return ToolCall(name="refund", arguments={"order_id": "7", "amount": 40})
    return f"Sorry about that! I have {answers[-1].text}."


desk = Agent(
    "desk",
    model=ScriptedModel(think),
    instructions="You run a support desk.",
    tools=[find_order, refund],
    deps=open_bank,
    budget=RunBudget(max_steps=16),
)


async def main() -> None:
    """Answer one customer, and show what happened. Started again, it gives the same answer to the same ticket."""
    async with Runtime([desk], store=DATA / "store") as runtime:
        ticket = await runtime.submit(desk, "Where is my order 7?", session_id="customer-42", run_id="ticket-1")
        async for event in ticket.events():
            print(f"  {event.name}")
        result = await ticket.result()
        print(result.output)
        print(f"{result.usage.llm_calls} model calls, {result.usage.tool_calls} tool calls")


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    asyncio.run(main())
