"""From what a caller says to a `RunRequest`: ids are made, options are checked, nothing is started yet."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from callboard.access import Agents
from callboard.agents import Agent
from callboard_protocol.base import MAX_IDENTIFIER_BYTES, JsonObject, check_identifier, unknown_option
from callboard_protocol.errors import UsageError
from callboard_protocol.messages import ContentPart
from callboard_protocol.runs import OnBusy, OnCrash, RunBudget, RunRequest
from callboard_protocol.tools import Decision


class RunOptions(TypedDict, total=False):
    """What a run may be given beside its agent and input; `RunRequest` says what each means."""

    session_id: str | None
    run_id: str | None
    budget: RunBudget | None
    durable: bool
    metadata: JsonObject | None
    context_hints: JsonObject | None
    approvals: Mapping[str, Decision] | None
    on_busy: OnBusy
    on_crash: OnCrash
    account: str | None
    resume_from_checkpoint: str | None


def request_for(
    agents: Agents,
    agent: Agent[Any, Any] | str | RunRequest,
    said: str | Sequence[ContentPart] | None,
    options: RunOptions,
) -> tuple[Agent[Any, Any], RunRequest, bool]:
    """The agent, the request as it will be stored, and whether its run id was made here.

    Args:
        agents: the registered ones.
        agent: one of them, its id, or a whole request (then without the rest).
        said: the input.
        options: the request's other fields.

    Raises:
        UnknownAgentError: no such agent; the error names the nearest.
        InvalidIdentifierError: an id cannot be stored.
        UsageError: an option does not exist, or there is no input.
        NotImplementedYetError: an option that nothing heeds yet.
    """
    if isinstance(agent, RunRequest):
        if said is not None or options:
            raise UsageError("a RunRequest says everything", hint="set its fields instead of passing them beside it")
        _refuse_parent(agent)
        return agents.find(agent.agent_id), agent, False
    known = agents.find(agent)
    for name in options:
        if name not in RunOptions.__optional_keys__:
            raise unknown_option(name, sorted({*RunOptions.__optional_keys__, "deps"}), of="a run")
    spoken = _spoken(said)
    fields: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    is_new = "run_id" not in fields
    run_id = fields["run_id"] = check_identifier(fields.get("run_id", new_id()), "run id")
    if "session_id" not in fields:
        fields["session_id"] = own_session(run_id)
    request = RunRequest(agent_id=known.id, **spoken, **fields)
    _refuse_parent(request)
    return known, request, is_new


def own_session(run_id: str) -> str:
    """The id of a session that is a run's own, the same whenever it is asked for: an id that leaves no room for a
    prefix goes without it.
    """
    named = f"session-{run_id}"
    return named if len(named.encode()) <= MAX_IDENTIFIER_BYTES else run_id


def new_id() -> str:
    """A fresh id; later ones sort after earlier ones, to the millisecond."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(5)}"


def _spoken(said: object) -> dict[str, Any]:
    """The input as fields of a request. An empty text is an input like any other: the agent may know what to do."""
    if isinstance(said, str):
        return {"input_text": said}
    if isinstance(said, Sequence):
        return {"input_parts": tuple(said)}
    what = "there is no input" if said is None else f"the input is of type {type(said).__name__}"
    raise UsageError(what, hint="runtime.run(agent, 'what the user says'), or a list of content parts")


def _refuse_parent(request: RunRequest) -> None:
    """What is not the caller's to say."""
    if request.parent_run_id is not None:
        raise UsageError("parent_run_id is the runtime's to set", hint="in a pattern: await ctx.delegate(agent, '...')")
