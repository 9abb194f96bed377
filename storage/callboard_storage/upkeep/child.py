"""Reading a data file in a process of its own.

LMDB trusts its file. One that is damaged or cut short can end whoever reads it, with SIGBUS or SIGSEGV, and no process
may open a directory twice. So upkeep never reads in the process that asked for it: a spawned child does, and tells what
it finds in lines of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, TypeAlias

from callboard_protocol import errors
from callboard_protocol.errors import CallboardError, StoreError

Event: TypeAlias = dict[str, Any]
Progress: TypeAlias = Callable[[int, int], None]
"""Told how many bytes are done, and of how many."""

_ERRORS: dict[str, type[CallboardError]] = {
    one.code: one
    for one in (
        errors.DamagedRecordError,
        errors.InvalidIdentifierError,
        errors.StoreFullError,
        errors.StoreOpenError,
        errors.StoreVersionError,
        errors.UnknownSchemaError,
        errors.UnknownSessionError,
    )
}


class ChildDied(Exception):
    """The child ended without an answer: what it read is damaged, or somebody killed it.

    Args:
        how: what ended it.
    """

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


def run(
    job: str, arguments: Event, *, inherited: tuple[int, ...], told: Callable[[Event], None] | None = None
) -> Event:
    """Run one of `callboard_storage.upkeep.jobs` in a child and wait for it; returns its result.

    Args:
        job: its name.
        arguments: plain JSON.
        inherited: descriptors the child keeps open for as long as it lives.
        told: given each event before the result.

    Raises:
        ChildDied: it ended without a result.
        CallboardError: what the job raised.
    """
    command = [sys.executable, "-P", "-m", "callboard_storage.upkeep.jobs", job, json.dumps(arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(  # noqa: S603 - our own module, under our own interpreter
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            pass_fds=inherited,
            env=environment,
        ) as child,
    ):
        try:
            result = _listen(child, told)
        except BaseException:
            child.kill()
            raise
        code = child.wait()
        if result is not None:
            return result
        complaints.seek(0)
        last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
    raise ChildDied(_ending(code) if code < 0 or not last else f"{_ending(code)}: {last[0]}")


def copy_or_raise(job: str, arguments: Event, *, inherited: tuple[int, ...], progress: Progress | None = None) -> Event:
    """As `run`, for a job that reads all of a file and has nothing to say about it but how far it is.

    Raises:
        StoreError: the child ended without a result.
        CallboardError: what the job raised.
    """

    def told(event: Event) -> None:
        if progress is not None and event["event"] == "progress":
            progress(event["done"], event["total"])

    try:
        return run(job, arguments, inherited=inherited, told=told)
    except ChildDied as death:
        raise StoreError(
            f"{arguments['path']} could not be read: the reader {death.how}",
            hint="run `callboard store verify`; restore a backup if it finds damage",
        ) from None


def _listen(child: subprocess.Popen[bytes], told: Callable[[Event], None] | None) -> Event | None:
    assert child.stdout is not None
    result: Event | None = None
    for line in child.stdout:
        try:
            event: Event = json.loads(line)
        except ValueError:
            continue  # cut short by what ended the child
        if event["event"] == "error":
            known = _ERRORS.get(event["code"], StoreError)
            raise known(event["message"], hint=event["hint"])
        if event["event"] == "result":
            result = event
        elif told is not None:
            told(event)
    return result


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
