"""Runs under load hit a real wall, and nothing is lost or done twice: a full file system, RLIMIT_FSIZE, a quota."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("full_disk_worker.py")
PATIENCE = 90


def work(directory: Path, wall: str) -> dict[str, Any]:
    """What a worker saw that ran into a wall."""
    directory.mkdir()
    command = [sys.executable, str(WORKER), str(directory), wall]
    if wall == "disk":
        unshare = shutil.which("unshare")
        if unshare is None or subprocess.run([unshare, "-m", "true"], check=False, capture_output=True).returncode:
            pytest.skip("mounting a small file system of one's own needs CAP_SYS_ADMIN")
        script = f"mount -t tmpfs -o size=24m none {shlex.quote(str(directory))} && exec {shlex.join(command)}"
        command = [unshare, "-m", "sh", "-c", script]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    saw: dict[str, Any] = json.loads(done.stdout)
    return saw


@pytest.mark.parametrize("wall", ["limit", "disk", "quota"])
def test_runs_that_hit_a_wall_all_complete_once_there_is_room_and_nothing_happens_twice(
    tmp_path: Path, wall: str
) -> None:
    saw = work(tmp_path / "place", wall)
    assert saw["refused"] == "store_full"
    assert saw["suspended"] > 0
    assert saw["outputs"] == ["done"]
    assert saw["after"] == "done"
    assert saw["twice"] == []
    assert saw["effects"] == (saw["taken_in"] + 1) * 6
    assert saw["sound"]
    if wall != "quota":
        assert saw["held"] > 0, "no outcome was ever held"


@pytest.mark.semantics("F9")
def test_sessions_can_be_deleted_on_a_disk_without_a_free_byte(tmp_path: Path) -> None:
    assert work(tmp_path / "place", "disk")["deleted_while_full"] >= 3
