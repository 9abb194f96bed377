"""What runs in a worker process: it calls one tool at a time, and dies with the runtime that started it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import inspect
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from multiprocessing import spawn
from typing import Any

from callboard.tools.context import Publish, ToolContext
from callboard.tools.crossing import (
    LENGTH,
    Call,
    CallIdentity,
    FunctionReference,
    Load,
    MainImport,
    Raised,
    Reported,
    Returned,
    Uncrossable,
    framed,
)
from callboard.tools.results import to_plain
from callboard_protocol.errors import UsageError
from callboard_protocol.failures import in_words


class ProcessToolContext(ToolContext[None]):
    """A `ToolContext` without what lives in the runtime's process.

    Args:
        identity: the call.
        publish: takes its live events.
    """

    __slots__ = ()

    def __init__(self, identity: CallIdentity, publish: Publish) -> None:
        super().__init__(
            run_id=identity.run_id,
            session_id=identity.session_id,
            agent_id=identity.agent_id,
            call_id=identity.call_id,
            attempt=identity.attempt,
            publish=publish,
        )
        # What is missing is looked up by `__getattr__`.
        del self.deps, self.state

    def __getattr__(self, name: str) -> Any:
        raise UsageError(
            f"ctx.{name} is in the runtime's process, and this tool runs in another one",
            hint="pass what it needs as arguments or open it in the tool, or say isolation='thread'",
        )


class Worker:
    """Serves one runtime over its channel.

    Args:
        channel: where its orders come from, and its answers go.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._orders = channel.makefile("rb")
        self._sending = threading.Lock()
        self._at_work: CallIdentity | None = None
        self._functions: dict[FunctionReference, Callable[..., Any]] = {}

    def serve(self) -> None:
        """Follow orders until the runtime sends no more."""
        while (head := self._orders.read(LENGTH.size)) and len(head) == LENGTH.size:
            order = pickle.loads(self._orders.read(*LENGTH.unpack(head)))  # noqa: S301 - from the runtime that started us
            self._send(self._follow(order))

    def _follow(self, order: Load | Call) -> Returned | Uncrossable | Raised:
        value: object = None
        try:
            if isinstance(order, Load):
                self._load(order)
            else:
                value = self._call(order)
        except BaseException as error:  # noqa: BLE001 - whatever a tool raises, SystemExit too, is that call's outcome
            return _raised(error)
        finally:
            # A pipe is buffered, and the end of a worker may be SIGKILL.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stdout.flush()
        try:
            return Returned(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        except Exception as error:  # noqa: BLE001 - pickle runs the code of the value's class
            return Uncrossable(f"{type(value).__module__}.{type(value).__qualname__}", in_words(error))

    def _load(self, order: Load) -> None:
        if order.main is not None:
            MainImport.under_way = True
            try:
                spawn.prepare(order.main)
            finally:
                MainImport.under_way = False
        self._functions[order.function] = order.function.resolve()

    def _call(self, order: Call) -> Any:
        positional, named = pickle.loads(order.arguments)  # noqa: S301 - as above
        try:
            value = self._functions[order.function](
                *(self._context(one) if isinstance(one, CallIdentity) else one for one in positional), **named
            )
            return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value
        finally:
            with self._sending:
                self._at_work = None

    def _context(self, identity: CallIdentity) -> ProcessToolContext:
        self._at_work = identity

        def publish(event: str, fields: dict[str, Any]) -> None:
            message = framed(Reported(event, to_plain(fields)))
            with self._sending:
                # A thread that a tool left behind would speak into the calls after its own.
                if self._at_work is identity:
                    self._channel.sendall(message)

        return ProcessToolContext(identity, publish)

    def _send(self, message: object) -> None:
        with self._sending:
            self._channel.sendall(framed(message))


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _raised(error: BaseException) -> Raised:
    text = in_words(error)
    shown = "".join(traceback.format_exception(error))
    try:
        return Raised(pickle.dumps(error, pickle.HIGHEST_PROTOCOL), text, shown)
    except Exception:  # noqa: BLE001 - pickle runs the code of the error's class; its words are told in any case
        return Raised(None, text, shown)


def die_with(lifeline: int) -> None:
    """Have this process, and every process it starts, killed once the other end of a pipe is closed.

    Args:
        lifeline: the end to read. The runtime holds the other one and never writes, so it closes when the runtime
            ends, in whatever way.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    if hasattr(fcntl, "F_SETSIG"):
        # On Linux the kernel itself sends the signal: a tool that never lets go of the interpreter dies as well. Where
        # a sandbox does not know how, the thread does what it can.
        with contextlib.suppress(OSError):
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
            fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=watch, name="callboard-lifeline", daemon=True).start()


def main(channel: int, lifeline: int) -> None:
    """Serve the runtime that started this process.

    Args:
        channel: the descriptor of a socket.
        lifeline: the descriptor of a pipe; see `die_with`.
    """
    for descriptor in (channel, lifeline):
        os.set_inheritable(descriptor, False)
    die_with(lifeline)
    with socket.socket(fileno=channel) as connection:
        Worker(connection).serve()
