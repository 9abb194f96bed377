"""What is left when all is done: everything on disk that must not depend on how often the process died."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from pydantic_core import to_jsonable_python

from callboard.runtime import Runtime
from callboard_protocol.base import Frozen
from callboard_protocol.runs import RunResult, RunUsage

_MEASURED: Final = frozenset({"ttft", "llm_latency_p50", "llm_latency_p95", "llm_retry_count"})
"""Figures of a run that depend on the machine and the provider."""

_MOST_SHOWN: Final = 120


class Ending(Frozen):
    """The end of all runs of a data directory, as plain data.

    Attributes:
        runs: by run id: how it stopped, its output, its error, its artifacts, its usage, what it waits for.
        sessions: by session id: its transcript, state, artifacts and usage.
        accounts: by name: what its runs have spent.
    """

    runs: dict[str, Any]
    sessions: dict[str, Any]
    accounts: dict[str, Any] = {}

    def differences(self, reference: Ending, ignore: Sequence[str] = ()) -> list[str]:
        """Where this is not like the reference, and how.

        Args:
            reference: what it should be like.
            ignore: places that do not count, with wildcards: ``"runs.*.output"``, ``"*.usage.*"``.
        """
        found: list[tuple[str, str]] = []
        _compare("runs", self.runs, reference.runs, found)
        _compare("sessions", self.sessions, reference.sessions, found)
        _compare("accounts", self.accounts, reference.accounts, found)
        return [f"{where} {how}" for where, how in found if not any(fnmatchcase(where, pattern) for pattern in ignore)]


async def read_ending(runtime: Runtime) -> Ending:
    """The end of all runs of an open runtime.

    Args:
        runtime: nothing of it is at work any more.
    """
    runs = {entry.run_id: _of_run(await runtime.wait(entry.run_id)) for entry in await runtime.runs.list()}
    sessions = {session_id: await _of_session(runtime, session_id) for session_id in await runtime.sessions.list()}
    accounts = {account.name: account.spent for account in await runtime.accounts.list()}
    return Ending(runs=_plain(runs), sessions=_plain(sessions), accounts=_plain(accounts))


def _of_run(result: RunResult[Any]) -> dict[str, Any]:
    error = result.error_details
    return {
        "stop_reason": result.stop_reason,
        "output": result.final_output,
        "error": None if error is None else {"code": error.code, "message": error.message},
        "artifacts": result.artifacts,
        "usage": _counted(result.usage),
        "pending": [{"reason": call.reason, "call_id": call.call_id} for call in result.pending],
    }


async def _of_session(runtime: Runtime, session_id: str) -> dict[str, Any]:
    checkpoints = await runtime.sessions.checkpoints(session_id)
    return {
        "transcript": await runtime.sessions.transcript(session_id),
        "state": checkpoints[-1].state if checkpoints else None,
        "artifacts": [
            {"run_id": one.run_id, "artifact": one.artifact} for one in await runtime.sessions.artifacts(session_id)
        ],
        "usage": _counted((await runtime.sessions.get(session_id)).usage),
    }


def _counted(usage: RunUsage) -> dict[str, Any]:
    return {name: value for name, value in dict(usage).items() if name not in _MEASURED}


def _plain(value: Any) -> Any:
    return to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="strings", fallback=repr)


def _compare(where: str, got: Any, expected: Any, found: list[tuple[str, str]]) -> None:
    if isinstance(got, Mapping) and isinstance(expected, Mapping):
        for name in [*expected, *(name for name in got if name not in expected)]:
            if name not in got:
                found.append((f"{where}.{name}", f"is missing: {_shown(expected[name])}"))
            elif name not in expected:
                found.append((f"{where}.{name}", f"is new: {_shown(got[name])}"))
            else:
                _compare(f"{where}.{name}", got[name], expected[name], found)
    elif _is_list(got) and _is_list(expected):
        if len(got) != len(expected):
            found.append((where, f"has {len(got)} items instead of {len(expected)}"))
        for place, (one, other) in enumerate(zip(got, expected, strict=False)):
            _compare(f"{where}[{place}]", one, other, found)
    elif got != expected:
        found.append((where, f"is {_shown(got)} instead of {_shown(expected)}"))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
