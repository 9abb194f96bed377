from __future__ import annotations

from typing import Any

import pytest

from callboard_protocol.amounts import Amount
from callboard_protocol.messages import Usage
from callboard_protocol.meter import RunMeter
from callboard_protocol.model_calls import ModelResponse
from callboard_protocol.records import IntentRecorded, LogRecord, RunEnded, StepCompleted
from callboard_protocol.runs import ErrorDetails, RunUsage


def record(step: str, kind: Any, **fields: Any) -> StepCompleted:
    return StepCompleted(run_id="r", ordinal=0, at=1.0, step=step, kind=kind, **fields)


def answer(step: str = "0", model: str = "m", duration: float = 0.0, **usage: Any) -> StepCompleted:
    return record(step, "generate", response=ModelResponse(model=model, usage=Usage(**usage)), duration=duration)


def failed(step: str, kind: Any, code: str = "tool_failed") -> StepCompleted:
    return record(step, kind, error=ErrorDetails(code=code, message="no"))


def intent(step: str, attempt: int = 1) -> IntentRecorded:
    return IntentRecorded(run_id="r", ordinal=0, at=1.0, step=step, tool="act", attempt=attempt)


def metered(*records: LogRecord) -> RunMeter:
    meter = RunMeter()
    for one in records:
        meter.count(one)
    return meter


def test_nothing_was_used_before_anything_happened():
    assert metered().usage() == RunUsage()
    assert metered().spent() == Amount()


def test_model_calls_are_added_up_and_priced_by_model():
    meter = metered(
        answer(input_tokens=10, output_tokens=2, input_tokens_cached=4, input_tokens_cache_creation=1, cost_usd=0.5),
        answer("1", input_tokens=20, output_tokens=3, cost_usd=0.25),
        answer("2", model="other", input_tokens=1, output_tokens=1, cost_usd=0.125),
        answer("3", model="unpriced", input_tokens=5, output_tokens=5),
    )
    usage = meter.usage()
    assert (usage.llm_calls, usage.input_tokens, usage.output_tokens, usage.total_tokens) == (4, 36, 11, 47)
    assert (usage.input_tokens_cached, usage.input_tokens_cache_creation) == (4, 1)
    assert usage.cost_usd == pytest.approx(0.875)
    assert usage.cost_breakdown == {"m": 0.75, "other": 0.125}
    assert meter.spent() == Amount(4, 0, 47, 875_000_000)


def test_latencies_are_given_as_percentiles_by_the_nearest_rank():
    usage = metered(*(answer(str(n), duration=float(n)) for n in (3, 1, 2))).usage()
    assert (usage.llm_latency_p50, usage.llm_latency_p95) == (2.0, 3.0)
    usage = metered(*(answer(str(n), duration=float(n)) for n in range(100))).usage()
    assert (usage.llm_latency_p50, usage.llm_latency_p95) == (50.0, 95.0)
    assert metered(answer(duration=0.5)).usage().llm_latency_p95 == 0.5


def test_a_failed_model_call_is_spent_and_not_completed():
    meter = metered(answer(), failed("1", "generate", "model"))
    assert meter.usage().llm_calls == 1
    assert meter.spent().steps == 2


@pytest.mark.parametrize("code", ["invalid_arguments", "unknown_tool", "tool_denied"])
def test_a_tool_call_that_was_not_made_does_not_count(code: str):
    meter = metered(failed("0", "tool", code), record("1", "tool", value=1), failed("2", "tool"))
    assert meter.usage().tool_calls == 2
    assert meter.spent() == Amount(tool_calls=2)


def test_a_call_with_an_intent_counts_once_for_each_time_it_was_made():
    in_doubt = metered(intent("0"))
    assert (in_doubt.usage().tool_calls, in_doubt.spent()) == (0, Amount(tool_calls=1))
    repeated = metered(intent("0"), intent("0", attempt=2), record("0", "tool", value=1))
    assert (repeated.usage().tool_calls, repeated.spent()) == (1, Amount(tool_calls=2))


def test_other_records_cost_nothing():
    meter = metered(
        record("0", "step", value=1),
        record("1", "emit", name="my.event"),
        RunEnded(run_id="r", ordinal=3, at=1.0, stop_reason="completed"),
    )
    assert (meter.usage(), meter.spent()) == (RunUsage(), Amount())
