"""Where actors may be used from: one process, and one event loop on one thread of it."""

from __future__ import annotations

import asyncio
import os
import threading
from asyncio.events import _get_running_loop

from callboard_protocol.errors import ActorError, ForkedError, WouldDeadlockError, WrongLoopError


class Place:
    """The process, the thread and the event loop that an actor system belongs to.

    Args:
        loop: the loop; it runs, or will run, on the thread that makes the place.
    """

    __slots__ = ("loop", "pid", "thread")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.pid = os.getpid()
        self.thread = threading.get_ident()

    def misplaced(self, who: object) -> ActorError:
        """Why a caller outside the loop is refused."""
        if os.getpid() != self.pid:
            return ForkedError(f"{who} lives in process {self.pid}, and this is a fork of it")
        return WrongLoopError(f"{who} lives on another event loop, or on one that does not run here")

    def require_loop(self, who: object) -> None:
        """Let through only what runs on the loop.

        Raises:
            ForkedError: this is a child of the process.
            WrongLoopError: the loop does not run on this thread.
        """
        # asyncio forgets the running loop after a fork, so one comparison answers for both.
        if _get_running_loop() is not self.loop:
            raise self.misplaced(who)

    def require_process(self, who: object) -> None:
        """Let through any thread of the process, unless it runs another event loop.

        Raises:
            ForkedError: this is a child of the process.
            WrongLoopError: this thread runs another event loop.
        """
        running = _get_running_loop()
        if os.getpid() != self.pid or (running is not None and running is not self.loop):
            raise self.misplaced(who)

    def require_other_thread(self, who: object) -> None:
        """Let through what may block until the loop answers.

        Raises:
            ForkedError: this is a child of the process.
            WrongLoopError: this thread runs another event loop.
            WouldDeadlockError: this is the loop's own thread, which would have to answer.
        """
        self.require_process(who)
        if _get_running_loop() is self.loop or threading.get_ident() == self.thread:
            raise WouldDeadlockError(f"blocking on {who} from its own loop's thread")
