"""Workers to kill, and the laws that hold however they died."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from warm_processes import Nursery

from callboard import Message, RunEntry, Runtime
from callboard.testing import Passage, environment_to_die_at
from callboard_protocol.states import FINAL, RunState
from callboard_storage.lmdb_store import LmdbStore

WORKER = Path(__file__).with_name("worker.py")
PATIENCE = 60.0
MOST_LIVES = 60
MAP_SIZE = 1 << 30

CALL = re.compile(r"(?P<run>[^:]+):(?P<scope>(?:[^/]+/)*)(?P<ordinal>\d+)(?:\.(?P<item>.+))?")
STANDING = FINAL | {RunState.SUSPENDED}
BEGINNINGS = frozenset({"model", "price", "asked-to-deposit", "fetch", "rang"})


class Life:
    """One process of a worker."""

    def __init__(self, nursery: Nursery, work: dict[str, Any], world: Path, dies_at: Passage | None = None) -> None:
        self._world = world
        self._offset = world.stat().st_size if world.exists() else 0
        self._errors = world.with_suffix(".errors")
        with self._errors.open("w") as errors:
            # The worker ends when its standard input does: it must not outlive this process.
            self.process = nursery.start(
                WORKER,
                [json.dumps(work)],
                stderr=errors,
                environment={} if dies_at is None else environment_to_die_at(dies_at),
            )

    def new_lines(self) -> list[str]:
        """What has happened since it was started."""
        if not self._world.exists():
            return []
        with self._world.open("rb") as file:
            file.seek(self._offset)
            return file.read().decode().splitlines()

    def wait_for(self, word: str, times: int) -> None:
        """Until it has noted that so often, or has ended."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            if sum(line.startswith(f"{word} ") for line in self.new_lines()) >= times:
                return
            assert time.monotonic() < deadline, f"no {word!r} within {PATIENCE} s; since its start: {self.new_lines()}"
            time.sleep(0.0005)

    def kill(self) -> str:
        """SIGKILL; the last thing it did."""
        self.process.kill()
        self.end()
        assert self.process.returncode == -signal.SIGKILL, self.error
        lines = self.new_lines()
        return lines[-1].split()[0] if lines else "started python"

    def end(self) -> int:
        """Wait until it has ended; its exit code."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.stdin.close()

    @property
    def error(self) -> str:
        return self._errors.read_text()


class Theatre:
    """A data directory, the world beside it, and the workers that come and go."""

    def __init__(self, path: Path, nursery: Nursery) -> None:
        self.data = path / "data"
        self.world = path / "world"
        self._nursery = nursery

    def life(self, task: str, *, dies_at: Passage | None = None, **work: Any) -> Life:
        assignment = {"data": str(self.data), "world": str(self.world), "task": task, **work}
        return Life(self._nursery, assignment, self.world, dies_at)

    def dies(self, task: str, **work: Any) -> None:
        """A life that must end by SIGKILL."""
        life = self.life(task, **work)
        code = life.end()
        assert code == -signal.SIGKILL, f"it ended with {code}: {life.error}"

    def survives(self, task: str, **work: Any) -> None:
        """A life that must come to its end."""
        life = self.life(task, **work)
        code = life.end()
        assert code == 0, f"it ended with {code}: {life.error}"

    def lives_until_done(self, task: str, *, at_commits: Sequence[int] = (-1,), **work: Any) -> int:
        """As many lives as it takes, each dying over the next of `at_commits`; how many of them ended by SIGKILL."""
        for deaths in range(MOST_LIVES):
            life = self.life(task, at_commit=at_commits[deaths % len(at_commits)], **work)
            code = life.end()
            if code == 0:
                return deaths
            assert code == -signal.SIGKILL, f"it ended with {code}: {life.error}"
        raise AssertionError(f"no end in sight after {MOST_LIVES} lives: {self.happened[-20:]}")

    @property
    def happened(self) -> list[list[str]]:
        return [line.split(" ") for line in self.world.read_text().splitlines()]

    def count(self, word: str) -> Counter[str]:
        """How often each subject was noted under a word."""
        return Counter(line[1] for line in self.happened if line[0] == word)

    def results(self) -> dict[str, list[Any]]:
        """What each run gave; every life must have been given the same."""
        results: dict[str, list[Any]] = {}
        for word, *rest in self.happened:
            if word == "result":
                result = json.loads(" ".join(rest[1:]))
                assert results.setdefault(rest[0], result) == result
        return results

    def read(self) -> Remains:
        """What is on disk, read by a process that has done none of it."""
        return asyncio.run(self._read())

    async def _read(self) -> Remains:
        async with Runtime(store=LmdbStore(self.data, map_size=MAP_SIZE), recover=False) as runtime:
            entries = {entry.run_id: entry for entry in await runtime.runs.list()}
            # The events of a run that may still go on have no end.
            unfinished = {run_id: entry.state.value for run_id, entry in entries.items() if entry.state not in STANDING}
            assert not unfinished, f"runs that nobody has seen through: {unfinished}"
            events = {
                run_id: [(event.sequence, event.name) async for event in runtime.events(run_id)] for run_id in entries
            }
            steps = {run_id: [step.step for step in await runtime.runs.steps(run_id)] for run_id in entries}
            sessions = await runtime.sessions.list()
            transcripts = {session_id: await runtime.sessions.transcript(session_id) for session_id in sessions}
        return Remains(entries, events, steps, transcripts)


class Remains:
    """What the disk holds in the end."""

    def __init__(
        self,
        entries: dict[str, RunEntry],
        events: dict[str, list[tuple[int | None, str]]],
        steps: dict[str, list[str]],
        transcripts: dict[str, Sequence[Message]],
    ) -> None:
        self.entries = entries
        self.events = events
        self.steps = steps
        self.transcripts = transcripts


# ---- the laws


def no_acknowledged_step_is_lost(theatre: Theatre, remains: Remains) -> None:
    for word, *rest in theatre.happened:
        if word == "submitted":
            assert rest[0] in remains.entries, f"{rest[0]} was taken in, and is forgotten"
        elif word == "acknowledged":
            run_id, sequence, name = rest
            assert (int(sequence), name) in remains.events[run_id], f"record {sequence} of {run_id} ({name}) is lost"
    records_are_whole(remains)


def records_are_whole(remains: Remains) -> None:
    for run_id, events in remains.events.items():
        sequences = sorted({sequence for sequence, _ in events if sequence is not None})
        assert sequences == [*range(len(sequences))], f"the records of {run_id} have gaps"
    for run_id, steps in remains.steps.items():
        twice = [step for step, times in Counter(steps).items() if times > 1]
        assert not twice, f"steps {twice} of {run_id} are recorded twice"


def no_completed_step_runs_again(theatre: Theatre, remains: Remains) -> None:
    """Two witnesses: what had been acknowledged to a subscriber, and what must have been, since a later step began."""
    furthest: dict[tuple[str, str], int] = {}
    for word, *rest in theatre.happened:
        if word not in BEGINNINGS:
            continue
        call = CALL.fullmatch(rest[0])
        assert call is not None, rest
        run_id, scope, ordinal = call["run"], call["scope"], int(call["ordinal"])
        # A scope below the root belongs to a step of the root: `1.item3/0` is part of step 1.
        root = int(re.match(r"\d+", scope)[0]) if scope else ordinal  # type: ignore[index]
        for place, reached in (((run_id, ""), root), ((run_id, scope), ordinal)):
            assert reached >= furthest.get(place, 0), f"{rest[0]} ran again after step {furthest[place]} had begun"
            furthest[place] = reached
    records_are_whole(remains)


def every_effect_with_reconcile_happened_once(theatre: Theatre) -> None:
    twice = {call: times for call, times in theatre.count("deposit").items() if times > 1}
    assert not twice, f"deposited twice: {twice}"


def transcripts_are_well_formed(remains: Remains) -> None:
    for session_id, messages in remains.transcripts.items():
        open_calls: list[str] = []
        last = ""
        for message in messages:
            if message.role == "tool":
                assert open_calls, f"{session_id}: an answer to no call: {message}"
                assert message.tool_call_id == open_calls.pop(0), f"{session_id}: answers out of order at {message}"
            else:
                assert not open_calls, f"{session_id}: {open_calls} unanswered before {message}"
                open_calls = [call.id for call in message.tool_calls]
                if message.text.startswith("work "):
                    assert last in {"", "assistant"}, f"{session_id}: {message.text} follows an unfinished run"
            last = message.role
        assert not open_calls, f"{session_id} ends with {open_calls} unanswered"


def runs_of_a_session_went_in_order(remains: Remains) -> None:
    began: dict[str, list[tuple[int, int | None, str]]] = defaultdict(list)
    for entry in remains.entries.values():
        began[entry.session_id].append((entry.order, entry.began_sequence, entry.run_id))
    for session_id, runs in began.items():
        in_order = [run_id for _, _, run_id in sorted(runs)]
        assert [run_id for _, run_id in sorted((at or 0, run_id) for _, at, run_id in runs)] == in_order, session_id
        inputs = [m.text for m in remains.transcripts[session_id] if m.role == "user" and m.text.startswith("work ")]
        assert inputs == [f"work {run_id}" for run_id in in_order], f"{session_id}: an input is missing, or there twice"


class Laws:
    """All of them."""

    def hold(self, theatre: Theatre) -> Remains:
        remains = theatre.read()
        no_acknowledged_step_is_lost(theatre, remains)
        no_completed_step_runs_again(theatre, remains)
        every_effect_with_reconcile_happened_once(theatre)
        transcripts_are_well_formed(remains)
        return remains

    def are_whole(self, remains: Remains) -> None:
        records_are_whole(remains)
        transcripts_are_well_formed(remains)

    def order_holds(self, remains: Remains) -> None:
        runs_of_a_session_went_in_order(remains)


@pytest.fixture
def theatre(tmp_path: Path, nursery: Nursery) -> Theatre:
    return Theatre(tmp_path, nursery)


@pytest.fixture
def laws() -> Laws:
    return Laws()
