import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SOURCES = [str(ROOT / name) for name in ("actors", "storage", "protocol")]


def run(*command: str, where: Path) -> str:
    paths = os.pathsep.join(SOURCES)
    finished = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=where,
        env={**os.environ, "MYPYPATH": paths, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not finished.stderr.startswith("Traceback"), finished.stderr
    return finished.stdout


def mypy(path: Path) -> set[int]:
    """The lines mypy finds errors on."""
    # Its own cache: this runs beside the project's checks.
    output = run(
        "mypy",
        "--strict",
        "--cache-dir",
        str(path.parent / "cache"),
        "--follow-imports",
        "silent",
        path.name,
        where=path.parent,
    )
    assert re.search(r"^(Success|Found)", output, re.MULTILINE), output
    return {int(line) for line in re.findall(rf"^{path.name}:(\d+): error", output, re.MULTILINE)}


def pyright(path: Path) -> set[int]:
    """The lines pyright finds errors on."""
    config = {"extraPaths": SOURCES, "typeCheckingMode": "standard", "include": [path.name]}
    (path.parent / "pyrightconfig.json").write_text(json.dumps(config))
    output = run("pyright", "--pythonpath", sys.executable, "--outputjson", "-p", ".", where=path.parent)
    found = json.loads(output[output.index("{") :])["generalDiagnostics"]
    return {item["range"]["start"]["line"] + 1 for item in found if item["severity"] == "error"}


@pytest.mark.semantics("K4")
@pytest.mark.parametrize("checker", [mypy, pyright])
def test_the_reply_type_of_an_ask_and_the_messages_of_a_tell_are_checked(
    checker: Callable[[Path], set[int]], tmp_path: Path
):
    good, misuse = tmp_path / "ask_reply.py", tmp_path / "ask_reply_misuse.py"
    good.write_text((HERE / good.name).read_text())
    text = (HERE / misuse.name).read_text()
    assert text.startswith("# type: ignore\n")
    misuse.write_text(text.replace("# type: ignore\n", "#\n", 1))
    expected = {number for number, line in enumerate(text.splitlines(), 1) if line.endswith("# misuse")}
    assert checker(good) == set()
    assert checker(misuse) == expected
