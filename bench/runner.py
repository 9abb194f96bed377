"""The parent: a fresh process for each measurement, in turn among the contenders."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.jobs import Job, Size
from bench.results import Outcome, RowResult
from bench.rows import Contender, Row

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Runner:
    """Runs rows."""

    size: Size
    repeats: int
    timeout: float
    """Seconds one measurement may take before its process is killed and the row says so."""
    scratch: Path
    """A directory on the disk under measurement; each measurement gets one of its own in it and it is emptied after."""
    announce: Callable[[str], None]
    """Told what is about to be measured."""
    report: Callable[[str], None]
    """Told, line by line, what has been."""
    show_errors: bool = False

    def run(self, rows: Sequence[Row]) -> list[RowResult]:
        """Measure every row."""
        return [self._run_row(row) for row in rows]

    def _run_row(self, row: Row) -> RowResult:
        outcomes = {contender.name: Outcome() for contender in row.contenders}
        repeats = self.repeats * row.repeat_factor
        for repeat in range(repeats):
            # Interleaved and rotated: a machine that warms up, or that someone else uses, favours nobody.
            turn = repeat % len(row.contenders)
            for contender in row.contenders[turn:] + row.contenders[:turn]:
                if contender.once and repeat:
                    continue
                what = f"{row.id} · {contender.name} · {repeat + 1}/{1 if contender.once else repeats}"
                self.announce(what)
                began = time.perf_counter()
                result = self.measure(contender)
                outcomes[contender.name].add(result)
                self.report(f"{what} · {_gist(row, result)} · {time.perf_counter() - began:.1f} s")
        return RowResult(row, outcomes)

    def measure(self, contender: Contender) -> dict[str, Any]:
        """Measure one contender once, in a process and a directory of its own."""
        directory = Path(tempfile.mkdtemp(prefix="bench-", dir=self.scratch))
        try:
            return self._run_child(contender, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _run_child(self, contender: Contender, directory: Path) -> dict[str, Any]:
        peer = f"bench.peers.{contender.peer}" if contender.peer else None
        job_path, result_path, scratch = directory / "job.json", directory / "result.json", directory / "scratch"
        scratch.mkdir()
        job = Job(f"bench.measures.{contender.measure}", peer, self.size, scratch)
        job_path.write_text(json.dumps(job.to_json()))
        command = [sys.executable, "-m", "bench.child", str(job_path), str(result_path)]
        # Data that the last contender left in the page cache must not be flushed on this one's time.
        os.sync()
        try:
            done = subprocess.run(
                command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=self.timeout, env=_environment()
            )
        except subprocess.TimeoutExpired:
            return {"error": f"took longer than {self.timeout:g} s"}
        if not result_path.exists():
            result = {"error": f"the process ended with status {done.returncode}"}
        else:
            result = json.loads(result_path.read_text())
        if "error" in result and self.show_errors:
            self.report(done.stderr)
        return result


def _gist(row: Row, result: dict[str, Any]) -> str:
    """One measurement in a few words."""
    if "error" in result:
        return "failed"
    shown = [metric for metric in row.metrics if metric.key in result["metrics"]]
    return f"{shown[0].label} {result['metrics'][shown[0].key]:,.{shown[0].digits}f} {shown[0].unit}"


def _environment() -> dict[str, str]:
    """The parent's environment, less what would let a peer export traces or change what it does."""
    foreign = ("LANGSMITH_", "LANGCHAIN_", "LANGGRAPH_", "DBOS_", "OTEL_", "OPENAI_")
    return {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
