"""The pure parts of the stores: keys, fences, refusals, the queue, which store is meant."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from callboard_protocol.errors import FencedError, InvalidIdentifierError, SessionLockedError, StoreError
from callboard_protocol.records import StepCompleted
from callboard_storage import keys
from callboard_storage.batch import FrameBatch
from callboard_storage.fencing import Holder, Refusals, Verdict, claimable, holder_in, judge
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.memory_store import MemoryStore
from callboard_storage.open_store import open_store
from callboard_storage.store_values import Fence, Lease
from callboard_storage.write_queue import Commit, Operation, WriteQueue


def step(ordinal: int, value: Any = None) -> StepCompleted:
    return StepCompleted(run_id="run", ordinal=ordinal, at=1.0, step=str(ordinal), kind="tool", value=value)


def batch_of(first: int, *values: Any, session_id: str = "session") -> FrameBatch:
    batch = FrameBatch(session_id)
    for number, value in enumerate(values):
        batch.append(first + number, step(number, value))
    return batch


# ---- keys


def test_keys_of_a_session_lie_together_and_in_order():
    log = [
        keys.session_prefix(session_id) + keys.pack_sequence(sequence)
        for session_id in ("a", "a b", "ab", "b")
        for sequence in (0, 1, 255, 256, 2**40)
    ]
    assert sorted(log) == log
    prefix = keys.session_prefix("a")
    inside = [key for key in log if prefix <= key < keys.after_prefix(prefix)]
    assert inside == log[:5]
    assert [keys.sequence_of(key) for key in inside] == [0, 1, 255, 256, 2**40]


def test_the_longest_ids_make_keys_that_lmdb_takes():
    prefix = keys.session_prefix("s" * 200)
    assert len(prefix + keys.pack_sequence(2**64 - 1)) <= keys.MAX_KEY_BYTES
    assert len(keys.name_key(prefix, "r" * 200 + ":step:" + "9" * 20, "checkpoint id")) <= keys.MAX_KEY_BYTES


def test_a_name_too_long_for_its_key_says_what_is_left():
    with pytest.raises(InvalidIdentifierError, match="310 bytes are left"):
        keys.name_key(keys.session_prefix("s" * 200), "n" * 311, "name")
    assert keys.name_key(keys.session_prefix("s" * 200), "n" * 310, "name")


# ---- fences


def test_a_batch_is_judged_by_where_the_log_ends():
    batch = batch_of(3, "x", "y")
    frames = dict(batch.log)

    def judged(last: int, frames: dict[bytes, bytes] = frames, batch: FrameBatch = batch) -> object:
        return judge(batch, Fence(2), last, None, is_alive=lambda _: True, frame_at=frames.get)

    assert judged(2) is Verdict.WRITE
    assert judged(4) is Verdict.REPLAY
    assert judged(9) is Verdict.REPLAY
    assert isinstance(judged(3), FencedError)
    assert isinstance(judged(1), FencedError)
    assert isinstance(judged(4, {}), FencedError)
    assert isinstance(judged(4, batch=FrameBatch("session")), FencedError)


ME, OTHER = b"m" * 16, b"o" * 16


def lease(token: int = 0) -> Lease:
    made = Lease(ME)
    made.token = token
    return made


@pytest.mark.parametrize(
    ("fence", "holder", "other_lives", "expected"),
    [
        (Fence(0, lease(7)), Holder(7, ME), True, Verdict.WRITE),
        (Fence(0, lease(7)), Holder(7, OTHER), True, FencedError),
        (Fence(0, lease(7)), Holder(8, OTHER), True, FencedError),
        (Fence(0, lease(7)), Holder(8, OTHER), False, FencedError),
        (Fence(0, lease(7)), Holder(8, ME), True, FencedError),
        (Fence(0, lease(7)), None, True, FencedError),
        (Fence(0, lease()), None, True, FencedError),
        (Fence(0, lease(), takes=True), None, True, Verdict.WRITE),
        (Fence(0, lease(), takes=True), Holder(8, OTHER), False, Verdict.WRITE),
        (Fence(0, lease(), takes=True), Holder(8, OTHER), True, SessionLockedError),
        (Fence(0, lease(), takes=True), Holder(8, ME), True, Verdict.WRITE),
        (Fence(0, lease(7), takes=True), Holder(8, OTHER), True, SessionLockedError),
        (Fence(0), None, True, Verdict.WRITE),
        (Fence(0), Holder(8, OTHER), False, Verdict.WRITE),
        (Fence(0), Holder(8, OTHER), True, SessionLockedError),
        (Fence(None, lease(7), gives=True), Holder(7, ME), True, Verdict.WRITE),
        (Fence(None, lease(7), gives=True), Holder(8, OTHER), True, FencedError),
    ],
)
def test_a_batch_is_judged_by_who_has_the_lock(fence, holder, other_lives, expected):
    verdict = judge(
        FrameBatch("session"),
        fence,
        0,
        holder,
        is_alive=lambda owner: owner == ME or other_lives,
        frame_at={}.get,
    )
    assert verdict is expected or isinstance(verdict, expected if isinstance(expected, type) else ())


def test_a_damaged_lock_names_nobody_who_is_alive():
    assert holder_in(Holder(9, ME).pack()) == Holder(9, ME)
    assert holder_in(None) is None
    assert holder_in(b"damaged") == Holder(0, b"")


def test_runs_of_the_dead_and_ones_own_can_be_claimed():
    rows = [(b"1", ME), (b"2", OTHER), (b"3", b"dead"), (b"4", b"dead"), (b"5", b"")]
    asked: list[bytes] = []

    def is_alive(owner: bytes) -> bool:
        asked.append(owner)
        return owner == OTHER

    assert claimable(rows, ME, is_alive) == [b"1", b"3", b"4", b"5"]
    assert asked == [OTHER, b"dead", b""]


SESSION = (ME, "session")


def test_a_refusal_stands_until_it_is_delivered_and_for_what_was_committed_before():
    refusals = Refusals()
    before = refusals.stamp
    assert not refusals
    refusals.refuse(SESSION, FencedError("no"))
    assert refusals
    assert isinstance(refusals.standing(SESSION, before), FencedError)
    assert isinstance(refusals.standing(SESSION, refusals.stamp), FencedError)
    assert refusals.standing((ME, "other"), before) is None
    # Another open store's batches of the very session are none of this.
    assert refusals.standing((OTHER, "session"), before) is None
    refusals.forget_delivered()
    assert isinstance(refusals.standing(SESSION, before), FencedError)

    refusals.deliver(SESSION)
    assert isinstance(refusals.standing(SESSION, before), FencedError)
    assert refusals.standing(SESSION, refusals.stamp) is None
    refusals.deliver(SESSION)
    assert refusals.standing(SESSION, refusals.stamp) is None

    refusals.forget_delivered()
    assert not refusals


def test_a_second_refusal_stands_until_it_is_delivered_as_well():
    refusals = Refusals()
    refusals.refuse(SESSION, FencedError("first"))
    refusals.deliver(SESSION)
    stamp = refusals.stamp
    refusals.refuse(SESSION, FencedError("second"))
    assert str(refusals.standing(SESSION, stamp)).startswith("second")
    refusals.deliver(SESSION)
    assert refusals.standing(SESSION, stamp) is not None
    assert refusals.standing(SESSION, refusals.stamp) is None


# ---- the queue


class Alarm:
    """Counts how often the writer was woken."""

    def __init__(self) -> None:
        self.rings = 0

    def __call__(self) -> None:
        self.rings += 1


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def commit_of(loop: asyncio.AbstractEventLoop, size: int) -> Commit:
    return Commit(batch_of(0, "x" * size), Fence(-1), loop, lambda _: None, 0)


def test_only_the_first_of_a_group_wakes_the_writer(loop):
    alarm = Alarm()
    queue = WriteQueue(alarm)
    first = [commit_of(loop, 1) for _ in range(3)]
    for item in first:
        queue.put(item)
    assert alarm.rings == 1
    assert queue.take() == first
    queue.put(first[0])
    assert alarm.rings == 1
    assert queue.take() == [first[0]]
    assert queue.take() is None
    queue.put(first[1])
    assert alarm.rings == 2


def test_a_group_is_bounded_in_bytes_and_the_rest_keeps_its_turn(loop):
    queue = WriteQueue(Alarm(), group_bytes=10_000)
    items = [commit_of(loop, size) for size in (4000, 4000, 4000, 50_000, 10, 10)]
    for item in items:
        queue.put(item)
    groups = []
    while (group := queue.take()) is not None:
        groups.append(group)
    assert groups == [items[:2], items[2:3], items[3:4], items[4:]]


def test_an_operation_has_a_transaction_to_itself(loop):
    queue = WriteQueue(Alarm())
    operation = Operation("session", lambda _: 0, loop, lambda _count, _error: None)
    commits = [commit_of(loop, 1) for _ in range(4)]
    for item in (operation, *commits[:2], operation, *commits[2:]):
        queue.put(item)
    assert [queue.take() for _ in range(5)] == [operation, commits[:2], operation, commits[2:], None]


def test_what_is_put_just_before_the_writer_falls_asleep_is_taken(loop):
    class LateArrival(deque[Any]):
        """Empty when it is first looked at; an item comes before the look has consequences."""

        item: Any = commit_of(loop, 1)

        def __bool__(self) -> bool:
            if self.item is not None:
                item, self.item = self.item, None
                queue.put(item)
                return False
            return len(self) > 0

    alarm = Alarm()
    queue = WriteQueue(alarm)
    queue.put(commit_of(loop, 1))
    queue.take()
    queue._waiting = LateArrival()
    assert queue.take() is not None
    assert alarm.rings == 1
    assert queue.take() is None


def test_no_wakening_is_lost_between_threads(loop):
    """Four threads put as fast as they can while a fifth takes and falls asleep as often as it can."""
    bell = threading.Semaphore(0)
    queue = WriteQueue(bell.release, group_bytes=1)
    item = commit_of(loop, 1)
    each, taken = 2000, 0

    def put() -> None:
        for _ in range(each):
            queue.put(item)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    while taken < 4 * each:
        assert bell.acquire(timeout=30), f"asleep with {4 * each - taken} waiting"
        while queue.take() is not None:
            taken += 1
    for thread in threads:
        thread.join()


# ---- which store is meant


def test_a_path_means_a_directory_and_none_means_memory(tmp_path: Path):
    assert isinstance(open_store(None), MemoryStore)
    assert isinstance(open_store(tmp_path / "data"), LmdbStore)
    assert isinstance(open_store(str(tmp_path / "data")), LmdbStore)
    store = MemoryStore()
    assert open_store(store) is store


def test_errors_are_fresh_for_each_receiver():
    error = StoreError("once", context={"a": 1})
    twin = error.fresh()
    assert twin is not error
    assert (type(twin), str(twin), twin.context) == (StoreError, str(error), {"a": 1})
