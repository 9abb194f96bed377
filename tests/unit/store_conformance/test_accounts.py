"""Named accounts: what runs charge as they end is in them, once, whoever looks."""

from __future__ import annotations

import pytest

from callboard_protocol.named_accounts import AccountCharge
from callboard_protocol.runs import RunBudget

pytestmark = pytest.mark.anyio

BUDGET = RunBudget(max_steps=100)


def charge(run_id: str, steps: int, account: str = "team", attempt: int = 1) -> AccountCharge:
    return AccountCharge(account=account, run_id=run_id, attempt=attempt, amount=(steps, 0, 10 * steps, 0))


async def charged(store, desk, *charges: AccountCharge) -> None:
    batch = store.batch("session")
    for one in charges:
        batch.charge(one)
    await desk.commit(batch)


async def test_an_account_is_kept_under_its_name(store):
    assert await store.read_account("team") is None
    assert await store.keep_account("team", BUDGET) is None
    opened = await store.keep_account("team", BUDGET, opens=True)
    assert (opened.name, opened.budget, opened.spent) == ("team", BUDGET, (0, 0, 0, 0))
    assert await store.read_account("team") == opened
    await store.keep_account("a", BUDGET, opens=True)
    assert await store.list_accounts() == ["a", "team"]


async def test_charges_count_once_however_often_the_account_takes_them_in(store, desk):
    await store.keep_account("team", BUDGET, opens=True)
    await charged(store, desk, charge("r1", 3), charge("r2", 4), charge("r1", 1, attempt=2), charge("r", 50, "tea"))
    assert (await store.read_account("team")).spent == (8, 0, 80, 0)
    for _ in range(2):
        assert (await store.keep_account("team", None)).spent == (8, 0, 80, 0)
        assert (await store.read_account("team")).spent == (8, 0, 80, 0)
    await charged(store, desk, charge("r3", 1))
    changed = await store.keep_account("team", RunBudget(max_steps=5), opens=True)
    assert (changed.spent, changed.budget.max_steps) == ((9, 0, 90, 0), 5)


async def test_the_same_charge_committed_again_counts_once(store, desk):
    await store.keep_account("team", BUDGET, opens=True)
    await charged(store, desk, charge("r1", 3))
    await charged(store, desk, charge("r1", 3))
    assert (await store.read_account("team")).spent == (3, 0, 30, 0)


async def test_many_charges_are_all_counted(store, desk):
    await store.keep_account("team", BUDGET, opens=True)
    await charged(
        store, desk, *(charge(f"r{n}", 1) for n in range(2500)), *(charge(f"q{n}", 1, "teams") for n in range(9))
    )
    assert (await store.read_account("team")).spent[0] == 2500
    assert (await store.keep_account("team", None)).spent[0] == 2500


async def test_a_deleted_account_leaves_nothing_and_touches_no_other(store, desk):
    for name in ("team", "teams"):
        await store.keep_account(name, BUDGET, opens=True)
        await charged(store, desk, charge("r1", 3, name))
    assert await store.delete_account("team")
    assert not await store.delete_account("team")
    assert await store.list_accounts() == ["teams"]
    assert (await store.keep_account("team", BUDGET, opens=True)).spent == (0, 0, 0, 0)
    assert (await store.read_account("teams")).spent == (3, 0, 30, 0)
