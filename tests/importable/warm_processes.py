"""Processes that begin as copies of one that has imported Callboard and run nothing.

To start Python and import Callboard costs more than what most of the workers do that tests kill. So a *nursery*, a
process of its own, imports once, and each worker is a fork of it: a process with its own pid, standard files and
environment, which plays a script as ``__main__``, can be killed, and ends as Python ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

_PID = struct.Struct("q")


class WarmProcess:
    """A worker, as whoever started it sees it; what it has is what a `subprocess.Popen` has.

    Attributes:
        pid: its own.
        returncode: how it ended, negative for a signal; None before that is known.
        stdin: writes to its standard input.
    """

    def __init__(self, pid: int, stdin: IO[bytes], status: int) -> None:
        self.pid = pid
        self.stdin = stdin
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """How it ended; None where it has not."""
        return self._ended_within(0)

    def wait(self, timeout: float) -> int:
        """How it ended.

        Raises:
            subprocess.TimeoutExpired: it has not, after so many seconds.
        """
        code = self._ended_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended a moment ago
                os.kill(self.pid, signal.SIGKILL)

    def _ended_within(self, seconds: float) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], seconds)[0]:
            said = os.read(self._status, 16)
            os.close(self._status)
            assert said, f"nobody knows how process {self.pid} ended: the nursery is gone"
            self.returncode = int(said)
        return self.returncode


class Nursery:
    """Starts warm processes, for as long as it is open."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )

    def start(
        self, script: Path, arguments: Sequence[str], *, stderr: IO[Any], environment: Mapping[str, str]
    ) -> WarmProcess:
        """A process that plays a script.

        Args:
            script: a file of Python.
            arguments: what it finds in `sys.argv` behind its own name.
            stderr: its standard error.
            environment: added to this process's own.
        """
        request = {"argv": [str(script), *arguments], "environment": {**os.environ, **environment}, "cwd": os.getcwd()}
        to_read, to_write = os.pipe()
        stdin, ours = os.pipe()
        status, theirs = os.pipe()
        socket.send_fds(self._socket, [b"!"], [to_read, stdin, stderr.fileno(), theirs])
        for passed_on in (to_read, stdin, theirs):
            os.close(passed_on)
        with os.fdopen(to_write, "w") as asked:
            json.dump(request, asked)
        said = self._socket.recv(_PID.size)
        assert len(said) == _PID.size, "the nursery is gone"
        (pid,) = _PID.unpack(said)
        return WarmProcess(pid, os.fdopen(ours, "wb"), status)

    def close(self) -> None:
        """Start nothing more."""
        self._socket.close()
        self._process.wait()


class _Care:
    """The nursery from within."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._statuses: dict[int, int] = {}
        self._woken, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._waker = waker

    def next_script(self) -> list[str]:
        """Start what is asked for; returns in each process that was started, with what it is to play."""
        while True:
            ready, _, _ = select.select([self._requests.fileno(), self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 1024)
                self._tell_who_ended()
            if self._requests.fileno() in ready:
                said, files, _, _ = socket.recv_fds(self._requests, 1, 4)
                if not said:
                    sys.exit(0)
                pid = os.fork()
                if pid == 0:
                    return self._be_born(*files)
                *passed_on, status = files
                for descriptor in passed_on:
                    os.close(descriptor)
                self._statuses[pid] = status
                self._requests.send(_PID.pack(pid))

    def _tell_who_ended(self) -> None:
        for pid in [*self._statuses]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                told = self._statuses.pop(pid)
                os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
                os.close(told)

    def _be_born(self, asked: int, stdin: int, stderr: int, status: int) -> list[str]:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._requests.close()
        os.dup2(stdin, 0)
        os.dup2(stderr, 2)
        for descriptor in (stdin, stderr, status, self._woken, self._waker, *self._statuses.values()):
            os.close(descriptor)
        with os.fdopen(asked) as request:
            wanted = json.load(request)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["cwd"])
        argv: list[str] = wanted["argv"]
        return argv


def _play(argv: Sequence[str]) -> None:
    """Be what ``python script arguments...`` is."""
    main = ModuleType("__main__")
    main.__file__ = argv[0]
    sys.modules["__main__"] = main
    sys.argv[:] = argv
    sys.path[0] = str(Path(argv[0]).parent)
    exec(compile(Path(argv[0]).read_bytes(), argv[0], "exec"), vars(main))  # noqa: S102  (a script of the tests')


def _run_nursery() -> None:
    import callboard.testing  # noqa: F401
    import callboard_storage.lmdb_store  # noqa: F401

    _play(_Care(socket.socket(fileno=int(sys.argv[1]))).next_script())


if __name__ == "__main__":
    _run_nursery()
