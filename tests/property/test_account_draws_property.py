"""No order of reservations, settlements, crashes and ends, of any runs in any processes, passes an account's limit."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from callboard_protocol.amounts import ZERO, Amount, Granted, Limits, less, total
from callboard_protocol.drawing import BeginDraw, DrawChange, ReserveDraw, SettleDraw, standing
from callboard_protocol.named_accounts import AccountCharge, AccountEntry
from callboard_protocol.runs import RunBudget
from callboard_storage import account_rows, keys
from callboard_storage.batch import Table
from callboard_storage.codec import pack, seal

NAME = "team"

counts = st.integers(0, 3)
amounts = st.builds(Amount, counts, counts, st.integers(0, 600), st.just(0))
runs = st.sampled_from(["a", "b"])
owners = st.sampled_from([b"one", b"two"])


class Rows:
    """A snapshot of tables that a test holds."""

    def __init__(self) -> None:
        self.tables: dict[Table, dict[bytes, bytes]] = {"accounts": {}, "charges": {}, "draws": {}, "runs": {}}

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self.tables[table].get(key)

    def rows(self, table: Table, after: bytes | None = None, limit: int | None = None):
        found = sorted((key, row) for key, row in self.tables[table].items() if key > (after or b""))
        return found[:limit]

    def newest_release(self) -> str:
        return ""


@dataclass
class Life:
    """What a run has really spent and what it has in flight, since it last charged the account."""

    owner: bytes
    attempt: int = 0
    used: Amount = ZERO
    in_flight: list[Amount] = field(default_factory=list)


class AccountMachine(RuleBasedStateMachine):
    granted = Bundle("granted")

    @initialize(steps=st.integers(0, 8), tokens=st.none() | st.integers(0, 2000))
    def open(self, steps: int, tokens: int | None) -> None:
        self.snapshot = Rows()
        self.budget = RunBudget(max_steps=steps, max_total_tokens=tokens)
        self.lives: dict[str, Life] = {}
        self.charged = ZERO
        self.ends = self.attempts = 0
        self._put(keys.account_key(NAME), "accounts", AccountEntry(name=NAME, budget=self.budget))

    def _put(self, key: bytes, table: Table, model: object) -> None:
        self.snapshot.tables[table][key] = seal(key, *pack(model))

    def _draw(self, owner: bytes, *changes: DrawChange):
        made = account_rows.drawn(self.snapshot, NAME, changes, owner)
        assert made is not None
        for table, key, value in made.rows:
            if value is None:
                self.snapshot.tables[table].pop(key, None)
            else:
                self.snapshot.tables[table][key] = value
        return made.drawn.answers

    @rule(run=runs, owner=owners)
    def begin(self, run: str, owner: bytes) -> None:
        """A run begins, or goes on after a crash: what was in flight and charged for is part of what it has used."""
        life = self.lives.setdefault(run, Life(owner))
        life.owner, life.in_flight = owner, []
        self.attempts += 1
        life.attempt = self.attempts
        self._draw(owner, BeginDraw(run, life.used))

    @rule(target=granted, run=runs, amount=amounts, cap=st.booleans(), is_spent=st.booleans())
    def reserve(self, run: str, amount: Amount, cap: bool, is_spent: bool):
        life = self.lives.get(run)
        if life is None:
            return multiple()
        output = Amount(tokens=amount.tokens) if cap else None
        asked = ReserveDraw(run, amount, can_cap_tokens=cap, output=output, is_spent=is_spent)
        (answer,) = self._draw(life.owner, asked)
        if not isinstance(answer, Granted):
            return multiple()
        assert all(figure <= asked for figure, asked in zip(answer.amount, amount, strict=True))
        if is_spent:
            life.used = total([life.used, answer.amount])
            return multiple()
        life.in_flight.append(answer.amount)
        return (run, life.owner, life.attempt, answer.amount)

    @rule(grant=consumes(granted), percent=st.integers(0, 100))
    def settle(self, grant, percent: int) -> None:
        run, owner, attempt, amount = grant
        life = self.lives.get(run)
        is_its_own = life is not None and life.owner == owner
        if is_its_own and life.attempt != attempt:
            return  # a process has settled what one attempt was granted before it begins another
        true = Amount(*(figure * percent // 100 for figure in amount))
        self._draw(owner, SettleDraw(run, amount, true))
        if is_its_own and amount in life.in_flight:
            life.in_flight.remove(amount)
            life.used = total([life.used, true])

    @rule(run=runs)
    def end(self, run: str) -> None:
        """The run's end charges what it has used; calls that were cut short count in full."""
        life = self.lives.pop(run, None)
        if life is not None:
            self.ends += 1
            amount = total([life.used, *life.in_flight])
            charge = AccountCharge(account=NAME, run_id=run, attempt=self.ends, amount=(*amount,))
            self._put(keys.charge_key(charge), "charges", charge)
            self.charged = total([self.charged, amount])

    @invariant()
    def nothing_passes_the_limit(self) -> None:
        if not hasattr(self, "snapshot"):
            return
        spent = total([self.charged, *(total([life.used, *life.in_flight]) for life in self.lives.values())])
        for figure, limit in zip(spent, Limits.of(self.budget), strict=True):
            assert limit is None or figure <= limit

    @invariant()
    def the_account_says_what_its_runs_have_drawn(self) -> None:
        if not hasattr(self, "snapshot"):
            return
        entry = account_rows.read(self.snapshot, NAME)
        assert entry is not None
        assert entry.spent == self.charged
        in_all = total([Amount(*entry.used), Amount(*entry.reserved)])
        known = total(total([life.used, *life.in_flight]) for life in self.lives.values())
        assert all(figure >= 0 for figure in less(in_all, known)), "something that was spent is not counted"
        standing(entry)


AccountMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAccounts = AccountMachine.TestCase
