"""What a run may use up, from when its attempt begins: its account in the ledger, and the timer of its time."""

from __future__ import annotations

import asyncio
from functools import partial

from callboard.account_keeping import AccountKeeping
from callboard.deadline import Deadline
from callboard.runs_in_hand import RunsInHand
from callboard.stops import StopRun
from callboard.ticket import RunTicket
from callboard_protocol.amounts import Limits
from callboard_protocol.base import as_seconds
from callboard_protocol.commands import OpenRunAccount
from callboard_protocol.errors import BudgetExhaustedError


class AccountOpening:
    """Opens the accounts of runs, and stops those that run out of time.

    Args:
        in_hand: the supervisor's runs.
        accounts: the named accounts that runs may draw on.
    """

    def __init__(self, in_hand: RunsInHand, accounts: AccountKeeping) -> None:
        self._in_hand = in_hand
        self._budgets = in_hand.budgets
        self._clock = in_hand.clock
        self._accounts = accounts

    def open(self, message: OpenRunAccount) -> Limits | asyncio.Future[Limits]:
        """Open the run's account with what it had spent, and arm its deadline; what is left, as soon as that is known.

        Raises:
            UnknownAccountError: the named account that it draws on is gone.
        """
        ticket = self._in_hand.tickets[message.run_id]
        if ticket.request.account is not None:
            return asyncio.ensure_future(self._open_below_named_account(ticket, message, ticket.request.account))
        above = None if ticket.parent is None else ticket.parent.run_id
        return self._open(ticket, message, above, counted_above=above is not None)

    async def _open_below_named_account(self, ticket: RunTicket, message: OpenRunAccount, name: str) -> Limits:
        above, was_counted = await self._accounts.begin(ticket.run_id, name)
        return self._open(ticket, message, above, counted_above=was_counted)

    def _open(self, ticket: RunTicket, message: OpenRunAccount, above: str | None, *, counted_above: bool) -> Limits:
        assert ticket.agent is not None
        budget = ticket.limits(ticket.agent)
        left = self._budgets.open(message.run_id, Limits.of(budget), message.spent, above, counted_above=counted_above)
        if budget.max_duration is not None:
            time_left = max(0.0, as_seconds(budget.max_duration) - message.running)
            ticket.deadline = Deadline(self._clock, time_left, partial(_out_of_time, ticket))
        return left


def _out_of_time(ticket: RunTicket) -> None:
    error = BudgetExhaustedError(f"run {ticket.run_id} ran out of time (max_duration)", limit="max_duration")
    ticket.stop_with(StopRun("budget_exhausted", error))
