"""Checkpoints, going back and forking, where the rooms meet: queues, restarts, retention, export, bad input."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from callboard import (
    Agent,
    InvalidIdentifierError,
    ModelRequest,
    RunContext,
    Runtime,
    RuntimeBusyError,
    ScriptedModel,
    SyncRuntime,
    UnknownCheckpointError,
    UnknownSessionError,
)
from callboard_storage import upkeep
from callboard_storage.lmdb_store import LmdbStore
from callboard_storage.memory_store import MemoryStore

pytestmark = pytest.mark.anyio

MAP_SIZE = 1 << 30


def shown(request: ModelRequest) -> str:
    return "-".join(message.text for message in request.messages if message.role == "user")


@pytest.fixture
def teller() -> Agent[None, str]:
    """Tells what users have said."""
    return Agent("teller", model=ScriptedModel(shown))


@pytest.fixture
async def going(runtime: Runtime, teller: Agent[None, str]) -> Runtime:
    """A runtime whose session "s" has had two runs."""
    runtime.agents.register(teller)
    for said in ("a", "b"):
        await runtime.run(teller, said, run_id=said, session_id="s")
    return runtime


@pytest.mark.parametrize("durable", [True, False])
async def test_a_run_goes_back_whether_it_is_durable_or_not(
    going: Runtime, teller: Agent[None, str], durable: bool
) -> None:
    back = await going.run(teller, "c", session_id="s", resume_from_checkpoint="a:step:1", durable=durable)
    assert back.output == "a-c"
    assert (await going.run(teller, "d", session_id="s")).output == "a-c-d"
    assert [message.text for message in await going.sessions.transcript("s")][:2] == ["a", "a"]


async def test_a_run_that_fails_has_gone_back_all_the_same(going: Runtime, teller: Agent[None, str]) -> None:
    async def fail(ctx: RunContext[Any]) -> str:
        raise ValueError("no")

    going.agents.register(failing := Agent("failing", pattern=fail))
    result = await going.run(failing, "c", run_id="c", session_id="s", resume_from_checkpoint="a:step:1")
    assert result.stop_reason == "failed"
    assert [message.text for message in await going.sessions.transcript("s")] == ["a", "a", "c"]
    again = await going.run(teller, "d", session_id="s", resume_from_checkpoint="c:step:0")
    assert again.output == "a-c-d", "the beginning of a run without steps is a checkpoint too"


async def test_a_run_goes_back_with_its_events_in_order(going: Runtime, teller: Agent[None, str]) -> None:
    async with going.stream(teller, "c", run_id="c", session_id="s", resume_from_checkpoint="a:step:1") as stream:
        live = [(event.sequence, event.name) async for event in stream if event.sequence is not None]
    again = [(event.sequence, event.name) async for event in going.events("c") if event.sequence is not None]
    assert [one for one in live if one[1] in {name for _, name in again}] == again
    assert again[:2] == [(0, "session.rewound"), (1, "run.started")]
    assert [sequence for sequence, name in again if name == "run.completed"] == [3]


@pytest.mark.parametrize(
    ("bad", "kind", "says"),
    [
        ("", InvalidIdentifierError, "checkpoint id is empty"),
        ("a\0b", InvalidIdentifierError, "control character"),
        ("x" * 201, InvalidIdentifierError, "201 bytes"),
        ("b:step:01", UnknownCheckpointError, "no checkpoint 'b:step:01'"),
        ("b:step:2", UnknownCheckpointError, "no checkpoint 'b:step:2'"),
        ("b:step:" + "9" * 18, UnknownCheckpointError, "no checkpoint"),
        ("b:step:-1", UnknownCheckpointError, "no checkpoint"),
    ],
)
async def test_a_bad_checkpoint_id_is_refused_at_every_door(
    going: Runtime, refused: Any, bad: str, kind: Any, says: str
) -> None:
    for ask in (
        lambda: going.run("teller", "c", session_id="s", resume_from_checkpoint=bad),
        lambda: going.sessions.get_checkpoint("s", bad),
        lambda: going.sessions.fork("s", "t", bad),
    ):
        with refused(kind, says, hint="did you mean|use 1 to 200 bytes"):
            await ask()
    assert list(await going.sessions.list()) == ["s"]


async def test_a_name_that_looks_like_a_steps_checkpoint_is_refused(going: Runtime, refused: Any) -> None:
    with refused(InvalidIdentifierError, "like that of a run's step", hint="without ':step:'"):
        await going.sessions.checkpoint("s", "a:step:1")


async def test_a_name_may_move_and_a_session_may_be_forked_at_it(going: Runtime, teller: Agent[None, str]) -> None:
    await going.sessions.checkpoint("s", "mine")
    await going.run(teller, "c", session_id="s")
    await going.sessions.checkpoint("s", "mine")
    await going.sessions.fork("s", "t", "mine")
    assert (await going.run(teller, "d", session_id="t")).output == "a-b-c-d"


async def test_two_forks_to_one_id_make_one(going: Runtime) -> None:
    answers = await asyncio.gather(
        going.sessions.fork("s", "t", "a:step:1"), going.sessions.fork("s", "t"), return_exceptions=True
    )
    assert isinstance(answers[1], RuntimeBusyError)
    assert (await going.sessions.get("t")).transcript_length == 2


async def test_a_run_that_comes_while_its_session_is_being_forked_runs_in_the_fork(
    going: Runtime, teller: Agent[None, str]
) -> None:
    forking = asyncio.ensure_future(going.sessions.fork("s", "t"))
    await asyncio.sleep(0)
    assert (await going.run(teller, "c", session_id="t")).output == "a-b-c"
    await forking


async def test_a_run_waits_until_its_session_is_deleted_and_begins_it_anew(
    going: Runtime, teller: Agent[None, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    def tells(delete: Any) -> Any:
        async def delete_session(store: Any, session_id: str) -> Any:
            begun.set()  # from here on nobody looks any more whether a run waits
            return await delete(store, session_id)

        return delete_session

    for kind in (LmdbStore, MemoryStore):
        monkeypatch.setattr(kind, "delete_session", tells(kind.delete_session))
    deleting = asyncio.ensure_future(going.sessions.delete("s"))
    await begun.wait()
    assert (await going.run(teller, "c", run_id="c", session_id="s")).output == "c"
    assert (await deleting).runs == 2
    assert (await going.runs.get("c")).state == "completed"


async def test_a_session_can_be_deleted_the_moment_its_run_has_ended(going: Runtime, teller: Agent[None, str]) -> None:
    for number in range(20):
        await going.run(teller, "c", run_id=f"c{number}", session_id="fresh")
        assert (await going.sessions.delete("fresh")).runs == 1


async def test_a_fork_of_a_fork_is_its_own_too(going: Runtime, teller: Agent[None, str]) -> None:
    await going.sessions.fork("s", "t", "a:step:1")
    await going.run(teller, "c", run_id="c", session_id="t")
    await going.sessions.fork("t", "u", "c:step:1")
    await going.sessions.delete("t")
    assert (await going.run(teller, "d", session_id="u")).output == "a-c-d"
    back = await going.run(teller, "e", session_id="u", resume_from_checkpoint="a:step:1")
    assert back.output == "a-e"


def test_from_threads_it_is_the_same(teller: Agent[None, str]) -> None:
    with SyncRuntime([teller]) as runtime:
        runtime.run(teller, "a", run_id="a", session_id="s")
        assert runtime.sessions.fork("s", "t", "a:step:1").transcript_length == 2
        assert runtime.run(teller, "b", session_id="t", resume_from_checkpoint="a:step:1").output == "a-b"
        assert runtime.sessions.get_checkpoint("t", "a:step:1").usage.llm_calls == 1


# ---- across restarts


async def test_a_queued_run_goes_back_after_a_restart_and_its_session_is_kept_for_it(
    tmp_path: Path, teller: Agent[None, str]
) -> None:
    async def wait(ctx: RunContext[Any]) -> str:
        await asyncio.Event().wait()
        return ""

    waiter = Agent("waiter", pattern=wait)
    async with Runtime([teller, waiter], store=tmp_path / "data", drain_timeout=0) as runtime:
        await runtime.run(teller, "a", run_id="a", session_id="s")
        await runtime.sessions.fork("s", "t")
        await runtime.submit(waiter, "b", run_id="b", session_id="s")
        await runtime.submit(teller, "c", run_id="c", session_id="s", resume_from_checkpoint="a:step:1")
    async with Runtime([teller], store=tmp_path / "data", recover=False) as runtime:
        with pytest.raises(RuntimeBusyError, match="has not ended"):
            await runtime.sessions.delete("s")
        report = await upkeep.retain(runtime.sessions._store, older_than=timedelta(0))
        assert (report.removed, report.in_use) == (("t",), ("s",))
    async with Runtime([teller, waiter], store=tmp_path / "data") as runtime:
        await runtime.cancel("b")
        assert (await runtime.wait("c")).output == "a-c"


async def test_a_fork_outlives_the_retention_of_its_source(tmp_path: Path, teller: Agent[None, str]) -> None:
    async with Runtime([teller], store=tmp_path / "data") as runtime:
        await runtime.run(teller, "a", run_id="a", session_id="s")
        await runtime.sessions.fork("s", "t")
        report = await upkeep.retain(runtime.sessions._store, keep=1, delete=runtime.sessions.delete)
        assert report.removed == ("s",)
        with pytest.raises(UnknownSessionError):
            await runtime.sessions.get("s")
        back = await runtime.run(teller, "b", session_id="t", resume_from_checkpoint="a:step:1")
        assert back.output == "a-b"


async def test_what_went_back_and_what_was_forked_is_sound_and_can_be_exported_and_imported(
    tmp_path: Path, teller: Agent[None, str]
) -> None:
    data = tmp_path / "data"
    async with Runtime([teller], store=data) as runtime:
        for said, back in (("a", None), ("b", None), ("c", "a:step:1"), ("d", "b:step:1")):
            await runtime.run(teller, said, run_id=said, session_id="s", resume_from_checkpoint=back)
        await runtime.sessions.fork("s", "t")
        await runtime.run(teller, "e", run_id="e", session_id="t", resume_from_checkpoint="c:step:1")
        kept = await runtime.sessions.transcript("t")
    assert (await asyncio.to_thread(upkeep.verify, data)).is_sound
    files = {}
    for session_id in ("s", "t"):
        files[session_id] = tmp_path / f"{session_id}.jsonl"
        await asyncio.to_thread(upkeep.export_session, data, session_id, files[session_id])
    store = LmdbStore(data, map_size=MAP_SIZE)
    await store.open()
    for session_id, file in files.items():
        await upkeep.import_session(store, file, session_id=f"{session_id}-again")
    await store.close()
    assert (await asyncio.to_thread(upkeep.verify, data)).is_sound
    async with Runtime([teller], store=data) as runtime:
        assert await runtime.sessions.transcript("t-again") == kept
        back = await runtime.run(teller, "f", session_id="s-again", resume_from_checkpoint="c@s-again:step:1")
        assert back.output == "a-c-f"
