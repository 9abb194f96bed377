"""Which Python files the batch audits: the standard library of the running interpreter, or a directory of your own."""

from __future__ import annotations

import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from callboard_protocol.errors import UsageError

TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
NOT_SOURCE = frozenset({"site-packages", "dist-packages", "__pycache__", "node_modules", "__pypackages__"})


@dataclass(frozen=True)
class Sources:
    """The files of one batch.

    Attributes:
        root: the directory they live under.
        modules: their paths relative to `root`, with forward slashes, in order. A module's path is its name in the
            whole demo: `json` and `json/__init__.py` could be one module or two, a path is always one.
        found: how many there are under `root`, before any `--sessions`.
    """

    root: Path
    modules: tuple[str, ...]
    found: int


def standard_library() -> Sources:
    """Every module of the running interpreter's standard library, without its own test suites.

    Raises:
        UsageError: this interpreter keeps no source tree (a zipped or frozen one).
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = _python_files(root, skip=TEST_FOLDERS | NOT_SOURCE) if root.is_dir() else ()
    if not modules:
        raise UsageError(
            f"this interpreter has no standard library source under {root}",
            hint="audit a directory of your own instead: --path DIR",
        )
    return Sources(root=root, modules=modules, found=len(modules))


def directory(path: Path) -> Sources:
    """Every Python file under `path`, bar virtual environments, hidden folders and caches.

    Raises:
        UsageError: no such directory, not a directory, or no Python file in it.
    """
    if not path.exists():
        raise UsageError(f"--path {path}: no such directory", hint="name a directory that holds Python files")
    if not path.is_dir():
        raise UsageError(f"--path {path} is not a directory", hint=f"name the directory it is in: --path {path.parent}")
    root = path.resolve()
    modules = _python_files(root, skip=NOT_SOURCE)
    if not modules:
        raise UsageError(f"--path {path}: no Python file (*.py) under it", hint="name a directory that holds some")
    return Sources(root=root, modules=modules, found=len(modules))


def choose(sources: Sources, sessions: int | None) -> Sources:
    """The first `sessions` modules' worth of work, spread evenly over the tree; all of them for None.

    Raises:
        UsageError: `sessions` is below 1.
    """
    if sessions is None or sessions >= len(sources.modules):
        return sources
    if sessions < 1:
        raise UsageError(f"--sessions {sessions}: there must be at least one", hint="leave it out for all")
    stride = len(sources.modules) / sessions
    picked = tuple(sources.modules[int(number * stride)] for number in range(sessions))
    return Sources(root=sources.root, modules=picked, found=sources.found)


def _python_files(root: Path, *, skip: frozenset[str]) -> tuple[str, ...]:
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if name not in skip and not name.startswith(".") and not Path(folder, name, "pyvenv.cfg").exists()
        )
        here = Path(folder).relative_to(root)
        found.extend((here / name).as_posix() for name in sorted(files) if name.endswith(".py") and _is_text(name))
    return tuple(found)


def _is_text(name: str) -> bool:
    """Whether a file's name can travel as JSON: undecodable bytes in it cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
