"""Runs a program and writes down what it does to its data file, in order.

``python tracer.py TRACE DIRECTORY COMMAND...``. The program is traced with ptrace(2), by ctypes alone, so that nothing
has to be installed. It has to stop itself with `SIGSTOP` first, as `writer.py` does after its imports. TRACE gets one
JSON object per line:

- ``write``: bytes are on their way into a file, at an offset; ``is_synchronous`` where the descriptor was opened with
  O_DSYNC. ``sync``: a file or directory is about to be synced.
- ``done``: the write or sync of that number has returned.
- ``named``: the name ``data.mdb`` now belongs to the file with that inode.
- ``said``: the program told something on its standard output.

Exits with 77 where the system does not let it trace.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import platform
import signal
import stat
import struct
import sys
from pathlib import Path
from typing import Any, TextIO

CANNOT_TRACE = 77

TRACEME, CONT, CONT_TO_SYSCALL, SETOPTIONS, GET_SYSCALL_INFO = 0, 7, 24, 0x4200, 0x420E
MARK_SYSCALLS, FOLLOW_THREADS, DIE_WITH_TRACER = 0x01, 0x08, 0x00100000
SYSCALL_STOP = signal.SIGTRAP | 0x80
WAIT_FOR_THREADS = 0x40000000
ENTRY, EXIT = 1, 2
INFO = struct.Struct("=B3xI2Q7Q")
"""What PTRACE_GET_SYSCALL_INFO fills in: the kind of stop, then at an entry the number and six arguments."""

SYSCALLS = {
    "x86_64": {
        "write": (1,),
        "writev": (20,),
        "pwrite64": (18,),
        "pwritev": (296,),
        "pwritev2": (328,),
        "sync": (74, 75),
        "mmap": (9,),
        "names": (2, 82, 86, 257, 264, 265, 316),
        "unmodelled": (26, 40, 76, 77, 277, 285, 326),
    },
    "aarch64": {
        "write": (64,),
        "writev": (66,),
        "pwrite64": (68,),
        "pwritev": (70,),
        "pwritev2": (287,),
        "sync": (82, 83),
        "mmap": (222,),
        "names": (37, 38, 56, 276),
        "unmodelled": (45, 46, 47, 71, 84, 227, 285),
    },
}
"""Numbers of the system calls that matter, by architecture.

``names`` are those that may give a file its name: open, link and rename. ``unmodelled`` ones change or sync a file in a
way that the disk model knows nothing of: truncate, fallocate, msync and the like.
"""

WRITES = frozenset({"write", "writev", "pwrite64", "pwritev", "pwritev2"})
PROT_WRITE, MAP_SHARED = 0x2, 0x1
DATA_FILES = ("data.mdb", ".creating")


class Ptrace:
    """ptrace(2), as far as it is needed here."""

    def __init__(self) -> None:
        self._call = ctypes.CDLL(None, use_errno=True).ptrace
        self._call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._call.restype = ctypes.c_long

    def __call__(self, request: int, thread: int = 0, address: int = 0, argument: Any = None) -> None:
        if self._call(request, thread, address, argument) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def stop(self, thread: int) -> tuple[int, int, tuple[int, ...]]:
        """The kind of a system call's stop; at its entry its number and arguments, at its exit what it returned."""
        buffer = ctypes.create_string_buffer(INFO.size)
        self(GET_SYSCALL_INFO, thread, INFO.size, ctypes.cast(buffer, ctypes.c_void_p))
        kind, _, _, _, first, *arguments = INFO.unpack(buffer.raw)
        return kind, first, tuple(arguments)


