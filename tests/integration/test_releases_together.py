"""Two releases on one directory, in turn and at once: neither loses, fails or repeats what the other did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

NEXT_RELEASE = Path(__file__).parent / "next_release"

WORKER = """
import asyncio, json, os, signal, sys
from callboard import Agent, CallboardError, Runtime

directory, task = sys.argv[1:]

async def act(name):
    with open(directory + ".notes", "a") as notes:
        notes.write(name + "\\n")
    return name

async def text_of(size):
    return "x" * size

async def pattern(ctx):
    await ctx.step("first", act, f"first of {ctx.run_id}")
    if ctx.attempt == 1 and ctx.input_text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    await ctx.step("second", act, f"second of {ctx.run_id}")
    if ctx.input_text == "large":
        await ctx.step("stays large", text_of, 1_000_000)
        await ctx.step("swells", text_of, 10)
        await ctx.step("shrinks", text_of, 300_000)
    return f"done at attempt {ctx.attempt}"

agent = Agent("worker", pattern=pattern)

async def main():
    async with Runtime([agent], store=directory) as runtime:
        print(json.dumps(await globals()[task](runtime)))

async def begin(runtime):
    return (await runtime.run(agent, "x", run_id="begun", session_id="old")).output

async def begin_large(runtime):
    return (await runtime.run(agent, "large", run_id="large", session_id="old")).output

async def sizes(runtime):
    return {step.name.split(" (")[0]: len(step.value) for step in (await runtime.runs.steps("large"))[2:]}

async def leave_one(runtime):
    await runtime.run(agent, "x", run_id="before", session_id="new")
    await runtime.run(agent, "die", run_id="left", session_id="new")

async def names(runtime):
    return {run_id: [step.name for step in await runtime.runs.steps(run_id)] for run_id in ("begun", "more")}

async def meet(runtime):
    left = await runtime.wait("left")
    try:
        await runtime.sessions.transcript("new")
    except CallboardError as error:
        unknown = error
    mine = await runtime.run(agent, "x", run_id="mine", session_id="mine")
    more = await runtime.run(agent, "x", run_id="more", session_id="old")
    return {
        "left": [left.stop_reason, left.error_details.code],
        "state": (await runtime.runs.get("left")).state,
        "parked": runtime.stats().parked,
        "code": unknown.code,
        "hint": unknown.hint,
        "mine": mine.output,
        "more": more.output,
        "health": runtime.health().status,
        "codes": sorted({one.code for one in runtime.health().quarantined}),
        "runs": [entry.run_id for entry in await runtime.runs.list()],
    }

async def go_on(runtime):
    result = await runtime.run(agent, "x", run_id="next", session_id="old")
    return [result.output, (await runtime.sessions.get("old")).run_count]

