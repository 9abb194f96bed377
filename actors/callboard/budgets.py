"""The supervisor's ledger, and the reservations that wait for room in it."""

from __future__ import annotations

import asyncio

from callboard_protocol.amounts import Amount, Answer, Granted, Limits, MustWait, Refused
from callboard_protocol.commands import ReserveBudget, SettleBudget
from callboard_protocol.ledger import Ledger


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

    def open(self, run_id: str, limits: Limits, spent: Amount) -> None:
        """Open a run's account.

        Args:
            run_id: the run.
            limits: its budget.
            spent: what earlier attempts spent.
        """
        self._ledger.open(run_id, limits, spent=spent)

    def close(self, run_id: str) -> None:
        """Close a run's account, if it is open."""
        if run_id in self._ledger:
            self._ledger.close(run_id)
            self._answer_waiting()

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