class Recorder:
    """Turns system calls into lines of a trace."""

    def __init__(self, directory: Path, trace: TextIO) -> None:
        self._directory = directory
        self._trace = trace
        self._begun: dict[int, tuple[str, int]] = {}
        self._number = 0
        self._named: int | None = None

    def entry(self, thread: int, call: str, arguments: tuple[int, ...]) -> None:
        """A system call begins."""
        if call == "names":
            self._begun[thread] = call, 0
            return
        descriptor = arguments[4] if call == "mmap" else arguments[0]
        place = self._place(thread, descriptor)
        if call in WRITES and descriptor == 1:
            told = b"".join(self._memory(thread, *piece) for piece in self._pieces(thread, call, arguments))
            self._tell(kind="said", text=told.decode())
        if place is None:
            return
        if call == "mmap":
            assert not (arguments[2] & PROT_WRITE and arguments[3] & MAP_SHARED), "the data file is mapped for writing"
            return
        assert call != "unmodelled", "the data file is changed by a system call that the disk model does not know"
        self._number += 1
        self._begun[thread] = call, self._number
        inode = os.stat(place).st_ino
        if call == "sync":
            self._tell(kind="sync", number=self._number, inode=inode)
            return
        pieces = self._pieces(thread, call, arguments)
        content = b"".join(self._memory(thread, *piece) for piece in pieces)
        flags, position = self._descriptor_info(thread, descriptor)
        self._tell(
            kind="write",
            number=self._number,
            inode=inode,
            offset=arguments[3] if call.startswith("p") else position,
            content=base64.b64encode(content).decode(),
            is_synchronous=bool(flags & os.O_DSYNC),
        )

    def exit(self, thread: int, returned: int) -> None:
        """The system call that the thread was in has returned."""
        call, number = self._begun.pop(thread, ("", 0))
        if call == "names":
            self._look_at_names()
        elif number:
            self._tell(kind="done", number=number, returned=ctypes.c_int64(returned).value)

    def _look_at_names(self) -> None:
        try:
            inode = (self._directory / "data.mdb").stat().st_ino
        except OSError:
            return
        if inode != self._named:
            self._named = inode
            self._tell(kind="named", inode=inode)

    def _place(self, thread: int, descriptor: int) -> str | None:
        """Where to look at a descriptor that is the data file, one to become it, or a directory; else None."""
        link = f"/proc/{thread}/fd/{descriptor}"
        try:
            path = Path(os.readlink(link))
            is_directory = stat.S_ISDIR(os.stat(link).st_mode)
        except OSError:
            return None
        is_ours = path in {self._directory, self._directory.parent} if is_directory else self._is_data_file(path)
        return link if is_ours else None

    def _is_data_file(self, path: Path) -> bool:
        return path.is_relative_to(self._directory) and path.name.startswith(DATA_FILES)

    def _pieces(self, thread: int, call: str, arguments: tuple[int, ...]) -> list[tuple[int, int]]:
        if call in {"write", "pwrite64"}:
            return [(arguments[1], arguments[2])]
        vector = self._memory(thread, arguments[1], 16 * arguments[2])
        return [struct.unpack_from("=QQ", vector, at) for at in range(0, len(vector), 16)]

    @staticmethod
    def _memory(thread: int, address: int, size: int) -> bytes:
        with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)

    @staticmethod
    def _descriptor_info(thread: int, descriptor: int) -> tuple[int, int]:
        lines = Path(f"/proc/{thread}/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        return int(facts["flags"], 8), int(facts["pos"])

    def _tell(self, **facts: Any) -> None:
        self._trace.write(json.dumps(facts) + "\n")


def follow(ptrace: Ptrace, process: int, calls: dict[int, str], recorder: Recorder) -> int:
    """Let the program run to its end, and note what matters; returns its exit code."""
    inside: dict[int, str | None] = {}
    while True:
        thread, status = os.waitpid(-1, WAIT_FOR_THREADS)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            inside.pop(thread, None)
            if thread == process:
                return os.waitstatus_to_exitcode(status)
            continue
        deliver = 0
        stopped_by = os.WSTOPSIG(status)
        if stopped_by == SYSCALL_STOP:
            kind, first, arguments = ptrace.stop(thread)
            if kind == ENTRY and (call := calls.get(first)) is not None:
                recorder.entry(thread, call, arguments)
            elif kind == EXIT:
                recorder.exit(thread, first)
        elif stopped_by not in {signal.SIGTRAP, signal.SIGSTOP}:
            deliver = stopped_by
        ptrace(CONT_TO_SYSCALL, thread, 0, deliver)


def main() -> int:
    trace, directory, *command = sys.argv[1:]
    calls = {number: call for call, numbers in SYSCALLS.get(platform.machine(), {}).items() for number in numbers}
    if sys.platform != "linux" or not calls:
        sys.stderr.write(f"{sys.platform} on {platform.machine()} is not a system that this can trace\n")
        return CANNOT_TRACE
    ptrace = Ptrace()
    process = os.fork()
    if not process:
        try:
            ptrace(TRACEME)
        except OSError as error:
            sys.stderr.write(f"ptrace is not allowed here: {error}\n")
            os._exit(CANNOT_TRACE)
        os.execv(command[0], command)  # noqa: S606 - what the tests gave
    for awaited in (signal.SIGTRAP, signal.SIGSTOP):  # of execve, and its own
        _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status):
            return os.waitstatus_to_exitcode(status)
        assert os.WIFSTOPPED(status)
        assert os.WSTOPSIG(status) == awaited, os.WSTOPSIG(status)
        if awaited == signal.SIGTRAP:
            ptrace(CONT, process)  # its start and its imports are nobody's business
    try:
        ptrace(SETOPTIONS, process, 0, MARK_SYSCALLS | FOLLOW_THREADS | DIE_WITH_TRACER)
        ptrace(CONT_TO_SYSCALL, process)
        with open(trace, "w", encoding="ascii") as file:
            return follow(ptrace, process, calls, Recorder(Path(directory), file))
    except BaseException:
        os.kill(process, signal.SIGKILL)
        raise


if __name__ == "__main__":
    sys.exit(main())
