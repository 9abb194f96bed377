"""Session locks: who may append to a session, and which unfinished runs are whose."""

from __future__ import annotations

import pytest

from callboard_protocol.errors import FencedError, SessionLockedError, StoreClosedError, UsageError
from callboard_protocol.states import RunState
from callboard_storage.store_values import Fence

pytestmark = pytest.mark.anyio


async def test_a_lock_is_taken_with_a_batch_and_holds_for_those_that_follow(desk, make):
    lease = desk.store.lease()
    assert lease.token == 0
    await desk.commit(desk.batch_of(0, make.began()), Fence(-1, lease, takes=True))
    assert lease.token > 0
    await desk.commit(desk.batch_of(1, make.step(1)), Fence(0, lease))
    with pytest.raises(SessionLockedError):
        await desk.commit(desk.batch_of(2, make.step(2)), Fence(1))
    assert len(await desk.records()) == 2


async def test_a_batch_without_the_lock_is_refused_also_where_nobody_has_it(desk, make):
    with pytest.raises(FencedError, match="nobody has it"):
        await desk.commit(desk.batch_of(0, make.began()), Fence(-1, desk.store.lease()))
    assert not await desk.records()


async def test_batches_sent_together_take_the_lock_once(desk, make):
    lease = desk.store.lease()
    first = desk.send(desk.batch_of(0, make.began()), Fence(-1, lease, takes=True))
    second = desk.send(desk.batch_of(1, make.step(1)), Fence(0, lease, takes=True))
    assert await first is None
    token = lease.token
    assert await second is None
    assert lease.token == token


async def test_a_lock_is_given_back_with_a_batch(desk, make):
    lease = desk.store.lease()
    await desk.commit(desk.batch_of(0, make.began()), Fence(-1, lease, takes=True))
    await desk.commit(desk.batch_of(1, make.ended(1)), Fence(0, lease, gives=True))
    assert lease.token == 0
    with pytest.raises(FencedError):
        await desk.commit(desk.batch_of(2, make.step(2)), Fence(1, lease))
    await desk.append(2, make.step(2))


async def test_a_lock_can_be_given_back_without_a_record(desk, make):
    lease = desk.store.lease()
    await desk.commit(desk.batch_of(0, make.began()), Fence(-1, lease, takes=True))
    await desk.commit(desk.store.batch("session"), Fence(None, lease, gives=True))
    assert lease.token == 0
    await desk.append(1, make.step(1))


async def test_a_lock_is_taken_and_given_back_in_one_batch(desk, make):
    lease = desk.store.lease()
    await desk.commit(desk.batch_of(0, make.began(), make.ended(1)), Fence(-1, lease, takes=True, gives=True))
    assert lease.token == 0
    await desk.append(2, make.step(2))


async def test_a_later_lease_of_the_same_store_fences_the_earlier_one(desk, make):
    earlier, later = desk.store.lease(), desk.store.lease()
    await desk.commit(desk.batch_of(0, make.began()), Fence(-1, earlier, takes=True))
    await desk.commit(desk.batch_of(1, make.step(1)), Fence(0, later, takes=True))
    assert later.token > earlier.token
    with pytest.raises(FencedError, match=f"token {earlier.token}, the lock now has token {later.token}"):
        await desk.commit(desk.batch_of(2, make.step(2)), Fence(1, earlier))
    await desk.commit(desk.batch_of(2, make.step(2)), Fence(1, later))


async def test_tokens_are_never_used_again(desk, make, new_store):
    tokens = []
    for number in range(3):
        lease = desk.store.lease()
        await desk.commit(desk.batch_of(number, make.step(number)), Fence(number - 1, lease, takes=True))
        tokens.append(lease.token)
        await desk.commit(desk.store.batch("session"), Fence(None, lease, gives=True))
    await desk.store.close()
    await desk.store.open()
    lease = desk.store.lease()
    await desk.commit(desk.batch_of(3, make.step(3)), Fence(2, lease, takes=True))
    assert sorted({*tokens, lease.token}) == [*tokens, lease.token]


