"""Two releases take turns at one directory: neither loses, fails or repeats what the other did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NEXT_RELEASE = Path(__file__).parent / "next_release"

WORKER = """
import asyncio, json, os, signal, sys
from callboard import Agent, CallboardError, Runtime

directory, task = sys.argv[1:]

async def act(name):
    with open(directory + ".notes", "a") as notes:
        notes.write(name + "\\n")
    return name

async def pattern(ctx):
    await ctx.step("first", act, f"first of {ctx.run_id}")
    if ctx.attempt == 1 and ctx.input_text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    await ctx.step("second", act, f"second of {ctx.run_id}")
    return f"done at attempt {ctx.attempt}"

agent = Agent("worker", pattern=pattern)

async def main():
    async with Runtime([agent], store=directory) as runtime:
        print(json.dumps(await globals()[task](runtime)))

async def begin(runtime):
    return (await runtime.run(agent, "x", run_id="begun", session_id="old")).output

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

async def finish(runtime):
    return [(await runtime.wait("left")).output, (await runtime.sessions.get("new")).run_count]

asyncio.run(main())
"""


def live(directory: Path, task: str, *, is_next: bool = False, dies: bool = False) -> Any:
    """Do a task with the directory open, in a process of this release or of the next."""
    path = os.pathsep.join([str(NEXT_RELEASE)] * is_next + [one for one in sys.path if one])
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(directory), task],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode < 0) == dies, done.stderr
    return None if dies else json.loads(done.stdout)


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


def test_migrating_rewrites_what_an_earlier_release_wrote(tmp_path):
    directory = tmp_path / "data"
    live(directory, "begin")
    path = os.pathsep.join([str(NEXT_RELEASE), *(one for one in sys.path if one)])
    migrate = [sys.executable, "-m", "callboard.cli.main", "store", "migrate", str(directory), "--json"]
    reports = [
        json.loads(
            subprocess.run(
                migrate,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout
        )
        for _ in range(2)
    ]
    assert [report["is_migrated"] for report in reports] == [True, False]
    assert (reports[0]["upgraded"], reports[0]["problems"]) == (2, [])
    verified = subprocess.run(
        [sys.executable, "-m", "callboard.cli.main", "store", "verify", str(directory)],
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
        check=False,
    )
    assert verified.returncode == 0
