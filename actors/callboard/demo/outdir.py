"""The directory a demo writes to: logs, data and reports of the latest run, and nothing of anyone else's."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from callboard_protocol.errors import UsageError

MARKER = ".callboard-demo"
"""A directory without this file was not made by the demo; nothing in it is ever deleted."""
OURS = ("data", "findings.jsonl", "summary.md", "comparison.json")


@contextmanager
def fresh(out: Path) -> Iterator[Path]:
    """An empty output directory, held against a second demo until this ends.

    Raises:
        UsageError: it holds what the demo did not write, cannot be written, or another demo is running in it.
    """
    try:
        strangers = out.is_dir() and any(out.iterdir()) and not (out / MARKER).exists()
        if strangers:
            raise UsageError(f"--out {out} holds files that are not the demo's", hint="name an empty or new directory")
        out.mkdir(parents=True, exist_ok=True)
        held = (out / MARKER).open("a")
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written: {error.strerror}", hint="name another directory: --out DIR"
        ) from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another demo is running in {out}", hint="wait for it, or name another directory: --out DIR"
            ) from error
        _empty(out)
        yield out.resolve()


def _empty(out: Path) -> None:
    for name in (*OURS, *(log.name for log in out.glob("*.log"))):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    (out / "data").mkdir()
