"""One account of a ledger: its limits, what is spent, and the room that is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from callboard_protocol.amounts import Amount, LimitName, Limits

# Larger than any figure that can come up, so that "no limit" needs no branch where it is compared.
UNLIMITED: Final = 1 << 62


class Account:
    """One node of the tree.

    Args:
        account_id: its name.
        limits: the most it and everything below it may spend.
        above: the accounts above it, the nearest first.

    `room` is what a new reservation may take: limit - spent - reserved. Keeping it in place of `reserved` makes the
    check of a reservation one comparison per figure; `reserved` follows from the other three. `Ledger` reads and
    writes these figures directly: a method call per figure would cost more than the arithmetic.
    """

    __slots__ = (
        "account_id",
        "chain",
        "children",
        "limit_cost",
        "limit_steps",
        "limit_tokens",
        "limit_tool_calls",
        "room_cost",
        "room_steps",
        "room_tokens",
        "room_tool_calls",
        "spent_cost",
        "spent_steps",
        "spent_tokens",
        "spent_tool_calls",
    )

    def __init__(self, account_id: str, limits: Limits, above: tuple[Account, ...]) -> None:
        self.account_id = account_id
        self.chain: tuple[Account, ...] = (self, *above)
        self.children = 0
        self.limit_steps = self.limit_tool_calls = self.limit_tokens = self.limit_cost = 0
        self.room_steps = self.room_tool_calls = self.room_tokens = self.room_cost = 0
        self.spent_steps = self.spent_tool_calls = self.spent_tokens = self.spent_cost = 0
        self.limit_to(limits)

    def limit_to(self, limits: Limits) -> None:
        """Change the limits; what is spent and reserved stands, so the room may fall below zero."""
        steps, tool_calls, tokens, cost = (UNLIMITED if limit is None else limit for limit in limits)
        self.room_steps += steps - self.limit_steps
        self.room_tool_calls += tool_calls - self.limit_tool_calls
        self.room_tokens += tokens - self.limit_tokens
        self.room_cost += cost - self.limit_cost
        self.limit_steps, self.limit_tool_calls, self.limit_tokens, self.limit_cost = steps, tool_calls, tokens, cost

    def spend(self, amount: Amount) -> None:
        """Count what was spent without having been reserved."""
        steps, tool_calls, tokens, cost = amount
        self.spent_steps += steps
        self.spent_tool_calls += tool_calls
        self.spent_tokens += tokens
        self.spent_cost += cost
        self.room_steps -= steps
        self.room_tool_calls -= tool_calls
        self.room_tokens -= tokens
        self.room_cost -= cost

    def hold(self, amount: Amount) -> None:
        """Count what is reserved by others than its own callers."""
        steps, tool_calls, tokens, cost = amount
        self.room_steps -= steps
        self.room_tool_calls -= tool_calls
        self.room_tokens -= tokens
        self.room_cost -= cost

    def spent(self) -> Amount:
        """What it and everything below it have spent."""
        return Amount(self.spent_steps, self.spent_tool_calls, self.spent_tokens, self.spent_cost)

    def reserved(self) -> Amount:
        """What is reserved here and below, and not settled yet."""
        return Amount(
            self.limit_steps - self.room_steps - self.spent_steps,
            self.limit_tool_calls - self.room_tool_calls - self.spent_tool_calls,
            self.limit_tokens - self.room_tokens - self.spent_tokens,
            self.limit_cost - self.room_cost - self.spent_cost,
        )

    def rooms(self) -> Iterator[tuple[LimitName, int, int]]:
        """Each limit, in the order of `Amount`: what is left now, and what would be were nothing reserved."""
        yield "max_steps", self.room_steps, self.limit_steps - self.spent_steps
        yield "max_tool_calls", self.room_tool_calls, self.limit_tool_calls - self.spent_tool_calls
        yield "max_total_tokens", self.room_tokens, self.limit_tokens - self.spent_tokens
        yield "max_cost_usd", self.room_cost, self.limit_cost - self.spent_cost
