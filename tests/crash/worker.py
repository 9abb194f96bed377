"""A worker process that is there to be killed: `python worker.py ASSIGNMENT`, a JSON object.

It opens a data directory, carries on what it finds there, and submits runs until it is told to stop. Whatever happens
outside Callboard it writes to the *world*: one line per event, appended and synced, so that the world remembers what a
killed process can no longer tell. It kills itself at the fault point that its environment names, or at a moment that
the assignment names: in the middle of its own code, or of a commit.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from callboard import (
    Agent,
    Happened,
    ModelRequest,
    NotHappened,
    RunBudget,
    RunContext,
    Runtime,
    RuntimeBusyError,
    RuntimeLimits,
    ScriptedModel,
    SessionExistsError,
    ToolCall,
    ToolContext,
    tool,
)
from callboard.testing import die, die_at, told_to_die_at
from callboard_storage.lmdb_store import LmdbStore

MAP_SIZE = 1 << 30
ROUNDS = 3
STRIDES = 200
SESSIONS = 5
WINDOW = 8
"""Runs that are unfinished at a time: half of them at work, the others in the queue."""


class World:
    """What has happened, whatever Callboard knows of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self, *words: object) -> None:
        os.write(self._descriptor, (" ".join(map(str, words)) + "\n").encode())
        os.fsync(self._descriptor)

    def has(self, *words: object) -> bool:
        return " ".join(map(str, words)) in self._path.read_text().splitlines()


class Work(BaseModel):
    """What a worker is to do.

    Attributes:
        data: the data directory.
        world: the file that remembers.
        task: which of the functions below.
        dies: the moment at which it kills itself, the first time it comes to it.
        at_commit: which commit of this process, from 0, it kills itself over.
        when: ``before`` that commit is written, or ``after``, when it is on disk and nobody knows.
        on_in_doubt: what is to be done about a call that only a crash ended.
        seed: of the model's pace.
        count: how many runs, or steps of one run.
        begins_afresh: what begins afresh after a crash: nothing, the ``root`` of a tree, or the ``children``.
    """

    data: Path
    world: Path
    task: str = "many_runs"
    dies: str = ""
    at_commit: int = -1
    when: str = "after"
    on_in_doubt: str = "ask"
    seed: int = 0
    count: int = 0
    begins_afresh: str = ""


class KillingStore(LmdbStore):
    """A store whose process dies over a commit."""

    def __init__(self, path: Path, kills: Callable[[Any], bool], when: str) -> None:
        super().__init__(path, map_size=MAP_SIZE)
        self._kills = kills
        self._when = when

    def commit(self, batch: Any, fence: Any, loop: Any, acknowledge: Any) -> None:
        if not self._kills(batch):
            super().commit(batch, fence, loop, acknowledge)
        elif self._when == "before":
            die()
        else:
            super().commit(batch, fence, loop, lambda error: die())


