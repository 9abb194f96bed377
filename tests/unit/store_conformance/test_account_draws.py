"""What runs draw on an account: every store grants no more than there is, whoever asks, and forgets nothing of it."""

from __future__ import annotations

import pytest

from callboard_protocol.amounts import ZERO, Amount, Granted, MustWait, Refused
from callboard_protocol.drawing import BeginDraw, DrawChange, Drawn, ReserveDraw, SettleDraw, standing
from callboard_protocol.named_accounts import AccountCharge
from callboard_protocol.runs import RunBudget
from callboard_protocol.states import RunState
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.store import Store

pytestmark = pytest.mark.anyio

CALLS = RunBudget(max_steps=3)
TOKENS = RunBudget(max_total_tokens=1000)


@pytest.fixture
def step() -> Amount:
    return Amount(steps=1)


async def drawn(store: Store, *changes: DrawChange, for_the_dead: bool = False) -> Drawn:
    found = await store.draw("team", changes, for_the_dead=for_the_dead)
    assert found is not None
    return found


async def charged(store, desk, run_id: str, *amount: int) -> None:
    batch = store.batch("session")
    batch.charge(AccountCharge(account="team", run_id=run_id, attempt=1, amount=(*amount, 0, 0, 0)[:4]))
    await desk.commit(batch)


async def test_nobody_draws_on_an_account_that_is_not_open(store, step):
    assert await store.draw("team", [ReserveDraw("r", step)]) is None


async def test_reservations_wait_for_room_that_may_come_and_are_refused_where_none_can(store, step):
    await store.keep_account("team", CALLS, opens=True)
    first = await drawn(store, *(ReserveDraw(f"r{n}", step) for n in range(4)))
    assert first.answers == (Granted(step), Granted(step), Granted(step), MustWait("team", "max_steps"))
    settled = await drawn(store, SettleDraw("r0", step, step), SettleDraw("r1", step, ZERO), ReserveDraw("r3", step))
    assert settled.answers == (None, None, Granted(step))
    account = standing(settled.entry)
    assert (account.spent.steps, account.reserved.steps, account.left.steps) == (1, 2, 0)
    ended = await drawn(store, SettleDraw("r2", step, step), SettleDraw("r3", step, step), ReserveDraw("r4", step))
    assert ended.answers[-1] == Refused("team", "max_steps")
    assert await store.read_account("team") == ended.entry


async def test_what_is_spent_for_certain_leaves_nothing_to_settle(store, step):
    await store.keep_account("team", CALLS, opens=True)
    account = standing((await drawn(store, ReserveDraw("r", step, is_spent=True))).entry)
    assert (account.spent.steps, account.reserved.steps) == (1, 0)


async def test_a_model_call_is_told_to_write_less_where_that_makes_it_fit(store):
    await store.keep_account("team", TOKENS, opens=True)
    call = ReserveDraw("r", Amount(1, 0, 4096), can_cap_tokens=True, output=Amount(tokens=4000))
    (answer,) = (await drawn(store, call)).answers
    assert answer == Granted(Amount(1, 0, 1000), 904)


async def test_a_charge_takes_the_place_of_what_its_run_has_drawn(store, desk, step):
    await store.keep_account("team", CALLS, opens=True)
    await drawn(store, ReserveDraw("r", step), ReserveDraw("r", step, is_spent=True), ReserveDraw("q", step))
    await charged(store, desk, "r", 1)
    account = standing(await store.read_account("team"))
    assert (account.spent.steps, account.reserved.steps, account.left.steps) == (1, 1, 1)
    # What the run settles behind its end is nobody's any more.
    late = await drawn(store, SettleDraw("r", step, step), ReserveDraw("p", step))
    assert late.answers == (None, Granted(step))
    assert standing(late.entry).spent.steps == 1


async def test_a_run_that_goes_on_draws_what_it_has_recorded_and_no_more(store, step):
    await store.keep_account("team", CALLS, opens=True)
    await drawn(store, ReserveDraw("r", step), ReserveDraw("r", step))
    account = standing((await drawn(store, BeginDraw("r", step))).entry)
    assert (account.spent.steps, account.reserved.steps, account.left.steps) == (1, 0, 2)


