"""The fold of a log against a model that keeps a whole copy of the session at every position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from callboard_protocol.messages import Message, Usage
from callboard_protocol.model_calls import ModelResponse
from callboard_protocol.records import AgentSnapshot, LogRecord, RunBegan, RunEnded, StepCompleted
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

    def run(self, steps: list[str], back_to: int | None, ends: bool) -> None:
        """A run of some steps, which may begin by going back to a position, and may be cut off as by a fork."""
        run_id = f"run-{len(self.log)}"
        if back_to is not None and self.log:
            place = back_to % len(self.log)
            marker = SessionFold("s", self.log[: place + 1]).marker(
                "there", [Message.tool("closed", tool_call_id="x", name="t")], run_id=run_id, at=1.0
            )
            copy = self.copies[place]
            self._write(marker, replace(copy, said=(*copy.said, "closed")))
        request = RunRequest(agent_id="a", session_id="s", run_id=run_id, input_text=run_id)
        began = RunBegan(
            run_id=run_id, ordinal=0, at=1.0, request=request, agent=AgentSnapshot(), messages=(Message.user(run_id),)
        )
        self._write(began, replace(self.now, said=(*self.now.said, run_id)), f"{run_id}:step:0")
        calls = 0
        for number, kind in enumerate(steps, 1):
            fields: dict[str, Any] = {"run_id": run_id, "ordinal": number, "at": 1.0, "step": str(number)}
            what = f"{run_id}.{number}"
            now = self.now
            if kind == "model":
                answer = ModelResponse(text=what, usage=Usage(input_tokens=3))
                record = StepCompleted(**fields, kind="generate", response=answer, in_transcript=True)
                now = replace(now, said=(*now.said, what), calls=now.calls + 1)
                calls += 1
            elif kind == "artifact":
                record = StepCompleted(**fields, kind="artifact", artifact=RunArtifact(name=what))
                now = replace(now, artifacts=(*now.artifacts, what))
            else:
                record = StepCompleted(**fields, kind="step", state={"last": what}, state_changed=True)
                now = replace(now, state={"last": what})
            self._write(record, now, f"{run_id}:step:{number}")
        usage = RunUsage(llm_calls=calls, input_tokens=3 * calls)
        if ends:
            ended = RunEnded(run_id=run_id, ordinal=9, at=1.0, stop_reason="completed", usage=usage)
            self._write(ended, self.now, f"{run_id}:step:{len(steps)}")
        else:
            marker = SessionFold("s", self.log).marker("here", [], run_id="", at=1.0, forked_from="other")
            self._write(marker, self.now)


runs = st.tuples(
    st.lists(st.sampled_from(["model", "artifact", "state"]), max_size=3), st.none() | st.integers(0, 60), st.booleans()
)


@given(st.lists(runs, min_size=1, max_size=6))
@settings(deadline=None)
def test_a_session_is_what_it_was_whatever_was_gone_back_to_in_between(plan: list[Any]) -> None:
    model = Model()
    for steps, back_to, ends in plan:
        model.run(steps, back_to, ends)
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
    for steps, back_to, ends in plan:
        model.run(steps, back_to, ends)
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
