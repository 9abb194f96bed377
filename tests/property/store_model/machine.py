"""What is done to a store and to its model, in whatever order, and what must then be so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from callboard_protocol.errors import CallboardError, FencedError, SessionLockedError, StoreFullError
from callboard_protocol.messages import Message
from callboard_protocol.records import AgentSnapshot, LogRecord, RunBegan, RunEnded, SessionRewound, StepCompleted
from callboard_protocol.runs import RunRequest
from callboard_protocol.session_fold import SessionFold
from callboard_protocol.sessions import HeadFold, MemoryEntry, RunEntry, SessionCheckpoint, SessionHead
from callboard_protocol.states import UNFINISHED, RunState
from callboard_storage import upkeep
from callboard_storage.room import MIB, reserve_of
from callboard_storage.store import Batch, Store
from callboard_storage.store_values import Fence, Lease

from .model import Change, SessionModel

ResultT = TypeVar("ResultT")

SESSIONS = st.sampled_from(["a", "ab", "b", "b!"])
NAMES = st.sampled_from(["note", "not", "summary"])
SIZES = st.sampled_from([0, 10, 900, 900, 70_000, 300_000])
"""Characters of a value: the longer ones go into chunks, the longest into two."""

STRANDED = 1_200_000
"""Characters of a value that takes several transactions to upload."""

PAGE = 4096

QUOTAS = st.sampled_from([None, None, MIB, 4 * MIB])


class StoreMachine(RuleBasedStateMachine):
    """Does to a store what runtimes and their keepers do, and to a model the same."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.sessions: dict[str, SessionModel] = {}
        self.runs: dict[str, RunEntry] = {}
        self.clock = 0
        self.max_bytes: int | None = None
        self.store: Store

    def opened(self) -> Store:
        """A new, open store."""
        raise NotImplementedError

    @initialize(max_bytes=QUOTAS)
    def begin_empty(self, max_bytes: int | None) -> None:
        self.max_bytes = max_bytes
        self.store = self.opened()

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                for session_id in [*self.sessions]:
                    self.check(session_id)
                self.wait(self.store.close())
        finally:
            self.loop.close()

    # ---- what is done

    @rule(session_id=SESSIONS, sizes=st.lists(SIZES, min_size=1, max_size=3), with_head=st.booleans(), remember=NAMES)
    def append(self, session_id: str, sizes: list[int], with_head: bool, remember: str) -> None:
        session = self.session(session_id)
        records = [self.step(session_id, len(session.log) + n, size) for n, size in enumerate(sizes)]
        self.write(session_id, records, with_head=with_head, memory={remember: records[-1].value})
        self.check(session_id)

    @rule(session_id=SESSIONS, name=NAMES, size=SIZES | st.none())
    def remember_or_forget(self, session_id: str, name: str, size: int | None) -> None:
        self.write(session_id, memory={name: None if size is None else self.value(size)})
        self.check(session_id)

    @rule(session_id=SESSIONS, name=NAMES, size=SIZES)
    def keep_a_checkpoint(self, session_id: str, name: str, size: int) -> None:
        position = len(self.session(session_id).log) - 1
        self.write(
            session_id,
            checkpoint=SessionCheckpoint(
                checkpoint_id=name, session_id=session_id, log_position=position, state=self.value(size)
            ),
        )
        self.check(session_id)

    @rule(session_id=SESSIONS, size=SIZES)
    def begin_a_run(self, session_id: str, size: int) -> None:
        session = self.session(session_id)
        if session.run is not None:
            return
        entry = self.entry(session_id, RunState.RUNNING, size)
        began = RunBegan(
            run_id=entry.run_id,
            ordinal=0,
            at=self.now(),
            request=entry.request,
            agent=AgentSnapshot(),
            messages=(Message.user("go"),),
        )
        lease = self.store.lease()
        if self.write(session_id, [began], run=entry, lease=lease, takes=True):
            session.run, session.lease = entry.run_id, lease
        self.check(session_id)

    @rule(session_id=SESSIONS)
    def end_the_run(self, session_id: str) -> None:
        session = self.session(session_id)
        if session.run is None:
            return
        ended = RunEnded(run_id=session.run, ordinal=1, at=self.now(), stop_reason="completed", output="bye")
        entry = self.runs[session.run].model_copy(update={"state": RunState.COMPLETED})
        lease = session.lease or self.store.lease()
        if self.write(session_id, [ended], run=entry, lease=lease, takes=session.lease is None, gives=True):
            session.run = session.lease = None
            assert lease.token == 0
        self.check(session_id)

    @rule(session_id=SESSIONS, size=SIZES)
    def queue_a_run(self, session_id: str, size: int) -> None:
        self.write(session_id, run=self.entry(session_id, RunState.QUEUED, size))

    @rule()
    def cancel_the_oldest_queued_run(self) -> None:
        for entry in self.runs.values():
            if entry.state == RunState.QUEUED:
                self.write(entry.session_id, run=entry.model_copy(update={"state": RunState.CANCELLED}))
                return

    @rule(session_id=SESSIONS, place=st.integers(0, 50))
    def go_back(self, session_id: str, place: int) -> None:
        session = self.session(session_id)
        if not session.log or session.run is not None:
            return
        self.write(session_id, [self.marker(session_id, place)])
        self.check(session_id)

    @rule(source=SESSIONS, fork_id=SESSIONS, place=st.integers(0, 50))
    def fork(self, source: str, fork_id: str, place: int) -> None:
        log = self.session(source).log
        if not log or source == fork_id:
            return
        through = place % len(log)
        marker = self.marker(source, place, forked_from=source)
        batch = self.store.batch(fork_id)
        self.wait(self.store.copy_log(source, batch, through=through))
        batch.append(through + 1, marker)
        batch.put_head(self.fold([*log[: through + 1], marker], fork_id))
        session = self.session(fork_id)
        error = self.send(batch, Fence(-1))
        if session.log or session.lease:
            assert isinstance(error, FencedError | SessionLockedError), error
        elif self.is_taken(error, batch):
            session.log, session.has_head, session.last = [*log[: through + 1], marker], True, None
        self.check(fork_id)

    @rule(session_id=SESSIONS)
    def delete(self, session_id: str) -> None:
        session = self.session(session_id)
        if session.lease is not None:
            with pytest.raises(SessionLockedError):
                self.wait(self.store.delete_session(session_id))
            return
        deletion = self.wait(self.store.delete_session(session_id))
        assert deletion.total == self.forget(session_id)
        self.check(session_id)

    @rule(keep=st.integers(0, 3))
    def retain(self, keep: int) -> None:
        held = {entry.session_id for entry in self.runs.values() if entry.state in UNFINISHED}
        held |= {session_id for session_id, session in self.sessions.items() if session.stands()["active_run"]}
        listed = [one for one in self.sessions.items() if one[1].has_head]
        oldest_first = sorted(listed, key=lambda one: (one[1].log[-1].at if one[1].log else 0, one[0]))
        due = [session_id for session_id, _ in oldest_first[: max(0, len(listed) - keep)]]
        report = self.wait(upkeep.retain(self.store, keep=keep))
        assert report.removed == tuple(session_id for session_id in due if session_id not in held)
        assert set(report.in_use) == {session_id for session_id in due if session_id in held}
        assert report.entries == sum(self.forget(session_id) for session_id in report.removed)

    @rule(session_id=SESSIONS, off=st.sampled_from([-2, -1, 1, 3]), size=st.sampled_from([900, STRANDED]))
    def write_behind_another_end(self, session_id: str, off: int, size: int) -> None:
        session = self.session(session_id)
        follows = max(-1, len(session.log) - 1 + off)
        if follows == len(session.log) - 1:
            return
        batch = self.store.batch(session_id)
        batch.append(follows + 1, self.step(session_id, follows + 1, size))
        batch.put_memory(MemoryEntry(name="note", value="of a refused batch"))
        error = self.send(batch, Fence(follows, session.lease))
        assert isinstance(error, FencedError | StoreFullError), error
        self.check(session_id)

    @rule(session_id=SESSIONS)
    def repeat_the_last_batch(self, session_id: str) -> None:
        last = self.session(session_id).last
        if last is not None:
            error = self.send(*last)
            assert error is None or isinstance(error, StoreFullError), error
        self.check(session_id)

    @rule()
    def reopen(self) -> None:
        self.wait(self.store.close())
        self.wait(self.store.open())
        self.begin_anew()

    @rule(session_id=SESSIONS, size=st.sampled_from([900, STRANDED]), turns=st.integers(0, 5))
    def crash(self, session_id: str, size: int, turns: int) -> None:
        session = self.session(session_id)
        step = self.step(session_id, len(session.log), size)
        change = Change(
            [step], head=self.fold([*session.log, step], session_id), memory={"note": "of a batch in flight"}
        )
        length = len(session.log)
        self.kill_over(change.into(self.store.batch(session_id), length), Fence(length - 1, session.lease), turns)
        if len(self.wait(self.store.read_log(session_id))) > length:
            self.keep(session_id, change)
        else:
            self.abandoned(session_id, size)
        self.begin_anew()

    def kill_over(self, batch: Batch, fence: Fence, turns: int) -> None:
        """Commit a batch and lose the process when the writer has had so many turns; then open what is left."""
        raise NotImplementedError

    def abandoned(self, session_id: str, size: int) -> None:
        """A batch with a value of that size was never written."""

    def begin_anew(self) -> None:
        """What an opening held is nobody's, and what it owed is this one's."""
        for session in self.sessions.values():
            session.lease = session.last = None
        claimed = self.wait(self.store.claim_unfinished())
        assert [*claimed] == self.unfinished()
        for session_id in [*self.sessions]:
            self.check(session_id)

    # ---- what must be so

    @invariant()
    def lists_and_figures_are_the_models(self) -> None:
        if not hasattr(self, "store"):
            return
        listed = sorted(session_id for session_id, session in self.sessions.items() if session.has_head)
        assert [*self.wait(self.store.list_sessions())] == listed
        assert [*self.wait(self.store.list_runs())] == [self.runs[run_id] for run_id in sorted(self.runs)]
        assert [*self.wait(self.store.read_unfinished())] == self.unfinished()
        figures = self.wait(self.store.figures())
        assert (figures.sessions, figures.records) == (
            sum(1 for session in self.sessions.values() if session.log),
            sum(len(session.log) for session in self.sessions.values()),
        )
        assert (figures.runs, figures.unfinished) == (len(self.runs), len(self.unfinished()))
        assert self.max_bytes is None or figures.bytes_used <= self.max_bytes

    def check(self, session_id: str) -> None:
        """That a session is as it is in the model."""
        session = self.session(session_id)
        stored = self.wait(self.store.read_log(session_id))
        assert [one.sequence for one in stored] == [*range(len(session.log))]
        assert [one.record for one in stored] == session.log
        assert {one.name: one.value for one in self.wait(self.store.read_memory(session_id))} == session.memory
        found = self.wait(self.store.read_checkpoints(session_id))
        assert {one.checkpoint_id: one for one in found} == session.checkpoints
        assert [one.log_position for one in found] == sorted(one.log_position for one in found)
        head = self.wait(self.store.read_head(session_id))
        assert (head is None) == (not session.log and not session.has_head)
        if head is not None:
            assert {name: getattr(head, name) for name in session.stands()} == session.stands()

    # ---- by what means

    def wait(self, work: Awaitable[ResultT]) -> ResultT:
        return self.loop.run_until_complete(work)

    def session(self, session_id: str) -> SessionModel:
        return self.sessions.setdefault(session_id, SessionModel())

    def unfinished(self) -> list[RunEntry]:
        return sorted((one for one in self.runs.values() if one.state in UNFINISHED), key=lambda one: one.order)

    def now(self) -> float:
        self.clock += 1
        return float(self.clock)

    def value(self, size: int) -> str:
        """A value that is like no other of its size."""
        return f"{self.now():010.0f}" + "v" * size

    def step(self, session_id: str, ordinal: int, size: int) -> StepCompleted:
        run_id = self.session(session_id).run or "nobody"
        return StepCompleted(
            run_id=run_id,
            ordinal=ordinal,
            at=self.now(),
            step=str(ordinal),
            kind="tool",
            value=self.value(size),
            in_transcript=True,
        )

    def entry(self, session_id: str, state: RunState, size: int) -> RunEntry:
        run_id = f"run-{self.now():04.0f}"
        request = RunRequest(agent_id="agent", session_id=session_id, run_id=run_id, input_text="x" * size)
        return RunEntry(request=request, request_digest=b"d", state=state, order=self.clock)

    def marker(self, session_id: str, place: int, forked_from: str | None = None) -> SessionRewound:
        log = self.session(session_id).log
        closing = [Message.tool("closed", tool_call_id="x", name="t")]
        fold = SessionFold(session_id, log[: place % len(log) + 1])
        return fold.marker("there", closing, run_id="back", at=self.now(), forked_from=forked_from)

    @staticmethod
    def fold(log: Sequence[LogRecord], session_id: str) -> SessionHead:
        fold = HeadFold(SessionHead(session_id=session_id))
        for sequence, record in enumerate(log):
            fold.add(sequence, record)
        return fold.head()

    def write(
        self,
        session_id: str,
        records: Sequence[LogRecord] = (),
        *,
        with_head: bool = True,
        memory: dict[str, Any] | None = None,
        checkpoint: SessionCheckpoint | None = None,
        run: RunEntry | None = None,
        lease: Lease | None = None,
        takes: bool = False,
        gives: bool = False,
    ) -> bool:
        """Commit to the store, and to the model if the store took it; whether it did."""
        session = self.session(session_id)
        head = self.fold([*session.log, *records], session_id) if with_head or not session.has_head else None
        change = Change(records, head if records else None, memory or {}, checkpoint, run)
        batch = change.into(self.store.batch(session_id), len(session.log))
        fence = Fence(len(session.log) - 1, lease or session.lease, takes, gives) if records else None
        if not self.is_taken(self.send(batch, fence), batch):
            return False
        self.keep(session_id, change)
        if fence is not None:
            session.last = (batch, fence)
        return True

    def keep(self, session_id: str, change: Change) -> None:
        """Have the model hold what the store has taken."""
        session = self.session(session_id)
        session.log += change.records
        session.has_head |= change.head is not None
        memory = session.memory | change.memory
        session.memory = {name: value for name, value in memory.items() if value is not None}
        if change.checkpoint is not None:
            session.checkpoints[change.checkpoint.checkpoint_id] = change.checkpoint
        if change.run is not None:
            self.runs[change.run.run_id] = change.run

    def send(self, batch: Batch, fence: Fence | None) -> CallboardError | None:
        answer: asyncio.Future[CallboardError | None] = self.loop.create_future()
        self.used = self.wait(self.store.figures()).bytes_used
        self.store.commit(batch, fence, self.loop, answer.set_result)
        return self.wait(answer)

    def is_taken(self, error: CallboardError | None, batch: Batch) -> bool:
        """Whether a batch was written; one that was not must have found too little room."""
        if error is None:
            return True
        assert isinstance(error, StoreFullError), error
        assert self.max_bytes is not None
        left = self.max_bytes - self.used - (reserve_of(self.max_bytes) if batch.begins_work else 0)
        # Small rows may take up twice their length; and what was written since the last look is guessed as well.
        needed = 2 * (batch.size - batch.large_size) + batch.large_size * 17 // 16 + 8 * PAGE
        assert 2 * needed > left, f"{batch.size} bytes, {needed} on disk, were refused with room for {left}"
        return False

    def forget(self, session_id: str) -> int:
        """Delete a session from the model; how many entries that were."""
        session = self.sessions.pop(session_id, SessionModel())
        ended = [
            run_id
            for run_id, entry in self.runs.items()
            if entry.session_id == session_id and entry.state not in UNFINISHED
        ]
        for run_id in ended:
            del self.runs[run_id]
        return len(session.log) + session.has_head + len(session.checkpoints) + len(session.memory) + len(ended)
