"""What a ledger counts in, and what it answers.

All figures are whole numbers, so sums are exact; a price is counted in billionths of a US dollar.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Final, Literal, NamedTuple, TypeAlias

from callboard_protocol.runs import RunBudget, StopReason

LimitName = Literal["max_steps", "max_tool_calls", "max_total_tokens", "max_cost_usd"]
"""The `RunBudget` fields a ledger keeps; time is kept by timers."""

TOKEN_FLOOR: Final = 256
"""A model call is not capped below this many output tokens: a shorter answer is seldom worth its price."""

NANO: Final = 1_000_000_000


class Amount(NamedTuple):
    """What a piece of work costs: whole numbers, none below zero.

    Attributes:
        steps: model calls.
        tool_calls: tool calls.
        tokens: tokens read and written.
        cost_nano_usd: billionths of a US dollar.
    """

    steps: int = 0
    tool_calls: int = 0
    tokens: int = 0
    cost_nano_usd: int = 0

    @property
    def cost_usd(self) -> float:
        """The price in US dollars, to the nearest float."""
        return self.cost_nano_usd / NANO


ZERO: Final = Amount()


def total(amounts: Iterable[Amount]) -> Amount:
    """What they come to together."""
    return Amount(*(sum(figures) for figures in zip(ZERO, *amounts, strict=True)))


def less(amount: Amount, other: Amount) -> Amount:
    """What is left of an amount without another; below zero where that is larger."""
    return Amount(*(figure - taken for figure, taken in zip(amount, other, strict=True)))


def raised(budget: RunBudget, by: Amount) -> RunBudget:
    """A budget with so much more of everything that it limits; time is not counted in amounts."""
    if by == ZERO:
        return budget
    more = {
        "max_steps": by.steps,
        "max_tool_calls": by.tool_calls,
        "max_total_tokens": by.tokens,
        "max_cost_usd": by.cost_usd,
    }
    limits = {name: getattr(budget, name) for name in more}
    # Amounts are whole billionths; what a sum of floats is off by must not become one.
    grown = {name: round(limit + more[name], 9) for name, limit in limits.items() if limit is not None}
    return budget.model_copy(update=grown)


class Limits(NamedTuple):
    """The most an account may spend; None is no limit.

    Attributes:
        steps: model calls.
        tool_calls: tool calls.
        tokens: tokens read and written.
        cost_nano_usd: billionths of a US dollar.
    """

    steps: int | None = None
    tool_calls: int | None = None
    tokens: int | None = None
    cost_nano_usd: int | None = None

    @classmethod
    def of(cls, budget: RunBudget | None) -> Limits:
        """The limits a budget sets; no budget sets none."""
        if budget is None:
            return NO_LIMITS
        cost = budget.max_cost_usd
        return cls(
            budget.max_steps,
            budget.max_tool_calls,
            budget.max_total_tokens,
            None if cost is None else _nano(cost, ROUND_FLOOR),
        )


NO_LIMITS: Final = Limits()


def least(limits: Limits, others: Limits) -> Limits:
    """The narrower of two limits, figure by figure."""
    narrowest = (
        limit if other is None else other if limit is None else min(limit, other)
        for limit, other in zip(limits, others, strict=True)
    )
    return Limits(*narrowest)


def nano_usd(usd: Decimal | float) -> int:
    """A price in billionths of a US dollar, rounded up so that it is never understated.

    A float counts as the decimal number it is written as: 0.1 is a tenth.
    """
    return _nano(usd, ROUND_CEILING)


def _nano(usd: Decimal | float, rounding: str) -> int:
    exact = usd if isinstance(usd, Decimal) else Decimal(str(usd))
    return int((exact * NANO).to_integral_value(rounding))


class Granted(NamedTuple):
    """The reservation is made.

    Attributes:
        amount: what is reserved, to be settled or released; less than what was asked for where it was capped.
        capped_tokens: the most tokens the call may write; None where it was not capped.
    """

    amount: Amount
    capped_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class MustWait:
    """The reservation fits once reservations beside it have settled for less, or were released.

    Attributes:
        account_id: the account that has too little left for now, the nearest first.
        limit: the limit that is in the way.
    """

    account_id: str
    limit: LimitName


@dataclass(frozen=True, slots=True)
class Refused:
    """The reservation can never fit.

    Attributes:
        account_id: the account that has too little left, the nearest first.
        limit: the limit that is used up.
    """

    account_id: str
    limit: LimitName

    @property
    def stop_reason(self) -> StopReason:
        """Why a run that needed this stops."""
        return "max_steps" if self.limit in {"max_steps", "max_tool_calls"} else "budget_exhausted"


Answer: TypeAlias = Granted | MustWait | Refused
