"""A worker process as the runtime holds it: started, given orders, killed, and waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import select
import signal
import socket
from collections.abc import Callable
from multiprocessing import spawn
from typing import Any, Final

from callboard.tools.base import Tool
from callboard.tools.context import ToolContext
from callboard.tools.crossing import (
    LENGTH,
    MAIN,
    Call,
    FunctionReference,
    Load,
    Raised,
    Reported,
    Returned,
    Uncrossable,
    framed,
)
from callboard_protocol.errors import ToolCrashedError, ToolFailedError, UnpersistableValueError
from callboard_protocol.failures import in_words

STARTING: Final = 60.0
"""Seconds a worker may take to start, and to import a tool's module."""

LEAVING: Final = 1.0
"""Seconds a worker may take to end by itself, before it is killed."""

_PREPARATION: Final[tuple[str, ...]] = (
    "name",
    "sys_argv",
    "orig_dir",
    "dir",
    "init_main_from_name",
    "init_main_from_path",
)
"""Of what `multiprocessing` passes on to a process it spawns: what a main module should find there as it was."""


class ChannelClosed(Exception):
    """The worker says nothing any more: it has ended, or is about to."""


class WorkerProcess:
    """One worker, as the runtime holds it. It leads a process group of its own, which ends with it.

    Attributes:
        idle_since: when its last call ended, on the loop's clock.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lifeline: int,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._lifeline = lifeline
        self._loaded: set[FunctionReference] = set()
        self._gone = asyncio.create_task(self._watch())
        self.idle_since = 0.0

    @classmethod
    async def start(cls) -> WorkerProcess:
        """Start a worker.

        Raises:
            ToolFailedError: the system has no process left for it.
        """
        path = spawn.get_preparation_data("callboard-tool")["sys_path"]
        try:
            with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
                lifeline, held_lifeline = os.pipe()
                theirs.callback(os.close, lifeline)
                # Should anything fail once the process is there, this ends it.
                ours.callback(os.close, held_lifeline)
                held_channel, channel = socket.socketpair()
                theirs.callback(channel.close)
                ours.callback(held_channel.close)
                # The search path goes along, so that the worker finds what this process finds, Callboard to begin with.
                process = await asyncio.create_subprocess_exec(
                    os.fsdecode(spawn.get_executable() or "python3"),
                    "-c",
                    f"import sys; sys.path[:] = {path!r}; from callboard.tools.worker_main import main; "
                    f"main({channel.fileno()}, {lifeline})",
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(channel.fileno(), lifeline),
                    start_new_session=True,
                )
                reader, writer = await asyncio.open_connection(sock=held_channel)
                ours.pop_all()
        except OSError as problem:
            raise ToolFailedError(
                f"no worker process could be started: {problem}",
                hint="fewer of them at a time: RuntimeLimits(max_tool_processes=...)",
                retryable=True,
            ) from problem
        return cls(process, reader, writer, held_lifeline)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended, as far as the loop has noticed."""
        return not self._gone.done()

    @property
    def is_ready(self) -> bool:
        """Whether it waits for orders. Asks the kernel: one that died a moment ago must not be given a call."""
        poll = select.poll()
        # It says nothing between calls, so the only news can be that its end of the channel is closed.
        poll.register(self._writer.get_extra_info("socket"), select.POLLIN)
        return self.is_alive and not poll.poll(0)

    def when_gone(self, callback: Callable[[WorkerProcess], object]) -> None:
        """Call back once it has ended."""
        self._gone.add_done_callback(lambda _: callback(self))

    async def load(self, tool: Tool[Any], function: FunctionReference) -> None:
        """Have a tool's function imported, where it is not.

        Raises:
            ToolFailedError: it cannot be; the tool was not called.
        """
        if function in self._loaded:
            return
        main = None
        if function.module == MAIN:
            told: dict[str, Any] = dict(spawn.get_preparation_data("callboard-tool"))
            main = {name: told[name] for name in _PREPARATION if name in told}
        where = f"{tool.name} was not called: {function} cannot be imported in a worker process"
        try:
            async with asyncio.timeout(STARTING):
                answer = await self._order(Load(function, main), None)
        except TimeoutError:
            self.kill()
            await self.gone()
            raise ToolFailedError(f"{where} within {STARTING:g} s") from None
        except ChannelClosed:
            raise ToolFailedError(f"{where}: {await self._last_words()}", hint="its module ends the process") from None
        if isinstance(answer, Raised):
            problem = ToolFailedError(f"{where}: {answer.text}", hint="import it in a fresh interpreter to see why")
            problem.add_note(answer.traceback)
            raise problem
        self._loaded.add(function)

    async def call(
        self, tool: Tool[Any], function: FunctionReference, arguments: bytes, context: ToolContext[Any]
    ) -> Any:
        """Call a loaded function.

        Args:
            tool: the tool whose function it is.
            function: which.
            arguments: its positional and its named arguments, pickled.
            context: where the call's live events go.

        Raises:
            ToolCrashedError: the worker died in the middle.
            UnpersistableValueError: what the function returned cannot come across.
            BaseException: what the function raised.
        """
        try:
            answer = await self._order(Call(function, arguments), context)
        except ChannelClosed:
            end = await self._last_words()
            raise ToolCrashedError(
                f"the process of {tool.name} died in the middle of the call: {end}",
                context={"tool": tool.name, "returncode": self._process.returncode},
            ) from None
        if isinstance(answer, Raised):
            raise _failure(tool, answer)
        if isinstance(answer, Uncrossable):
            raise _uncrossable(tool, answer.kind, answer.why)
        try:
            return pickle.loads(answer.value)  # noqa: S301 - from a process of ours, which runs the user's own code
        except Exception as problem:
            raise _uncrossable(tool, "value", in_words(problem)) from problem

    def kill(self) -> None:
        """End it now, and every process it has started."""
        # The number stands for this group until the last process of it has been waited for.
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def gone(self, patience: float | None = None) -> bool:
        """Whether it ended within a time; None waits for ever."""
        await asyncio.wait([self._gone], timeout=patience)
        return self._gone.done()

    async def end(self) -> None:
        """Let it end, and kill it if it does not."""
        self._writer.close()
        if not await self.gone(LEAVING):
            self.kill()
            await self.gone(LEAVING)

    async def _watch(self) -> None:
        """Wait for its end, and leave nothing of it behind; also where the loop ends first."""
        try:
            await self._process.wait()
        finally:
            # A process it has started may hold the other end of the channel, and must not keep anyone waiting.
            self.kill()
            self._writer.transport.abort()
            os.close(self._lifeline)

    async def _order(self, order: Load | Call, context: ToolContext[Any] | None) -> Returned | Uncrossable | Raised:
        """Send an order, and wait for what comes of it.

        Raises:
            ChannelClosed: the worker has ended, or is about to.
        """
        try:
            self._writer.write(framed(order))
            await self._writer.drain()
            while True:
                (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                message = pickle.loads(await self._reader.readexactly(length))  # noqa: S301 - as above
                if not isinstance(message, Reported):
                    answer: Returned | Uncrossable | Raised = message
                    return answer
                if context is not None:
                    context.announce(message.event, message.fields)
        except (asyncio.IncompleteReadError, ConnectionError) as problem:
            raise ChannelClosed from problem

    async def _last_words(self) -> str:
        """How it ended."""
        if not await self.gone(LEAVING):
            self.kill()
            await self.gone()
            return "it closed its channel to the runtime"
        status = self._process.returncode or 0
        if status >= 0:
            return f"it ended itself with exit code {status}"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return f"it was killed by {name}{' (by hand, or for want of memory)' if name == 'SIGKILL' else ''}"


def _failure(tool: Tool[Any], raised: Raised) -> BaseException:
    """What the tool raised, or an error that tells of it where that cannot be made again in this process."""
    error: BaseException | None = None
    if raised.error is not None:
        # The class may want other arguments than it keeps; its words are told in any case.
        with contextlib.suppress(Exception):
            error = pickle.loads(raised.error)  # noqa: S301 - as above
    if not isinstance(error, BaseException):
        error = ToolFailedError(f"{tool.name} failed: {raised.text}", context={"tool": tool.name})
    error.add_note(f"in a worker process:\n{raised.traceback}")
    return error


def _uncrossable(tool: Tool[Any], kind: str, why: str) -> UnpersistableValueError:
    return UnpersistableValueError(
        f"tool {tool.name!r} returned a {kind} that cannot cross from its process: {why}",
        hint="return plain data, or a model defined at the top level of a module",
    )