async def test_a_run_resumed_behind_its_charge_draws_anew(store, desk, step):
    await store.keep_account("team", CALLS, opens=True)
    await drawn(store, ReserveDraw("r", step, is_spent=True))
    await charged(store, desk, "r", 1)
    account = standing((await drawn(store, BeginDraw("r", ZERO), ReserveDraw("r", step, is_spent=True))).entry)
    assert account.spent.steps == 2


async def test_another_budget_counts_what_is_drawn(store, step):
    await store.keep_account("team", CALLS, opens=True)
    await drawn(store, ReserveDraw("r", step), ReserveDraw("r", step, is_spent=True))
    account = standing(await store.keep_account("team", RunBudget(max_steps=2)))
    assert (account.spent.steps, account.reserved.steps, account.left.steps) == (1, 1, 0)


async def test_a_deleted_account_forgets_what_was_drawn(store, step):
    await store.keep_account("team", CALLS, opens=True)
    await drawn(store, ReserveDraw("r", step))
    await store.delete_account("team")
    assert standing(await store.keep_account("team", CALLS, opens=True)).reserved.steps == 0
    assert (await drawn(store, ReserveDraw("r", step))).answers == (Granted(step),)


@pytest.fixture
async def two_stores(tmp_path):
    """Two open stores on one directory, as two processes have them."""
    stores = [LmdbStore(tmp_path / "data", map_size=1 << 30) for _ in range(2)]
    for store in stores:
        await store.open()
    yield stores
    for store in stores:
        await store.close()


async def test_all_who_have_the_directory_open_share_one_limit(two_stores, step):
    one, other = two_stores
    await one.keep_account("team", CALLS, opens=True)
    await drawn(one, ReserveDraw("a", step), ReserveDraw("a", step))
    assert (await drawn(other, ReserveDraw("b", step), ReserveDraw("b", step))).answers == (
        Granted(step),
        MustWait("team", "max_steps"),
    )


async def test_who_lost_a_run_to_another_settles_nothing_of_it_any_more(two_stores, step):
    one, other = two_stores
    await one.keep_account("team", CALLS, opens=True)
    await drawn(one, ReserveDraw("r", step))
    await drawn(other, BeginDraw("r", step))
    account = standing((await drawn(one, SettleDraw("r", step, ZERO))).entry)
    assert (account.spent.steps, account.reserved.steps) == (1, 0)


async def test_what_the_dead_had_reserved_counts_as_spent_for_those_who_wait(two_stores, desk, make, step):
    one, other = two_stores
    await one.keep_account("team", CALLS, opens=True)
    batch = one.batch("session")
    batch.put_run(make.entry("kept", state=RunState.RUNNING))
    await type(desk)(one).commit(batch)
    await drawn(one, ReserveDraw("kept", step), ReserveDraw("forgotten", step), ReserveDraw("forgotten", step))
    await one.close()
    (answer,) = (await drawn(other, ReserveDraw("r", step))).answers
    assert answer == MustWait("team", "max_steps")
    swept = await drawn(other, ReserveDraw("r", step), for_the_dead=True)
    assert swept.answers == (Refused("team", "max_steps"),)
    assert (swept.entry.spent[0], swept.entry.used[0], swept.entry.reserved[0]) == (2, 1, 0)
    # The run that is on disk goes on from what it recorded; of the other nothing is known but that.
    begun = await drawn(other, BeginDraw("kept", ZERO), ReserveDraw("r", step), for_the_dead=True)
    assert begun.answers == (None, Granted(step))
    await one.open()


async def test_an_account_is_brought_up_to_date_as_it_is_kept(two_stores, step):
    one, other = two_stores
    await one.keep_account("team", CALLS, opens=True)
    await drawn(one, ReserveDraw("forgotten", step))
    await one.close()
    assert (await other.keep_account("team", None)).spent[0] == 1
    await one.open()
