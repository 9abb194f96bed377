"""The supervisor's ledger, what runs draw on named accounts beside it, and the reservations that wait for room."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial

from callboard.runs.account_draws import AccountDraws, Outcome
from callboard_protocol.amounts import ZERO, Amount, Answer, Granted, Limits, MustWait, Refused, least, less
from callboard_protocol.commands import ReserveBudget, SettleBudget
from callboard_protocol.drawing import ReserveDraw
from callboard_protocol.errors import BudgetExhaustedError
from callboard_protocol.ledger import Ledger

_NAMED = "\0"
"""What a named account is called in answers, before its name; no run's id begins so."""


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


@dataclass(frozen=True, slots=True, eq=False)
class _Drawing:
    """What one attempt of a run draws on beside its own budget.

    Attributes:
        account: the named account.
        root: the root of the run's tree, under which the account knows it.
    """

    account: str
    root: str


class Budgets:
    """The accounts of all runs at work, and what these draw on named ones.

    A reservation is made in the ledger first, at the run and those above it, and then at the named account that the
    tree draws on, where there is one: that is kept by the store, for all processes together.

    Args:
        draws: brings reservations to the named accounts.
    """

    def __init__(self, draws: AccountDraws) -> None:
        self._ledger = Ledger()
        self._draws = draws
        self._drawings: dict[str, _Drawing] = {}
        self._waiting: list[tuple[ReserveBudget, asyncio.Future[Answer]]] = []

    def open(self, run_id: str, limits: Limits, spent: Amount, above: str | None = None) -> Limits:
        """Open a run's account.

        Args:
            run_id: the run.
            limits: its budget.
            spent: what earlier attempts spent, and the runs they delegated.
            above: the run that delegated it, which has `spent` counted already.

        Returns:
            What is left, with every account above in view.
        """
        self._ledger.open(run_id, limits, above, spent, counted_above=above is not None)
        if above is not None and above in self._drawings:
            self._drawings[run_id] = replace(self._drawings[above])
        return self._left(run_id)

    async def open_below(self, account: str, run_id: str, limits: Limits, spent: Amount, charged: Amount) -> Limits:
        """Open the account of a run that draws on a named one.

        Args:
            account: its name.
            run_id: the run.
            limits: its budget.
            spent: what earlier attempts spent, and the runs they delegated.
            charged: what of that an earlier end has charged to the account.

        Returns:
            What is left, with the named account in view.

        Raises:
            UnknownAccountError: that is not open any more.
            StoreError: it cannot be read or written.
        """
        await self._draws.begin(account, run_id, less(spent, charged))
        self._drawings[run_id] = _Drawing(account, run_id)
        return self.open(run_id, limits, spent)

    def close(self, run_id: str) -> None:
        """Close a run's account, if it is open. What it has not settled counts as spent."""
        if run_id not in self._ledger:
            return
        drawing = self._drawings.pop(run_id, None)
        unsettled = self._ledger.reserved(run_id)
        self._ledger.close(run_id)
        if drawing is not None and unsettled != ZERO:
            self._draws.settle(drawing.account, drawing.root, unsettled, unsettled)
        self._answer_waiting()

    def _left(self, run_id: str) -> Limits:
        left = self._ledger.left(run_id)
        drawing = self._drawings.get(run_id)
        return left if drawing is None else least(left, self._draws.left(drawing.account))

    # ---- reservations

    def reserve(self, message: ReserveBudget) -> Answer | asyncio.Future[Answer]:
        """The ledger's answer: now, or once it is known."""
        answer = self._ask_ledger(message)
        if isinstance(answer, Refused) or (isinstance(answer, Granted) and message.run_id not in self._drawings):
            return answer
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if isinstance(answer, MustWait):
            self._waiting.append((message, answered))
        else:
            self._draw(message, answer, answered)
        return answered

    def settle(self, message: SettleBudget) -> None:
        """Put the true figure in the place of a reservation; a closed account has charged it in full already."""
        if message.run_id not in self._ledger:
            return
        self._ledger.settle(message.run_id, message.reserved, message.true)
        drawing = self._drawings.get(message.run_id)
        if drawing is not None:
            self._draws.settle(drawing.account, drawing.root, message.reserved, message.true)
        if self._waiting:
            self._answer_waiting()

    def _ask_ledger(self, message: ReserveBudget) -> Answer:
        answer = self._ledger.reserve(
            message.run_id, message.amount, can_cap_tokens=message.can_cap_tokens, output=message.output
        )
        if message.is_spent and isinstance(answer, Granted) and message.run_id not in self._drawings:
            self._ledger.settle(message.run_id, answer.amount, answer.amount)
        return answer

    def _answer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for message, answered in waiting:
            if not self._is_wanted(message):
                answered.set_result(_nobody_reads_this(message))
                continue
            answer = self._ask_ledger(message)
            if isinstance(answer, MustWait):
                self._waiting.append((message, answered))
            elif isinstance(answer, Granted) and message.run_id in self._drawings:
                self._draw(message, answer, answered)
            else:
                self._answer(message, answer, answered)

    # ---- at the named account

    def _draw(self, message: ReserveBudget, granted: Granted, answered: asyncio.Future[Answer]) -> None:
        """Have the named account grant what the ledger has."""
        drawing = self._drawings[message.run_id]
        change = ReserveDraw(
            drawing.root,
            granted.amount,
            can_cap_tokens=message.can_cap_tokens,
            output=_output_of(message, granted),
            is_spent=message.is_spent,
        )
        self._draws.reserve(
            drawing.account,
            change,
            partial(self._drawn, message, drawing, granted, answered),
            partial(self._is_wanted, message),
        )

    def _drawn(
        self,
        message: ReserveBudget,
        drawing: _Drawing,
        before: Granted,
        answered: asyncio.Future[Answer],
        outcome: Outcome,
    ) -> None:
        """The named account has answered what the ledger had granted."""
        if answered.done():
            return
        # Not only some attempt of the run: what an earlier one had reserved was charged as that ended.
        is_open = self._drawings.get(message.run_id) is drawing
        if isinstance(outcome, Granted) and is_open and self._is_wanted(message):
            given_back = less(before.amount, outcome.amount)
            if given_back != ZERO:
                self._ledger.release(message.run_id, given_back)
            if message.is_spent:
                self._ledger.settle(message.run_id, outcome.amount, outcome.amount)
            capped = before.capped_tokens if outcome.capped_tokens is None else outcome.capped_tokens
            self._answer(message, Granted(outcome.amount, capped), answered)
            if given_back != ZERO:
                self._answer_waiting()
            return
        if isinstance(outcome, Granted) and is_open and not message.is_spent:
            self._draws.settle(drawing.account, drawing.root, outcome.amount, ZERO)
        if is_open:
            self._ledger.release(message.run_id, before.amount)
        if isinstance(outcome, Refused):
            answered.set_result(Refused(f"{_NAMED}{outcome.account_id}", outcome.limit))
        elif isinstance(outcome, Granted) or outcome is None:
            answered.set_result(_nobody_reads_this(message))
        else:
            answered.set_exception(outcome)
        self._answer_waiting()

    def _is_wanted(self, message: ReserveBudget) -> bool:
        """Whether anybody still waits for a reservation: a grant nobody knows of would stand in the way of others."""
        return not message.claim.is_withdrawn and message.run_id in self._ledger

    @staticmethod
    def _answer(message: ReserveBudget, answer: Answer, answered: asyncio.Future[Answer]) -> None:
        if isinstance(answer, Granted):
            message.claim.granted = answer
        answered.set_result(answer)


def _output_of(message: ReserveBudget, granted: Granted) -> Amount | None:
    """What of a grant is for tokens yet to be written."""
    output = message.output or message.amount
    if granted.capped_tokens is None or not output.tokens:
        return message.output
    cost = less(granted.amount, less(message.amount, output)).cost_nano_usd
    return Amount(tokens=granted.capped_tokens, cost_nano_usd=cost)


def _nobody_reads_this(message: ReserveBudget) -> Refused:
    return Refused(message.run_id, "max_steps")
