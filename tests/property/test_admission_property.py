"""Whatever comes in whatever order: a session has one run, a run one slot, and the oldest goes first."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from callboard.supervision.admission import Admission

SESSIONS = st.sampled_from("stu")
SLOTS = 2


class Queues(RuleBasedStateMachine):
    """The same bookkeeping, done slowly and plainly."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(SLOTS)
        self.order: dict[str, int] = {}
        self.session: dict[str, str] = {}
        self.lines: dict[str, list[str]] = {name: [] for name in "stu"}
        self.holder: dict[str, str | None] = dict.fromkeys("stu")
        self.with_slot: list[str] = []
        self.without: list[str] = []
        self.returning: list[str] = []

    def one_of(self, data: Any, runs: list[str]) -> str:
        return data.draw(st.sampled_from(sorted(runs)))

    @rule(session=SESSIONS)
    def arrive(self, session: str) -> None:
        run_id = f"r{len(self.order)}"
        self.order[run_id], self.session[run_id] = len(self.order), session
        self.lines[session].append(run_id)
        self.admission.enqueue(self.order[run_id], run_id, session)

    @rule()
    def admit(self) -> None:
        free = SLOTS - len(self.with_slot)
        heads = [line[0] for name, line in self.lines.items() if line and self.holder[name] is None]
        expected = None
        if free > 0 and self.returning:
            expected = self.returning.pop(0)
            self.without.remove(expected)
        elif free > 0 and heads:
            expected = min(heads, key=lambda run_id: self.order[run_id])
            session = self.session[expected]
            self.lines[session].remove(expected)
            self.holder[session] = expected
        if expected is not None:
            self.with_slot.append(expected)
        assert self.admission.admit() == expected

    @precondition(lambda self: any(self.lines.values()))
    @rule(data=st.data())
    def withdraw(self, data: Any) -> None:
        run_id = self.one_of(data, [run_id for line in self.lines.values() for run_id in line])
        self.lines[self.session[run_id]].remove(run_id)
        assert self.admission.withdraw(run_id, self.session[run_id])

    @precondition(lambda self: self.with_slot)
    @rule(data=st.data(), ends=st.booleans())
    def leave(self, data: Any, ends: bool) -> None:
        run_id = self.one_of(data, self.with_slot)
        self.with_slot.remove(run_id)
        self.admission.leave_slot()
        if ends:
            self.holder[self.session[run_id]] = None
            self.admission.release(run_id, self.session[run_id])
        else:
            self.without.append(run_id)

    @precondition(lambda self: set(self.without) - set(self.returning))
    @rule(data=st.data(), how=st.sampled_from(["return", "requeue", "end"]))
    def go_on(self, data: Any, how: str) -> None:
        run_id = self.one_of(data, [run_id for run_id in self.without if run_id not in self.returning])
        session = self.session[run_id]
        if how == "return":
            self.returning.append(run_id)
            self.admission.ask_back(run_id)
            return
        self.without.remove(run_id)
        self.holder[session] = None
        if how == "requeue":
            self.lines[session].insert(0, run_id)
            self.admission.requeue(self.order[run_id], run_id, session)
        else:
            self.admission.release(run_id, session)

    @precondition(lambda self: self.returning)
    @rule(data=st.data())
    def stop_while_returning(self, data: Any) -> None:
        run_id = self.one_of(data, self.returning)
        self.returning.remove(run_id)
        self.without.remove(run_id)
        assert self.admission.forget_return(run_id)
        self.holder[self.session[run_id]] = None
        self.admission.release(run_id, self.session[run_id])

    @precondition(lambda self: any(line and self.holder[name] is None for name, line in self.lines.items()))
    @rule(data=st.data())
    def hold_without_a_slot(self, data: Any) -> None:
        heads = [line[0] for name, line in self.lines.items() if line and self.holder[name] is None]
        run_id = self.one_of(data, heads)
        session = self.session[run_id]
        self.lines[session].remove(run_id)
        self.holder[session] = run_id
        self.without.append(run_id)
        self.admission.hold(run_id, session)

    @invariant()
    def the_books_agree(self) -> None:
        admission = self.admission
        assert admission.free_slots == SLOTS - len(self.with_slot)
        assert admission.queued == sum(map(len, self.lines.values()))
        for session, line in self.lines.items():
            assert admission.queued_in(session) == len(line)
            assert admission.holder_of(session) == self.holder[session]


Queues.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestQueues = Queues.TestCase
