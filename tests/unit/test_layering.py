"""The lint rule against upward imports is shown to bite, and the rooms to keep to it."""

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def banned_imports(code: str, beside: str) -> list[str]:
    """What ruff says of `code` if it stood in the folder `beside`."""
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--output-format", "json", "--no-cache",
         "--stdin-filename", f"{beside}/newcomer.py", "-"],
        cwd=ROOT, input=code, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return [found["message"] for found in json.loads(checked.stdout)]


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("protocol/callboard_protocol", "import callboard"),
        ("protocol/callboard_protocol", "from callboard.runtime import Runtime"),
        ("protocol/callboard_protocol", "from callboard_storage import Store"),
        ("protocol/callboard_protocol", "import msgpack"),
        ("storage/callboard_storage", "from callboard.kernel import Actor"),
        ("actors/callboard", "import lmdb"),
        ("actors/callboard", "import msgpack"),
    ],
)
def test_an_upward_import_is_a_lint_error(room: str, statement: str) -> None:
    assert banned_imports(statement + "\n", room)


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("storage/callboard_storage", "from callboard_protocol.errors import StoreError"),
        ("actors/callboard", "from callboard_storage.store import Store"),
        ("actors/callboard", "from callboard_protocol.runs import RunBudget"),
    ],
)
def test_a_downward_import_is_not(room: str, statement: str) -> None:
    assert banned_imports(statement + "\n", room) == []


def importers_of(package: str) -> set[str]:
    """The source files that import `package` by name."""
    starts = (f"import {package}", f"from {package}")
    return {
        str(path.relative_to(ROOT))
        for root in ("protocol", "storage", "actors")
        for path in (ROOT / root).rglob("*.py")
        if any(line.strip().startswith(starts) for line in path.read_text().splitlines())
    }


@pytest.mark.parametrize("package", ["lmdb", "msgpack", "tenacity"])
def test_one_module_imports_a_third_party_dependency(package: str) -> None:
    assert len(importers_of(package)) == 1


def test_importing_callboard_pulls_in_no_engine_and_no_command_line() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, callboard; print(*sys.modules)"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout.split()  # fmt: skip
    for package in ("lmdb", "typer", "rich", "openai", "mcp", "opentelemetry", "langgraph", "anyio", "tenacity"):
        assert package not in loaded


def test_importing_callboard_builds_no_validator() -> None:
    script = """
        import callboard
        from pydantic import BaseModel

        def below(model):
            for one in model.__subclasses__():
                yield one
                yield from below(one)

        def built():
            return sorted(one.__name__ for one in {*below(BaseModel)} if one.__pydantic_complete__)

        print(built())
        from callboard_protocol.base import Frozen, build_models
        build_models()
        print({*below(Frozen)} == {one for one in below(Frozen) if one.__pydantic_complete__})
    """
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert told == "[]\nTrue\n"


FOLDERS = ("supervision", "attempts", "steps", "live", "sessions", "runs", "events", "kernel")
"""Folders of the actors' package, from the top down."""


def imported_at_run_time(path: Path) -> set[str]:
    """The modules that a file imports when it runs, not only for type checkers."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_of_the_actors_imports_from_one_above_it(folder: str) -> None:
    above = FOLDERS[: FOLDERS.index(folder)]
    files = sorted((ROOT / "actors/callboard" / folder).rglob("*.py"))
    assert files
    for path in files:
        upward = {one for one in imported_at_run_time(path) for name in above if one.startswith(f"callboard.{name}.")}
        assert not upward, path
