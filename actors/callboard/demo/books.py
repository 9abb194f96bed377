"""The tracker's books: every finding as often as it was filed, every model call as often as it was paid for."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Books:
    """What the one process that nobody kills has seen. It refuses nothing: a judge that tidied up would be none.

    Attributes:
        findings: each finding as it was filed first, by key, with its number.
        filed: how often each was filed.
        paid: how often each model call was paid for, by (session, turn).
        used_again: payments for a call whose answer the session had been seen to act on.
        finished: the sessions whose model has given its last answer.
        filing: filings received and not yet answered.
        cut_off: filings whose sender was gone before the answer.
        published: how often the report of the audit was published.
    """

    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    filed: Counter[str] = field(default_factory=Counter)
    paid: Counter[tuple[str, int]] = field(default_factory=Counter)
    used_again: int = 0
    finished: set[str] = field(default_factory=set)
    filing: int = 0
    cut_off: int = 0
    published: int = 0
    _asked: dict[str, int] = field(default_factory=dict)
    _acted: dict[str, int] = field(default_factory=dict)

    def file(self, finding: dict[str, Any]) -> dict[str, Any]:
        """Take a finding, again if it comes again, as a plain tracker does."""
        key = key_of(finding["module"], finding["line"], finding["rule"])
        self.filed[key] += 1
        self._acted[finding["module"]] = self._asked.get(finding["module"], 0)
        entry = self.findings.setdefault(key, {"number": len(self.findings) + 1, **finding})
        return {"filed": True, "number": entry["number"]}

    def look_up(self, module: str, line: int, rule: str) -> dict[str, Any]:
        """Whether a finding is in the books: the tracker's search box."""
        entry = self.findings.get(key_of(module, line, rule))
        return {"filed": False} if entry is None else {"filed": True, "number": entry["number"]}

    def pay(self, session: str, turn: int, *, final: bool) -> dict[str, Any]:
        """Book one model call of a session: its `turn`th, counted from 1.

        A session that asks for turn 3, or files what turn 2 told it to, has used the answer of turn 2. To pay for that
        one again is a loss that a saved transcript prevents; to pay again for one that was in flight is not.
        """
        self.paid[session, turn] += 1
        if self.paid[session, turn] > 1 and turn <= self._acted.get(session, 0):
            self.used_again += 1
        self._asked[session] = max(turn, self._asked.get(session, 0))
        self._acted[session] = max(turn - 1, self._acted.get(session, 0))
        if final:
            self.finished.add(session)
        return {"paid": True}

    def publish(self) -> None:
        """Publish the report, again if it is asked for again."""
        self.published += 1

    def standing(self) -> Standing:
        """The figures so far."""
        return Standing(
            findings=len(self.findings),
            filed_twice=self.filed.total() - len(self.filed),
            model_calls=len(self.paid),
            in_flight_again=self.paid.total() - len(self.paid) - self.used_again,
            used_again=self.used_again,
            sessions=len(self.finished),
            filing=self.filing,
            cut_off=self.cut_off,
            published=self.published,
        )

    def everything(self) -> dict[str, Any]:
        """The figures and every finding with how often it was filed."""
        findings = [{**entry, "times_filed": self.filed[key]} for key, entry in self.findings.items()]
        return {"standing": asdict(self.standing()), "findings": findings}


@dataclass(frozen=True)
class Standing:
    """The books in figures.

    Attributes:
        findings: different findings filed.
        filed_twice: filings of a finding that was there already.
        model_calls: different model calls paid for.
        in_flight_again: payments for a call that was paid for and had not been acted on.
        used_again: payments for a call whose answer the session had been seen to act on.
        sessions: sessions whose model has given its last answer.
        filing: filings in flight now.
        cut_off: filings whose sender was gone before the answer.
        published: how often the report of the audit was published.
    """

    findings: int = 0
    filed_twice: int = 0
    model_calls: int = 0
    in_flight_again: int = 0
    used_again: int = 0
    sessions: int = 0
    filing: int = 0
    cut_off: int = 0
    published: int = 0


def key_of(module: str, line: int, rule: str) -> str:
    """The same for the same finding, however often it is filed."""
    return f"{module}:{line}:{rule}"
