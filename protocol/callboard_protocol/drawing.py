"""How runs draw on a named account: the arithmetic of its entry and of what each unfinished run has drawn.

A store applies these changes one after the other, in its transactions, so what the runs of all processes have spent
and reserved together never passes a limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from callboard_protocol.amounts import ZERO, Amount, Answer, Granted, Limits, less, total
from callboard_protocol.ledger import Ledger
from callboard_protocol.named_accounts import Account, AccountDraw, AccountEntry, AccountFigures


@dataclass(frozen=True, slots=True)
class BeginDraw:
    """A run goes on that had spent something: whatever else stood for it stands no more.

    Attributes:
        run_id: the run; the root, where it is one of a tree.
        used: what it has spent since it last charged the account.
    """

    run_id: str
    used: Amount


@dataclass(frozen=True, slots=True)
class ReserveDraw:
    """A run, or one below it, is about to spend something.

    Attributes:
        run_id: the run; the root, where it is one of a tree.
        amount: the most it can cost.
        can_cap_tokens: whether this is a model call that may be told to write less.
        output: what of `amount` is for tokens yet to be written; all of its tokens and its price where None.
        is_spent: whether it costs just that, so that nothing is left to settle.
    """

    run_id: str
    amount: Amount
    can_cap_tokens: bool = False
    output: Amount | None = None
    is_spent: bool = False


@dataclass(frozen=True, slots=True)
class SettleDraw:
    """What was reserved has come to its true figure.

    Attributes:
        run_id: the run; the root, where it is one of a tree.
        reserved: what had been granted.
        true: what it came to.
    """

    run_id: str
    reserved: Amount
    true: Amount


DrawChange: TypeAlias = BeginDraw | ReserveDraw | SettleDraw


@dataclass(frozen=True, slots=True)
class Drawn:
    """What became of changes to what runs draw on one account.

    Attributes:
        entry: the account behind them.
        answers: to each change: the ledger's to one that reserves, None to any other.
    """

    entry: AccountEntry
    answers: tuple[Answer | None, ...]


def change_draw(
    entry: AccountEntry, draw: AccountDraw, change: DrawChange
) -> tuple[AccountEntry, AccountDraw, Answer | None]:
    """The account and a run's draw on it after a change, and the answer to it.

    Args:
        entry: the account, with all that was charged taken in.
        draw: what its run has drawn.
        change: what is to change.
    """
    answer: Answer | None = None
    used, reserved = Amount(*draw.used), Amount(*draw.reserved)
    if isinstance(change, BeginDraw):
        used, reserved = change.used, ZERO
    elif isinstance(change, SettleDraw):
        # Where the run has gone on since, what it had reserved before stands no more, and what came of it is in `used`.
        still_open = Amount(*map(min, reserved, change.reserved))
        missing = less(change.reserved, still_open)
        used = total([used, _at_least_nothing(less(change.true, missing))])
        reserved = less(reserved, still_open)
    else:
        answer = _standing(entry).reserve(
            entry.name, change.amount, can_cap_tokens=change.can_cap_tokens, output=change.output
        )
        if isinstance(answer, Granted):
            used, reserved = (
                (total([used, answer.amount]), reserved)
                if change.is_spent
                else (used, total([reserved, answer.amount]))
            )
    return *_redrawn(entry, draw, used, reserved), answer


def spend_reserved(entry: AccountEntry, draw: AccountDraw) -> tuple[AccountEntry, AccountDraw]:
    """The account and a run's draw once what the run had reserved counts as spent: nobody is left to settle it."""
    return _redrawn(entry, draw, total([Amount(*draw.used), Amount(*draw.reserved)]), ZERO)


def without_draw(entry: AccountEntry, draw: AccountDraw) -> AccountEntry:
    """The account once a run draws on it no more; what it has charged is another matter."""
    return _redrawn(entry, draw, ZERO, ZERO)[0]


def spend(entry: AccountEntry, amount: Amount) -> AccountEntry:
    """The account once it holds what ended runs have spent beside what it knew of."""
    return entry.model_copy(update={"spent": (*total([Amount(*entry.spent), amount]),)})


def standing(entry: AccountEntry) -> Account:
    """How an account stands, for its users."""
    ledger = _standing(entry)
    return Account(
        name=entry.name,
        budget=entry.budget,
        spent=AccountFigures.of(ledger.spent(entry.name)),
        reserved=AccountFigures.of(ledger.reserved(entry.name)),
        left=AccountFigures.of(ledger.left(entry.name)),
    )


def left_of(entry: AccountEntry) -> Limits:
    """What could be reserved of an account now; None where nothing limits it."""
    return _standing(entry).left(entry.name)


def _standing(entry: AccountEntry) -> Ledger:
    ledger = Ledger()
    spent = total([Amount(*entry.spent), Amount(*entry.used)])
    ledger.open(entry.name, Limits.of(entry.budget), spent=spent, reserved=Amount(*entry.reserved))
    return ledger


def _redrawn(
    entry: AccountEntry, draw: AccountDraw, used: Amount, reserved: Amount
) -> tuple[AccountEntry, AccountDraw]:
    """Both with other figures in the run's draw."""
    changed = entry.model_copy(
        update={
            "used": (*_at_least_nothing(less(total([Amount(*entry.used), used]), Amount(*draw.used))),),
            "reserved": (*_at_least_nothing(less(total([Amount(*entry.reserved), reserved]), Amount(*draw.reserved))),),
        }
    )
    return changed, draw.model_copy(update={"used": (*used,), "reserved": (*reserved,)})


def _at_least_nothing(amount: Amount) -> Amount:
    return Amount(*(max(0, figure) for figure in amount))
