"""What an uncrashed audit of the same files does and files: what the tracker's books are compared with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from callboard.demo.auditor import Call, Desk, Finding, Json, Seen, decide
from callboard.demo.sources import Sources


@dataclass
class Reference:
    """One uncrashed pass, without any runtime, transcript or server.

    Attributes:
        findings: every finding it files, by key.
        answers: each session's last word.
        model_calls: how often it asks the model.
        tool_calls: how often it calls a tool.
    """

    findings: dict[str, Finding] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    model_calls: int = 0
    tool_calls: int = 0

    @property
    def steps(self) -> int:
        """Model calls and tool calls together."""
        return self.model_calls + self.tool_calls

    async def file(self, finding: Finding) -> Json:
        """Take a finding as the tracker would."""
        self.findings[finding.key] = finding
        return receipt(len(self.findings))


def receipt(number: int) -> Json:
    """What the tracker answers when a finding is filed."""
    return {"filed": True, "number": number}


async def call_tool(desk: Desk, call: Call) -> Json:
    """Run one tool; a tool that fails answers with its error, as both loops have it."""
    tool: Callable[..., Awaitable[Json]] = getattr(desk, call.tool)
    try:
        return await tool(**call.arguments)
    except OSError as error:
        return {"error": error.strerror or str(error)}


async def uncrashed_pass(sources: Sources, told: Callable[[int], None] = lambda done: None) -> Reference:
    """Audit every module once, in memory.

    Args:
        sources: the files.
        told: called with the number of modules done.
    """
    reference = Reference()
    desk = Desk(sources.root, reference)
    for number, module in enumerate(sources.modules, start=1):
        seen: list[Seen] = []
        while isinstance(reply := decide(module, seen), list):
            reference.model_calls += 1
            reference.tool_calls += len(reply)
            seen.extend([Seen(call.tool, call.arguments, await call_tool(desk, call)) for call in reply])
        reference.model_calls += 1
        reference.answers[module] = reply
        told(number)
        # The display's and Ctrl-C's turn.
        await asyncio.sleep(0)
    return reference
