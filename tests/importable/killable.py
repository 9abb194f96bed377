"""Tools that run in processes of their own: worker processes import them from here, by name."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from callboard import ModelRetry, Retry, Tool, ToolContext, tool


class Order(BaseModel):
    number: int


class Particular(Exception):
    """One that pickle takes apart and cannot put together again."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(f"in particular {reason}")


@tool(isolation="process", read_only=True)
def whose() -> list[int]:
    return [os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0)]


@tool(isolation="process", read_only=True)
def next_order(order: Order) -> Order:
    return Order(number=order.number + 1)


@tool(isolation="process", read_only=True)
async def identified(ctx: ToolContext) -> list[Any]:
    await ctx.progress(1, 2, "half")
    return [ctx.run_id, ctx.session_id, ctx.agent_id, ctx.call_id, ctx.idempotency_key, ctx.attempt, ctx.cancelled]


left_behind: list[threading.Thread] = []
may_speak = threading.Event()


@tool(isolation="process", read_only=True)
def leave_a_thread(ctx: ToolContext) -> None:
    def speak() -> None:
        may_speak.wait()
        ctx.report(1, note="of another call")

    left_behind.append(threading.Thread(target=speak))
    left_behind[0].start()


@tool(isolation="process", read_only=True)
def join_the_thread(ctx: ToolContext) -> None:
    may_speak.set()
    left_behind[0].join()
    ctx.report(1, note="mine")


@tool(isolation="process", read_only=True)
def reach(ctx: ToolContext, name: str) -> Any:
    return getattr(ctx, name)


@tool(isolation="process", read_only=True)
def weigh(size: int) -> bytes:
    return bytes(size)


@tool(isolation="process", read_only=True)
def echo() -> str:
    sys.stdout.write("said by the tool\n")
    return sys.stdin.read()


@tool(isolation="process", read_only=True)
def fail(how: str) -> Any:  # noqa: PLR0912 - one line per way
    """Fail in one of the ways there are."""
    if how == "socket":
        return socket.socket()
    if how == "local":
        return type("Local", (), {})()
    if how == "unreadable":
        return Unreadable()
    if how == "particular":
        raise Particular(reason="it is Monday")
    if how == "retry":
        raise ModelRetry("try another")
    if how == "exit":
        sys.exit(5)
    if how == "raise":
        raise ConnectionError("lost")
    if how == "die":
        os._exit(7)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "deaf":
        os.closerange(3, 256)
        time.sleep(60)
    if how == "heir":
        # A child holds every descriptor open, the channel too, and outlives its parent.
        if os.fork() == 0:
            time.sleep(60)
        os._exit(8)
    return None


class Unreadable:
    def __reduce__(self) -> Any:
        return (Particular, ("positional",))


@tool(isolation="process", read_only=True, retry=Retry(attempts=3, on=(ConnectionError,), delay=0, max_delay=0))
def flaky(ctx: ToolContext, path: str) -> int:
    with Path(path).open("a") as tries:
        tries.write(".")
    if ctx.attempt < 3:
        raise ConnectionError("lost")
    return ctx.attempt


def hold(path: str) -> str:
    """Ignore SIGTERM, start a child that does, say who they are, and never let go of the interpreter again."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(60)"])
    note = Path(path)
    note.with_suffix(".part").write_text(f"{os.getpid()} {child.pid}")
    note.with_suffix(".part").rename(note)
    re.match(r"(a+)+$", "a" * 64 + "b")
    return "never"


held = tool(isolation="process", read_only=True, timeout=None, name="held")(hold)
held_briefly = tool(isolation="process", read_only=True, timeout=0.5, name="held_briefly")(hold)
held_acting = tool(isolation="process", timeout=0.5, name="held_acting")(hold)


@tool(isolation="process")
def die_acting() -> str:
    os._exit(7)


@tool(isolation="process", read_only=True, max_concurrency=1)
def alone(path: str) -> bool:
    """Whether no call beside this one is at work."""
    mine = Path(path) / f"{os.getpid()}-{time.monotonic_ns()}"
    mine.touch()
    time.sleep(0.02)
    seen = len(list(Path(path).iterdir()))
    mine.unlink()
    return seen == 1


@tool(isolation="process", read_only=True)
def meet(path: str) -> int:
    """Wait until another process has come too."""
    (Path(path) / str(os.getpid())).touch()
    while len(list(Path(path).iterdir())) < 2:
        time.sleep(0.005)
    return os.getpid()


def from_arguments(arguments: dict[str, Any], ctx: ToolContext[Any]) -> Any:
    return [arguments, ctx.call_id]


given_schema = Tool.from_schema("given_schema", "", {}, from_arguments, isolation="process")


@tool(isolation="process", interrupt="finish", read_only=True)
def finish(begun: str, go_on: str) -> str:
    Path(begun).touch()
    while not Path(go_on).exists():
        time.sleep(0.005)
    return "finished"
