"""``callboard store``, command by command."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from callboard import Agent, Runtime
from callboard.cli.app import run
from callboard.models import ScriptedModel
from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore


@dataclass(frozen=True)
class Said:
    """What a command has written."""

    stdout: str
    stderr: str


def callboard(*arguments: object, expected: int = 0) -> Said:
    """A command, in this process."""
    out, errors = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            code: object = run(["store", *map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
    out.seek(0)
    said = Said(out.read(), errors.getvalue())
    assert code == expected, said
    return said


def callboard_elsewhere(*arguments: object, expected: int = 0) -> Said:
    """A command as it is typed, in a process of its own."""
    command = [sys.executable, "-m", "callboard.cli.main", "store", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == expected, done.stderr
    return Said(done.stdout, done.stderr)


def told(*arguments: object, expected: int = 0) -> dict[str, object]:
    answer: dict[str, object] = json.loads(callboard(*arguments, "--json", expected=expected).stdout)
    return answer


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that a runtime filled: three sessions of two runs."""
    path = tmp_path_factory.mktemp("served") / "data"

    async def serve() -> None:
        agent = Agent("agent", model=ScriptedModel(lambda _: "an answer"))
        async with Runtime([agent], store=path) as runtime:
            for _ in range(2):
                for session_id in ("one", "two", "three"):
                    await runtime.run(agent, "a question", session_id=session_id)

    asyncio.run(serve())
    return path


@pytest.fixture(scope="module")
def backed_up(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backed_up") / "data"
    upkeep.backup(served, path)
    return path


@pytest.fixture
def path(backed_up: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil, of which every page is in use."""
    return Path(shutil.copytree(backed_up, tmp_path / "data"))


def test_what_a_runtime_wrote_is_sound(served):
    report = told("verify", served)
    assert report["problems"] == []
    assert report["rows"]["runs"] == 6


def test_damage_is_told_and_exits_with_1(path):
    data = path / "data.mdb"
    content = bytearray(data.read_bytes())
    at = content.index(b"an answer")
    content[at] ^= 1
    data.write_bytes(content)
    done = callboard("verify", path, expected=1)
    assert "fails its checksum" in done.stdout
    assert "1 problems" in done.stdout


def test_a_place_without_a_store_is_one_line_and_a_hint(tmp_path):
    for command in ("verify", "compact"):
        done = callboard(command, tmp_path / "nowhere", expected=2)
        assert done.stderr.startswith("callboard: ")
        assert "holds no store [store_open]\n  hint: give a data directory" in done.stderr
        assert done.stdout == ""
    assert not (tmp_path / "nowhere").exists()
    callboard("retain", tmp_path / "nowhere", "--keep", 1, expected=2)
    assert not (tmp_path / "nowhere").exists()


def test_compact_says_what_it_gained(path):
    done = callboard("compact", path)
    assert "every one compared" in done.stdout
    assert done.stderr == ""


def test_backup_and_restore_make_the_same_store(served, tmp_path):
    assert "a backup of" in callboard("backup", served, tmp_path / "backup").stdout
    callboard("backup", served, tmp_path / "backup", expected=2)
    assert "restored and verified, 3 sessions" in callboard("restore", tmp_path / "new", tmp_path / "backup").stdout
    assert upkeep.stats(tmp_path / "new").rows == upkeep.stats(served).rows
    refused = callboard("restore", tmp_path / "new", tmp_path / "backup", expected=2)
    assert "is not empty" in refused.stderr


def test_export_and_import_carry_a_session_over(served, path, tmp_path):
    file = tmp_path / "one.jsonl"
    assert "session one" in callboard("export", served, "one", file).stdout
    assert callboard("export", served, "one").stdout == file.read_text(encoding="utf-8")
    assert "already" in callboard("import", path, file, expected=2).stderr
    assert told("import", path, file, "--as", "twin")["session_id"] == "twin"
    assert "nothing is damaged. 4 sessions" in callboard("verify", path).stdout
    assert "there is no session" in callboard("export", served, "nobody", tmp_path / "x", expected=2).stderr


def test_an_imported_session_goes_on(served, tmp_path):
    callboard("export", served, "one", tmp_path / "one.jsonl")
    callboard("import", tmp_path / "data", tmp_path / "one.jsonl", "--as", "twin")

    async def go_on() -> None:
        seen: list[int] = []
        agent = Agent("agent", model=ScriptedModel(lambda request: seen.append(len(request.messages)) or "more"))
        async with Runtime([agent], store=tmp_path / "data") as runtime:
            assert (await runtime.run(agent, "and now?", session_id="twin")).output == "more"
            assert len(await runtime.sessions.transcript("twin")) == 6
            assert seen[0] >= 5

    asyncio.run(go_on())
    assert upkeep.verify(tmp_path / "data").is_sound


def test_stats_count_what_is_there(served):
    done = callboard("stats", served)
    assert "sessions 3" in done.stdout
    assert "runs 6" in done.stdout


def test_retain_removes_the_longest_untouched_and_names_them(path):
    done = callboard("retain", path, "--keep", 1, "--dry-run")
    assert "would remove 2 sessions" in done.stdout
    report = told("retain", path, "--keep", 1)
    assert report["removed"] == ["one", "two"]
    assert upkeep.stats(path).sessions == 1
    assert told("retain", path, "--older-than", "1d")["removed"] == []


@pytest.mark.parametrize("options", [(), ("--older-than", "soon")])
def test_retain_says_what_it_needs(served, options):
    assert "hint" in callboard("retain", served, *options, expected=2).stderr


def test_an_open_store_can_be_looked_at_and_backed_up_but_not_replaced(path, tmp_path):
    async def while_open() -> None:
        store = LmdbStore(path)
        await store.open()
        try:
            await asyncio.to_thread(callboard_elsewhere, "verify", path)
            await asyncio.to_thread(callboard_elsewhere, "stats", path)
            await asyncio.to_thread(callboard_elsewhere, "backup", path, tmp_path / "backup")
            await asyncio.to_thread(callboard_elsewhere, "export", path, "one", tmp_path / "one.jsonl")
            await asyncio.to_thread(callboard_elsewhere, "retain", path, "--keep", 100)
            refused = await asyncio.to_thread(callboard_elsewhere, "compact", path, expected=2)
            assert "is in use by the process with pid" in refused.stderr
        finally:
            await store.close()

    asyncio.run(while_open())


def test_a_directory_of_another_engine_is_migrated(path, as_lmdb_1_0):
    directory = as_lmdb_1_0(path)
    assert f"callboard store migrate {directory}" in callboard("verify", directory, expected=2).stderr
    assert "every one compared" in callboard("migrate", directory).stdout
    assert "nothing to do" in callboard("migrate", directory).stdout
    assert told("migrate", directory)["is_migrated"] is False
    assert told("verify", directory)["problems"] == []
