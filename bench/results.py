"""The numbers of one run, and what follows from them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.rows import Claim, Figure, Row


@dataclass
class Outcome:
    """What one contender's repeats gave."""

    values: dict[str, list[float]] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)
    """The last repeat's curves."""
    errors: list[str] = field(default_factory=list)

    def add(self, result: Mapping[str, Any]) -> None:
        """Take in what a child wrote."""
        if "error" in result:
            self.errors.append(result["error"])
            return
        for key, value in result["metrics"].items():
            self.values.setdefault(key, []).append(value)
        self.series = dict(result["series"])

    def median(self, metric: str) -> float | None:
        """The median over the repeats that succeeded, or None."""
        values = self.values.get(metric)
        return statistics.median(values) if values else None


@dataclass
class RowResult:
    """One row's outcomes, by contender."""

    row: Row
    outcomes: dict[str, Outcome]

    def figure(self, figure: Figure) -> float | None:
        """Look one figure up, or None where it could not be measured."""
        return self.outcomes[figure.contender].median(figure.metric)


@dataclass(frozen=True)
class Verdict:
    """A claim held against the numbers."""

    claim: Claim
    value: float | None
    """The ratio of medians, or the figure itself; None where a side is missing."""

    @property
    def target(self) -> str:
        """The bound, as it is read."""
        if self.claim.at_least is not None:
            return f"≥ {self.claim.at_least:,.6g}"
        if self.claim.at_most is not None:
            return f"≤ {self.claim.at_most:,.6g}"
        return ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none, or nothing to hold against it."""
        if self.value is None or not self.target:
            return None
        at_least, at_most = self.claim.at_least, self.claim.at_most
        return (at_least is None or self.value >= at_least) and (at_most is None or self.value <= at_most)

    @property
    def shown(self) -> str:
        """The value, as it is read."""
        if self.value is None:
            return "not measured"
        return f"{self.value:,.2f}x" if self.claim.over else f"{self.value:,.1f}"


def judge(result: RowResult) -> list[Verdict]:
    """Hold each of the row's claims against its numbers."""
    verdicts = []
    for claim in result.row.claims:
        value = result.figure(claim.value)
        if claim.over is not None:
            over = result.figure(claim.over)
            value = value / over if value is not None and over else None
        verdicts.append(Verdict(claim, value))
    return verdicts


@dataclass(frozen=True)
class Run:
    """Everything one run of the harness measured."""

    quick: bool
    repeats: int
    machine: Mapping[str, Any]
    rows: Sequence[RowResult]

    def to_json(self) -> dict[str, Any]:
        """Lay the run out as it is written to ``latest.json``."""
        return {
            "quick": self.quick,
            "repeats": self.repeats,
            "machine": dict(self.machine),
            "rows": [_row_json(result) for result in self.rows],
        }


def _row_json(result: RowResult) -> dict[str, Any]:
    return {
        "id": result.row.id,
        "title": result.row.title,
        "contenders": {name: _outcome_json(outcome) for name, outcome in result.outcomes.items()},
        "claims": [
            {
                "text": verdict.claim.text,
                "value": _rounded(verdict.value) if verdict.value is not None else None,
                "is_ratio": verdict.claim.over is not None,
                "target": verdict.target,
                "met": verdict.met,
            }
            for verdict in judge(result)
        ],
    }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "metrics": {
            key: {
                "median": _rounded(statistics.median(values)),
                "min": _rounded(min(values)),
                "max": _rounded(max(values)),
                "values": [_rounded(value) for value in values],
            }
            for key, values in outcome.values.items()
        },
        "series": {key: [_rounded(value) for value in values] for key, values in outcome.series.items()},
        "errors": outcome.errors,
    }


def _rounded(value: float) -> float:
    """Four significant digits: more would be noise in the repository's history."""
    return float(f"{value:.4g}")
