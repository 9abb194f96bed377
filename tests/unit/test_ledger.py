from decimal import Decimal
from typing import get_args

import pytest

from callboard_protocol.amounts import (
    NO_LIMITS,
    ZERO,
    Amount,
    Granted,
    LimitName,
    Limits,
    MustWait,
    Refused,
    nano_usd,
    raised,
)
from callboard_protocol.errors import UsageError
from callboard_protocol.ledger import AccountOpenError, Ledger, UnknownAccountError, UnreservedAmountError
from callboard_protocol.runs import RunBudget

STEP = Amount(steps=1)
CALL = Amount(tool_calls=1)


def ledger_of(run: Limits = NO_LIMITS, account: Limits = NO_LIMITS) -> Ledger:
    ledger = Ledger()
    ledger.open("team", account)
    ledger.open("run", run, "team")
    return ledger


def tokens(count: int) -> Amount:
    return Amount(tokens=count)


def only(limit: LimitName, figure: int) -> Amount:
    return Amount(*(figure if name == limit else 0 for name in get_args(LimitName)))


# ---- reserving


def test_a_reservation_is_held_at_the_account_and_at_every_account_above():
    ledger = ledger_of()
    ledger.open("child", parent="run")
    assert ledger.reserve("child", STEP) == Granted(STEP)
    assert [ledger.reserved(name) for name in ("child", "run", "team")] == [STEP] * 3
    assert [ledger.spent(name) for name in ("child", "run", "team")] == [ZERO] * 3


def test_a_limit_can_be_used_up_to_its_last_unit():
    ledger = ledger_of(Limits(steps=2))
    for _ in range(2):
        assert ledger.reserve("run", STEP) == Granted(STEP)
        ledger.settle("run", STEP, STEP)
    assert ledger.reserve("run", STEP) == Refused("run", "max_steps")
    assert ledger.spent("run") == Amount(steps=2)


@pytest.mark.parametrize(
    ("limits", "amount", "limit", "stop_reason"),
    [
        (Limits(steps=0), STEP, "max_steps", "max_steps"),
        (Limits(tool_calls=2), Amount(tool_calls=3), "max_tool_calls", "max_steps"),
        (Limits(tokens=99), tokens(100), "max_total_tokens", "budget_exhausted"),
        (Limits(cost_nano_usd=4), Amount(cost_nano_usd=5), "max_cost_usd", "budget_exhausted"),
    ],
)
def test_a_refusal_names_the_budget_field_the_account_and_why_the_run_stops(
    limits: Limits, amount: Amount, limit: str, stop_reason: str
):
    for ledger, name in ((ledger_of(run=limits), "run"), (ledger_of(account=limits), "team")):
        answer = ledger.reserve("run", amount)
        assert answer == Refused(name, limit)  # type: ignore[arg-type]
        assert isinstance(answer, Refused)
        assert answer.stop_reason == stop_reason
        assert limit in RunBudget.model_fields


@pytest.mark.parametrize("limit", get_args(LimitName))
def test_what_is_spent_never_comes_back_by_waiting(limit: LimitName):
    one, two, three = (only(limit, figure) for figure in (1, 2, 3))
    ledger = ledger_of(run=Limits(*(figure or None for figure in three)))
    ledger.reserve("run", two)
    assert ledger.reserve("run", two) == MustWait("run", limit)
    ledger.settle("run", two, two)
    assert ledger.reserve("run", one) == Granted(one)
    assert ledger.reserve("run", two) == Refused("run", limit)


def test_a_refused_reservation_is_held_nowhere():
    ledger = ledger_of(account=Limits(steps=0))
    assert ledger.reserve("run", STEP) == Refused("team", "max_steps")
    assert ledger.reserved("run") == ledger.reserved("team") == ZERO


def test_a_reservation_waits_for_a_sibling_that_may_settle_for_less():
    ledger = ledger_of(account=Limits(tokens=1000))
    ledger.open("sibling", parent="team")
    ledger.reserve("sibling", tokens(800))
    assert ledger.reserve("run", tokens(500)) == MustWait("team", "max_total_tokens")
    ledger.settle("sibling", tokens(800), tokens(300))
    assert ledger.reserve("run", tokens(500)) == Granted(tokens(500))


def test_a_reservation_that_waited_is_refused_once_the_sibling_settled_in_full():
    ledger = ledger_of(account=Limits(tokens=1000))
    ledger.open("sibling", parent="team")
    ledger.reserve("sibling", tokens(800))
    assert isinstance(ledger.reserve("run", tokens(500)), MustWait)
    ledger.settle("sibling", tokens(800), tokens(800))
    assert ledger.reserve("run", tokens(500)) == Refused("team", "max_total_tokens")


