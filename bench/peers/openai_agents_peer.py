"""openai-agents: an ``Agent`` with one ``@function_tool``, run by ``Runner.run`` on a fake ``Model``.

Tracing is off, as its docs advise where nothing is to be exported; no session store is attached.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, cast

from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage, function_tool
from agents.testing import assistant_message, function_call

from bench.workload import (
    INSTRUCTIONS,
    TOOL_DESCRIPTION,
    TOOL_NAME,
    FakeModel,
    RunSession,
    Script,
    Setup,
    user_input,
)


class ScriptModel(Model):
    """Answers with prebuilt output items, in the SDK's own types."""

    def __init__(self, script: Script) -> None:
        self._fake: FakeModel[Any] = FakeModel(
            script,
            ask=lambda lookup: function_call(TOOL_NAME, lookup.arguments, call_id=lookup.call_id),
            answer=assistant_message,
        )
        self._responses = count()

    async def get_response(self, system_instructions: str | None, input: Any, *_: Any, **__: Any) -> ModelResponse:  # noqa: A002
        if isinstance(input, str):
            item = self._fake.reply(0, input, input)
        else:
            newest = cast("dict[str, Any]", input[-1])
            item = self._fake.reply(len(input) // 2, input[0]["content"], newest.get("output") or newest["content"])
        return ModelResponse(output=[item], usage=Usage(requests=1), response_id=f"resp_{next(self._responses)}")

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("the benchmark does not stream")


@asynccontextmanager
async def in_memory(setup: Setup) -> AsyncIterator[RunSession]:
    """One agent, shared by all sessions."""
    script = setup.script

    @function_tool(name_override=TOOL_NAME, description_override=TOOL_DESCRIPTION)
    async def lookup(customer: str, round: int) -> str:  # noqa: A002 - the model names the argument
        return script.lookup(customer, round)

    agent = Agent(name="bench", instructions=INSTRUCTIONS, model=ScriptModel(script), tools=[lookup])
    config = RunConfig(tracing_disabled=True)

    async def run_session(session: str) -> str:
        result = await Runner.run(agent, user_input(session), max_turns=script.work.rounds + 1, run_config=config)
        return str(result.final_output)

    yield run_session
