"""Two workers, one directory: a support desk that pays refunds, and somebody who decides about the large ones.

    python examples/two_workers.py

Both workers are handed every job, as by a queue that delivers twice: each runs once, in either of them. This process
is the third one on the directory. It decides, from outside, about refunds over 50 euros; it kills the first worker as
soon as it has decided about one; and it tells how it all ended: no job is lost, and none is paid twice.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from multiprocessing.context import SpawnProcess
from pathlib import Path

from callboard import (
    Agent,
    Allow,
    AlreadyDecidedError,
    Deny,
    Happened,
    ModelRequest,
    NotHappened,
    RunEndedError,
    Runtime,
    ScriptedModel,
    ToolCall,
    ToolContext,
    drain_on_signals,
    tool,
)

DATA = Path("two-workers-data")
BANK = DATA / "bank"
AMOUNTS = {f"job-{number}": 20 * number for number in range(1, 9)}


@tool(timeout=20, approval=lambda amount, **_: amount > 50)
async def refund(ctx: ToolContext[str], amount: int) -> str:
    """Pay a customer back.

    Args:
        ctx: the call; its deps are the worker's name.
        amount: how much, in euros.
    """
    with (BANK / ctx.idempotency_key).open("x") as payment:  # the bank refuses a key that it knows
        payment.write(f"{amount} euros, by {ctx.deps}")
    return f"{amount} euros, by {ctx.deps}"


@refund.reconcile
async def _(ctx: ToolContext[str], amount: int) -> Happened[str] | NotHappened:
    payment = BANK / ctx.idempotency_key
    return Happened(payment.read_text()) if payment.exists() else NotHappened()


def think(request: ModelRequest) -> str | ToolCall:
    """What a model would decide."""
    last = request.messages[-1]
    if last.role == "tool":
        return last.text
    return ToolCall(name="refund", arguments={"amount": int(last.text)})


def be_a_worker(name: str) -> None:
    """The whole of a worker's process."""
    asyncio.run(work(name))


async def work(name: str) -> None:
    """Take every job in, and work until somebody says that it is enough: SIGTERM."""
    desk = Agent("desk", model=ScriptedModel(think), tools=[refund], deps=name)
    async with Runtime([desk], store=DATA / "store") as runtime, drain_on_signals(runtime):
        for job, amount in AMOUNTS.items():
            # Two jobs of one customer, whichever worker has them, go one after the other.
            await runtime.submit(desk, str(amount), run_id=job, session_id=f"customer-{amount % 3}")
        await asyncio.Event().wait()


async def decide_and_tell(doomed: SpawnProcess) -> None:
    """Decide what the workers ask, wherever it is asked, until every job has ended."""
    async with Runtime(store=DATA / "store", recover=False) as runtime:
        while len(ended := [run for run in await runtime.runs.list() if run.ended_at is not None]) < len(AMOUNTS):
            for run in await runtime.runs.list(state="suspended"):
                for call in run.pending:
                    decision = Allow() if call.arguments["amount"] < 150 else Deny("that is too much")
                    try:
                        await runtime.decide(call.call_id, decision, by="the manager")
                    except (AlreadyDecidedError, RunEndedError):
                        continue  # and a worker has not looked at it yet, or is done with it since the list was made
                    print(f"  {run.run_id}: {type(decision).__name__} {call.arguments}")
                    doomed.kill()
            await asyncio.sleep(0.02)
        for run in ended:
            print(f"{run.run_id}: {(await runtime.wait(run.run_id)).output}")


def main() -> None:
    """Start the workers, and see them through. Started again, it tells how the same jobs ended."""
    BANK.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")  # a data directory must not be taken across a fork
    workers = [spawn.Process(target=be_a_worker, args=(name,)) for name in ("Alice", "Bob")]
    for worker in workers:
        worker.start()
    try:
        asyncio.run(decide_and_tell(doomed=workers[0]))
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    print(f"{len(os.listdir(BANK))} refunds are in the bank's books")


if __name__ == "__main__":
    main()