async def test_the_sessions_of_a_store_that_was_closed_are_free(desk, make):
    lease = desk.store.lease()
    await desk.commit(desk.batch_of(0, make.began()), Fence(-1, lease, takes=True))
    await desk.store.close()
    await desk.store.open()
    with pytest.raises(UsageError, match="lease for session 'session' was made by another store"):
        await desk.commit(desk.batch_of(1, make.step(1)), Fence(0, lease))
    await desk.append(1, make.step(1))


async def test_a_refused_batch_takes_no_lock(desk, make):
    lease = desk.store.lease()
    with pytest.raises(FencedError):
        await desk.commit(desk.batch_of(5, make.step(5)), Fence(4, lease, takes=True))
    assert lease.token == 0
    await desk.append(0, make.began())


async def test_a_repeated_first_batch_is_a_replay_also_after_the_lock_was_given_back(desk, make):
    lease = desk.store.lease()
    batch = desk.batch_of(0, make.began())
    await desk.commit(batch, Fence(-1, lease, takes=True))
    await desk.commit(desk.batch_of(1, make.ended(1)), Fence(0, lease, gives=True))
    await desk.commit(batch, Fence(-1, lease, takes=True))
    assert lease.token == 0
    assert len(await desk.records()) == 2


async def test_a_locked_session_is_not_deleted(desk, make):
    lease = desk.store.lease()
    await desk.commit(desk.batch_of(0, make.began()), Fence(-1, lease, takes=True))
    with pytest.raises(SessionLockedError):
        await desk.store.delete_session("session")
    await desk.commit(desk.store.batch("session"), Fence(None, lease, gives=True))
    assert (await desk.store.delete_session("session")).total == 1


async def test_a_stores_own_locks_are_not_elsewhere(desk, make):
    assert not await desk.store.held_elsewhere("session")
    await desk.commit(desk.batch_of(0, make.began()), Fence(-1, desk.store.lease(), takes=True))
    assert not await desk.store.held_elsewhere("session")


async def test_unfinished_runs_of_an_earlier_opening_are_claimed_in_admission_order(desk, make):
    for order, (run_id, state) in enumerate(
        [("c", RunState.QUEUED), ("a", RunState.RUNNING), ("b", RunState.SUSPENDED), ("d", RunState.COMPLETED)]
    ):
        batch = desk.store.batch("session")
        batch.put_run(make.entry(run_id, state=state, order=order))
        await desk.commit(batch)
    assert [entry.run_id for entry in await desk.store.claim_unfinished()] == ["c", "a", "b"]
    await desk.store.close()
    with pytest.raises(StoreClosedError):
        await desk.store.claim_unfinished()
    await desk.store.open()
    assert [entry.run_id for entry in await desk.store.claim_unfinished()] == ["c", "a", "b"]


async def test_runs_are_claimed_by_their_ids_and_read_before_that_without_being_claimed(desk, make):
    for order, run_id in enumerate(["a", "b", "c"]):
        batch = desk.store.batch("session")
        batch.put_run(make.entry(run_id, order=order))
        await desk.commit(batch)
    await desk.store.close()
    await desk.store.open()
    assert [entry.run_id for entry in await desk.store.read_claimable()] == ["a", "b", "c"]
    assert await desk.store.release_unfinished(["a", "b", "c"]) == set()  # it has none of them yet
    assert [entry.run_id for entry in await desk.store.claim_unfinished(["c", "a", "nowhere"])] == ["a", "c"]
    assert await desk.store.release_unfinished(["a", "b", "c"]) == {"a", "c"}


async def test_a_run_that_was_given_up_is_whose_who_claims_it_next(desk, make):
    batch = desk.store.batch("session")
    batch.put_run(make.entry())
    await desk.commit(batch)
    assert await desk.store.release_unfinished(["run", "nowhere"]) == {"run"}
    assert not await desk.store.carried_elsewhere("run")
    assert [entry.run_id for entry in await desk.store.claim_unfinished()] == ["run"]


async def test_nobody_died_where_nobody_else_was(desk):
    assert not await desk.store.others_died()
