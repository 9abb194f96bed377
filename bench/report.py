"""The run as tables: on the terminal, and as Markdown between two markers in docs/BENCHMARKS.md."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.machine import headline
from bench.results import Outcome, RowResult, Run, Verdict, judge
from bench.rows import Metric

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"


def print_row(console: Console, result: RowResult) -> None:
    """Print one row's table and its claims."""
    table = Table(title=result.row.title, title_justify="left", title_style="bold")
    table.add_column("")
    for metric in result.row.metrics:
        table.add_column(metric.heading, justify="right")
    for name, outcome in result.outcomes.items():
        table.add_row(name, *_cells(result, outcome), style="bold" if name.startswith("Callboard") else None)
    console.print(table)
    for line in _failures(result):
        console.print(f"  {line}", style="red", markup=False)
    for verdict in judge(result):
        style = {True: "green", False: "red", None: None}[verdict.met]
        console.print(f"  {_sentence(verdict)}", style=style, markup=False)
    console.print()


def write_docs(path: Path, run: Run) -> None:
    """Replace what stands between the markers in ``path``.

    Raises:
        ValueError: the markers are missing.
    """
    text = path.read_text()
    if BEGIN not in text or END not in text:
        message = f"{path.name} has no {BEGIN} … {END} block"
        raise ValueError(message)
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(f"{before}{BEGIN}\n{markdown(run)}{END}{after}")


def markdown(run: Run) -> str:
    """Lay the run out as Markdown."""
    machine = run.machine
    libraries = ", ".join(f"{name} {number}" for name, number in machine["libraries"].items())
    lines = [
        "",
        (
            f"Taken on {machine['date']}: {headline(machine)}; Python {machine['python']}; {libraries}. "
            "The durable rows depend on that commit rate: the longer a commit takes, the more it pays to share one."
        ),
        f"Median of {run.repeats} repeats (smallest to largest).",
        "",
    ]
    if run.quick:
        lines += ["**A smoke run (`--quick`): too short to be read as a result.**", ""]
    for result in run.rows:
        lines += _markdown_row(result)
    return "\n".join(lines) + "\n"


def _markdown_row(result: RowResult) -> Iterable[str]:
    metrics = result.row.metrics
    yield f"### {result.row.title}"
    yield ""
    yield "| | " + " | ".join(metric.heading for metric in metrics) + " |"
    yield "| --- |" + " ---: |" * len(metrics)
    for name, outcome in result.outcomes.items():
        yield f"| {name} | " + " | ".join(_cells(result, outcome)) + " |"
    yield ""
    for line in _failures(result):
        yield f"- {line}"
    for verdict in judge(result):
        yield f"- {_sentence(verdict)}"
    yield ""


def _cells(result: RowResult, outcome: Outcome) -> list[str]:
    return [_cell(outcome, metric) for metric in result.row.metrics]


def _cell(outcome: Outcome, metric: Metric) -> str:
    median = outcome.median(metric.key)
    if median is None:
        return "failed" if outcome.errors else ""
    shown = f"{median:,.{metric.digits}f}"
    values = outcome.values[metric.key]
    if len(values) == 1:
        return shown
    return f"{shown} ({min(values):,.{metric.digits}f} to {max(values):,.{metric.digits}f})"


def _failures(result: RowResult) -> list[str]:
    return [f"{name} failed: {outcome.errors[-1]}" for name, outcome in result.outcomes.items() if outcome.errors]


def _sentence(verdict: Verdict) -> str:
    if verdict.met is None:
        return f"{verdict.claim.text}: {verdict.shown}" + (f" (target {verdict.target})" if verdict.target else "")
    return f"{verdict.claim.text}: {verdict.shown} (target {verdict.target}: {'met' if verdict.met else 'missed'})"
