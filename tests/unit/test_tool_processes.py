from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import killable
import pytest

from callboard.kernel import ActorSystem, Ref
from callboard.tool import Tool
from callboard.tool_executor import ToolExecutor, ToolOutcome
from callboard.tools.context import ToolContext
from callboard.tools.crossing import FunctionReference
from callboard.tools.processes import ToolProcesses
from callboard_protocol.commands import CallTool, CancelCall
from callboard_protocol.errors import (
    ActorDied,
    CallboardError,
    ModelRetry,
    ToolCrashedError,
    ToolFailedError,
    ToolTimeoutError,
    UnpersistableValueError,
)

pytestmark = pytest.mark.anyio

PATIENCE = 30


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def executor(anyio_backend: str) -> AsyncIterator[Ref[ToolExecutor]]:
    """One for all: starting workers takes most of the time."""
    system = ActorSystem()
    yield system.start(lambda: ToolExecutor(processes=2))
    await system.stop()


@pytest.fixture
async def fresh_executor(anyio_backend: str) -> AsyncIterator[Ref[ToolExecutor]]:
    """One that has no worker yet."""
    system = ActorSystem()
    yield system.start(lambda: ToolExecutor(processes=2))
    await system.stop()


async def call(executor: Ref[ToolExecutor], one: Tool[Any], context: ToolContext[Any] | None = None, **arguments: Any):  # type: ignore[no-untyped-def]
    message = CallTool(
        tool=one, arguments=one.validate(arguments), context=context or ToolContext(call_id="run:0", run_id="run")
    )
    outcome: ToolOutcome = await asyncio.wait_for(executor.ask(message), PATIENCE)
    return outcome


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(PATIENCE):
        while not (found := condition()):  # noqa: ASYNC110  (other processes set no events here)
            await asyncio.sleep(0.002)
    return found


