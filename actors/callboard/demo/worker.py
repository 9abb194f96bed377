"""The process that is killed: one worker that carries the whole batch, on either loop, from wherever it stands.

Run by `batch` as `python -m callboard.demo.worker`; what it is to do comes as one JSON file. It ends with 0 when every
session has its answer, and when its standard input ends: when the process that started it is gone.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from callboard.demo import handmade, on_callboard
from callboard.demo.auditor import Call, Desk, Seen, decide, task_for
from callboard.demo.lifeline import end_with_stdin
from callboard.demo.reference import call_tool
from callboard.demo.tracker_client import TrackerClient
from callboard_protocol.errors import CallboardError

System = Literal["handmade", "callboard"]
CONCURRENCY = 32
GAVE_UP = 3
"""The exit code for an error that a restart would meet again."""


@dataclass(frozen=True)
class Assignment:
    """What a worker is to do.

    Attributes:
        system: which loop carries the sessions.
        root: the directory of the audited files.
        modules: which of them, one session each.
        tracker: the port the tracker listens on.
        data: where this system keeps its transcripts; it must exist.
        answers: the JSON file to write every session's answer to, in the end.
    """

    system: System
    root: str
    modules: tuple[str, ...]
    tracker: int
    data: str
    answers: str

    def save(self, path: Path) -> None:
        """Write it where a worker can read it."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Assignment:
        """Read what `save` wrote."""
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**read, "modules": tuple(read["modules"])})


async def _by_hand(assignment: Assignment, desk: Desk, tracker: TrackerClient) -> dict[str, str]:
    async def ask_model(session: str, messages: list[handmade.Message]) -> handmade.Message:
        replies = [message for message in messages if message["role"] == "assistant"]
        results = {m["tool_call_id"]: json.loads(m["content"]) for m in messages if m["role"] == "tool"}
        calls = [call for message in replies for call in message["tool_calls"]]
        seen = [Seen(call["name"], call["arguments"], results[call["id"]]) for call in calls]
        turn = len(replies) + 1
        reply = decide(session, seen)
        await tracker.pay(session, turn, final=isinstance(reply, str))
        if isinstance(reply, str):
            return {"role": "assistant", "content": reply, "tool_calls": []}
        wanted = [
            {"id": f"{turn}.{number}", "name": call.tool, "arguments": call.arguments}
            for number, call in enumerate(reply)
        ]
        return {"role": "assistant", "content": "", "tool_calls": wanted}

    async def run_tool(name: str, arguments: dict[str, Any]) -> Any:
        return await call_tool(desk, Call(name, arguments))

    tasks = {module: task_for(module) for module in assignment.modules}
    return await handmade.run_batch(
        Path(assignment.data, "transcripts.sqlite"), tasks, ask_model, run_tool, CONCURRENCY
    )


async def _work(assignment: Assignment) -> dict[str, str]:
    end_with_stdin()
    async with TrackerClient(assignment.tracker) as tracker:
        root = Path(assignment.root)
        if assignment.system == "handmade":
            return await _by_hand(assignment, Desk(root, tracker), tracker)
        tasks = {module: task_for(module) for module in assignment.modules}
        desk = on_callboard.AuditDesk(root, tracker)
        return await on_callboard.run_batch(Path(assignment.data), tasks, desk, tracker, CONCURRENCY)


def main() -> None:
    """Run one worker: `python -m callboard.demo.worker ASSIGNMENT.json`."""
    try:
        assignment = Assignment.load(Path(sys.argv[1]))
        answers = asyncio.run(_work(assignment))
        Path(assignment.answers).write_text(json.dumps(answers), encoding="utf-8")
    except CallboardError as error:
        sys.stderr.write(f"{error.code}: {error}\n")
        sys.exit(GAVE_UP)
    except ConnectionError as error:
        sys.stderr.write(f"the tracker is gone: {error}\n")
        sys.exit(GAVE_UP)


if __name__ == "__main__":
    main()
