"""LangGraph: a graph of a model node and the prebuilt tool node, as its quickstart builds a tool-calling agent.

The model node is a plain function that returns an ``AIMessage``, so LangChain's chat-model layer is not charged to it.

Durable: ``AsyncSqliteSaver.from_conn_string`` (it turns WAL on; SQLite's default ``synchronous=FULL`` syncs the log at
each commit) and ``durability="sync"``: "changes are persisted synchronously before the next step starts".
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import StructuredTool
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import _messages_delta_reducer
from langgraph.prebuilt import ToolNode, tools_condition

from bench.workload import TOOL_DESCRIPTION, TOOL_NAME, FakeModel, Lookup, RunSession, Script, Setup, user_input

Durability = Literal["sync", "async"]


class DeltaMessagesState(TypedDict):
    """The message list as increments: LangGraph's beta answer to checkpoints that grow with the history."""

    messages: Annotated[list[AnyMessage], DeltaChannel(_messages_delta_reducer)]


def _asking(lookup: Lookup) -> AIMessage:
    """A reply with an id of its own, as a provider's has: LangGraph gives one, in place, to a message without."""
    call: ToolCall = {"name": TOOL_NAME, "args": lookup.arguments, "id": lookup.call_id, "type": "tool_call"}
    return AIMessage("", tool_calls=[call], id=f"reply_{lookup.round}")


def _run_session(
    script: Script, saver: BaseCheckpointSaver[str], state: type[Any], durability: Durability
) -> RunSession:
    fake = FakeModel(script, ask=_asking, answer=lambda text: AIMessage(text, id="answer"))

    async def model(state: Any) -> dict[str, list[AIMessage]]:
        messages = state["messages"]
        return {"messages": [fake.reply(len(messages) // 2, messages[0].content, messages[-1].content)]}

    async def lookup(customer: str, round: int) -> str:  # noqa: A002 - the model names the argument
        return script.lookup(customer, round)

    builder = StateGraph(state)
    builder.add_node("model", model, input_schema=state)
    builder.add_node(
        "tools",
        ToolNode([StructuredTool.from_function(coroutine=lookup, name=TOOL_NAME, description=TOOL_DESCRIPTION)]),
    )
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    graph = builder.compile(checkpointer=saver)

    async def run_session(session: str) -> str:
        config: RunnableConfig = {
            "configurable": {"thread_id": session},
            "recursion_limit": script.work.steps_per_session + 1,
        }
        state = await graph.ainvoke({"messages": [HumanMessage(user_input(session))]}, config, durability=durability)
        return str(state["messages"][-1].content)

    return run_session


@asynccontextmanager
async def durable(setup: Setup) -> AsyncIterator[RunSession]:
    """Checkpoints in SQLite, each on disk before the next step."""
    async with AsyncSqliteSaver.from_conn_string(str(setup.directory / "checkpoints.sqlite")) as saver:
        yield _run_session(setup.script, saver, MessagesState, "sync")


@asynccontextmanager
async def durable_delta(setup: Setup) -> AsyncIterator[RunSession]:
    """The same with the beta ``DeltaChannel`` for the messages."""
    async with AsyncSqliteSaver.from_conn_string(str(setup.directory / "checkpoints.sqlite")) as saver:
        yield _run_session(setup.script, saver, DeltaMessagesState, "sync")


@asynccontextmanager
async def in_memory(setup: Setup) -> AsyncIterator[RunSession]:
    """Checkpoints in ``InMemorySaver``, with the default durability."""
    yield _run_session(setup.script, InMemorySaver(), MessagesState, "async")
