"""The fold of a log against a model that keeps a whole copy of the session at every position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from callboard_protocol.messages import Message, Usage
from callboard_protocol.model_calls import ModelResponse
from callboard_protocol.records import AgentSnapshot, LogRecord, RunBegan, RunEnded, RunResumed, StepCompleted
from callboard_protocol.runs import RunArtifact, RunRequest, RunUsage
from callboard_protocol.session_fold import SessionFold, step_checkpoints
from callboard_protocol.sessions import HeadFold, SessionHead


@dataclass(frozen=True)
class Copy:
    """A session as it is at a position, in full."""

    said: tuple[str, ...] = ()
    state: Any = None
    artifacts: tuple[str, ...] = ()
    calls: int = 0


class Model:
    """Writes a log, and remembers what the session was at each position."""

    def __init__(self) -> None:
        self.log: list[LogRecord] = []
        self.copies: list[Copy] = []
        self.checkpoints: dict[str, int] = {}
        self.now = Copy()

    def _write(self, record: LogRecord, now: Copy, checkpoint_id: str | None = None) -> None:
        self.now = now
        self.log.append(record)
        self.copies.append(now)
        if checkpoint_id is not None:
            self.checkpoints[checkpoint_id] = len(self.log) - 1

    def run(self, steps: list[str], back_to: int | None, ends: bool, again: list[str]) -> None:
        """A run of some steps, which may begin by going back to a position, and may be cut off as by a fork.

        Args:
            steps: what they do.
            back_to: where it goes back to first.
            ends: whether it ends, or is cut off.
            again: how it goes back within itself, each time with one more step: behind its end, to make its last step
                again, or to begin afresh.
        """
        run_id = f"run-{len(self.log)}"
        if back_to is not None and self.log:
            place = back_to % len(self.log)
            marker = SessionFold("s", self.log[: place + 1]).marker(
                "there", [Message.tool("closed", tool_call_id="x", name="t")], run_id=run_id, at=1.0
            )
            copy = self.copies[place]
            self._write(marker, replace(copy, said=(*copy.said, "closed")))
        before, began, calls = self.now, len(self.log), 0
        self._begin(run_id, 1)
        number = 0
        for kind in steps:
            number += 1
            calls += self._step(run_id, number, kind)
        for attempt, way in enumerate(again, 2):
            if way == "behind its end":
                at = self.now
                self._end(run_id, number, calls, closing=("ended",))
                self._back(run_id, len(self.log) - 2, at)
            elif way == "last step again":
                at = self.copies[len(self.log) - 2] if number else self.now
                self._back(run_id, len(self.log) - (2 if number else 1), replace(at, calls=self.now.calls))
            else:
                self._back(run_id, began - 1, replace(before, calls=self.now.calls))
            if way == "afresh":
                self.now, calls, number = replace(self.now, calls=before.calls), 0, 0
                self._begin(run_id, attempt)
            else:
                resumed = RunResumed(run_id=run_id, ordinal=9, at=1.0, attempt=attempt, agent=AgentSnapshot())
                self._write(resumed, self.now)
            number += 1
            calls += self._step(run_id, number, "model")
        if ends:
            self._end(run_id, number, calls)
        else:
            marker = SessionFold("s", self.log).marker("here", [], run_id="", at=1.0, forked_from="other")
            self._write(marker, self.now)

    def _begin(self, run_id: str, attempt: int) -> None:
        request = RunRequest(agent_id="a", session_id="s", run_id=run_id, input_text=run_id)
        began = RunBegan(
            run_id=run_id,
            ordinal=0,
            at=1.0,
            request=request,
            agent=AgentSnapshot(),
            messages=(Message.user(run_id),),
            attempt=attempt,
        )
        self._write(began, replace(self.now, said=(*self.now.said, run_id)), f"{run_id}:step:0")

    def _step(self, run_id: str, number: int, kind: str) -> int:
        """Write a step; how many model calls it makes."""
        fields: dict[str, Any] = {"run_id": run_id, "ordinal": number, "at": 1.0, "step": str(number)}
        what = f"{run_id}.{number} at {len(self.log)}"
        now = self.now
        if kind == "model":
            answer = ModelResponse(text=what, usage=Usage(input_tokens=3))
            record = StepCompleted(**fields, kind="generate", response=answer, in_transcript=True)
            now = replace(now, said=(*now.said, what), calls=now.calls + 1)
        elif kind == "artifact":
            record = StepCompleted(**fields, kind="artifact", artifact=RunArtifact(name=what))
            now = replace(now, artifacts=(*now.artifacts, what))
        else:
            record = StepCompleted(**fields, kind="step", state={"last": what}, state_changed=True)
            now = replace(now, state={"last": what})
        self._write(record, now, f"{run_id}:step:{number}")
        return int(kind == "model")

    def _end(self, run_id: str, number: int, calls: int, closing: tuple[str, ...] = ()) -> None:
        usage = RunUsage(llm_calls=calls, input_tokens=3 * calls)
        messages = tuple(Message.tool(text, tool_call_id="x", name="t") for text in closing)
        ended = RunEnded(run_id=run_id, ordinal=9, at=1.0, stop_reason="completed", usage=usage, messages=messages)
        self._write(ended, replace(self.now, said=(*self.now.said, *closing)), f"{run_id}:step:{number}")

    def _back(self, run_id: str, to: int, copy: Copy) -> None:
        marker = SessionFold("s", self.log[: to + 1]).marker("", [], run_id=run_id, at=1.0, ordinal=9)
        self._write(marker, copy)


runs = st.tuples(
    st.lists(st.sampled_from(["model", "artifact", "state"]), max_size=3),
    st.none() | st.integers(0, 60),
    st.booleans(),
    st.lists(st.sampled_from(["behind its end", "last step again", "afresh"]), max_size=2),
)


@given(st.lists(runs, min_size=1, max_size=6))
@settings(deadline=None)
def test_a_session_is_what_it_was_whatever_was_gone_back_to_in_between(plan: list[Any]) -> None:
    model = Model()
    for one in plan:
        model.run(*one)
    fold = SessionFold("s")
    heads = HeadFold(SessionHead(session_id="s"))
    for sequence, (record, copy) in enumerate(zip(model.log, model.copies, strict=True)):
        fold.add(record)
        heads.add(sequence, record)
        seen = Copy(
            tuple(message.text for message in fold.transcript()),
            fold.state,
            tuple(one.artifact.name for one in fold.artifacts()),
            fold.usage().llm_calls,
        )
        assert seen == copy
        assert fold.usage().input_tokens == 3 * copy.calls
        head = heads.head()
        assert head == fold.head()
        assert (head.transcript_length, head.artifact_count) == (len(copy.said), len(copy.artifacts))


@given(st.lists(runs, min_size=1, max_size=6))
@settings(deadline=None)
def test_every_checkpoint_is_listed_once_at_its_position_and_is_what_a_fold_up_to_it_says(plan: list[Any]) -> None:
    model = Model()
    for one in plan:
        model.run(*one)
    listed = step_checkpoints("s", model.log)
    assert [(one.checkpoint_id, one.log_position) for one in listed] == sorted(
        model.checkpoints.items(), key=lambda item: item[1]
    )
    for one in listed:
        assert one == SessionFold("s", model.log[: one.log_position + 1]).checkpoint()
        copy = model.copies[one.log_position]
        assert (one.state, one.transcript_length, one.artifact_count, one.usage.llm_calls) == (
            copy.state,
            len(copy.said),
            len(copy.artifacts),
            copy.calls,
        )
