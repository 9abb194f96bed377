"""The step that asks a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from callboard import fault_points
from callboard.events.partial_answer import PartialAnswer
from callboard.live.live_run import LiveRun
from callboard.live.scopes import Scope
from callboard.output import OutputContract
from callboard.runs.history import Conversation
from callboard_protocol.amounts import Amount, Granted, nano_usd
from callboard_protocol.commands import AbandonModelCall, AskModel
from callboard_protocol.digests import fingerprint
from callboard_protocol.errors import CallboardError, OutputValidationError
from callboard_protocol.failures import describe, restore
from callboard_protocol.messages import Message, ToolCall, Usage
from callboard_protocol.model_calls import ModelRequest, ModelResponse, ModelSettings, ValidatedResponse
from callboard_protocol.records import ReservationRecorded, StepCompleted
from callboard_protocol.trusted import trusted

_ONE_CALL = Amount(steps=1)
_NOTHING_NEW = b""
_DEFAULT_SETTINGS = ModelSettings.model_construct()
_CHARACTERS_PER_TOKEN = 4
"""A common estimate for English text; a reservation needs an upper figure's order, not the tokenizer's."""

_ASSUMED_OUTPUT_TOKENS = 4096
"""Reserved for an answer whose length nobody has limited."""


async def generate(
    run: LiveRun, scope: Scope, messages: str | Sequence[Message] | None, contract: OutputContract | None
) -> ModelResponse[Any]:
    """Ask the run's model, as one step of `scope`.

    Args:
        run: the run.
        scope: whose conversation the model sees, and where its answer goes.
        messages: None for the conversation as it stands, a text to say first, or a whole history.
        contract: what the answer must be; None for the agent's own, checked at the run's end.

    Raises:
        ModelError: the model did not answer; recorded, so a replay raises it too.
        OutputValidationError: the answer never fitted the contract.
    """
    step = scope.begin("generate")
    run.boundary.begin()
    try:
        history, new, fit = _explicit(scope, messages)
        response = await _ask(run, scope, step, history, new, fit, contract)
        if contract is None:
            return response
        retries = run.budget.max_validation_retries
        for retry in range(retries + 1):
            try:
                return ValidatedResponse(**dict(response), validated=contract.validate(response.text))
            except ValueError as problem:
                if retry == retries:
                    raise OutputValidationError(
                        f"run {run.run_id}, step {step}: the answer does not fit {contract.type!r}: {problem}",
                        context={"step": step, "retries": retries},
                    ) from None
                feedback = Message.user(feedback_for(str(problem)))
            response = await _ask(run, scope, f"{step}.{retry + 1}", None, (feedback,), fingerprint(feedback), contract)
        raise AssertionError("the loop above returns or raises")
    finally:
        scope.end()
        run.boundary.end()


def feedback_for(problem: str) -> str:
    """What a model is told about an answer that does not fit."""
    return (
        f"Your answer does not fit what was asked for: {problem}. Answer again, with nothing but the corrected answer."
    )


def _explicit(
    scope: Scope, messages: str | Sequence[Message] | None
) -> tuple[Sequence[Message] | None, tuple[Message, ...], bytes]:
    """What the pattern passed: a whole history or None, the messages in it that are new to the scope, their digest.

    Instructions are the history's alone: the conversation neither keeps nor compares them.
    """
    if messages is None:
        return None, (), _NOTHING_NEW
    if isinstance(messages, str):
        said = Message.user(messages)
        return None, (said,), fingerprint(messages)
    known, view = scope.known, scope.conversation.view()
    # What came into the conversation since: known too, also where the pattern shows an equal message of its own making.
    since = {id(message): message for message in view[scope.counted :] if id(message) not in known}
    scope.counted = len(view)
    known.update(since)
    new: list[Message] = []
    for message in messages:
        if message.role == "system":
            continue
        if id(message) in known:
            since.pop(id(message), None)
            continue
        known[id(message)] = message
        twin = next((one for one, other in since.items() if other == message), None)
        if twin is None:
            new.append(message)
        else:
            del since[twin]
    return messages, tuple(new), fingerprint(new)


def say(conversation: Conversation, new: tuple[Message, ...]) -> tuple[Message, ...]:
    """Add messages, behind answers for calls that nobody has answered; all that was added."""
    open_calls = conversation.unanswered()
    if open_calls:
        new = (*_closing(open_calls, new), *new)
    for message in new:
        conversation.add(message)
    return new


def _closing(open_calls: Sequence[ToolCall], new: tuple[Message, ...]) -> list[Message]:
    answered = {message.tool_call_id for message in new}
    return [
        Message.tool("not answered: the run went on without it", tool_call_id=call.id, name=call.name)
        for call in open_calls
        if call.id not in answered
    ]


def _replayed(run: LiveRun, conversation: Conversation, recorded: StepCompleted) -> ModelResponse[Any]:
    run.state.apply(recorded)
    if recorded.error is not None:
        raise restore(recorded.error)
    assert recorded.response is not None
    conversation.add(recorded.response.as_message())
    return recorded.response


async def _ask(
    run: LiveRun,
    scope: Scope,
    step: str,
    history: Sequence[Message] | None,
    new: tuple[Message, ...],
    fit: bytes,
    contract: OutputContract | None,
) -> ModelResponse[Any]:
    recorded = run.journal.recorded(step, "generate", "", fit, new)
    conversation = scope.conversation
    new = say(conversation, new)
    if recorded is not None:
        return _replayed(run, conversation, recorded)
    shown = run.agent.context.assemble(conversation.view() if history is None else run.instructed(history))
    settings = _DEFAULT_SETTINGS
    granted: Granted | None = None
    if run.limits_tokens:
        granted = await _reserve(run, step, shown, settings)
        if granted.capped_tokens is not None:
            settings = settings.model_copy(update={"max_tokens": granted.capped_tokens})
    else:
        await run.spend(_ONE_CALL)
    call_id = f"{run.run_id}:{step}"
    request = trusted(
        ModelRequest,
        messages=shown,
        tools=run.agent.tool_schemas,
        settings=settings,
        output_schema=(contract or run.agent.output).schema,
        agent_id=run.agent.id,
        session_id=run.session_id,
        run_id=run.run_id,
        call_id=call_id,
    )
    started = run.clock.monotonic()
    try:
        response, error = await _answer(run, step, request)
    except asyncio.CancelledError:
        if granted is not None:
            run.settle(granted.amount, granted.amount)
        raise
    duration = run.clock.monotonic() - started
    record = _outcome(run, scope, step, fit, new, response, error, duration)
    try:
        await run.complete(record)
    finally:
        # Not before: a crash in between would charge for a call that nothing was reserved for any more.
        if granted is not None:
            run.settle(granted.amount, _ONE_CALL if response is None else _true_cost(response.usage))
    if response is None:
        assert record.error is not None
        raise restore(record.error) from error
    _warn_of_price(run, response)
    conversation.add(response.as_message())
    return response


async def _answer(
    run: LiveRun, step: str, request: ModelRequest
) -> tuple[ModelResponse[Any] | None, CallboardError | None]:
    """What the model says, or the error that comes instead."""
    watched, call_id = run.is_watched, request.call_id
    _about_to_ask(run, step, call_id, len(request.messages))
    try:
        reply = await run.directory.gateway.ask(
            trusted(
                AskModel, model=run.model, request=request, on_delta=_deltas(run, step, call_id) if watched else None
            ),
            timeout=None,
        )
        run.meter.retries += reply.retries
        run.meter.ttft = run.meter.ttft or reply.ttft
        return _identified(reply.response, step), None
    except asyncio.CancelledError:
        run.directory.gateway.tell(AbandonModelCall(call_id=call_id))
        raise
    except CallboardError as problem:
        return None, problem
    finally:
        run.ticket.partials.pop(call_id, None)


def _outcome(
    run: LiveRun,
    scope: Scope,
    step: str,
    fit: bytes,
    new: tuple[Message, ...],
    response: ModelResponse[Any] | None,
    error: CallboardError | None,
    duration: float,
) -> StepCompleted:
    """The record of what came of a call."""
    changed, state = run.state.changed()
    return trusted(
        StepCompleted,
        run_id=run.run_id,
        ordinal=run.journal.claim_ordinal(),
        at=run.clock.time(),
        step=step,
        kind="generate",
        name="",
        fit=fit,
        response=response,
        error=None if error is None else describe(error),
        in_transcript=scope.in_transcript and response is not None,
        messages=new if scope.in_transcript else (),
        state=state,
        state_changed=changed,
        clock=scope.clock,
        duration=duration,
        running=run.running(),
        attempt=run.attempt,
    )


async def _reserve(run: LiveRun, step: str, shown: Sequence[Message], settings: ModelSettings) -> Granted:
    """Take what the call may cost out of the budget, and have the log say so: a crash must not make it free."""
    output = Amount(tokens=_ASSUMED_OUTPUT_TOKENS)
    granted = await run.reserve(_worst_case(run, shown, settings), can_cap_tokens=True, output=output)
    if run.request.durable:
        record = trusted(
            ReservationRecorded,
            run_id=run.run_id,
            ordinal=run.journal.claim_ordinal(),
            at=run.clock.time(),
            step=step,
            tokens=granted.amount.tokens,
            cost_usd=granted.amount.cost_usd,
        )
        if run.ticket.account is not None:
            # Others count on what its end will charge.
            await run.journal.append(record)
            return granted
        run.journal.append_unawaited(record)
        # Not only once it is on disk: a run that is stopped right now is charged for this call as well.
        run.meter.count(record)
    return granted


def _about_to_ask(run: LiveRun, step: str, call_id: str, message_count: int) -> None:
    run.tell_restart(step)
    if run.is_watched:
        live = {"step": step, "call_id": call_id, "model": run.model.name, "message_count": message_count}
        run.publish(("llm.called", None, live))
    if fault_points.armed is not None:
        fault_points.reach("step.about_to_act", call_id)


def _warn_of_price(run: LiveRun, response: ModelResponse[Any]) -> None:
    if response.usage.cost_usd is None and run.limits.cost_nano_usd is not None:
        run.warn_once("budget.cost_skipped", model=response.model or run.model_name)


def _identified(response: ModelResponse[Any], step: str) -> ModelResponse[Any]:
    """The response with an id on each of its tool calls: answers are matched to calls by it."""
    if all(call.id for call in response.tool_calls):
        return response
    calls = tuple(
        call if call.id else call.model_copy(update={"id": f"call_{step}.{rank}"})
        for rank, call in enumerate(response.tool_calls)
    )
    return response.model_copy(update={"tool_calls": calls})


def _deltas(run: LiveRun, step: str, call_id: str) -> Callable[[str], None]:
    """Publishes each piece of a streamed answer with where it stands in the text, and keeps it for who comes later."""
    partial = run.ticket.partials[call_id] = PartialAnswer(step, run.attempt, call_id, run.model.name)

    def publish(text: str) -> None:
        run.publish(("llm.delta", None, {**partial.told(), "offset": partial.length, "text": text}))
        partial.add(text)

    return publish


def _worst_case(run: LiveRun, shown: Sequence[Message], settings: ModelSettings) -> Amount:
    """One call, its input estimated from its length, and an answer as long as it may be."""
    characters = sum(len(message.text) for message in shown)
    output = settings.max_tokens or _ASSUMED_OUTPUT_TOKENS
    # No price is known beforehand; the least there is finds out whether all the money is spent.
    cost = 0 if run.limits.cost_nano_usd is None else 1
    return Amount(steps=1, tokens=characters // _CHARACTERS_PER_TOKEN + output, cost_nano_usd=cost)


def _true_cost(usage: Usage) -> Amount:
    cost = 0 if usage.cost_usd is None else nano_usd(usage.cost_usd)
    return Amount(1, 0, usage.input_tokens + usage.output_tokens, cost)