def lives(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as state:
            return state.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def pids(note: Path) -> list[int]:
    """Those of a tool that holds on, and of the child it has started, once both are there."""
    await until(note.exists)
    return numbers(note)


def numbers(note: Path) -> list[int]:
    return [int(one) for one in note.read_text().split()]


def children() -> set[int]:
    return set(numbers(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")))


def descriptors() -> set[str]:
    """What this process has open, each by a name of its own."""
    opened = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            opened.add(os.readlink(descriptor))
    return opened


# ---- calls


async def test_a_call_runs_in_a_process_group_of_its_own(executor: Ref[ToolExecutor]):
    process, parent, group, session = (await call(executor, killable.whose)).value
    assert parent == os.getpid()
    assert process == group == session


async def test_arguments_and_results_are_what_they_are_in_the_runtime(executor: Ref[ToolExecutor]):
    outcome = await call(executor, killable.next_order, order={"number": 1})
    assert outcome.value == killable.Order(number=2)


async def test_a_value_larger_than_any_buffer_comes_across(executor: Ref[ToolExecutor]):
    assert len((await call(executor, killable.weigh, size=5_000_000)).value) == 5_000_000


async def test_a_tool_given_by_a_schema_runs_in_a_process_too(executor: Ref[ToolExecutor]):
    assert (await call(executor, killable.given_schema, key="x")).value == [{"key": "x"}, "run:0"]


async def test_an_async_tool_knows_its_call_and_tells_of_its_progress(executor: Ref[ToolExecutor]):
    told: list[Any] = []
    context: ToolContext[None] = ToolContext(
        run_id="run", session_id="s", agent_id="a", call_id="run:0", publish=lambda *event: told.append(event)
    )
    outcome = await call(executor, killable.identified, context)
    assert outcome.value == ["run", "s", "a", "run:0", "run:0", 1, False]
    assert told == [("tool.progress", {"done": 1, "total": 2, "note": "half"})]


async def test_a_thread_that_a_tool_left_behind_does_not_speak_for_the_calls_after_it(executor: Ref[ToolExecutor]):
    told: list[Any] = []
    context: ToolContext[None] = ToolContext(call_id="run:0", publish=lambda *event: told.append(event))
    await call(executor, killable.leave_a_thread)
    await call(executor, killable.join_the_thread, context)
    assert [fields["note"] for _, fields in told] == ["mine"]


@pytest.mark.parametrize("name", ["deps", "state"])
async def test_what_lives_in_the_runtime_is_missed_with_a_word_on_what_to_do(executor: Ref[ToolExecutor], name: str):
    error = (await call(executor, killable.reach, name=name)).error
    assert isinstance(error, ToolFailedError)
    assert f"ctx.{name} is in the runtime's process" in error.message


async def test_what_a_tool_prints_goes_where_the_runtimes_output_goes_and_it_has_no_input(
    fresh_executor: Ref[ToolExecutor], capfd: pytest.CaptureFixture[str]
):
    assert (await call(fresh_executor, killable.echo)).value == ""
    assert capfd.readouterr().out == "said by the tool\n"


async def test_a_tool_called_directly_runs_here():
    assert (await killable.whose())[0] == os.getpid()


# ---- failures


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("raise", ToolFailedError, "fail failed: ConnectionError: lost"),
        ("exit", ToolFailedError, "fail failed: SystemExit: 5"),
        ("retry", ModelRetry, "try another"),
        ("particular", ToolFailedError, "fail failed: Particular: in particular it is Monday"),
        ("socket", UnpersistableValueError, "tool 'fail' returned a socket.socket that cannot cross from its process"),
        ("local", UnpersistableValueError, "tool 'fail' returned a killable.Local that cannot cross"),
        ("unreadable", UnpersistableValueError, "tool 'fail' returned a value that cannot cross"),
    ],
)
async def test_a_failure_is_told_as_in_any_other_isolation_and_the_worker_goes_on(
    executor: Ref[ToolExecutor], how: str, kind: type[CallboardError], said: str
):
    before = (await call(executor, killable.whose)).value
    outcome = await call(executor, killable.fail, how=how)
    assert type(outcome.error) is kind
    assert outcome.error.message.startswith(said)
    assert (await call(executor, killable.whose)).value == before


async def test_a_failure_shows_where_in_the_worker_it_was_raised(executor: Ref[ToolExecutor]):
    error = (await call(executor, killable.fail, how="raise")).error
    assert error is not None
    assert 'raise ConnectionError("lost")' in error.__cause__.__notes__[0]


@pytest.mark.parametrize(
    ("how", "said", "returncode"),
    [
        ("die", "it ended itself with exit code 7", 7),
        ("segfault", "it was killed by SIGSEGV", -signal.SIGSEGV),
        ("killed", "it was killed by SIGKILL (by hand, or for want of memory)", -signal.SIGKILL),
        ("deaf", "it closed its channel to the runtime", -signal.SIGKILL),
        ("heir", "it ended itself with exit code 8", 8),
    ],
)
async def test_a_worker_that_dies_is_an_error_that_says_how_and_the_next_call_has_another(
    executor: Ref[ToolExecutor], how: str, said: str, returncode: int
):
    before = (await call(executor, killable.whose)).value
    outcome = await call(executor, killable.fail, how=how)
    assert isinstance(outcome.error, ToolCrashedError)
    assert outcome.error.message == f"the process of fail died in the middle of the call: {said}"
    assert outcome.error.context == {"tool": "fail", "returncode": returncode}
    after = (await call(executor, killable.whose)).value
    assert after[0] != before[0]
    assert not lives(before[0])


async def test_a_retry_follows_what_the_worker_raised(executor: Ref[ToolExecutor], tmp_path: Path):
    outcome = await call(executor, killable.flaky, path=str(tmp_path / "tries"))
    assert (outcome.value, outcome.attempts) == (3, 3)


async def test_a_function_that_a_worker_cannot_import_says_so_and_was_not_called(executor: Ref[ToolExecutor]):
    lost = Tool.from_schema("lost", "", {}, killable.from_arguments, isolation="process")
    lost.function_reference = FunctionReference("no_such_module", "lost")
    outcome = await call(executor, lost)
    assert isinstance(outcome.error, ToolFailedError)
    assert outcome.error.message == (
        "lost was not called: no_such_module.lost cannot be imported in a worker process: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert outcome.attempts == 0


async def test_arguments_that_cannot_cross_are_an_error_and_the_tool_is_not_called(executor: Ref[ToolExecutor]):
    message = CallTool(tool=killable.given_schema, arguments={"key": threading.Lock()}, context=ToolContext())
    outcome = await executor.ask(message)
    assert isinstance(outcome.error, ToolFailedError)
    assert "its arguments cannot cross to another process" in outcome.error.message


# ---- being killed


async def test_a_call_past_its_timeout_is_killed_with_what_it_started(executor: Ref[ToolExecutor], tmp_path: Path):
    outcome = await call(executor, killable.held_briefly, path=str(tmp_path / "note"))
    assert isinstance(outcome.error, ToolTimeoutError)
    assert outcome.error.message == "held_briefly ran past its timeout of 0.5 s"
    for process in await pids(tmp_path / "note"):
        await until(lambda process=process: not lives(process))
    assert outcome.duration < PATIENCE / 2


async def test_a_cancelled_call_is_killed_within_a_tenth_of_a_second(executor: Ref[ToolExecutor], tmp_path: Path):
    took: list[float] = []
    for attempt in range(3):
        note = tmp_path / str(attempt)
        waiting = asyncio.ensure_future(call(executor, killable.held, path=str(note)))
        at_work = await pids(note)
        began = time.monotonic()
        executor.tell(CancelCall(call_id="run:0", reason="the user left"))
        outcome = await waiting
        took.append(time.monotonic() - began)
        assert outcome.cancelled
        assert outcome.error is not None
        assert outcome.error.message == "held was cancelled: the user left"
        assert not lives(at_work[0])
        await until(lambda at_work=at_work: not lives(at_work[1]))
    # On a machine under load one may take longer.
    assert min(took) < 0.1


async def test_a_call_cancelled_while_its_worker_starts_was_never_made(
    fresh_executor: Ref[ToolExecutor], tmp_path: Path
):
    before = children()
    waiting = asyncio.ensure_future(call(fresh_executor, killable.held, path=str(tmp_path / "note")))
    (worker,) = await until(lambda: children() - before)
    fresh_executor.tell(CancelCall(call_id="run:0"))
    outcome = await waiting
    assert (outcome.cancelled, outcome.attempts) == (True, 0)
    await until(lambda: not lives(worker))
    assert os.listdir(tmp_path) == []


# ---- the pool


async def test_workers_are_used_again_and_never_more_than_allowed(executor: Ref[ToolExecutor], tmp_path: Path):
    assert len({(await call(executor, killable.whose)).value[0] for _ in range(5)}) == 1
    before = children()
    calls = (call(executor, killable.meet, ToolContext(call_id=f"run:{n}"), path=str(tmp_path)) for n in range(8))
    met = {outcome.value for outcome in await asyncio.gather(*calls)}
    assert len(met) == 2
    assert children() - before < met


async def test_max_concurrency_holds_for_processes(executor: Ref[ToolExecutor], tmp_path: Path):
    calls = (call(executor, killable.alone, ToolContext(call_id=f"run:{n}"), path=str(tmp_path)) for n in range(5))
    assert [outcome.value for outcome in await asyncio.gather(*calls)] == [True] * 5


async def test_idle_workers_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("callboard.tools.processes.IDLE", 0.02)
    processes = ToolProcesses(2)
    worker = await processes.reserve(killable.whose)
    process = (await processes.run(worker, killable.whose, ToolContext(), {}))[0]
    await until(lambda: not lives(process))
    await until(lambda: not worker.is_alive)
    await processes.close()


async def test_an_idle_worker_that_was_killed_is_replaced(executor: Ref[ToolExecutor]):
    before = (await call(executor, killable.whose)).value[0]
    descriptor = os.pidfd_open(before)
    os.kill(before, signal.SIGKILL)
    # The loop must not notice by itself; and a process is gone once the last of its threads is.
    select.select([descriptor], [], [])
    os.close(descriptor)
    outcome = await call(executor, killable.whose)
    assert outcome.value[0] != before


async def test_nothing_is_left_of_a_pool_that_was_closed(tmp_path: Path):
    await asyncio.to_thread(int)  # the loop's own threads and descriptors are there from now on
    before, threads = children(), set(threading.enumerate())
    opened = descriptors()
    system = ActorSystem()
    executor = system.start(lambda: ToolExecutor(processes=2))
    await call(executor, killable.whose)
    in_flight = asyncio.ensure_future(call(executor, killable.held, path=str(tmp_path / "note")))
    at_work = await pids(tmp_path / "note")
    assert (await call(executor, killable.whose, ToolContext(call_id="run:1"))).value[0] in children()
    await system.stop()
    assert isinstance((await asyncio.gather(in_flight, return_exceptions=True))[0], ActorDied)
    assert children() == before
    await until(lambda: not any(map(lives, at_work)))
    await until(lambda: set(threading.enumerate()) <= threads)
    assert descriptors() <= opened


async def test_a_system_without_room_for_a_worker_says_so_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch):
    async def refused(*args: Any, **kwargs: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    before = descriptors()
    with pytest.raises(
        ToolFailedError, match=r"no worker process could be started: .*temporarily unavailable"
    ) as raised:
        await ToolProcesses(1).reserve(killable.whose)
    assert raised.value.retryable
    assert descriptors() <= before


def test_importing_callboard_loads_nothing_of_it():
    names = "('multiprocessing', 'callboard.tools.processes')"
    loaded = f"import sys, callboard; print([name for name in {names} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


# ---- tools in the main module

SCRIPT = """
import asyncio
from pydantic import BaseModel
from callboard import Agent, Runtime, tool

class Order(BaseModel):
    number: int

@tool(isolation="process", read_only=True)
def next_order(order: Order) -> Order:
    return Order(number=order.number + 1)

async def pattern(ctx):
    return str(await ctx.call_tool("next_order", order={"number": 1}))

async def main():
    async with Runtime([Agent("worker", tools=[next_order], pattern=pattern)]) as runtime:
        print((await runtime.run("worker", "x")).output)
"""
RUN = "asyncio.run(main())"


def run_script(path: Path, source: str) -> subprocess.CompletedProcess[str]:
    path.write_text(source)
    found = {**os.environ, "PYTHONPATH": str(Path(killable.__file__).parent)}
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=PATIENCE, check=False, env=found
    )


def test_a_tool_of_a_script_works_where_the_script_guards_its_main_part(tmp_path: Path):
    done = run_script(tmp_path / "script.py", f"{SCRIPT}\nif __name__ == '__main__':\n    {RUN}\n")
    assert (done.stdout, done.returncode) == ("number=2\n", 0), done.stderr


def test_a_script_without_a_guard_is_not_run_a_second_time_and_is_told_what_to_do(tmp_path: Path):
    done = run_script(tmp_path / "script.py", f"{SCRIPT}\n{RUN}\n")
    assert done.stdout == ""
    assert "begin under `if __name__ == '__main__':`" in done.stderr


FORGETFUL = """
import asyncio, os, time
import killable
from callboard.tools.context import ToolContext
from callboard.tools.processes import ToolProcesses

async def leave():
    processes = ToolProcesses(1)
    worker = await processes.reserve(killable.whose)
    return (await processes.run(worker, killable.whose, ToolContext(), {}))[0]

worker = asyncio.run(leave())
while os.path.exists(f"/proc/{worker}") and "State:\tZ" not in open(f"/proc/{worker}/status").read():
    time.sleep(0.002)
print("gone")
"""


def test_a_loop_that_ends_without_closing_leaves_no_worker(tmp_path: Path):
    done = run_script(tmp_path / "script.py", FORGETFUL)
    assert (done.stdout, done.returncode) == ("gone\n", 0), done.stderr
