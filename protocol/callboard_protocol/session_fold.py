"""What a session looks like at a position of its log: the fold of the records up to there, rewinds included.

The log only grows. A rewind marker says that what follows stands on an earlier position: the records between the two no
longer count, nor does a marker among them. What a session looks like at a position depends on the records up to that
position and on nothing behind it, so any position can be gone back to, also one that counts no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from callboard_protocol.messages import Message
from callboard_protocol.meter import RunMeter
from callboard_protocol.records import LogRecord, RunBegan, RunEnded, SessionRewound, StepCompleted, transcript_of
from callboard_protocol.runs import RunUsage
from callboard_protocol.sessions import (
    HeadFold,
    SessionArtifact,
    SessionCheckpoint,
    SessionHead,
    add_usage,
    step_checkpoint_id,
)
from callboard_protocol.trusted import trusted

CHECKPOINTED: Final = (StepCompleted, RunBegan, RunEnded)
"""The records that leave a checkpoint of their run."""


class SessionFold:
    """A session as the records of its log so far make it.

    Args:
        session_id: the session.
        records: its log, from the first record on.
    """

    __slots__ = ("_ended", "_fold", "_meters", "_records", "_rewinds", "_steps", "session_id")

    def __init__(self, session_id: str, records: Iterable[LogRecord] = ()) -> None:
        self.session_id = session_id
        self._fold = HeadFold(SessionHead(session_id=session_id))
        self._records: list[LogRecord] = []
        self._rewinds: list[tuple[int, int]] = []
        self._steps: dict[str, int] = {}
        self._meters: dict[str, RunMeter] = {}
        self._ended: tuple[str, RunMeter | None] = ("", None)
        for record in records:
            self.add(record)

    def add(self, record: LogRecord) -> None:
        """Take the next record in."""
        sequence = len(self._records)
        self._records.append(record)
        self._fold.add(sequence, record)
        run_id = record.run_id
        if isinstance(record, SessionRewound):
            self._rewinds.append((sequence, record.to_sequence))
            # A run that goes back within itself, also from behind its end, has used what it had used.
            last_run, last_meter = self._ended
            own = self._meters.get(run_id) or (last_meter if last_run == run_id else None)
            self._meters = {} if own is None else {run_id: own}
        elif isinstance(record, RunBegan):
            self._meters[run_id] = RunMeter()
            self._steps[run_id] = 0
        elif isinstance(record, RunEnded):
            self._ended = (run_id, self._meters.pop(run_id, None))
        else:
            if isinstance(record, StepCompleted):
                self._steps[run_id] = self._steps.get(run_id, 0) + 1
            if run_id in self._meters:
                self._meters[run_id].count(record)

    # ---- what it looks like

    @property
    def position(self) -> int:
        """The sequence of the last record; -1 before the first."""
        return len(self._records) - 1

    def head(self) -> SessionHead:
        """Where it stands."""
        return self._fold.head()

    @property
    def state(self) -> Any:
        """Its state, as plain data; None where it has none."""
        sequence = self._fold.state_sequence
        record = None if sequence is None else self._records[sequence]
        return record.state if isinstance(record, StepCompleted) else None

    def usage(self) -> RunUsage:
        """What it has consumed, the runs in progress included."""
        total = self._fold.usage
        for meter in self._meters.values():
            total = add_usage(total, meter.usage())
        return total

    def standing(self) -> Iterator[tuple[int, LogRecord]]:
        """The records that count and their sequences, in order."""
        spans: list[range] = []
        behind = len(self._records)
        for marker, to_sequence in reversed(self._rewinds):
            if marker < behind:
                spans.append(range(marker, behind))
                behind = to_sequence + 1
        spans.append(range(behind))
        return ((sequence, self._records[sequence]) for span in reversed(spans) for sequence in span)

    def transcript(self) -> list[Message]:
        """The messages, in the order in which they were recorded."""
        return [message for _, record in self.standing() for message in transcript_of(record)]

    def artifacts(self) -> list[SessionArtifact]:
        """What its runs made, in order."""
        return [
            SessionArtifact(
                session_id=self.session_id,
                run_id=record.run_id,
                sequence=sequence,
                artifact=record.artifact,
                created_at=record.at,
            )
            for sequence, record in self.standing()
            if isinstance(record, StepCompleted) and record.artifact is not None
        ]

    def injected(self) -> tuple[str, ...]:
        """What the memory had to say to the last run; a run that went back to a checkpoint has it from there."""
        texts: tuple[str, ...] = ()
        run_id = ""
        for _, record in self.standing():
            if isinstance(record, RunBegan) and not record.nested:
                run_id = record.run_id
                if record.request.resume_from_checkpoint is None:
                    texts = ()
            elif isinstance(record, StepCompleted) and record.kind == "inject" and record.run_id == run_id:
                texts = tuple(record.value or ())
        return texts

    # ---- checkpoints

    def checkpoint(self, name: str | None = None, *, at: float | None = None) -> SessionCheckpoint:
        """The checkpoint of where it stands.

        Args:
            name: the caller's own; that of the last record's run and its completed steps where None.
            at: when it is made, in unix seconds; when the last record was written where None.
        """
        last = self._records[-1]
        fold = self._fold
        run_id = last.run_id if name is None else fold.active_run or fold.last_run
        step_index = self._steps.get(run_id or "", 0)
        return trusted(
            SessionCheckpoint,
            checkpoint_id=step_checkpoint_id(last.run_id, step_index) if name is None else name,
            session_id=self.session_id,
            run_id=run_id,
            step_index=step_index,
            log_position=self.position,
            state=self.state,
            transcript_length=fold.transcript_length,
            artifact_count=fold.artifact_count,
            usage=self.usage(),
            created_at=last.at if at is None else at,
        )

    def marker(
        self,
        checkpoint_id: str,
        closing: Sequence[Message],
        *,
        run_id: str,
        at: float,
        forked_from: str | None = None,
        ordinal: int = 0,
    ) -> SessionRewound:
        """The record that makes what follows stand on where it stands here.

        Args:
            checkpoint_id: how this point was named; empty where a run goes back within itself. It tells at its end what
                it has used, so that it is not told here.
            closing: answers for the calls that are open here.
            run_id: the run that goes back; empty for a fork, which no run makes.
            at: now, in unix seconds.
            forked_from: the session it is forked from, if it is.
            ordinal: the record's place among its run's.
        """
        return SessionRewound(
            run_id=run_id,
            ordinal=ordinal,
            at=at,
            checkpoint_id=checkpoint_id,
            to_sequence=self.position,
            transcript_length=self._fold.transcript_length,
            state_sequence=self._fold.state_sequence,
            artifact_count=self._fold.artifact_count,
            usage=self.usage() if checkpoint_id else self._fold.usage,
            messages=tuple(closing),
            forked_from=forked_from,
        )


def step_checkpoints(session_id: str, records: Iterable[LogRecord]) -> list[SessionCheckpoint]:
    """The checkpoints that a session's runs left, by log position.

    Args:
        session_id: the session.
        records: its log, from the first record on.
    """
    fold = SessionFold(session_id)
    found: dict[str, SessionCheckpoint] = {}
    for record in records:
        fold.add(record)
        if isinstance(record, CHECKPOINTED):
            checkpoint = fold.checkpoint()
            # A run's end stands for its last step: it comes later in the log, and so in this order.
            found.pop(checkpoint.checkpoint_id, None)
            found[checkpoint.checkpoint_id] = checkpoint
    return [*found.values()]
