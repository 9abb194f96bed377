"""The ledger against a model that recounts everything from a list of what happened."""

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from callboard_protocol.amounts import ZERO, Amount, Answer, Granted, LimitName, Limits, MustWait, Refused
from callboard_protocol.ledger import AccountOpenError, Ledger, UnknownAccountError, UnreservedAmountError

NAMES: tuple[LimitName, ...] = ("max_steps", "max_tool_calls", "max_total_tokens", "max_cost_usd")
FLOOR = 8

counts = st.integers(0, 4)
figures = st.integers(0, 60)
amounts = st.builds(Amount, counts, counts, figures, figures)
limits = st.builds(
    Limits,
    st.none() | st.integers(0, 12),
    st.none() | st.integers(0, 12),
    st.none() | st.integers(0, 150),
    st.none() | st.integers(0, 150),
)


def plus(*addends: Amount) -> Amount:
    return Amount(*(sum(figures) for figures in zip(ZERO, *addends, strict=True)))


def share(amount: Amount, percent: int) -> Amount:
    return Amount(*(figure * percent // 100 for figure in amount))


def with_output(amount: Amount, output: Amount, kept: int) -> Amount:
    """What the call costs at most when it writes `kept` tokens."""
    price = ceil(Fraction(output.cost_nano_usd * kept, output.tokens))
    return amount._replace(
        tokens=amount.tokens - output.tokens + kept, cost_nano_usd=amount.cost_nano_usd - output.cost_nano_usd + price
    )


@dataclass
class Node:
    limits: Limits
    parent: str | None
    own: Amount = ZERO
    """Its own work, and what closed accounts below it spent."""
    held: list[Amount] = field(default_factory=list)


class LedgerMachine(RuleBasedStateMachine):
    opened = Bundle("opened")
    granted = Bundle("granted")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.nodes: dict[str, Node] = {}
        self.born = 0

    # ---- the model's own arithmetic

    def below(self, name: str) -> list[str]:
        return [other for other, node in self.nodes.items() if node.parent == name]

    def spent(self, name: str) -> Amount:
        return plus(self.nodes[name].own, *(self.spent(child) for child in self.below(name)))

    def reserved(self, name: str) -> Amount:
        return plus(*self.nodes[name].held, *(self.reserved(child) for child in self.below(name)))

    def chain(self, name: str | None) -> list[str]:
        return [] if name is None else [name, *self.chain(self.nodes[name].parent)]

    def misfits(self, name: str, amount: Amount, *, alone: bool) -> list[tuple[str, LimitName]]:
        """Where `amount` is past a limit; `alone`: as if nothing were reserved."""
        found: list[tuple[str, LimitName]] = []
        for node in self.chain(name):
            taken = self.spent(node) if alone else plus(self.spent(node), self.reserved(node))
            for limit, most, used, wanted in zip(NAMES, self.nodes[node].limits, taken, amount, strict=True):
                if most is not None and wanted and used + wanted > most:
                    found.append((node, limit))
        return found

    # ---- what can happen

    @initialize(target=opened, limits=limits)
    def open_the_first(self, limits: Limits) -> str:
        return self.open_below(None, limits)

    @rule(target=opened, parent=opened, limits=limits)
    def open(self, parent: str, limits: Limits) -> str:
        return self.open_below(parent if parent in self.nodes else None, limits)

    def open_below(self, parent: str | None, limits: Limits) -> str:
        name = f"account-{self.born}"
        self.born += 1
        self.ledger.open(name, limits, parent)
        self.nodes[name] = Node(limits, parent)
        return name

    @rule(target=granted, name=opened, amount=amounts)
    def reserve(self, name: str, amount: Amount) -> object:
        if name not in self.nodes:
            with pytest.raises(UnknownAccountError):
                self.ledger.reserve(name, amount)
            return multiple()
        answer = self.ledger.reserve(name, amount)
        if not self.misfits(name, amount, alone=False):
            assert answer == Granted(amount)
            return self.hold(name, amount)
        self.check_denial(answer, name, amount, amount)
        return multiple()

    @rule(target=granted, name=opened, amount=amounts, percent=st.integers(1, 100))
    def reserve_with_leave_to_cap(self, name: str, amount: Amount, percent: int) -> object:
        output = share(amount, percent)._replace(steps=0, tool_calls=0)
        if name not in self.nodes or not output.tokens:
            return multiple()
        answer = self.ledger.reserve(name, amount, can_cap_tokens=True, token_floor=FLOOR, output=output)
        floor = min(FLOOR, output.tokens)
        fitting = [
            kept
            for kept in range(floor, output.tokens + 1)
            if not self.misfits(name, with_output(amount, output, kept), alone=False)
        ]
        if not fitting:
            self.check_denial(answer, name, amount, with_output(amount, output, floor))
            return multiple()
        most = max(fitting)
        if most == output.tokens:
            assert answer == Granted(amount)
        else:
            assert answer == Granted(with_output(amount, output, most), most)
        return self.hold(name, with_output(amount, output, most))

    def check_denial(self, answer: Answer, name: str, amount: Amount, least: Amount) -> None:
        never = self.misfits(name, least, alone=True)
        if never:
            assert answer == Refused(*never[0])
        else:
            assert answer == MustWait(*self.misfits(name, least, alone=False)[0])

    def hold(self, name: str, amount: Amount) -> tuple[str, Amount]:
        self.nodes[name].held.append(amount)
        return name, amount

    def is_held(self, reservation: tuple[str, Amount]) -> bool:
        name, amount = reservation
        return name in self.nodes and amount in self.nodes[name].held

    @rule(reservation=consumes(granted), percent=st.integers(0, 100))
    def settle_for_at_most_what_was_reserved(self, reservation: tuple[str, Amount], percent: int) -> None:
        if not self.is_held(reservation):
            return
        name, amount = reservation
        true = share(amount, percent)
        self.ledger.settle(name, amount, true)
        self.nodes[name].held.remove(amount)
        self.nodes[name].own = plus(self.nodes[name].own, true)

    @rule(reservation=consumes(granted))
    def release(self, reservation: tuple[str, Amount]) -> None:
        if not self.is_held(reservation):
            return
        name, amount = reservation
        self.ledger.release(name, amount)
        self.nodes[name].held.remove(amount)

    @rule(name=opened)
    def close(self, name: str) -> None:
        if name not in self.nodes:
            with pytest.raises(UnknownAccountError):
                self.ledger.close(name)
        elif self.below(name):
            with pytest.raises(AccountOpenError):
                self.ledger.close(name)
        else:
            spent = self.ledger.close(name)
            node = self.nodes.pop(name)
            assert spent == plus(node.own, *node.held)
            if node.parent is not None:
                self.nodes[node.parent].own = plus(self.nodes[node.parent].own, spent)

    @rule(name=opened)
    def close_and_resume(self, name: str) -> None:
        if name not in self.nodes or self.below(name):
            return
        node = self.nodes[name]
        spent = self.ledger.close(name)
        self.ledger.open(name, node.limits, node.parent, spent, counted_above=True)
        self.nodes[name] = Node(node.limits, node.parent, own=spent)

    @rule(name=opened, extra=st.builds(Amount, counts, counts, figures, figures))
    def raise_limits(self, name: str, extra: Amount) -> None:
        if name not in self.nodes:
            return
        node = self.nodes[name]
        raised = [None if most is None else most + more for most, more in zip(node.limits, extra, strict=True)]
        node.limits = Limits(*raised)
        self.ledger.set_limits(name, node.limits)

    @rule()
    def crash_and_rebuild(self) -> None:
        """A new ledger from what is on disk; calls in flight are charged in full."""
        self.ledger = Ledger()
        for name, node in self.nodes.items():
            node.own = plus(node.own, *node.held)
            node.held = []
            self.ledger.open(name, node.limits, node.parent, node.own)

    @rule(name=opened, excess=amounts)
    def settle_more_than_is_reserved(self, name: str, excess: Amount) -> None:
        if name not in self.nodes or excess == ZERO:
            return
        with pytest.raises(UnreservedAmountError):
            self.ledger.settle(name, plus(self.reserved(name), excess), excess)

    # ---- what must always hold

    @invariant()
    def every_figure_is_what_a_recount_gives(self) -> None:
        assert len(self.ledger) == len(self.nodes)
        for name in self.nodes:
            assert self.ledger.spent(name) == self.spent(name)
            assert self.ledger.reserved(name) == self.reserved(name)

    @invariant()
    def no_limit_is_ever_passed(self) -> None:
        for name, node in self.nodes.items():
            taken = plus(self.ledger.spent(name), self.ledger.reserved(name))
            assert all(most is None or used <= most for most, used in zip(node.limits, taken, strict=True)), name

    @invariant()
    def what_is_left_can_be_reserved_and_not_one_unit_more(self) -> None:
        for name in self.nodes:
            left = self.ledger.left(name)
            whole = Amount(*(most or 0 for most in left))
            assert not self.misfits(name, whole, alone=False)
            for at, most in enumerate(left):
                if most is not None:
                    one_more = Amount(*(most + 1 if figure == at else 0 for figure in range(4)))
                    assert self.misfits(name, one_more, alone=False)

    def teardown(self) -> None:
        for name, node in self.nodes.items():
            for amount in node.held:
                self.ledger.release(name, amount)
        for name in self.nodes:
            assert self.ledger.reserved(name) == ZERO


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
