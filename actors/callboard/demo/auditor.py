"""The audit itself: the tools, and the model that decides the next call from what the tools returned.

Nothing here knows which loop it runs in. Both loops hand `decide` the same calls and results and get the same answer,
so what differs between them is only what they do around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from callboard.demo.books import key_of
from callboard.demo.facts import LONG_FUNCTION, RULES, SEVERITIES, Hit, by_severity, read_facts

Json = dict[str, Any]

MAX_FINDINGS = 8
MAX_LOOKS = 3
FILED_PER_REPLY = 3
_SHORT_MODULE = 40
_DOUBTFUL = frozenset(
    {"bare-except", "dynamic-code", "unpickling", "swallowed-exception", "shell-command", "weak-hash"}
)
_WAIVERS = ("noqa", "nosec", "pragma: no cover")


@dataclass(frozen=True)
class Finding:
    """What the audit files; `module`, `rule` and `line` say which finding it is."""

    module: str
    rule: str
    line: int
    severity: str
    message: str

    @property
    def key(self) -> str:
        """The same for the same finding, however often it is filed."""
        return key_of(self.module, self.line, self.rule)


@dataclass(frozen=True)
class Call:
    """One tool call the model asks for."""

    tool: str
    arguments: Json


@dataclass(frozen=True)
class Seen:
    """One tool call of this session, and what it returned."""

    tool: str
    arguments: Json
    result: Json


Reply = str | list[Call]
"""What the model says next: the session's answer, or the calls it wants."""


class FilesFindings(Protocol):
    """Where `file_finding` sends a finding."""

    async def file(self, finding: Finding) -> Json:
        """Take a finding; the receipt says under which number."""
        ...


class Desk:
    """The auditor's tools: five that read, and `file_finding`, which acts.

    Args:
        root: the directory the modules' paths are relative to.
        tracker: where findings are filed.
    """

    def __init__(self, root: Path, tracker: FilesFindings) -> None:
        self._root = root
        self._tracker = tracker

    async def read_module(self, module: str) -> Json:
        """How large a module is, what it is by digest, and how it begins."""
        try:
            lines = read_facts(self._path(module)).lines
        except OSError as error:
            return {"module": module, "error": error.strerror or type(error).__name__}
        return {
            "module": module,
            "lines": len(lines),
            "code_lines": sum(1 for line in lines if line.strip() and not line.lstrip().startswith("#")),
            "digest": hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest(),
            "first_lines": [line[:100] for line in lines[:3]],
        }

    async def parse_module(self, module: str) -> Json:
        """Whether a module parses, and what it is made of."""
        facts = read_facts(self._path(module))
        if facts.error is not None:
            return {"module": module, "ok": False, "error": facts.error, "line": facts.error_line}
        return {
            "module": module,
            "ok": True,
            "classes": facts.classes,
            "functions": len(facts.functions),
            "handlers": facts.handlers,
            "nodes": facts.nodes,
            "imports": sorted(facts.imports)[:20],
        }

    async def measure_module(self, module: str) -> Json:
        """A module's longest functions and how much it branches."""
        facts = read_facts(self._path(module))
        longest = sorted(facts.functions, key=lambda function: (-function[0], function[1]))[:3]
        return {
            "module": module,
            "branches": facts.branches,
            "longest": [{"name": name, "line": line, "lines": lines} for lines, line, name in longest],
        }

    async def find_risky_calls(self, module: str, family: str) -> Json:
        """The places of one family of rules that are worth a second look, the worst first."""
        hits = list(by_severity(read_facts(self._path(module)).hits, {family}))
        shown = [{"rule": hit.rule, "line": hit.line} for hit in hits[:MAX_FINDINGS]]
        return {"module": module, "family": family, "hits": shown, "more": len(hits) - len(shown)}

    async def show_lines(self, module: str, line: int) -> Json:
        """A line and the one before it: where a comment would explain it."""
        lines = read_facts(self._path(module)).lines
        text = [shown.strip()[:120] for shown in lines[max(0, line - 2) : line]]
        return {"module": module, "line": line, "text": text}

    async def file_finding(self, module: str, rule: str, line: int, severity: str, message: str) -> Json:
        """File one finding with the tracker, for people to act on."""
        return await self._tracker.file(Finding(module, rule, line, severity, message))

    def _path(self, module: str) -> Path:
        parts = PurePosixPath(module)
        if parts.is_absolute() or ".." in parts.parts:
            raise PermissionError(f"{module!r} is outside the audited directory")
        return self._root / parts


def task_for(module: str) -> str:
    """What the auditor is asked to do."""
    return f"Audit {module}"


