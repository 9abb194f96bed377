"""A process whose disk fills up while runs are at work: `python full_disk_worker.py DIRECTORY WALL`.

WALL is how it fills: ``limit`` lowers RLIMIT_FSIZE to the size the data file has, ``disk`` writes a file beside it
until nothing fits, ``quota`` is the store's own. Once nothing moves any more it looks around, makes room, lets every
run come to its end, and writes what it saw to its standard output, as JSON. What a tool does is counted outside the
store.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from callboard import (
    Agent,
    ModelRequest,
    RunHandle,
    Runtime,
    RuntimeBusyError,
    RuntimeLimits,
    ScriptedModel,
    StoreFullError,
    ToolCall,
)
from callboard import tool as as_tool
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.room import MIB
from callboard_storage.upkeep import verify

PATIENCE = 60.0
RESULT = "x" * 20_000
CALLS = 6
RUNS = 24


class Wall:
    """What the store runs into, and how it is taken away."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.data = directory / "data"
        self._filler = directory / "filler"
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def store(self) -> LmdbStore:
        quota = 2 * MIB if self.kind == "quota" else None
        return LmdbStore(self.data, map_size=1 << 30, max_bytes=quota, min_free_bytes=MIB)

    def put_up(self) -> None:
        if self.kind == "limit":
            size = (self.data / "data.mdb").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, self._limits[1]))
        elif self.kind == "disk":
            with self._filler.open("wb", buffering=0) as file:
                size = MIB
                while size:
                    try:
                        file.write(bytes(size))
                    except OSError:
                        size //= 2

    async def take_down(self, runtime: Runtime) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        self._filler.unlink(missing_ok=True)
        if self.kind == "quota":
            await self.delete_what_has_ended(runtime)

    async def delete_what_has_ended(self, runtime: Runtime) -> int:
        count = 0
        for entry in await runtime.runs.list(state="completed"):
            with contextlib.suppress(RuntimeBusyError):  # its end is on disk, and its attempt still lets go of it
                await runtime.sessions.delete(entry.session_id)
                count += 1
        return count


async def until_nothing_moves(runtime: Runtime) -> None:
    deadline = time.monotonic() + PATIENCE
    while runtime.stats().running or not runtime.stats().suspended:
        assert time.monotonic() < deadline, runtime.stats()
        await asyncio.sleep(0.01)


async def main(directory: Path, kind: str) -> dict[str, Any]:
    wall = Wall(kind, directory)
    happened: Counter[str] = Counter()

    def play(request: ModelRequest) -> Any:
        answered = sum(message.role == "tool" for message in request.messages)
        if answered == CALLS:
            return "done"
        name = "look" if answered % 2 else "pay"
        return ToolCall(name=name, arguments={"what": f"{request.run_id}.{answered}"})

    def happens(what: str) -> str:
        happened[what] += 1
        if sum(happened.values()) == RUNS:
            wall.put_up()
        return RESULT

    @as_tool
    async def pay(what: str) -> str:
        """Pay."""
        return happens(what)

    @as_tool(read_only=True)
    async def look(what: str) -> str:
        """Look."""
        return happens(what)

    agent = Agent("clerk", model=ScriptedModel(play), tools=[pay, look])
    saw: dict[str, Any] = {}
    limits = RuntimeLimits(max_concurrent_runs=RUNS // 2)
    async with Runtime([agent], store=wall.store(), limits=limits) as runtime:
        subscription = await runtime.subscribe(names=["run.suspended"])
        for n in range(3):
            await runtime.run(old_agent(runtime), "go", run_id=f"old{n}", session_id=f"old{n}")
        handles: list[RunHandle[str]] = []
        for n in range(RUNS):
            try:
                handles.append(await runtime.submit(agent, "go", run_id=f"r{n}", session_id=f"s{n}"))
            except StoreFullError:
                break
        await until_nothing_moves(runtime)
        saw["taken_in"] = len(handles)
        saw["suspended"] = runtime.stats().suspended
        saw["refused"] = await refuses(runtime, agent)
        if kind == "disk":
            saw["deleted_while_full"] = await wall.delete_what_has_ended(runtime)
        await wall.take_down(runtime)
        if kind == "quota":
            saw["rounds"] = await deleting_until_all_have_ended(runtime, wall, handles)
        results = await asyncio.wait_for(asyncio.gather(*(handle.result() for handle in handles)), PATIENCE)
        saw["outputs"] = sorted({str(result.output) for result in results})
        after = await asyncio.wait_for(runtime.run(agent, "go", run_id="after"), PATIENCE)
        saw["after"] = after.output
        runtime.unsubscribe(subscription)
        saw["held"] = len([event async for event in subscription if "held" in event.pending[0].message])
    saw["sound"] = (await asyncio.to_thread(verify, wall.data)).is_sound
    saw["effects"] = len(happened)
    saw["twice"] = [what for what, times in happened.items() if times > 1]
    return saw


def old_agent(runtime: Runtime) -> Agent[None, str]:
    """An agent whose runs are there to be deleted."""
    known = runtime.agents.by_id.get("old")
    if known is None:
        known = Agent("old", model=ScriptedModel(lambda _: "x" * 50_000))
        runtime.agents.register(known)
    return known


async def refuses(runtime: Runtime, agent: Agent[Any, Any]) -> str:
    try:
        await runtime.submit(agent, "go", run_id="refused")
    except StoreFullError as error:
        return error.code
    return "taken in"


async def deleting_until_all_have_ended(runtime: Runtime, wall: Wall, handles: list[RunHandle[str]]) -> int:
    """Room under a quota is made by deleting, again and again, until there is none of them left to be in the way."""
    ended = asyncio.gather(*(handle.result() for handle in handles))
    rounds = 0
    deadline = time.monotonic() + PATIENCE
    while not ended.done() or await runtime.runs.list(state="completed"):
        assert time.monotonic() < deadline, runtime.stats()
        await wall.delete_what_has_ended(runtime)
        rounds += 1
        await asyncio.sleep(0.05)
    return rounds


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))))
