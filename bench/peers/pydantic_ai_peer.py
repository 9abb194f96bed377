"""pydantic-ai: an ``Agent`` on its own ``FunctionModel``, with one plain tool."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic_ai import Agent, UsageLimits
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from bench.workload import (
    INSTRUCTIONS,
    TOOL_DESCRIPTION,
    TOOL_NAME,
    Answer,
    RunSession,
    Script,
    Setup,
    user_input,
)


def _model(script: Script) -> FunctionModel:
    async def respond(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        newest = messages[-1].parts[-1]
        if not isinstance(newest, ToolReturnPart | UserPromptPart):
            message = f"the newest part is a {type(newest).__name__}"
            raise TypeError(message)
        decision = script.decide(str(newest.content))
        # Without usage of its own, FunctionModel counts the words of the whole history at each call: a cost of the
        # test double, not of the library, that would grow with the conversation.
        usage = RequestUsage(input_tokens=1, output_tokens=1)
        if isinstance(decision, Answer):
            return ModelResponse(parts=[TextPart(decision.text)], usage=usage)
        call = ToolCallPart(TOOL_NAME, decision.arguments, tool_call_id=decision.call_id)
        return ModelResponse(parts=[call], usage=usage)

    return FunctionModel(respond)


@asynccontextmanager
async def in_memory(setup: Setup) -> AsyncIterator[RunSession]:
    """One agent, shared by all sessions."""
    script = setup.script
    agent = Agent(_model(script), instructions=INSTRUCTIONS)

    @agent.tool_plain(name=TOOL_NAME, description=TOOL_DESCRIPTION)
    async def lookup(session: str, round: int) -> str:  # noqa: A002 - the model names the argument
        return script.lookup(session, round)

    # The default of 50 requests a run is a guard for real models.
    limits = UsageLimits(request_limit=None)

    async def run_session(session: str) -> str:
        return (await agent.run(user_input(session), usage_limits=limits)).output

    yield run_session
