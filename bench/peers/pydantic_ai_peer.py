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
    FakeModel,
    RunSession,
    Script,
    Setup,
    user_input,
)


def _model(script: Script) -> FunctionModel:
    fake: FakeModel[tuple[TextPart | ToolCallPart, ...]] = FakeModel(
        script,
        ask=lambda lookup: (ToolCallPart(TOOL_NAME, lookup.arguments, tool_call_id=lookup.call_id),),
        answer=lambda text: (TextPart(text),),
    )
    # Without usage of its own, FunctionModel counts the words of the whole history at each call: a cost of the
    # test double, not of the library, that would grow with the conversation.
    usage = RequestUsage(input_tokens=1, output_tokens=1)

    async def respond(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        said, newest = messages[0].parts[-1], messages[-1].parts[-1]
        if not (isinstance(said, UserPromptPart) and isinstance(newest, ToolReturnPart | UserPromptPart)):
            message = f"the history begins with a {type(said).__name__} and ends with a {type(newest).__name__}"
            raise TypeError(message)
        parts = fake.reply(len(messages) // 2, str(said.content), str(newest.content))
        # pydantic-ai writes to the response it is given, so only what is in it can be built beforehand.
        return ModelResponse(parts=parts, usage=usage)

    return FunctionModel(respond)


@asynccontextmanager
async def in_memory(setup: Setup) -> AsyncIterator[RunSession]:
    """One agent, shared by all sessions."""
    script = setup.script
    agent = Agent(_model(script), instructions=INSTRUCTIONS)

    @agent.tool_plain(name=TOOL_NAME, description=TOOL_DESCRIPTION)
    async def lookup(customer: str, round: int) -> str:  # noqa: A002 - the model names the argument
        return script.lookup(customer, round)

    # The default of 50 requests a run is a guard for real models.
    limits = UsageLimits(request_limit=None)

    async def run_session(session: str) -> str:
        return (await agent.run(user_input(session), usage_limits=limits)).output

    yield run_session
