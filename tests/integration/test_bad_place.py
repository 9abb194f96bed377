"""A runtime used too early or too late, from another loop, thread or process, or on a directory that will not do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from callboard import (
    Agent,
    CallboardError,
    ForkedError,
    RunContext,
    Runtime,
    RuntimeClosedError,
    RuntimeClosingError,
    ScriptedModel,
    StoreInUseError,
    StoreOpenError,
    StoreVersionError,
    SyncRuntime,
    UsageError,
    WouldDeadlockError,
    WrongLoopError,
)
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.locks import DirectoryTurn
from callboard_storage.memory_store import MemoryStore

pytestmark = pytest.mark.anyio

MAP_SIZE = 1 << 30
PATIENCE = 30
HOW_TO_OPEN = r"async with Runtime|with SyncRuntime"


async def _events(runtime: Runtime) -> list[Any]:
    return [event async for event in runtime.events("r")]


async def _stream(runtime: Runtime) -> None:
    async with runtime.stream("echo", "hello"):
        pass


USES: dict[str, Callable[[Runtime], Awaitable[Any]]] = {
    "run": lambda runtime: runtime.run("echo", "hello"),
    "submit": lambda runtime: runtime.submit("echo", "hello"),
    "stream": _stream,
    "wait": lambda runtime: runtime.wait("r"),
    "cancel": lambda runtime: runtime.cancel("r"),
    "events": _events,
    "subscribe": lambda runtime: runtime.subscribe(),
    "runs.list": lambda runtime: runtime.runs.list(),
    "runs.get": lambda runtime: runtime.runs.get("r"),
    "sessions.list": lambda runtime: runtime.sessions.list(),
    "sessions.transcript": lambda runtime: runtime.sessions.transcript("s"),
    "sessions.delete": lambda runtime: runtime.sessions.delete("s"),
}
"""Every way to use an open runtime."""

use = pytest.mark.parametrize("way", USES.values(), ids=USES)


# ---- too early, too late


@use
async def test_a_runtime_that_was_never_opened_says_how_to_open_it(echo: Any, refused: Any, way: Any) -> None:
    with refused(RuntimeClosedError, "the runtime is not open", hint=HOW_TO_OPEN):
        await way(Runtime([echo]))


@use
async def test_a_runtime_that_was_closed_says_so(echo: Any, store: Any, refused: Any, way: Any) -> None:
    async with Runtime([echo], store=store) as runtime:
        await runtime.run("echo", "hello", run_id="r", session_id="s")
    with refused(RuntimeClosedError, "the runtime is not open", hint=HOW_TO_OPEN):
        await way(runtime)
    with refused(RuntimeClosedError, "the runtime is not open", hint=HOW_TO_OPEN):
        runtime.stats()
    with refused(RuntimeClosedError, "the runtime is not open", hint=HOW_TO_OPEN):
        runtime.health()


async def test_closing_twice_and_opening_again_are_harmless(echo: Any, store: Any) -> None:
    runtime = Runtime([echo], store=store)
    await runtime.aclose()
    for _ in range(2):
        await runtime.start()
        assert (await runtime.run("echo", "hello")).output == "you said 'hello'"
        await runtime.aclose()
        await runtime.aclose()


async def test_opening_twice_is_refused_and_the_first_stays_open(runtime: Runtime, refused: Any) -> None:
    with refused(UsageError, "open already", hint="open one Runtime once"):
        await runtime.start()


async def test_opening_twice_at_the_same_time_opens_once(echo: Any, store: Any) -> None:
    runtime = Runtime([echo], store=store)
    first, second = await asyncio.gather(runtime.start(), runtime.start(), return_exceptions=True)
    assert [first, type(second)] == [None, UsageError]
    assert (await runtime.run("echo", "hello")).output == "you said 'hello'"
    await runtime.aclose()


async def test_a_run_in_flight_when_the_runtime_closes_is_told_so_and_carried_on_by_the_next(
    tmp_path: Path, refused: Any
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> str:
        began.set()
        await go_on.wait()
        return "done"

    async def pattern(ctx: RunContext[None]) -> str:
        return await ctx.step("wait", wait)

    patient = Agent("patient", pattern=pattern)
    async with Runtime([patient], store=tmp_path / "data", drain_timeout=0) as runtime:
        handle = await runtime.submit(patient, "wait", run_id="r")
        await began.wait()
    assert (await handle.result()).stop_reason == "interrupted"
    with refused(RuntimeClosedError, "not open", hint=HOW_TO_OPEN):
        await handle.cancel()
    go_on.set()
    async with Runtime([patient], store=tmp_path / "data") as runtime:
        assert (await runtime.wait("r")).output == "done"


async def test_a_submit_while_the_runtime_closes_is_refused(echo: Any, refused: Any) -> None:
    began, closing = asyncio.Event(), asyncio.Event()

    async def pattern(ctx: RunContext[None]) -> str:
        began.set()
        await closing.wait()
        with refused(RuntimeClosingError, "closing: it takes no more runs in", hint="another process|started again"):
            await runtime.submit(echo, "too late")
        return "refused"

    runtime = Runtime([echo, Agent("late", pattern=pattern)], drain_timeout=20)
    await runtime.start()
    handle = await runtime.submit("late", "go")
    await began.wait()
    close = asyncio.ensure_future(runtime.aclose())
    await asyncio.sleep(0)
    closing.set()
    assert (await handle.result()).output == "refused"
    await close


# ---- another loop, another thread


@use
async def test_another_event_loop_is_refused_and_the_runtime_goes_on_here(
    runtime: Runtime, refused: Any, way: Any
) -> None:
    await runtime.run("echo", "hello", run_id="r", session_id="s")

    def elsewhere() -> None:
        with refused(WrongLoopError, "lives on another event loop", hint="one Runtime per process and loop"):
            asyncio.run(way(runtime))

    await asyncio.to_thread(elsewhere)
    assert len(await runtime.sessions.transcript("s")) == 2


async def test_another_loop_cannot_close_the_runtime(runtime: Runtime, refused: Any) -> None:
    def elsewhere() -> None:
        with refused(WrongLoopError, "lives on another event loop", hint="one Runtime per process and loop"):
            asyncio.run(runtime.aclose())

    await asyncio.to_thread(elsewhere)


async def test_another_loop_cannot_register_an_agent(runtime: Runtime, refused: Any) -> None:
    async def register() -> None:
        runtime.agents.register(Agent("new", model=ScriptedModel(["x"])))

    def elsewhere() -> None:
        with refused(WrongLoopError, "lives on another event loop", hint="one Runtime per process and loop"):
            asyncio.run(register())

    await asyncio.to_thread(elsewhere)
    assert [agent.id for agent in runtime.agents.list()] == ["echo"]


# ---- the blocking runtime


def test_a_blocking_runtime_says_when_it_is_not_open(echo: Any, refused: Any) -> None:
    runtime = SyncRuntime([echo])
    with refused(RuntimeClosedError, "the runtime is not open", hint=HOW_TO_OPEN):
        runtime.run("echo", "hello")
    with runtime:
        assert runtime.run("echo", "hello").output == "you said 'hello'"
    for late in (lambda: runtime.submit("echo", "hello"), runtime.sessions.list, runtime.stats):
        with refused(RuntimeClosedError, "the runtime is not open", hint=HOW_TO_OPEN):
            late()
    runtime.close()


def check_that_no_thread_is_left(before: set[threading.Thread]) -> None:
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive(), thread


def test_a_blocking_runtime_that_is_open_cannot_be_opened_again_and_leaves_no_thread(echo: Any, refused: Any) -> None:
    before = set(threading.enumerate())
    with SyncRuntime([echo]) as runtime:
        with refused(UsageError, "open already", hint="open one SyncRuntime once"):
            runtime.start()
        assert runtime.run("echo", "hello").output == "you said 'hello'"
    check_that_no_thread_is_left(before)


def test_a_blocking_runtime_on_a_bad_directory_leaves_no_thread_and_can_be_tried_again(
    echo: Any, refused: Any, tmp_path: Path
) -> None:
    before = set(threading.enumerate())
    file = tmp_path / "data"
    file.touch()
    runtime = SyncRuntime([echo], store=file)
    with refused(StoreOpenError, "is a file", hint="directory of its own"):
        runtime.start()
    check_that_no_thread_is_left(before)
    file.unlink()
    with runtime:
        assert runtime.run("echo", "hello").output == "you said 'hello'"


def test_a_blocking_runtime_passes_errors_on_as_they_are(echo: Any, refused: Any) -> None:
    with SyncRuntime([echo]) as runtime:
        with refused(UsageError, "no option 'sesion_id'", hint="did you mean 'session_id'"):
            runtime.run("echo", "hello", sesion_id="s")  # type: ignore[call-overload]
        with pytest.raises(CallboardError, match="no run 'nowhere'"):
            next(iter(runtime.events("nowhere")))
        assert runtime.run("echo", "hello").output == "you said 'hello'"


def test_a_blocking_runtime_cannot_be_closed_from_within(refused: Any) -> None:
    async def pattern(ctx: RunContext[None]) -> str:
        with refused(WouldDeadlockError, "would have to answer", hint="await"):
            runtime.close()
        return "still open"

    with SyncRuntime([Agent("closer", pattern=pattern)]) as runtime:
        assert runtime.run("closer", "go").output == "still open"


# ---- another process

FORK = """
    import asyncio, json, os, sys
    from callboard import Agent, CallboardError, Runtime, ScriptedModel, SyncRuntime

    echo = Agent("echo", model=ScriptedModel(lambda request: request.messages[-1].text))

    async def stream(runtime):
        async with runtime.stream("echo", "hello"):
            pass

    async def events(runtime):
        return [event async for event in runtime.events("r")]

    async def register(runtime):
        runtime.agents.register(Agent("new", model=ScriptedModel(["x"])))

    async def listed(namespace):
        return await namespace().list()

    uses = {
        "run": lambda runtime: runtime.run("echo", "hello"),
        "submit": lambda runtime: runtime.submit("echo", "hello"),
        "stream": stream,
        "wait": lambda runtime: runtime.wait("r"),
        "cancel": lambda runtime: runtime.cancel("r"),
        "events": events,
        "subscribe": lambda runtime: runtime.subscribe(),
        "runs.list": lambda runtime: listed(lambda: runtime.runs),
        "sessions.list": lambda runtime: listed(lambda: runtime.sessions),
        "agents.register": register,
        "aclose": lambda runtime: runtime.aclose(),
    }

    def blocking(runtime):
        return {
            "run": lambda: runtime.run("echo", "hello"),
            "wait": lambda: runtime.wait("r"),
            "sessions.list": lambda: runtime.sessions.list(),
            "close": runtime.close,
        }

    def said(error):
        return [type(error).__name__, error.code, error.hint] if isinstance(error, CallboardError) else repr(error)

    async def all_uses(runtime):
        found = {}
        for name, way in uses.items():
            try:
                found[name] = repr(await asyncio.wait_for(way(runtime), 5))
            except BaseException as error:
                found[name] = said(error)
        return found

    def all_blocking_uses(runtime):
        found = {}
        for name, way in blocking(runtime).items():
            try:
                found[name] = repr(way())
            except BaseException as error:
                found[name] = said(error)
        return found

    def in_a_fork(work):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, json.dumps(work()).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            found = json.loads(answer.read())
        os.waitpid(child, 0)
        return found

    async def main():
        async with Runtime([echo], store=store) as runtime:
            await runtime.run("echo", "hello", run_id="r")
            found = in_a_fork(lambda: asyncio.run(all_uses(runtime)))
            return found, (await runtime.run("echo", "after")).output

    store = sys.argv[2] or None
    if sys.argv[1] == "async":
        found, after = asyncio.run(main())
    else:
        with SyncRuntime([echo], store=store) as runtime:
            runtime.run("echo", "hello", run_id="r")
            found = in_a_fork(lambda: all_blocking_uses(runtime))
            after = runtime.run("echo", "after").output
    print(json.dumps([found, after]))
