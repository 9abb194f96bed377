"""What is left when the demo is over: one table for both systems, and what the audit found."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from callboard.demo.batch import Outcome, Plan
from callboard.demo.display import NAMES
from callboard.demo.facts import RULES, SEVERITIES
from callboard.demo.worker import CONCURRENCY

_WORST_MODULES = 15

_Row = tuple[str, Callable[[Outcome], str], Callable[[Outcome], bool] | None]


_NOTHING = "-"


def _kills_before_asking(outcome: Outcome) -> int:
    asked = outcome.publication
    return 0 if asked is None else sum(1 for kill in outcome.kills if kill <= asked.asked)


def _asked(outcome: Outcome) -> str:
    if outcome.publication is None:
        return _NOTHING
    if not outcome.kills:
        return "at once"
    before = _kills_before_asking(outcome)
    return f"after kill {before}" if before else "before kill 1"


def _published(outcome: Outcome) -> str:
    done = outcome.publication
    return _NOTHING if done is None else f"{done.decided_by}, {outcome.books.published}x"


def _rows(sessions: int) -> list[_Row]:
    """Name, value, and what makes the value a failure."""
    return [
        ("sessions finished", lambda o: f"{o.sessions}/{sessions}", lambda o: o.sessions < sessions),
        ("worker killed", lambda o: f"{len(o.kills)}x", None),
        ("filings cut off by a kill", lambda o: str(o.books.cut_off), None),
        ("findings filed twice", lambda o: str(o.books.filed_twice), lambda o: o.books.filed_twice > 0),
        ("findings lost", lambda o: str(len(o.lost)), lambda o: bool(o.lost)),
        ("model calls paid again: answer used", lambda o: str(o.books.used_again), lambda o: o.books.used_again > 0),
        ("model calls paid again: in flight", lambda o: str(o.books.in_flight_again), None),
        ("leave to publish a report: asked", _asked, lambda o: _kills_before_asking(o) > 0),
        (
            "leave given by; report published",
            _published,
            lambda o: o.publication is not None and o.books.published != 1,
        ),
        ("steps per second", lambda o: f"{o.steps_per_second:,.0f}", None),
        ("seconds, restarts included", lambda o: f"{o.seconds:.1f}", None),
    ]


def held(outcome: Outcome, plan: Plan) -> bool:
    """Whether a batch ended as it should have: everything finished, nothing lost, nothing twice."""
    wrong = any(failed is not None and failed(outcome) for _, _, failed in _rows(len(plan.sources.modules)))
    return not wrong and not outcome.invented


def comparison(plan: Plan, outcomes: Sequence[Outcome]) -> Table:
    """The one table for both."""
    table = Table()
    table.add_column("")
    for outcome in outcomes:
        table.add_column(NAMES[outcome.system], justify="right")
    for name, value, failed in _rows(len(plan.sources.modules)):
        cells = []
        for outcome in outcomes:
            shown = value(outcome)
            colour = "" if failed is None or shown == _NOTHING else "[red]" if failed(outcome) else "[green]"
            cells.append(colour + shown)
        table.add_row(name, *cells)
    return table


def legend(plan: Plan) -> list[str]:
    """How to read the table: what is the same for both, and what the difference rests on."""
    same = (
        f"Both: the same modules, tools, model and kills, {CONCURRENCY} sessions at a time, each step on disk before "
        "the next. The judge is the tracker, a process that nobody kills; what is filed again it takes again."
    )
    filed_twice = (
        "Filed twice: the worker died after the tracker took the finding and before the answer was saved. The tracker "
        "can be searched: after a crash Callboard asks it (@file_finding.reconcile) before it calls again. The loop "
        "people write has no place for that question."
    )
    in_flight = (
        "Paid again, in flight: asked or just answered when the worker died, and not saved yet. No loop can take a "
        "request back; neither does Callboard."
    )
    leave = (
        "Leave to publish: a run of its own asks for it before the first audit, and holds no place while it waits. The "
        "demo gives it when all else is done, in another process. The loop people write has no place for that question "
        "either."
    )
    rate = "Steps per second: model and tool calls the batch needs, by its time; what was done twice counts once."
    killed = bool(plan.kills) or plan.interactive
    return [same, filed_twice, in_flight, leave, rate] if killed else [same, leave, rate]


def write(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Path]:
    """Write what the last batch found and how the batches went.

    Returns:
        Where each part of the report is, by what it is.
    """
    findings = sorted(outcomes[-1].findings, key=_worst_first)
    jsonl, summary, compared = (plan.out / name for name in ("findings.jsonl", "summary.md", "comparison.json"))
    with jsonl.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(finding) + "\n" for finding in findings)
    summary.write_text(_summary(plan, outcomes, findings), encoding="utf-8")
    compared.write_text(json.dumps([_figures(outcome) for outcome in outcomes], indent=2) + "\n", encoding="utf-8")
    return {"what the audit found": summary, "every finding": jsonl, "this table": compared}


def _figures(outcome: Outcome) -> dict[str, Any]:
    figures = {name: value for name, value in asdict(outcome).items() if name != "findings"}
    return {**figures, "steps_per_second": round(outcome.steps_per_second, 1)}


def _worst_first(finding: dict[str, Any]) -> tuple[int, str, int, str]:
    return SEVERITIES.index(finding["severity"]), finding["module"], finding["line"], finding["rule"]


def title(plan: Plan) -> str:
    """What was audited, in a line."""
    modules = len(plan.sources.modules)
    which = f"{modules}" if modules == plan.sources.found else f"{modules} of {plan.sources.found}"
    return f"{which} modules of {plan.sources.root}, {plan.reference.steps:,} steps"


def _summary(plan: Plan, outcomes: Sequence[Outcome], findings: Sequence[dict[str, Any]]) -> str:
    severities = Counter(finding["severity"] for finding in findings)
    rules = Counter(finding["rule"] for finding in findings)
    modules = Counter(finding["module"] for finding in findings)
    counts = ", ".join(f"{severities[name]} {name}" for name in SEVERITIES)
    clean = len(plan.sources.modules) - len(modules)
    parts = [
        "# What the audit found",
        f"{title(plan)}; Python {platform.python_version()}.",
        f"{len(findings)} findings ({counts}) in {len(modules)} modules; {clean} modules have none.",
        "## By rule",
        _markdown(
            ("rule", "severity", "findings", "what it means"),
            [(f"`{rule}`", RULES[rule][1], str(count), RULES[rule][2]) for rule, count in rules.most_common()],
        ),
        "## Modules with most findings",
        _markdown(
            ("module", "findings", "rules"),
            [
                (f"`{module}`", str(count), ", ".join(sorted({f["rule"] for f in findings if f["module"] == module})))
                for module, count in modules.most_common(_WORST_MODULES)
            ],
        ),
        "## High severity",
        _markdown(
            ("where", "rule", "what"),
            [
                (f"`{finding['module']}:{finding['line']}`", finding["rule"], finding["message"])
                for finding in findings
                if finding["severity"] == "high"
            ],
        ),
        "## How the batches went",
        _markdown(
            ("", *(NAMES[outcome.system] for outcome in outcomes)),
            [(name, *(value(outcome) for outcome in outcomes)) for name, value, _ in _rows(len(plan.sources.modules))],
        ),
        "\n\n".join(legend(plan)),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "None."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
