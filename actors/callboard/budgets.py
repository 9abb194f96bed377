"""The supervisor's ledger, and the reservations that wait for room in it."""

from __future__ import annotations

import asyncio

from callboard_protocol.amounts import Amount, Answer, Granted, Limits, MustWait, Refused
from callboard_protocol.commands import ReserveBudget, SettleBudget
from callboard_protocol.errors import BudgetExhaustedError
from callboard_protocol.ledger import Ledger

_NAMED = "\0"
"""What the ledger's name of a named account begins with; no run's id does."""


def used_up(run_id: str, answer: Refused) -> BudgetExhaustedError:
    """Why a run must stop that was refused a reservation: whose limit is used up."""
    whose = ""
    if answer.account_id.startswith(_NAMED):
        whose = f" of account {answer.account_id.removeprefix(_NAMED)!r}"
    elif answer.account_id != run_id:
        whose = f" of run {answer.account_id}, which it works for"
    return BudgetExhaustedError(f"run {run_id} has used up {answer.limit}{whose}", limit=answer.limit)


class Claim:
    """What the asker of a reservation and the ledger's keeper both see of it while it waits.

    Attributes:
        granted: what it was granted after it had waited; None before.
        is_withdrawn: whether the asker has gone.
    """

    __slots__ = ("granted", "is_withdrawn")

    def __init__(self) -> None:
        self.granted: Granted | None = None
        self.is_withdrawn = False


class Budgets:
    """The accounts of all runs at work."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._waiting: list[tuple[ReserveBudget, asyncio.Future[Answer]]] = []

    def open(
        self, run_id: str, limits: Limits, spent: Amount, above: str | None = None, *, counted_above: bool = False
    ) -> Limits:
        """Open a run's account.

        Args:
            run_id: the run.
            limits: its budget.
            spent: what earlier attempts spent, and the runs they delegated.
            above: what it draws on: the run that delegated it, or a named account as `name_of` calls it.
            counted_above: whether `spent` is counted there already.

        Returns:
            What is left, with every account above in view.
        """
        self._ledger.open(run_id, limits, above, spent, counted_above=counted_above)
        return self._ledger.left(run_id)

    def close(self, run_id: str) -> Amount | None:
        """Close a run's account; what it spent, with everything below it, or None where it was not open."""
        if run_id not in self._ledger:
            return None
        spent = self._ledger.close(run_id)
        self._answer_waiting()
        return spent

    # ---- named accounts

    @staticmethod
    def name_of(account: str) -> str:
        """What the ledger calls a named account."""
        return f"{_NAMED}{account}"

    def open_account(self, name: str, limits: Limits, spent: Amount) -> None:
        """Open a named account with what was spent of it."""
        self._ledger.open(self.name_of(name), limits, spent=spent)

    def adjust_account(self, name: str, limits: Limits, spent_elsewhere: Amount) -> None:
        """Give a named account other limits, and count what others spent of it since."""
        self._ledger.set_limits(self.name_of(name), limits)
        self._ledger.count(self.name_of(name), spent_elsewhere)
        self._answer_waiting()

    def close_account(self, name: str) -> None:
        """Close a named account; nothing draws on it."""
        self._ledger.close(self.name_of(name))

    def standing(self, name: str) -> tuple[Amount, Amount, Limits]:
        """What is spent, reserved and left of a named account."""
        account = self.name_of(name)
        return self._ledger.spent(account), self._ledger.reserved(account), self._ledger.left(account)

    # ---- reservations

    def reserve(self, message: ReserveBudget) -> Answer | asyncio.Future[Answer]:
        """The ledger's answer: now, or once reservations beside this one have settled."""
        answer = self._try(message)
        if not isinstance(answer, MustWait):
            return answer
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, waiting))
        return waiting

    def settle(self, message: SettleBudget) -> None:
        """Put the true figure in the place of a reservation; a closed account has charged it in full already."""
        if message.run_id in self._ledger:
            self._ledger.settle(message.run_id, message.reserved, message.true)
            if self._waiting:
                self._answer_waiting()

    def _try(self, message: ReserveBudget) -> Answer:
        answer = self._ledger.reserve(
            message.run_id, message.amount, can_cap_tokens=message.can_cap_tokens, output=message.output
        )
        if message.is_spent and isinstance(answer, Granted):
            self._ledger.settle(message.run_id, answer.amount, answer.amount)
        return answer

    def _answer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for message, answered in waiting:
            if message.claim.is_withdrawn or message.run_id not in self._ledger:
                # Nobody reads this any more; a grant nobody knows of would stand in the way of those behind it.
                answered.set_result(Refused(message.run_id, "max_steps"))
                continue
            answer = self._try(message)
            if isinstance(answer, MustWait):
                self._waiting.append((message, answered))
                continue
            if isinstance(answer, Granted):
                message.claim.granted = answer
            answered.set_result(answer)