"""


@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_a_forked_child_is_refused_everything_and_its_parent_goes_on(store: Path | None, kind: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORK), kind, str(store or "")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found, after = json.loads(ended.stdout)
    refusal = [ForkedError.__name__, ForkedError.code, ForkedError.default_hint]
    assert found == dict.fromkeys(found, refusal)
    assert len(found) == (11 if kind == "async" else 4)
    assert "spawn" in ForkedError.default_hint
    assert after == "after"


# ---- a bad directory


def of_a_newer_release(path: Path) -> None:
    async def make() -> None:
        async with Runtime(store=path):
            pass

    asyncio.run(make())
    with lmdb.Environment(str(path), max_dbs=16, map_size=MAP_SIZE, lib_version=0) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as transaction:
            transaction.put(b"format", b"99", db=meta)


def of_another_engine(path: Path) -> None:
    path.mkdir()
    page = bytearray(4096)
    page[16:20] = (0xBEEFC0DE).to_bytes(4, sys.byteorder)
    page[20:24] = (3).to_bytes(4, sys.byteorder)
    (path / "data.mdb").write_bytes(page)


def of_something_else(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").touch()


@pytest.mark.parametrize(
    ("spoil", "kind", "says", "hint"),
    [
        (Path.touch, StoreOpenError, "is a file", "a directory of its own"),
        (of_something_else, StoreOpenError, "holds something else: thesis.tex", "an empty directory"),
        (of_a_newer_release, StoreVersionError, "format 99", "the release that wrote it, or a newer one"),
        (of_another_engine, StoreVersionError, "was written by LMDB 1.0", "callboard store"),
    ],
)
async def test_a_directory_that_cannot_be_opened_is_said_so_by_start(
    echo: Any, refused: Any, tmp_path: Path, spoil: Any, kind: Any, says: str, hint: str
) -> None:
    path = tmp_path / "data"
    await asyncio.to_thread(spoil, path)
    runtime = Runtime([echo], store=path)
    for _ in range(2):
        with refused(kind, says, hint=hint):
            await runtime.start()
        with refused(RuntimeClosedError, "not open", hint=HOW_TO_OPEN):
            await runtime.run("echo", "hello")
    async with Runtime([echo], store=tmp_path / "elsewhere") as runtime:
        assert (await runtime.run("echo", "hello")).output == "you said 'hello'"


async def test_a_place_where_nothing_can_be_made_is_said_so_by_start(echo: Any, refused: Any) -> None:
    with refused(StoreOpenError, "/proc/callboard cannot be used as a data directory", hint="may write to"):
        await Runtime([echo], store="/proc/callboard").start()


async def test_a_network_file_system_is_refused_by_start(echo: Any, refused: Any, tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "data", map_size=MAP_SIZE, kind_of_file_system=lambda path: "nfs4")
    with refused(StoreOpenError, "on a nfs4 file system", hint="a local disk"):
        await Runtime([echo], store=store).start()


async def test_a_directory_that_is_being_replaced_is_refused_until_it_is_not(
    echo: Any, refused: Any, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    turn = DirectoryTurn(tmp_path / "data", exclusive=True)
    runtime = Runtime([echo], store=tmp_path / "data")
    with refused(StoreInUseError, "is being compacted or restored", hint="wait until that has ended"):
        await runtime.start()
    turn.end()
    async with runtime:
        assert (await runtime.run("echo", "hello")).output == "you said 'hello'"


async def test_what_is_no_store_is_refused_by_start(echo: Any, refused: Any) -> None:
    with refused(UsageError, "store=7 is no store", hint="a directory, or None"):
        await Runtime([echo], store=7).start()  # type: ignore[arg-type]


async def test_a_closing_that_is_cancelled_stops_the_actors_before_it_closes_the_store() -> None:
    closed_with: list[bool] = []

    class Watched(MemoryStore):
        async def close(self) -> None:
            closed_with.append(supervisor.is_alive())
            await super().close()

    begun, release = asyncio.Event(), asyncio.Event()

    async def wait(ctx: RunContext[None]) -> str:
        begun.set()
        await release.wait()
        return "done"

    runtime = Runtime([Agent("waiter", pattern=wait)], store=Watched(), drain_timeout=60)
    await runtime.start()
    supervisor = runtime._open.supervisor
    await runtime.submit("waiter", "x")
    await begun.wait()
    closing = asyncio.create_task(runtime.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert closed_with == [False]
    with pytest.raises(RuntimeClosedError):
        runtime.stats()
    release.set()
