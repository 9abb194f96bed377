"""Run the benchmarks: ``python -m bench`` from the repository's root."""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.jobs import FULL, QUICK
from bench.machine import describe, file_system, headline
from bench.plots import write_plots
from bench.report import print_row, write_docs
from bench.results import Run, judge
from bench.rows import BARE_COMMITS, CALLBOARD, Row, build_rows
from bench.runner import ROOT, Runner

RESULTS = ROOT / "bench" / "results"
DOCS = ROOT / "docs" / "BENCHMARKS.md"
PIPED_WIDTH = 200
"""Columns of the tables where no terminal says how many there are."""
DISK_LOOKS = 3
IN_MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs"}


def parse_arguments(rows: tuple[Row, ...], arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Callboard beside its peers.")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run of under a minute; its numbers are not results"
    )
    parser.add_argument("--repeats", type=int, help="how often each measurement is taken (default 3; 1 with --quick)")
    parser.add_argument(
        "--only", action="append", choices=[row.id for row in rows], metavar="ROW", help="measure this row; repeatable"
    )
    parser.add_argument("--timeout", type=float, help="seconds one measurement may take (default 240; 40 with --quick)")
    parser.add_argument(
        "--scratch", type=Path, default=ROOT / "bench" / ".scratch", help="a directory on the disk to measure"
    )
    parser.add_argument("--write-docs", action="store_true", help="refresh the tables in docs/BENCHMARKS.md")
    parser.add_argument("--errors", action="store_true", help="print what a failed measurement wrote to stderr")
    options = parser.parse_args(arguments)
    if options.write_docs and (options.only or options.quick):
        parser.error("--write-docs takes a whole run: the docs hold the ratios of one run")
    return options


def main(arguments: list[str]) -> int:
    """Measure, print, and write results."""
    options = parse_arguments(build_rows(FULL), arguments)
    size = QUICK if options.quick else FULL
    console = Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)
    options.scratch.mkdir(parents=True, exist_ok=True)
    if file_system(options.scratch) in IN_MEMORY_FILE_SYSTEMS:
        console.print("The scratch directory is in memory, where a sync costs nothing: pass --scratch.", style="red")
        return 2
    with console.status("starting") as status:
        runner = Runner(
            size=size,
            repeats=options.repeats or (1 if options.quick else 3),
            timeout=options.timeout or (40 if options.quick else 240),
            scratch=options.scratch,
            announce=status.update,
            report=lambda line: console.print(line, style="dim", markup=False, highlight=False),
            show_errors=options.errors,
        )
        commits_per_s = measure_disk(runner)
        run = Run(options.quick, runner.repeats, describe(options.scratch, commits_per_s), rows=[])
        console.print(f"{headline(run.machine)}\n", highlight=False)
        rows = [row for row in build_rows(size) if not options.only or row.id in options.only]
        results = []
        for row in rows:
            results += runner.run([row])
            print_row(console, results[-1])
    run = replace(run, rows=results)
    publish(run, complete=not (options.only or options.quick), docs=options.write_docs)
    return status_of(run)


def measure_disk(runner: Runner) -> float | None:
    """Bare LMDB commits per second, the median of a few looks; None where they failed."""
    looks = [runner.measure(BARE_COMMITS) for _ in range(DISK_LOOKS)]
    rates = [look["metrics"]["per_s"] for look in looks if "metrics" in look]
    return statistics.median(rates) if rates else None


def status_of(run: Run) -> int:
    """1 if Callboard failed to do its work, or if a run that is long enough to tell missed a target; else 0."""
    failed = any(
        outcome.errors for result in run.rows for name, outcome in result.outcomes.items() if name.startswith(CALLBOARD)
    )
    missed = any(verdict.met is False for result in run.rows for verdict in judge(result))
    return 1 if failed or (missed and not run.quick) else 0


def publish(run: Run, *, complete: bool, docs: bool) -> None:
    """Write results, plots and, if asked, the tables in the docs.

    A partial or quick run leaves the tracked results alone: they hold one whole run.
    """
    directory = RESULTS if complete else RESULTS / "partial"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "latest.json").write_text(json.dumps(run.to_json(), indent=1, ensure_ascii=False) + "\n")
    write_plots(run, directory)
    if docs:
        write_docs(DOCS, run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