def test_being_told_to_wait_is_not_being_refused():
    assert MustWait("run", "max_steps") != Refused("run", "max_steps")


def test_a_run_does_not_wait_below_when_it_can_never_fit_above():
    ledger = ledger_of(run=Limits(steps=1), account=Limits(tool_calls=0))
    ledger.reserve("run", STEP)
    assert ledger.reserve("run", Amount(steps=1, tool_calls=1)) == Refused("team", "max_tool_calls")


def test_a_figure_of_zero_fits_where_its_limit_is_overdrawn():
    ledger = ledger_of(run=Limits(tokens=10))
    ledger.reserve("run", tokens(10))
    ledger.settle("run", tokens(10), tokens(25))
    assert ledger.reserve("run", CALL) == Granted(CALL)
    assert ledger.reserve("run", tokens(1)) == Refused("run", "max_total_tokens")


# ---- capping


def model_call(read: int, write: int, nano_per_token: int = 0) -> tuple[Amount, Amount]:
    whole = Amount(1, 0, read + write, (read + write) * nano_per_token)
    return whole, Amount(tokens=write, cost_nano_usd=write * nano_per_token)


def test_a_model_call_is_capped_to_what_is_left_before_it_waits():
    ledger = ledger_of(run=Limits(tokens=5000))
    ledger.reserve("run", tokens(3000))
    whole, output = model_call(read=1000, write=4096)
    assert ledger.reserve("run", whole, can_cap_tokens=True, output=output) == Granted(Amount(1, 0, 2000), 1000)
    assert ledger.left("run") == Limits(tokens=0)


def test_a_cap_keeps_the_price_within_its_limit_too():
    ledger = ledger_of(account=Limits(cost_nano_usd=20_000))
    whole, output = model_call(read=1000, write=4096, nano_per_token=10)
    answer = ledger.reserve("run", whole, can_cap_tokens=True, output=output)
    assert answer == Granted(Amount(1, 0, 2000, 20_000), 1000)


def test_a_call_is_never_capped_below_the_floor():
    whole, output = model_call(read=1000, write=4096)
    at_floor = ledger_of(run=Limits(tokens=1256))
    assert at_floor.reserve("run", whole, can_cap_tokens=True, output=output) == Granted(Amount(1, 0, 1256), 256)
    below = ledger_of(run=Limits(tokens=1255))
    assert below.reserve("run", whole, can_cap_tokens=True, output=output) == Refused("run", "max_total_tokens")
    lower = below.reserve("run", whole, can_cap_tokens=True, output=output, token_floor=255)
    assert lower == Granted(Amount(1, 0, 1255), 255)


def test_a_call_that_asks_for_less_than_the_floor_gets_all_of_it_or_nothing():
    whole, output = model_call(read=0, write=100)
    assert ledger_of(run=Limits(tokens=100)).reserve("run", whole, can_cap_tokens=True) == Granted(whole)
    short = ledger_of(run=Limits(tokens=99))
    assert short.reserve("run", whole, can_cap_tokens=True, output=output) == Refused("run", "max_total_tokens")


def test_a_call_waits_when_the_floor_would_fit_without_its_siblings():
    ledger = ledger_of(run=Limits(tokens=2000))
    ledger.reserve("run", tokens(1000))
    whole, output = model_call(read=900, write=4096)
    assert ledger.reserve("run", whole, can_cap_tokens=True, output=output) == MustWait("run", "max_total_tokens")


def test_the_floor_itself_is_worth_waiting_for():
    ledger = ledger_of(run=Limits(tokens=1256))
    ledger.reserve("run", tokens(1))
    whole, output = model_call(read=1000, write=4096)
    assert ledger.reserve("run", whole, can_cap_tokens=True, output=output) == MustWait("run", "max_total_tokens")
    ledger.settle("run", tokens(1), tokens(1))
    assert ledger.reserve("run", whole, can_cap_tokens=True, output=output) == Refused("run", "max_total_tokens")


def test_a_cap_does_not_help_where_steps_are_used_up():
    ledger = ledger_of(run=Limits(steps=1, tokens=10_000))
    answer = ledger.reserve("run", Amount(steps=2, tokens=20_000), can_cap_tokens=True)
    assert answer == Refused("run", "max_steps")


def test_without_leave_to_cap_a_call_is_refused_whole():
    ledger = ledger_of(run=Limits(tokens=5000))
    assert ledger.reserve("run", tokens(5001)) == Refused("run", "max_total_tokens")


# ---- settling and releasing