class Worker:
    """The agents, and the moments at which they may end their process."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.world = World(work.world)
        self.pace = random.Random(work.seed + os.getpid())  # noqa: S311  (a pace, no secret)
        self._commits = 0

    def moment(self, name: str) -> None:
        """Kill this process, if this is the moment for it and it has not been before."""
        if self.work.dies == name and not self.world.has("died", name):
            self.world.note("died", name)
            die()

    def store(self) -> LmdbStore:
        """The data directory; opening it may already kill."""

        def kills(batch: Any) -> bool:
            self._commits += 1
            return self._commits - 1 == self.work.at_commit

        return KillingStore(self.work.data, kills, self.work.when)

    async def _latency(self) -> None:
        await asyncio.sleep(self.pace.uniform(0.0005, 0.004))

    # ---- an agent with tools, for the react pattern

    def clerk(self) -> Agent[None, str]:
        """Per round it looks a price up, and deposits it; then it says what it deposited in all."""
        world = self.world

        @tool(read_only=True)
        async def price(ctx: ToolContext[None], item: int) -> int:
            """What an item costs."""
            world.note("price", ctx.call_id)
            self.moment("inside a read-only tool")
            await self._latency()
            return 10 + item

        @tool
        async def deposit(ctx: ToolContext[None], amount: int) -> str:
            """Put money into the account."""
            world.note("asked-to-deposit", ctx.call_id)
            self.moment("before the tool's effect")
            await self._latency()
            world.note("deposit", ctx.idempotency_key, amount)
            await self._latency()
            return f"deposited {amount}"

        @deposit.reconcile
        async def _(ctx: ToolContext[None], amount: int) -> Happened[str] | NotHappened:
            world.note("reconcile", ctx.call_id)
            if world.has("deposit", ctx.idempotency_key, amount):
                return Happened(f"deposited {amount}")
            return NotHappened()

        async def think(request: ModelRequest) -> Any:
            world.note("model", request.call_id)
            await self._latency()
            last_input = max(n for n, message in enumerate(request.messages) if message.role == "user")
            said = request.messages[last_input:]
            turns = sum(message.role == "assistant" for message in said)
            prices = [int(message.text) for message in said if message.name == "price"]
            if turns == 2 * ROUNDS:
                return f"deposited {sum(prices)}"
            if turns % 2:
                return ToolCall(name="deposit", arguments={"amount": prices[-1]})
            return [ToolCall(name="price", arguments={"item": turns + n}) for n in range(2)]

        return Agent("clerk", model=ScriptedModel(think), tools=[price, deposit], budget=_PATIENT)

    # ---- an agent with a pattern of its own

    def planner(self) -> Agent[None, str]:
        """Every kind of step: functions, side by side and in turn, sleep, state, artifacts, events."""
        world = self.world

        async def fetch(call: str, value: int) -> int:
            world.note("fetch", call)
            self.moment(f"before the effect of {value}")
            await self._latency()
            self.moment(f"after the effect of {value}")
            return value * value

        async def think(request: ModelRequest) -> str:
            world.note("model", request.call_id)
            await self._latency()
            return "go on"

        async def plan(ctx: RunContext[None]) -> str:
            first = await ctx.step("first", fetch, f"{ctx.run_id}:0", 2)

            async def branch(below: RunContext[None], item: int) -> int:
                fetched = await below.step("fetch", fetch, f"{ctx.run_id}:1.item{item}/0", item)
                await below.generate()
                return fetched

            mapped = await ctx.map(branch, {f"item{item}": item for item in (3, 4)})
            ctx.state["sum"] = ctx.state.get("sum", 0) + first + sum(mapped.values())
            began = ctx.now().timestamp()
            await ctx.emit("planner.slept", {"began": began})
            await ctx.sleep(0.002)
            await ctx.add_artifact("sum", {"value": ctx.state["sum"]})
            await ctx.generate("How much is it?")
            return f"planned {first + sum(mapped.values())}"

        return Agent("planner", model=ScriptedModel(think), pattern=plan, state_type=dict, budget=_PATIENT)

    # ---- tasks

    async def many_runs(self) -> None:
        """Submit runs of both agents, a window of them at a time, until a file says stop; then see them all through."""
        world, work = self.world, self.work
        limits = RuntimeLimits(max_concurrent_runs=WINDOW // 2)
        known = {line.split()[1] for line in work.world.read_text().splitlines() if line.startswith("submitted ")}
        async with Runtime([self.clerk(), self.planner()], store=self._opened(), limits=limits) as runtime:
            world.note("started", os.getpid())
            on_disk = {entry.run_id for entry in await runtime.runs.list()}
            events = await runtime.subscribe(names=["run.checkpoint_saved", "run.completed"])

            async def watch() -> None:
                async for event in events:
                    world.note("acknowledged", event.run_id, event.sequence, event.name)

            watching = asyncio.create_task(watch())
            window = asyncio.Semaphore(WINDOW)
            async with asyncio.TaskGroup() as group:

                async def see_through(run_id: str) -> None:
                    result = await runtime.wait(run_id)
                    window.release()
                    world.note("result", run_id, json.dumps([result.stop_reason, result.final_output]))

                for run_id in sorted(known):
                    await window.acquire()
                    group.create_task(see_through(run_id))
                number = len(known)
                # The answer may have been lost with the process that asked; the same request gets the same run.
                while (run_id := f"run{number:04}") in on_disk or not work.world.with_suffix(".stop").exists():
                    await window.acquire()
                    agent = "planner" if number % 3 == 0 else "clerk"
                    await runtime.submit(agent, f"work {run_id}", run_id=run_id, session_id=f"s{number % SESSIONS}")
                    world.note("submitted", run_id)
                    group.create_task(see_through(run_id))
                    number += 1
            runtime.unsubscribe(events)
            await watching

    def _opened(self) -> LmdbStore:
        self.world.note("opening", os.getpid())
        return self.store()

    async def one_run(self, agent: Agent[None, str], said: str = "go") -> None:
        """One run under one id, to its end."""
        async with Runtime([agent], store=self._opened()) as runtime:
            handle = await runtime.submit(agent, said, run_id="run", session_id="s")
            result = await handle.result()
            self.world.note("result", "run", json.dumps([result.stop_reason, result.final_output]))
            self.moment("with the result in hand")

    async def clerk_alone(self) -> None:
        await self.one_run(self.clerk())

    async def planner_alone(self) -> None:
        await self.one_run(self.planner())

    async def tree(self) -> None:
        """A run that delegates to four clerks side by side, in sessions of their own, in its own, two runs down."""

        def on_crash(whose: str) -> Any:
            return "restart" if self.work.begins_afresh == whose else "resume"

        async def hire(branch: RunContext[None], session: Any) -> str:
            if session == "below":
                return (await branch.delegate("foreman", "go", on_crash=on_crash("children"))).output
            theirs = on_crash("children") if session == "isolated" else "resume"
            return (await branch.delegate("clerk", "go", session=session, on_crash=theirs)).output

        async def lead(ctx: RunContext[None]) -> str:
            hired = await ctx.map(hire, {"a": "isolated", "b": "isolated", "c": "shared", "d": "below"})
            return "; ".join(hired.values())

        async def lead_on(ctx: RunContext[None]) -> str:
            return (await ctx.delegate("clerk", "go")).output

        max_steps = None if self.work.begins_afresh else 28
        boss = Agent("boss", pattern=lead, budget=RunBudget(max_steps=max_steps, max_resume_attempts=10_000))
        foreman = Agent("foreman", pattern=lead_on, budget=_PATIENT)
        async with Runtime([boss, foreman, self.clerk()], store=self._opened()) as runtime:
            handle = await runtime.submit(boss, "go", run_id="run", session_id="s", on_crash=on_crash("root"))
            result = await handle.result()
            self.world.note("result", "run", json.dumps([result.stop_reason, result.final_output]))
            self.world.note("spent", *(await runtime.runs.get("run")).spent)

    async def undeclared(self) -> None:
        """A tool that acts, and cannot say whether it did."""
        world = self.world

        @tool
        async def ring(ctx: ToolContext[None]) -> str:
            """Ring the bell."""
            world.note("rang", ctx.call_id)
            self.moment("while the bell rings")
            return "rang"

        def think(request: ModelRequest) -> Any:
            world.note("model", request.call_id)
            last = request.messages[-1]
            return f"told: {last.text}" if last.role == "tool" else ToolCall(name="ring")

        on_in_doubt: Any = self.work.on_in_doubt
        await self.one_run(Agent("ringer", model=ScriptedModel(think), tools=[ring], on_in_doubt=on_in_doubt))

    async def sleeper(self) -> None:
        """A sleep that one process begins and another ends."""
        world = self.world

        async def sleep(ctx: RunContext[None]) -> str:
            world.note("resumed", time.time())
            if not world.has("died", "in its sleep"):
                asyncio.get_running_loop().call_later(0.1, self.moment, "in its sleep")
            await ctx.sleep(1.0)
            world.note("woke", time.time())
            return "slept"

        await self.one_run(Agent("sleeper", pattern=sleep))

    async def traveller(self) -> None:
        """A session; and until a file says stop, forks of it, each of which goes back to another step."""
        world = self.world

        async def stride(number: int) -> int:
            return number

        async def walk(ctx: RunContext[None]) -> str:
            for number in range(int(ctx.input_text)):
                ctx.state["walked"] = ctx.state.get("walked", 0) + 1
                await ctx.step("stride", stride, number)
            return f"walked {ctx.state['walked']}"

        agent = Agent("walker", pattern=walk, state_type=dict, budget=_PATIENT)
        async with Runtime([agent], store=self._opened()) as runtime:
            await runtime.run(agent, str(STRIDES), run_id="seed", session_id="source")
            number = len(await runtime.sessions.list()) - 1
            while not self.work.world.with_suffix(".stop").exists():
                for fork in (f"fork{number - 1}", f"fork{number}"):
                    if fork == "fork-1":
                        continue
                    world.note("forking", fork)
                    try:
                        await runtime.sessions.fork("source", fork)
                    except (SessionExistsError, RuntimeBusyError):  # busy with its run, which was killed and goes on
                        world.note("there", fork)
                    else:
                        world.note("forked", fork)
                    step = int(fork.removeprefix("fork")) % STRIDES
                    back = f"seed:step:{step}"
                    world.note("going", fork)
                    result = await runtime.run(
                        agent, "2", run_id=f"run-{fork}", session_id=fork, resume_from_checkpoint=back
                    )
                    world.note("result", result.run_id, json.dumps([result.stop_reason, result.final_output]))
                number += 1
            for entry in await runtime.runs.list():
                await runtime.wait(entry.run_id)

    async def deadly(self) -> None:
        """A run that ends its process whenever it runs, beside one that is innocent."""
        world = self.world

        @tool(read_only=True)
        async def explode(ctx: ToolContext[None]) -> str:
            """End it all."""
            world.note("exploded", ctx.call_id)
            die()

        deadly = Agent("deadly", model=ScriptedModel([ToolCall(name="explode"), "unharmed"]), tools=[explode])
        async with Runtime([deadly, self.clerk()], store=self._opened()) as runtime:
            innocent = await runtime.submit("clerk", "go", run_id="innocent", session_id="a")
            # The deadly one begins only once the other has ended, or has ended in an earlier life.
            await innocent.result()
            handle = await runtime.submit(deadly, "go", run_id="deadly", session_id="b")
            result = await handle.result()
            error = result.error_details
            world.note("result", "deadly", json.dumps([result.stop_reason, error and error.code]))

    async def crowd(self) -> None:
        """Many runs at once, one of which ends its process before any of them has something on disk."""
        world, count, begun = self.world, self.work.count, asyncio.Event()

        @tool(read_only=True)
        async def explode(ctx: ToolContext[None]) -> str:
            """End it all."""
            world.note("exploded", ctx.call_id)
            die()

        async def innocent(ctx: RunContext[None]) -> str:
            if ctx.attempt == 1:
                await begun.wait()
            return await ctx.step("work", harmless)

        async def harmless() -> str:
            await asyncio.sleep(0)
            return "unharmed"

        async def guilty(ctx: RunContext[None]) -> str:
            if ctx.attempt == 1:
                await begun.wait()
            return str(await ctx.call_tool("explode"))

        agents = [Agent("innocent", pattern=innocent), Agent("guilty", pattern=guilty, tools=[explode])]
        limits = RuntimeLimits(max_concurrent_runs=count)
        async with Runtime(agents, store=self._opened(), limits=limits) as runtime:
            handles = [
                await runtime.submit("guilty" if n == count // 2 else "innocent", "go", run_id=f"run{n}")
                for n in range(count)
            ]
            begun.set()
            for handle in handles:
                result = await handle.result()
                world.note("result", result.run_id, json.dumps([result.stop_reason, result.final_output]))

    async def long_run(self) -> None:
        """One run of many steps, which dies once before the last of them."""
        world, count = self.world, self.work.count

        async def stride(number: int) -> int:
            return number

        async def walk(ctx: RunContext[None]) -> str:
            for number in range(count):
                await ctx.step("stride", stride, number)
            self.moment("before the last step")
            world.note("replayed", f"{1e3 * (time.process_time() - began):.1f}")
            await ctx.step("stride", stride, count)
            return f"walked {count}"

        agent = Agent("walker", pattern=walk)
        runtime = Runtime([agent], store=self._opened())
        began = time.process_time()
        async with runtime:
            await (await runtime.submit(agent, "go", run_id="run")).result()

    async def backlog(self) -> None:
        """Many runs in the queue of a process that dies before their turn comes."""
        world, count = self.world, self.work.count

        async def answer(ctx: RunContext[None]) -> str:
            if not world.has("died", "with a backlog"):
                await asyncio.Event().wait()
            return "done"

        agent = Agent("clerk", pattern=answer)
        runtime = Runtime([agent], store=self._opened(), limits=RuntimeLimits(max_concurrent_runs=1))
        began = time.process_time()
        async with runtime:
            world.note("ready", f"{1e3 * (time.process_time() - began):.1f}", runtime.stats().recovered)
            if not world.has("died", "with a backlog"):
                for start in range(0, count, 500):
                    await asyncio.gather(
                        *(runtime.submit(agent, "go", run_id=f"run{n}") for n in range(start, start + 500))
                    )
                self.moment("with a backlog")


_PATIENT = RunBudget(max_resume_attempts=10_000)


def main() -> None:
    worker = Worker(Work.model_validate_json(sys.argv[1]))
    task: Callable[[], Awaitable[None]] = getattr(worker, worker.work.task)

    async def live() -> None:
        # A worker does not outlive the test that started it.
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), lambda: os._exit(4))
        await task()

    with die_at(told_to_die_at()):
        asyncio.run(live())


if __name__ == "__main__":
    main()
