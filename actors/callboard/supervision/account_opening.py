"""What a run may use up, from when its attempt begins: its account in the ledger, and the timer of its time."""

from __future__ import annotations

import asyncio
from functools import partial

from callboard.runs.deadline import Deadline
from callboard.runs.stops import StopRun
from callboard.runs.ticket import RunTicket
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.amounts import Amount, Limits
from callboard_protocol.base import as_seconds
from callboard_protocol.commands import OpenRunAccount
from callboard_protocol.errors import BudgetExhaustedError
from callboard_protocol.runs import RunBudget


class AccountOpening:
    """Opens the accounts of runs, and stops those that run out of time.

    Args:
        in_hand: the supervisor's runs.
    """

    def __init__(self, in_hand: RunsInHand) -> None:
        self._in_hand = in_hand
        self._budgets = in_hand.budgets
        self._clock = in_hand.clock

    def open(self, message: OpenRunAccount) -> Limits | asyncio.Future[Limits]:
        """Open the run's account with what it had spent, and arm its deadline; what is left, as soon as that is known.

        Raises:
            UnknownAccountError: the named account that it draws on is gone.
        """
        ticket = self._in_hand.tickets[message.run_id]
        assert ticket.agent is not None
        budget = ticket.limits(ticket.agent)
        if ticket.request.account is not None:
            return asyncio.ensure_future(self._open_below(ticket.request.account, ticket, budget, message))
        above = None if ticket.parent is None else ticket.parent.run_id
        left = self._budgets.open(message.run_id, Limits.of(budget), message.spent, above)
        self._begin_time(ticket, budget, message)
        return left

    async def _open_below(self, account: str, ticket: RunTicket, budget: RunBudget, message: OpenRunAccount) -> Limits:
        charged = Amount(*ticket.entry.spent)
        left = await self._budgets.open_below(account, ticket.run_id, Limits.of(budget), message.spent, charged)
        self._begin_time(ticket, budget, message)
        return left

    def _begin_time(self, ticket: RunTicket, budget: RunBudget, message: OpenRunAccount) -> None:
        if budget.max_duration is not None:
            time_left = max(0.0, as_seconds(budget.max_duration) - message.running)
            ticket.deadline = Deadline(self._clock, time_left, partial(_out_of_time, ticket))


def _out_of_time(ticket: RunTicket) -> None:
    error = BudgetExhaustedError(f"run {ticket.run_id} ran out of time (max_duration)", limit="max_duration")
    ticket.stop_with(StopRun("budget_exhausted", error))
