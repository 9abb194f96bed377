"""What a run has used: counted live and recounted on replay from the same records."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from callboard_protocol.amounts import ZERO, Amount, nano_usd, total
from callboard_protocol.errors import InvalidArgumentsError, ToolDeniedError, UnknownToolError
from callboard_protocol.records import IntentRecorded, LogRecord, ReservationRecorded, RunResumed, StepCompleted
from callboard_protocol.runs import RunUsage
from callboard_protocol.trusted import trusted

_NEVER_MADE = frozenset({InvalidArgumentsError.code, UnknownToolError.code, ToolDeniedError.code})


class RunMeter:
    """Counts one run's model and tool calls."""

    __slots__ = (
        "_asked",
        "_cost_by_model",
        "_dispatched",
        "_intended",
        "_latencies",
        "_lost",
        "_reserved",
        "cache_creation",
        "cached",
        "cost_usd",
        "input_tokens",
        "llm_calls",
        "output_tokens",
        "retries",
        "tool_calls",
        "ttft",
    )

    def __init__(self) -> None:
        self.llm_calls = 0
        self.tool_calls = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.cached = 0
        self.cache_creation = 0
        self.cost_usd = 0.0
        self.retries = 0
        self.ttft: float | None = None
        self._asked = 0
        self._dispatched = 0
        self._intended: set[str] = set()
        self._cost_by_model: dict[str, float] = {}
        self._latencies: list[float] = []
        self._reserved: dict[str, Amount] = {}
        self._lost = ZERO

    def count(self, record: LogRecord) -> None:
        """Count a record that is on disk: as it gets there, or when a later attempt reads it."""
        if isinstance(record, StepCompleted):
            self._count_step(record)
        elif isinstance(record, IntentRecorded):
            self._intended.add(record.step)
            self._dispatched += 1
        elif isinstance(record, ReservationRecorded):
            self._reserved[record.step] = Amount(1, 0, record.tokens, nano_usd(record.cost_usd))
        elif isinstance(record, RunResumed):
            # What was dispatched and has no outcome may have cost all that was reserved; it is dispatched anew.
            self._lost = total([self._lost, *self._reserved.values()])
            self._reserved.clear()

    def _count_step(self, record: StepCompleted) -> None:
        if record.kind == "generate":
            self._asked += 1
            self._reserved.pop(record.step, None)
        if record.response is not None:
            usage = record.response.usage
            self.llm_calls += 1
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens
            self.cached += usage.input_tokens_cached
            self.cache_creation += usage.input_tokens_cache_creation
            insort(self._latencies, record.duration)
            if usage.cost_usd is not None:
                model = record.response.model
                self.cost_usd += usage.cost_usd
                self._cost_by_model[model] = self._cost_by_model.get(model, 0.0) + usage.cost_usd
        elif record.kind == "tool" and (record.error is None or record.error.code not in _NEVER_MADE):
            self.tool_calls += 1
            self._dispatched += record.step not in self._intended

    def spent(self) -> Amount:
        """What a ledger has counted for the same records: calls that were made, whatever came of them; in full those of
        which nobody knows that.
        """
        counted = Amount(self._asked, self._dispatched, self.input_tokens + self.output_tokens, nano_usd(self.cost_usd))
        if not self._reserved and self._lost == ZERO:
            return counted
        return total([counted, self._lost, *self._reserved.values()])

    def usage(self) -> RunUsage:
        """The figures so far."""
        return trusted(
            RunUsage,
            llm_calls=self.llm_calls,
            tool_calls=self.tool_calls,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            input_tokens_cached=self.cached,
            input_tokens_cache_creation=self.cache_creation,
            cost_usd=self.cost_usd,
            cost_breakdown=dict(self._cost_by_model),
            ttft=self.ttft,
            llm_latency_p50=_percentile(self._latencies, 0.50),
            llm_latency_p95=_percentile(self._latencies, 0.95),
            llm_retry_count=self.retries,
        )


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of values in ascending order."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
