"""A child process of the demo never outlives the process that started it."""

from __future__ import annotations

import asyncio
import os
import sys

ORPHANED = 4


def end_with_stdin() -> None:
    """End this process at once when its standard input ends: the parent holds the other end and never writes.

    It ends however the parent ends, a SIGKILL included. Nothing is tidied up on the way: whoever would have read an
    answer is gone, and what is on disk has to stand a sudden end anyway.
    """
    fd = sys.stdin.fileno()

    def read() -> None:
        if not os.read(fd, 1024):
            os._exit(ORPHANED)

    asyncio.get_running_loop().add_reader(fd, read)
