"""Letters: for a run that has not ended, whoever carries it; taken in once, and gone with the run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from callboard_protocol.errors import (
    AlreadyDecidedError,
    RunEndedError,
    UnpersistableValueError,
)
from callboard_protocol.letters import PostedCancellation, PostedDecision, PostedSignal
from callboard_protocol.states import RunState
from callboard_protocol.tools import Allow, Deny
from callboard_storage.posting import post, send

pytestmark = pytest.mark.anyio


async def begin(store, desk, make, run_id="run", session_id="session"):
    batch = store.batch(session_id)
    batch.put_run(make.entry(run_id, session_id))
    await desk.commit(batch)


async def end(store, desk, make, run_id="run", session_id="session"):
    batch = store.batch(session_id)
    batch.put_run(make.entry(run_id, session_id, RunState.CANCELLED))
    await desk.commit(batch)


def decision(verdict: Any = None, **fields: Any) -> PostedDecision:
    return PostedDecision(run_id="run", step="3", reason="approval", decision=verdict or Allow(), **fields)


async def test_a_letter_is_read_by_its_run_alone(store, desk, make):
    await begin(store, desk, make)
    await begin(store, desk, make, "other")
    await post(store, "session", decision(by="ann"))
    assert await store.read_letters("session", "run") == [decision(by="ann")]
    assert await store.read_letters("session", "other") == []


async def test_signals_are_read_in_the_order_they_were_sent(store, desk, make):
    await begin(store, desk, make)
    for value in range(20):
        await send(store, "session", "run", "mail", value)
    assert [letter.value for letter in await store.read_letters("session", "run")] == list(range(20))


async def test_a_signal_follows_those_that_were_numbered_by_a_faster_clock(store, desk, make):
    await begin(store, desk, make)
    await post(store, "session", PostedSignal(run_id="run", number=1 << 62, channel="mail", value="first"))
    await send(store, "session", "run", "mail", "second")
    assert [letter.value for letter in await store.read_letters("session", "run")] == ["first", "second"]


async def test_a_call_is_decided_once(store, desk, make):
    await begin(store, desk, make)
    await post(store, "session", decision(Allow(), by="ann"))
    with pytest.raises(AlreadyDecidedError, match="run:3"):
        await post(store, "session", decision(Deny("too dear"), by="bob"))
    (stands,) = await store.read_letters("session", "run")
    assert stands.by == "ann"


async def test_of_two_decisions_in_one_transaction_one_stands(store, desk, make):
    await begin(store, desk, make)
    outcomes = await asyncio.gather(
        *(post(store, "session", decision(by=name)) for name in ("ann", "bob", "cid")), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes].count(AlreadyDecidedError) == 2
    assert len(await store.read_letters("session", "run")) == 1


async def test_what_is_asked_anew_is_decided_anew(store, desk, make):
    await begin(store, desk, make)
    await post(store, "session", decision())
    await post(store, "session", decision(attempt=2))
    await post(store, "session", decision(arguments_digest=b"others"))
    assert len(await store.read_letters("session", "run")) == 3


async def test_nothing_is_posted_to_a_run_that_has_ended(store, desk, make):
    await begin(store, desk, make)
    await end(store, desk, make)
    with pytest.raises(RunEndedError, match="'run'"):
        await send(store, "session", "run", "mail", 1)
    with pytest.raises(RunEndedError):
        await send(store, "session", "unknown", "mail", 1)


async def test_a_run_that_ends_leaves_no_letter(store, desk, make):
    await begin(store, desk, make)
    await send(store, "session", "run", "mail", 1)
    await post(store, "session", PostedCancellation(run_id="run", by="ann"))
    await end(store, desk, make)
    assert await store.read_letters("session", "run") == []


async def test_a_letter_posted_together_with_the_end_is_refused_or_gone(store, desk, make):
    await begin(store, desk, make)
    posting = asyncio.ensure_future(post(store, "session", decision()))
    await end(store, desk, make)
    await asyncio.gather(posting, return_exceptions=True)
    assert await store.read_letters("session", "run") == []


async def test_a_letter_that_was_taken_in_is_not_read_again(store, desk, make):
    await begin(store, desk, make)
    await send(store, "session", "run", "mail", "first")
    await send(store, "session", "run", "mail", "second")
    first, _ = await store.read_letters("session", "run")
    batch = store.batch("session")
    batch.take_letter(first)
    await desk.commit(batch)
    assert [letter.value for letter in await store.read_letters("session", "run")] == ["second"]


async def test_a_signal_of_many_megabytes_comes_back(store, desk, make):
    await begin(store, desk, make)
    await send(store, "session", "run", "mail", "m" * 3_000_000)
    (letter,) = await store.read_letters("session", "run")
    assert letter.value == "m" * 3_000_000


async def test_a_value_that_cannot_be_stored_is_refused_at_the_door(store, desk, make):
    await begin(store, desk, make)
    with pytest.raises(UnpersistableValueError):
        await send(store, "session", "run", "mail", object())
    assert await store.read_letters("session", "run") == []


async def test_deleting_a_session_removes_and_counts_its_letters(store, desk, make):
    await begin(store, desk, make)
    await send(store, "session", "run", "mail", "m" * 3_000_000)
    deletion = await store.delete_session("session")
    assert deletion.letters == 1
    assert await store.read_letters("session", "run") == []