def module_of(task: str) -> str:
    """The module a task is about."""
    return task.removeprefix("Audit ")


def decide(module: str, seen: Sequence[Seen]) -> Reply:
    """What a model would say next in the audit of `module`: a function of what the tools returned, and nothing else."""
    read, parsed = _first("read_module", seen), _first("parse_module", seen)
    if read is None:
        return [Call("read_module", {"module": module})]
    if "error" in read:
        return f"{module}: could not be read ({read['error']})."
    if not read["code_lines"]:
        return f"{module}: no code in it, nothing to audit."
    if parsed is None:
        return [Call("parse_module", {"module": module})]
    hits: list[Hit] = []
    if parsed["ok"]:
        looks = _look_closer(module, read, parsed, seen)
        if looks:
            return looks
        hits = _hits(seen)
        findings = _weigh(module, hits, seen)
    else:
        findings = [Finding(module, "does-not-parse", parsed["line"], "high", parsed["error"])]
    return _file_the_rest(findings, seen) or _summary(read, findings, waived=max(0, len(hits) - len(findings)))


def _look_closer(module: str, read: Json, parsed: Json, seen: Sequence[Seen]) -> list[Call]:
    """The next reading calls, by what the module is made of; none when there is nothing left to look at."""
    measured = _first("measure_module", seen)
    if measured is None and parsed["functions"] and read["lines"] > _SHORT_MODULE:
        return [Call("measure_module", {"module": module})]
    families = _families(parsed, measured)
    if families and _first("find_risky_calls", seen) is None:
        return [Call("find_risky_calls", {"module": module, "family": family}) for family in families]
    doubtful = [hit for hit in _hits(seen) if hit.rule in _DOUBTFUL][:MAX_LOOKS]
    if doubtful and _first("show_lines", seen) is None:
        return [Call("show_lines", {"module": module, "line": hit.line}) for hit in doubtful]
    return []


def _all(tool: str, seen: Iterable[Seen]) -> list[Json]:
    return [one.result for one in seen if one.tool == tool]


def _first(tool: str, seen: Iterable[Seen]) -> Json | None:
    return next((one.result for one in seen if one.tool == tool), None)


def _families(parsed: Json, measured: Json | None) -> list[str]:
    """Which families of rules can have a hit at all, by what the module is made of."""
    families: list[str] = []
    if parsed["imports"] or parsed["functions"]:
        families.append("execution")
    if parsed["handlers"] or parsed["functions"]:
        families.append("errors")
    if parsed["functions"]:
        families.append("state")
    longest = measured["longest"][0]["lines"] if measured and measured["longest"] else 0
    if longest > LONG_FUNCTION or not parsed["functions"]:
        families.append("shape")
    return families


def _hits(seen: Iterable[Seen]) -> list[Hit]:
    found = [
        Hit(hit["line"], hit["rule"]) for result in _all("find_risky_calls", seen) for hit in result.get("hits", [])
    ]
    found.sort(key=lambda hit: (SEVERITIES.index(RULES[hit.rule][1]), hit.line, hit.rule))
    return found[:MAX_FINDINGS]


def _weigh(module: str, hits: Iterable[Hit], seen: Iterable[Seen]) -> list[Finding]:
    """Findings to file: a waived line is left alone, a line that a comment explains counts one severity less."""
    texts = {result["line"]: result.get("text", []) for result in _all("show_lines", seen) if "line" in result}
    findings: list[Finding] = []
    for hit in hits:
        _, severity, message = RULES[hit.rule]
        text: list[str] = texts.get(hit.line, [])
        if any(waiver in line for waiver in _WAIVERS for line in text):
            continue
        if any("# " in line for line in text):
            severity = SEVERITIES[min(SEVERITIES.index(severity) + 1, len(SEVERITIES) - 1)]
            message += ", though a comment explains it"
        findings.append(Finding(module, hit.rule, hit.line, severity, message))
    return findings


def _file_the_rest(findings: Sequence[Finding], seen: Iterable[Seen]) -> list[Call]:
    filed = len(_all("file_finding", seen))
    return [Call("file_finding", asdict(finding)) for finding in findings[filed : filed + FILED_PER_REPLY]]


def _summary(read: Json, findings: Sequence[Finding], *, waived: int) -> str:
    counts = [(severity, sum(1 for finding in findings if finding.severity == severity)) for severity in SEVERITIES]
    what = ", ".join(f"{count} {severity}" for severity, count in counts if count) or "no findings"
    tail = f", {waived} waived by its authors" if waived else ""
    return f"{read['module']}: {read['lines']} lines, {what}{tail}."
