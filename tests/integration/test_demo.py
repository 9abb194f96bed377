"""The demo: what its parts promise, and small batches of it killed for real."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from callboard.cli.app import run
from callboard.demo import handmade, outdir, reference, sources
from callboard.demo.auditor import Call, Desk, Finding, Seen, decide
from callboard.demo.batch import Outcome, Plan, Watcher, run_batch, schedule_kills
from callboard.demo.books import Books, Standing
from callboard.demo.facts import read_facts
from callboard.demo.publishing import Publication
from callboard.demo.report import held
from callboard.demo.worker import System
from callboard_protocol.errors import UsageError

RISKY = """
import os, pickle
from subprocess import run as go
import hashlib as h

def first(items=[], *, seen={}):
    os.system("ls")
    go("ls", shell=True)
    go(["ls"])
    pickle.loads(b"")
    h.md5(b"", usedforsecurity=False)
    eval("1")
    eval(items)

try:
    pass
except:
    pass
try:
    pass
except Exception:
    pass
assert (1, "always true")
if first is 3:
    pass
"""


class Silent(Watcher):
    def worker_started(self, system: System, pid: int) -> None: ...

    def worker_killed(self, system: System, kills: int) -> None: ...

    def standing(self, system: System, standing: Standing, seconds: float) -> None: ...

    def finished(self, outcome: Outcome) -> None: ...


def finding(line: int = 1) -> dict[str, Any]:
    return {"module": "a.py", "rule": "bare-except", "line": line, "severity": "medium", "message": "m"}


def tree(folder: Path, **files: str) -> sources.Sources:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return sources.directory(folder)


# ---- what is audited


def test_the_standard_library_has_over_500_modules_and_none_of_its_tests() -> None:
    found = sources.standard_library()
    assert len(found.modules) > 500
    assert not any("/test/" in f"/{module}" or "site-packages" in module for module in found.modules)


def test_a_directory_is_searched_without_environments_caches_and_hidden_folders(tmp_path: Path) -> None:
    for folder in ("pkg", "env", ".git", "__pycache__", "node_modules"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "module.py").touch()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    assert sources.directory(tmp_path).modules == ("pkg/module.py",)


@pytest.mark.parametrize(
    ("make", "said"), [("missing", "no such directory"), ("file", "not a directory"), ("empty", "no Python file")]
)
def test_a_bad_path_is_refused_with_a_hint(tmp_path: Path, make: str, said: str) -> None:
    path = tmp_path / "it"
    if make == "file":
        path.touch()
    elif make == "empty":
        path.mkdir()
    with pytest.raises(UsageError, match=said) as refused:
        sources.directory(path)
    assert refused.value.hint


def test_a_choice_of_sessions_is_spread_over_the_tree() -> None:
    all_of_them = sources.Sources(Path(), tuple(f"{n:03}.py" for n in range(100)), found=100)
    assert sources.choose(all_of_them, 4).modules == ("000.py", "025.py", "050.py", "075.py")
    assert sources.choose(all_of_them, 1000) == all_of_them
    with pytest.raises(UsageError, match="at least one"):
        sources.choose(all_of_them, 0)


# ---- the audit


def test_risky_places_are_found_through_aliases_and_harmless_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "risky.py"
    path.write_text(RISKY, encoding="utf-8")
    found = {(hit.line, hit.rule) for hit in read_facts(path).hits}
    assert found == {
        (6, "mutable-default"),
        (7, "shell-command"),
        (8, "shell-command"),
        (10, "unpickling"),
        (13, "dynamic-code"),
        (17, "bare-except"),
        (21, "swallowed-exception"),
        (23, "assert-on-tuple"),
        (24, "identity-with-literal"),
    }


@pytest.mark.parametrize("source", ["def broken(:\n", "a = '\0'\n", "x = " + "(" * 3000])
def test_a_file_that_does_not_parse_is_a_finding_of_its_own(tmp_path: Path, source: str) -> None:
    audited = asyncio.run(reference.uncrashed_pass(tree(tmp_path, broken=source)))
    assert [found.rule for found in audited.findings.values()] == ["does-not-parse"]


def test_different_files_take_different_paths(tmp_path: Path) -> None:
    empty = asyncio.run(reference.uncrashed_pass(tree(tmp_path, a="# nothing\n")))
    risky = asyncio.run(reference.uncrashed_pass(tree(tmp_path, a=RISKY)))
    assert (empty.model_calls, empty.tool_calls) == (2, 1)
    assert risky.model_calls > 5
    assert risky.tool_calls > risky.model_calls


def test_the_model_decides_from_what_the_tools_returned_and_nothing_else() -> None:
    unreadable = [Seen("read_module", {"module": "a.py"}, {"module": "a.py", "error": "Permission denied"})]
    assert decide("a.py", []) == [Call("read_module", {"module": "a.py"})]
    assert decide("a.py", unreadable) == "a.py: could not be read (Permission denied)."


def test_tools_do_not_leave_the_audited_directory(tmp_path: Path) -> None:
    desk = Desk(tmp_path, reference.Reference())
    for outside in ("../secret.py", "/etc/passwd"):
        answer = asyncio.run(reference.call_tool(desk, Call("read_module", {"module": outside})))
        assert "error" in answer


# ---- the judge


def test_the_books_take_a_finding_again_and_count_it() -> None:
    books = Books()
    assert books.file(finding()) == books.file(finding()) == {"filed": True, "number": 1}
    assert books.file(finding(line=2))["number"] == 2
    assert (books.standing().findings, books.standing().filed_twice) == (2, 1)
    assert books.look_up("a.py", 1, "bare-except")["filed"]
    assert not books.look_up("a.py", 9, "bare-except")["filed"]


def test_a_model_call_paid_again_after_its_answer_was_used_is_told_from_one_in_flight() -> None:
    books = Books()
    books.pay("a.py", 1, final=False)
    books.pay("a.py", 1, final=False)
    assert (books.standing().in_flight_again, books.standing().used_again) == (1, 0)
    books.file(finding())
    books.pay("a.py", 1, final=False)
    assert (books.standing().in_flight_again, books.standing().used_again) == (1, 1)
    books.pay("a.py", 2, final=True)
    books.pay("a.py", 1, final=False)
    assert (books.standing().model_calls, books.standing().used_again) == (2, 2)


def test_kills_are_spread_over_the_batch_and_the_same_every_time() -> None:
    kills = schedule_kills(4000, sessions=700)
    assert kills == schedule_kills(4000, sessions=700)
    assert list(kills) == sorted(set(kills))
    assert len(kills) == 7
    assert 0 < kills[0] < kills[-1] < 4000
    assert len(schedule_kills(3, sessions=1)) == 1


# ---- the loop people write


def test_the_handmade_loop_resumes_in_the_middle_of_a_reply(tmp_path: Path) -> None:
    asked: list[int] = []
    ran: list[str] = []

    async def ask_model(session: str, messages: list[handmade.Message]) -> handmade.Message:
        asked.append(len(messages))
        if len(messages) > 1:
            return {"role": "assistant", "content": "done", "tool_calls": []}
        calls: list[dict[str, Any]] = [{"id": name, "name": name, "arguments": {}} for name in ("one", "two")]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    async def run_tool(name: str, arguments: dict[str, Any]) -> str:
        ran.append(name)
        if ran == ["one", "two"]:
            raise RuntimeError("the process died here")
        return name

    path, tasks = tmp_path / "transcripts.sqlite", {"s": "go"}
    with pytest.raises(RuntimeError):
        asyncio.run(handmade.run_batch(path, tasks, ask_model, run_tool, 4))
    assert asyncio.run(handmade.run_batch(path, tasks, ask_model, run_tool, 4)) == {"s": "done"}
    assert (asked, ran) == ([1, 4], ["one", "two", "two"])


# ---- whole batches


def small_plan(out: Path, *, kills: bool) -> Plan:
    with outdir.fresh(out) as made:
        chosen = sources.choose(sources.standard_library(), 36)
        expected = asyncio.run(reference.uncrashed_pass(chosen))
        return Plan(chosen, expected, made, schedule_kills(expected.model_calls, 36) if kills else ())


def test_the_handmade_batch_finishes_and_loses_nothing_under_kills(tmp_path: Path) -> None:
    outcome = asyncio.run(run_batch("handmade", small_plan(tmp_path / "out", kills=True), Silent()))
    assert (outcome.sessions, outcome.lost, outcome.invented) == (36, (), ())
    assert outcome.kills
    assert outcome.books.used_again == 0


def test_callboard_finishes_and_neither_loses_nor_repeats_under_kills(tmp_path: Path) -> None:
    outcome = asyncio.run(run_batch("callboard", small_plan(tmp_path / "out", kills=True), Silent()))
    assert (outcome.sessions, outcome.lost, outcome.invented) == (36, (), ())
    assert outcome.kills
    assert outcome.books.filed_twice == 0
    assert outcome.books.used_again == 0
    publication = outcome.publication
    assert publication is not None
    assert publication.asked < outcome.kills[0] < outcome.kills[-1] < publication.decided
    assert (publication.decided_by, publication.stop_reason) == ("the demo", "completed")
    assert outcome.books.published == 1


def test_a_report_that_was_published_twice_or_asked_about_too_late_is_told(tmp_path: Path) -> None:
    plan = Plan(tree(tmp_path, empty=""), reference.Reference(), tmp_path)
    asked = Publication(asked=1.0, decided=3.0, decided_by="ann", stop_reason="completed")

    def outcome(published: int, first_kill: float) -> Outcome:
        books = Standing(published=published)
        return Outcome("callboard", 1, (first_kill,), (), (), 1.0, 1, books, [], asked)

    assert held(outcome(1, 2.0), plan)
    assert not held(outcome(2, 2.0), plan)
    assert not held(outcome(0, 2.0), plan)
    assert not held(outcome(1, 0.5), plan)


# ---- the command


def test_the_command_runs_both_batches_and_leaves_its_reports(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path, risky=RISKY, fine="def f():\n    return 1\n", empty="")
    with pytest.raises(SystemExit) as ended:
        run(["demo", "--path", str(tmp_path), "--out", str(tmp_path / "out"), "--no-crash"])
    assert ended.value.code == 0
    told = capfd.readouterr().out
    assert "3/3" in told
    assert "the demo, 1x" in told
    findings = [json.loads(line) for line in (tmp_path / "out" / "findings.jsonl").read_text("utf-8").splitlines()]
    assert findings[0]["severity"] == "high"
    assert all(found["times_filed"] == 1 for found in findings)
    assert "## By rule" in (tmp_path / "out" / "summary.md").read_text("utf-8")
    assert len(json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sessions", "0"], "at least one"),
        (["--path", "/no/such/place"], "no such directory"),
        (["--model", "openai:gpt-5-mini"], "no adapter to model providers"),
        (["--model", "gpt"], "provider:name"),
    ],
)
def test_a_bad_option_is_told_in_a_line_with_a_hint(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "--out", str(tmp_path / "out"), *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "hint:" in told
    assert "Traceback" not in told


def test_an_output_directory_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine", encoding="utf-8")
    assert run(["demo", "--out", str(tmp_path), "--sessions", "1"]) == 2
    assert "not the demo's" in capsys.readouterr().err
    assert (tmp_path / "data" / "mine.txt").exists()


def test_without_the_cli_extra_the_command_says_how_to_install_it() -> None:
    block = "import sys; sys.modules['rich'] = None; from callboard.cli.main import main; main()"
    ended = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert "pip install 'callboard[cli]'" in ended.stderr


def handmade_batch(out: Path) -> list[str]:
    """A command that plays a batch long enough to be interrupted."""
    return [
        *(sys.executable, "-m", "callboard.cli.main", "demo", "--out", str(out)),
        *("--interactive", "--only", "handmade", "--sessions", "100"),
    ]


def test_ctrl_c_ends_every_process_of_the_demo(tmp_path: Path) -> None:
    with subprocess.Popen(
        handmade_batch(tmp_path / "out"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        try:
            assert demo.stdout is not None
            asks = next(line for line in demo.stdout if "kill -9" in line)
            assignment = json.loads((tmp_path / "out/data/handmade/assignment.json").read_text(encoding="utf-8"))
            demo.send_signal(signal.SIGINT)
            _, told = demo.communicate(timeout=30)
        finally:
            demo.kill()
    assert demo.returncode == 130
    assert "interrupted" in told
    with pytest.raises(ProcessLookupError):
        os.kill(int(asks.split()[-1]), 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", assignment["tracker"]), timeout=5)


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    with subprocess.Popen(handmade_batch(tmp_path / "out"), stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            worker = int(next(line for line in demo.stdout if "kill -9" in line).split()[-1])
        finally:
            demo.kill()
    deadline = time.monotonic() + 20
    while is_running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process that nobody may be left to wait for still does anything."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def test_a_finding_says_which_one_it_is() -> None:
    assert Finding("a.py", "bare-except", 3, "low", "m").key == "a.py:3:bare-except"