def test_settling_puts_the_true_figure_in_the_place_of_the_reserved_one():
    ledger = ledger_of(run=Limits(tokens=1000))
    ledger.reserve("run", tokens(900))
    ledger.settle("run", tokens(900), tokens(250))
    assert ledger.spent("run") == ledger.spent("team") == tokens(250)
    assert ledger.reserved("run") == ledger.reserved("team") == ZERO
    assert ledger.left("run") == Limits(tokens=750)


def test_a_figure_past_its_reservation_counts_in_full():
    ledger = ledger_of(run=Limits(tokens=1000))
    ledger.reserve("run", tokens(900))
    ledger.settle("run", tokens(900), tokens(1100))
    assert ledger.spent("team") == tokens(1100)
    assert ledger.left("run") == Limits(tokens=0)


def test_releasing_gives_everything_back():
    ledger = ledger_of(run=Limits(steps=1))
    ledger.reserve("run", STEP)
    ledger.release("run", STEP)
    assert ledger.left("run") == Limits(steps=1)
    assert ledger.spent("team") == ZERO


def test_settling_a_reservation_twice_is_refused_and_changes_nothing():
    ledger = ledger_of(run=Limits(steps=3))
    ledger.reserve("run", STEP)
    ledger.settle("run", STEP, STEP)
    with pytest.raises(UnreservedAmountError, match="'run'"):
        ledger.settle("run", STEP, STEP)
    with pytest.raises(UnreservedAmountError):
        ledger.release("run", STEP)
    assert (ledger.spent("run"), ledger.left("run")) == (STEP, Limits(steps=2))


@pytest.mark.parametrize("limit", get_args(LimitName))
def test_no_more_of_any_figure_is_settled_than_was_reserved(limit: LimitName):
    ledger = ledger_of()
    everything = Amount(5, 5, 5, 5)
    ledger.reserve("run", everything)
    ledger.settle("run", everything, everything)
    ledger.reserve("run", only(limit, 2))
    with pytest.raises(UnreservedAmountError):
        ledger.settle("run", only(limit, 3), ZERO)
    assert ledger.reserved("run") == only(limit, 2)
    ledger.settle("run", only(limit, 2), ZERO)
    assert (ledger.reserved("run"), ledger.spent("run")) == (ZERO, everything)


# ---- opening and closing


def test_what_a_closed_account_spent_stays_above():
    ledger = ledger_of()
    ledger.reserve("run", CALL)
    ledger.settle("run", CALL, CALL)
    assert ledger.close("run") == CALL
    assert ledger.spent("team") == CALL
    assert "run" not in ledger


def test_closing_charges_what_nobody_settled():
    ledger = ledger_of(account=Limits(tokens=1000))
    ledger.reserve("run", tokens(400))
    assert ledger.close("run") == tokens(400)
    assert (ledger.spent("team"), ledger.reserved("team")) == (tokens(400), ZERO)


def test_an_account_closes_after_those_below_it():
    ledger = ledger_of()
    with pytest.raises(AccountOpenError, match="1 open below it"):
        ledger.close("team")
    ledger.close("run")
    assert ledger.close("team") == ZERO
    assert len(ledger) == 0


def test_an_account_opens_once():
    ledger = ledger_of()
    with pytest.raises(AccountOpenError, match="'run' is open already"):
        ledger.open("run", parent="team")
    ledger.close("run")
    assert ledger.close("team") == ZERO


def test_an_account_does_not_open_under_an_unknown_one():
    ledger = Ledger()
    with pytest.raises(UnknownAccountError, match="'team'"):
        ledger.open("run", parent="team")
    assert "run" not in ledger


def test_every_call_on_an_unknown_account_says_so():
    ledger = ledger_of()
    ledger.close("run")
    calls = [
        lambda: ledger.reserve("run", STEP),
        lambda: ledger.settle("run", STEP, STEP),
        lambda: ledger.release("run", STEP),
        lambda: ledger.close("run"),
        lambda: ledger.spent("run"),
        lambda: ledger.reserved("run"),
        lambda: ledger.left("run"),
        lambda: ledger.set_limits("run", NO_LIMITS),
    ]
    for call in calls:
        with pytest.raises(UnknownAccountError, match="no account 'run' is open") as caught:
            call()
        assert isinstance(caught.value, UsageError)
        assert isinstance(caught.value, LookupError)
    assert (ledger.spent("team"), ledger.reserved("team")) == (ZERO, ZERO)


