"""The examples, as a user starts them: from a folder of their own, and once more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(example: str, folder: Path) -> list[str]:
    ended = subprocess.run(
        [sys.executable, EXAMPLES / example], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout.splitlines()


def test_the_support_desk_pays_once_and_says_the_same_when_it_is_started_again(tmp_path: Path) -> None:
    first, again = run("support_desk.py", tmp_path), run("support_desk.py", tmp_path)
    assert first[-2:] == again[-2:]
    assert "I have paid 40 euros back for order 7" in first[-2]
    assert [*json.loads((tmp_path / "support-desk-data" / "bank.json").read_text()).values()] == [40]


def test_two_workers_share_a_directory_and_one_dies_without_a_job_lost_or_paid_twice(tmp_path: Path) -> None:
    first = run("two_workers.py", tmp_path)
    told = dict(line.split(": ", 1) for line in first if line.startswith("job-"))
    paid = {job: said.partition(",")[0] for job, said in told.items()}
    assert paid == {f"job-{number}": f"{20 * number} euros" for number in range(1, 8)} | {"job-8": told["job-8"]}
    assert told["job-8"] == "the call of 'refund' was denied: that is too much"
    # The last approvals were given when only one worker was left.
    assert told["job-7"] == "140 euros, by Bob"
    assert sorted(line.partition(":")[0] for line in first if line.startswith("  ")) == [
        f"  job-{number}" for number in range(3, 9)
    ]
    assert first[-1] == "7 refunds are in the bank's books"
    books = {path.name: path.read_text() for path in (tmp_path / "two-workers-data" / "bank").iterdir()}
    assert sorted(books.values()) == sorted(said for job, said in told.items() if job != "job-8")
    again = run("two_workers.py", tmp_path)
    assert again == [line for line in first if not line.startswith("  ")]