async def stay(runtime):
    print("open", flush=True)
    while not runtime.stats().parked:
        await asyncio.sleep(0.01)
    mine = await runtime.run(agent, "x", run_id="mine", session_id="mine")
    print("parked", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    return [mine.output, (await runtime.wait("left")).stop_reason, runtime.stats().parked]

async def follow(runtime):
    await runtime.run(agent, "x", run_id="beside", session_id="mine")
    print("worked beside it", flush=True)
    return [(await runtime.wait("left")).output, (await runtime.sessions.get("new")).run_count]

async def finish(runtime):
    return [(await runtime.wait("left")).output, (await runtime.sessions.get("new")).run_count]

asyncio.run(main())
"""


def environment(*, is_next: bool) -> dict[str, str]:
    """The environment of a process of this release or of the next."""
    path = os.pathsep.join([str(NEXT_RELEASE)] * is_next + [one for one in sys.path if one])
    return {**os.environ, "PYTHONPATH": path}


class Worker:
    """A process that does a task with the directory open.

    Args:
        directory: the data directory.
        task: the name of one of the functions above.
        is_next: whether it is of the next release.
    """

    def __init__(self, directory: Path, task: str, *, is_next: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(directory), task],
            env=environment(is_next=is_next),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def says(self) -> str:
        """Its next line; empty where it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def answer(self, *, dies: bool = False) -> Any:
        """What its task returned, once it has ended."""
        out, complaints = self._process.communicate(timeout=60)
        assert self._process.returncode == (-signal.SIGKILL if dies else 0), complaints
        return None if dies else json.loads(out)


def live(directory: Path, task: str, *, is_next: bool = False, dies: bool = False) -> Any:
    """Do a task from beginning to end."""
    with Worker(directory, task, is_next=is_next) as worker:
        return worker.answer(dies=dies)


def command(name: str, directory: Path) -> Any:
    """What a command of the next release prints about the directory."""
    done = subprocess.run(
        [sys.executable, "-m", "callboard.cli.main", "store", name, str(directory), "--json"],
        env=environment(is_next=True),
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_next_release_reads_what_this_one_wrote(tmp_path):
    directory = tmp_path / "data"
    live(directory, "begin")
    # The run is known, its result is read back, and the session goes on with another.
    assert live(directory, "begin", is_next=True) == "done at attempt 1"
    assert live(directory, "go_on", is_next=True) == ["done at attempt 1", 2]


def test_the_older_release_leaves_alone_what_it_cannot_read_and_the_newer_carries_it_on(tmp_path):
    directory = tmp_path / "data"
    assert live(directory, "begin") == "done at attempt 1"
    live(directory, "leave_one", is_next=True, dies=True)
    for _ in range(4):  # more often than a run may strike
        met = live(directory, "meet")
        assert met["left"] == ["interrupted", "unknown_schema"]
        assert (met["state"], met["parked"]) == ("running", 1)
        assert met["code"] == "unknown_schema"
        assert "Callboard 99.1.0" in met["hint"]
        assert (met["mine"], met["more"]) == ("done at attempt 1", "done at attempt 1")
        assert (met["health"], met["codes"]) == ("degraded", ["unknown_schema"])
        assert met["runs"] == ["before", "begun", "left", "mine", "more"]
    assert live(directory, "finish", is_next=True) == ["done at attempt 2", 2]
    # What the older one wrote in between is read by its own version.
    theirs = live(directory, "names", is_next=True)
    assert theirs == {name: [f"{step} (as version 1 wrote it)" for step in ("first", "second")] for name in theirs}
    notes = Path(f"{directory}.notes").read_text().splitlines()
    assert sorted(notes) == sorted(set(notes)), "a completed step ran twice"


def test_both_at_once_the_newer_carries_a_run_on_when_the_older_is_gone(tmp_path):
    directory = tmp_path / "data"
    with Worker(directory, "stay") as older:
        assert older.says() == "open"
        live(directory, "leave_one", is_next=True, dies=True)
        # The older one takes over what the dead one left, cannot read it, and goes on with its own work.
        assert older.says() == "parked"
        with Worker(directory, "follow", is_next=True) as newer:
            # In the session that the older one still has at hand.
            assert newer.says() == "worked beside it"
            assert older.answer() == ["done at attempt 1", "interrupted", 1]
            assert newer.answer() == ["done at attempt 2", 2]
    notes = Path(f"{directory}.notes").read_text().splitlines()
    assert sorted(notes) == sorted(set(notes)), "a completed step ran twice"


def test_migrating_rewrites_what_an_earlier_release_wrote(tmp_path):
    directory = tmp_path / "data"
    live(directory, "begin")
    before = command("stats", directory)["rows"]
    reports = [command("migrate", directory) for _ in range(2)]
    assert [report["is_migrated"] for report in reports] == [True, False]
    assert (reports[0]["upgraded"], reports[0]["problems"]) == (2, [])
    assert command("stats", directory)["rows"] == {**before, "novelties": 0}
    assert command("verify", directory)["problems"] == []


def test_migrating_puts_large_values_into_chunks_or_rows_as_their_new_size_asks(tmp_path):
    directory = tmp_path / "data"
    live(directory, "begin_large")
    assert live(directory, "sizes") == {"stays large": 1_000_000, "swells": 10, "shrinks": 300_000}
    assert command("stats", directory)["rows"]["blobs"] == 4 + 2
    report = command("migrate", directory)
    assert (report["upgraded"], report["problems"]) == (5, [])
    assert command("stats", directory)["rows"]["blobs"] == 4 + 1
    verified = command("verify", directory)
    assert (verified["problems"], verified["unreferenced_chunks"]) == ([], 0)
    sizes = {"stays large": 1_000_000, "swells": 100_000, "shrinks": 10}
    assert live(directory, "sizes", is_next=True) == sizes
    assert command("migrate", directory)["is_migrated"] is False