def test_a_ledger_rebuilt_after_a_crash_counts_what_was_spent_at_every_level():
    ledger = Ledger()
    ledger.open("team", Limits(steps=10), spent=Amount(steps=2))
    ledger.open("run", Limits(steps=5), "team", spent=Amount(steps=3))
    ledger.open("child", NO_LIMITS, "run", spent=Amount(steps=1))
    assert [ledger.spent(name).steps for name in ("child", "run", "team")] == [1, 4, 6]
    assert ledger.left("child") == Limits(steps=1)


def test_a_run_resumed_in_the_same_process_is_not_counted_twice_above():
    ledger = ledger_of(run=Limits(steps=1), account=Limits(steps=3))
    ledger.reserve("run", STEP)
    ledger.settle("run", STEP, STEP)
    spent = ledger.close("run")
    ledger.open("run", Limits(steps=2), "team", spent, counted_above=True)
    assert (ledger.spent("run"), ledger.spent("team")) == (STEP, STEP)
    assert ledger.reserve("run", STEP) == Granted(STEP)


def test_an_account_reopened_past_its_limits_grants_nothing_more():
    ledger = Ledger()
    ledger.open("run", Limits(tokens=100), spent=tokens(150))
    assert ledger.left("run") == Limits(tokens=0)
    assert ledger.reserve("run", tokens(1)) == Refused("run", "max_total_tokens")


# ---- limits


def test_larger_limits_make_room_for_a_run_in_progress():
    ledger = ledger_of(run=Limits(steps=1))
    ledger.reserve("run", STEP)
    assert ledger.reserve("run", STEP) == MustWait("run", "max_steps")
    ledger.set_limits("run", Limits(steps=2))
    assert ledger.reserve("run", STEP) == Granted(STEP)


def test_a_limit_set_late_counts_what_was_reserved_without_one():
    ledger = ledger_of()
    ledger.reserve("run", tokens(700))
    ledger.set_limits("team", Limits(tokens=1000))
    assert ledger.left("run") == Limits(tokens=300)
    ledger.settle("run", tokens(700), tokens(100))
    assert ledger.left("run") == Limits(tokens=900)


def test_limits_below_what_is_spent_grant_nothing_more():
    ledger = ledger_of()
    ledger.reserve("run", tokens(700))
    ledger.settle("run", tokens(700), tokens(700))
    ledger.set_limits("run", Limits(tokens=500))
    assert ledger.left("run") == Limits(tokens=0)
    assert ledger.spent("run") == tokens(700)


def test_what_is_left_is_the_least_of_the_account_and_those_above():
    ledger = ledger_of(run=Limits(steps=5, tokens=100), account=Limits(steps=3, cost_nano_usd=9))
    assert ledger.left("run") == Limits(steps=3, tokens=100, cost_nano_usd=9)
    assert ledger.left("team") == Limits(steps=3, cost_nano_usd=9)


def test_a_budget_becomes_limits():
    budget = RunBudget(max_steps=16, max_tool_calls=8, max_total_tokens=9000, max_cost_usd=0.50, max_duration=60)
    assert Limits.of(budget) == Limits(16, 8, 9000, 500_000_000)
    assert Limits.of(RunBudget()) == Limits.of(None) == NO_LIMITS


def test_a_budget_is_raised_by_what_it_limits_and_nothing_else():
    budget = RunBudget(max_steps=16, max_cost_usd=0.7, max_duration=60)
    spent = Amount(steps=2, tool_calls=3, tokens=40, cost_nano_usd=100_000_000)
    grown = raised(budget, spent)
    assert grown == RunBudget(max_steps=18, max_cost_usd=0.8, max_duration=60)
    assert Limits.of(grown) == Limits(18, None, None, 800_000_000)
    assert raised(budget, ZERO) is budget


# ---- money


@pytest.mark.parametrize(
    ("usd", "nano"),
    [(0.1, 100_000_000), (1, 1_000_000_000), (Decimal("0.0000000375"), 38), (1e-12, 1), (0.0, 0), (0.29, 290_000_000)],
)
def test_a_price_is_counted_in_billionths_and_never_understated(usd: float | Decimal, nano: int):
    assert nano_usd(usd) == nano


def test_a_cost_limit_is_never_overstated():
    assert Limits.of(RunBudget(max_cost_usd=1.5e-9)).cost_nano_usd == 1


def test_ten_dimes_are_exactly_a_dollar():
    ledger = ledger_of(run=Limits.of(RunBudget(max_cost_usd=1.0)))
    dime = Amount(cost_nano_usd=nano_usd(0.1))
    for _ in range(10):
        assert ledger.reserve("run", dime) == Granted(dime)
        ledger.settle("run", dime, dime)
    assert ledger.spent("run").cost_usd == 1.0
    assert ledger.reserve("run", Amount(cost_nano_usd=1)) == Refused("run", "max_cost_usd")
