"""Trees of runs that spend, end, crash and are resumed, against a recount of all that was ever spent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from callboard.runs.tree_spending import recorded_below, spent_below
from callboard_protocol.amounts import Amount, Granted, Limits, total
from callboard_protocol.ledger import Ledger
from callboard_protocol.messages import Usage
from callboard_protocol.meter import RunMeter
from callboard_protocol.model_calls import ModelResponse
from callboard_protocol.records import StepCompleted
from callboard_protocol.runs import DelegatedOutcome, RunRequest
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import RunState
from callboard_storage.committing import commit
from callboard_storage.memory_store import MemoryStore
from callboard_storage.store_values import Fence

limits = st.builds(Limits, st.none() | st.integers(0, 9), st.none(), st.none() | st.integers(0, 60), st.none())


@dataclass
class Run:
    """A run as the model knows it."""

    run_id: str
    parent: Run | None
    limits: Limits
    children: list[Run] = field(default_factory=list)
    ever: list[Amount] = field(default_factory=list)
    """All that it spent itself, in whatever attempt."""
    records: int = 0
    steps: int = 0
    is_final: bool = False

    @property
    def recount(self) -> Amount:
        return total([*self.ever, *(child.recount for child in self.children)])

    @property
    def is_at_work(self) -> bool:
        """A run that waits for its parent's attempt is not; here each attempt takes up all its children at once."""
        return not self.is_final and (self.parent is None or self.parent.is_at_work)


class TreeMachine(RuleBasedStateMachine):
    runs = Bundle("runs")
    unrecorded = Bundle("unrecorded")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = MemoryStore()
        self.loop.run_until_complete(self.store.open())
        self.ledger = Ledger()
        self.tree: list[Run] = []

    def teardown(self) -> None:
        self.loop.run_until_complete(self.store.close())
        self.loop.close()

    # ---- what is written

    def write(self, run: Run, *records: StepCompleted, spent: Amount | None = None) -> None:
        batch = self.store.batch(run.run_id)
        follows = run.records - 1
        for record in records:
            batch.append(run.records, record)
            run.records += 1
        request = RunRequest(
            agent_id="agent",
            session_id=run.run_id,
            run_id=run.run_id,
            parent_run_id=None if run.parent is None else run.parent.run_id,
        )
        state = RunState.RUNNING if spent is None else RunState.COMPLETED
        entry = RunEntry(
            request=request,
            request_digest=b"",
            state=state,
            order=1,
            began_sequence=0,
            spent=(0, 0, 0, 0) if spent is None else (*spent,),
        )
        batch.put_run(entry)
        self.loop.run_until_complete(commit(self.store, batch, Fence(follows) if records else None))

    def step(self, run: Run, **fields: Any) -> StepCompleted:
        run.steps += 1
        return StepCompleted(run_id=run.run_id, ordinal=run.records, at=0.0, step=str(run.steps), **fields)

    # ---- what can happen

    @initialize(target=runs, limits=limits)
    def begin(self, limits: Limits) -> Run:
        return self.add(Run("run", None, limits))

    @rule(target=runs, parent=runs, limits=limits)
    def delegate(self, parent: Run, limits: Limits) -> object:
        if not parent.is_at_work or len(parent.run_id) > 12:
            return multiple()
        parent.steps += 1
        return self.add(Run(f"{parent.run_id}:{parent.steps}", parent, limits))

    def add(self, run: Run) -> Run:
        self.tree.append(run)
        self.write(run)
        if run.parent is not None:
            run.parent.children.append(run)
        self.open(run, Amount())
        return run

    def open(self, run: Run, spent: Amount) -> None:
        above = None if run.parent is None else run.parent.run_id
        self.ledger.open(run.run_id, run.limits, above, spent, counted_above=above is not None)

    @rule(run=runs, reserved=st.integers(1, 20), percent=st.integers(0, 100))
    def ask(self, run: Run, reserved: int, percent: int) -> None:
        """A model call, if the whole tree has room for it; its record is on disk before anything else happens."""
        if not run.is_at_work:
            return
        answer = self.ledger.reserve(run.run_id, Amount(steps=1, tokens=reserved))
        if not isinstance(answer, Granted):
            return
        true = Amount(steps=1, tokens=reserved * percent // 100)
        self.ledger.settle(run.run_id, answer.amount, true)
        run.ever.append(true)
        usage = Usage(input_tokens=true.tokens)
        self.write(run, self.step(run, kind="generate", response=ModelResponse(usage=usage)))

    @rule(target=unrecorded, run=runs)
    def end(self, run: Run) -> object:
        """A child ends: that is on disk, and its parent may or may not come to record it."""
        if run.parent is None or not run.is_at_work or any(not child.is_final for child in run.children):
            return multiple()
        spent = self.ledger.close(run.run_id)
        assert spent == run.recount
        self.write(run, spent=spent)
        run.is_final = True
        return run

    @rule(run=consumes(unrecorded))
    def record_its_end(self, run: Run) -> None:
        parent = run.parent
        assert parent is not None
        if not parent.is_at_work:
            return
        outcome = DelegatedOutcome(session_id=run.run_id, stop_reason="completed", spent=(*run.recount,))
        record = self.step(parent, kind="delegate", value=outcome.model_dump())
        step = run.run_id.removeprefix(f"{parent.run_id}:")
        self.write(parent, record.model_copy(update={"step": step}))

    @rule()
    def crash_and_resume(self) -> None:
        """Nothing is left but the disk. Parents come first, as their replay starts their children."""
        self.ledger = Ledger()
        for run in self.tree:
            if run.is_at_work:
                self.open(run, self.loop.run_until_complete(self.read(run)))

    async def read(self, run: Run) -> Amount:
        meter = RunMeter()
        recorded: dict[str, Amount] = {}
        for stored in await self.store.read_log(run.run_id):
            meter.count(stored.record)
            recorded.update(recorded_below(stored.record))
        return total([meter.spent(), *(await spent_below(self.store, run.run_id, recorded)).values()])

    @rule(run=runs)
    def stop_and_resume(self, run: Run) -> None:
        """One run is interrupted, and taken up again by its parent, which has gone on meanwhile."""
        if run.parent is None or not run.is_at_work or any(not child.is_final for child in run.children):
            return
        self.ledger.close(run.run_id)
        self.open(run, self.loop.run_until_complete(self.read(run)))

    # ---- what must always hold

    @invariant()
    def every_run_has_spent_what_its_tree_has(self) -> None:
        for run in self.tree:
            if run.is_at_work:
                assert self.ledger.spent(run.run_id) == run.recount, run.run_id

    @invariant()
    def no_tree_has_passed_a_limit(self) -> None:
        for run in self.tree:
            for spent, most in zip(run.recount, run.limits, strict=True):
                assert most is None or spent <= most, run.run_id


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
