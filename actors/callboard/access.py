"""What a runtime lets its users read and change beside runs: `runtime.sessions`, `.runs`, `.agents`."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from callboard.agents import Agent, find_agent
from callboard.directory import Directory
from callboard.runs.history import Conversation
from callboard.runs.results import steps_of
from callboard.sessions.checkpoints import find_checkpoint, list_checkpoints
from callboard.sessions.forking import fork_session
from callboard_protocol.base import check_identifier
from callboard_protocol.commands import AdoptAgent, CheckpointSession, DropAgent, ReleaseSession, UseSessionAlone
from callboard_protocol.errors import (
    DamagedRecordError,
    DuplicateAgentError,
    InvalidIdentifierError,
    RuntimeBusyError,
    UnknownRunError,
    UnknownSessionError,
    UsageError,
)
from callboard_protocol.messages import Message
from callboard_protocol.records import StepCompleted
from callboard_protocol.session_fold import SessionFold
from callboard_protocol.sessions import RunEntry, SessionArtifact, SessionCheckpoint, SessionHead, step_of_checkpoint
from callboard_protocol.states import RunState
from callboard_storage.store_values import Deletion

_PAGE = 500


class Agents:
    """The registered agents. Runs in flight keep the agent they began with.

    Args:
        agents: by id.
    """

    def __init__(self, agents: Sequence[Agent[Any, Any]]) -> None:
        self.by_id: dict[str, Agent[Any, Any]] = {}
        self.directory: Directory | None = None
        if isinstance(agents, Agent | str):
            raise UsageError(f"{agents!r:.60} is not a list of agents", hint="Runtime([agent])")
        for agent in agents:
            self._add(agent)

    def _add(self, agent: Agent[Any, Any]) -> None:
        if not isinstance(agent, Agent):
            raise UsageError(f"{agent!r:.60} is not an agent", hint="Runtime([Agent(...), ...])")
        known = self.by_id.get(agent.id)
        if known is not None and known is not agent:
            raise DuplicateAgentError(f"two agents have the id {agent.id!r}")
        self.by_id[agent.id] = agent

    def register(self, agent: Agent[Any, Any]) -> None:
        """Add an agent; runs parked for want of it go on.

        Raises:
            DuplicateAgentError: another agent has its id.
        """
        if self.directory is not None:
            self.directory.system.place.require_process("the runtime")
        self._add(agent)
        if self.directory is not None:
            self.directory.supervisor.tell(AdoptAgent(agent=agent))

    def unregister(self, agent_id: str) -> None:
        """Remove an agent; new runs of it are turned away.

        Raises:
            UnknownAgentError: it is not registered.
        """
        del self.by_id[self.find(agent_id).id]
        if self.directory is not None:
            self.directory.supervisor.tell(DropAgent(agent_id=agent_id))

    def list(self) -> list[Agent[Any, Any]]:
        """All of them, in the order they were registered."""
        return [*self.by_id.values()]

    def find(self, agent: Agent[Any, Any] | str) -> Agent[Any, Any]:
        """The registered agent.

        Raises:
            UnknownAgentError: there is none; the error names the nearest.
        """
        return find_agent(self.by_id, agent)


class Sessions:
    """The sessions of a data directory.

    Args:
        directory: where the runtime's actors are.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._store = directory.store

    async def list(self) -> Sequence[str]:
        """Ids of all sessions, in order."""
        ids: list[str] = []
        while True:
            page = await self._store.list_sessions(after=ids[-1] if ids else None, limit=_PAGE)
            ids.extend(page)
            if len(page) < _PAGE:
                return ids

    async def get(self, session_id: str) -> SessionHead:
        """Where a session stands.

        Raises:
            UnknownSessionError: there is no such session.
            InvalidIdentifierError: the id cannot name one.
            DamagedRecordError: a record that says so cannot be read.
        """
        head = await self._store.read_head(check_identifier(session_id, "session id"))
        if head is None:
            raise UnknownSessionError(f"there is no session {session_id!r}", hint="runtime.sessions.list() names them")
        return head

    async def transcript(self, session_id: str) -> Sequence[Message]:
        """Every message of a session that counts, in order: without what followed a checkpoint it went back to.

        Raises:
            UnknownSessionError: there is no such session.
            DamagedRecordError: a record cannot be read.
        """
        return [*Conversation((await self._fold(session_id)).transcript()).view()]

    async def artifacts(self, session_id: str) -> Sequence[SessionArtifact]:
        """What the session's runs made, in order: without what followed a checkpoint it went back to.

        Raises:
            UnknownSessionError: there is no such session.
            DamagedRecordError: a record cannot be read.
        """
        return (await self._fold(session_id)).artifacts()

    async def checkpoints(self, session_id: str) -> Sequence[SessionCheckpoint]:
        """All checkpoints in the order of the log: one for the beginning of each run, one for each completed step, and
        those under callers' names. Each can be gone back to, also one that counts no more.

        One under a caller's name that cannot be read is left out; `runtime.health()` names it.

        Raises:
            UnknownSessionError: there is no such session.
            DamagedRecordError: a record cannot be read; the error names the last checkpoint before it.
        """
        await self._require(session_id)
        return await list_checkpoints(self._store, session_id)

    async def get_checkpoint(self, session_id: str, checkpoint_id: str) -> SessionCheckpoint:
        """One checkpoint.

        Args:
            session_id: the session.
            checkpoint_id: ``{run_id}:step:{n}``, or a caller's name.

        Raises:
            UnknownSessionError: there is no such session.
            UnknownCheckpointError: the session has no such checkpoint; the error names the nearest.
            DamagedRecordError: a record up to there cannot be read.
        """
        await self._require(session_id)
        return await find_checkpoint(self._store, session_id, checkpoint_id)

    async def checkpoint(self, session_id: str, name: str) -> SessionCheckpoint:
        """Keep a checkpoint of where the session stands, under a name of your own. A name that is taken moves.

        Raises:
            UnknownSessionError: there is no such session.
            InvalidIdentifierError: the name cannot be stored, or is like those of steps.
            DamagedRecordError: a record cannot be read.
        """
        await self.get(session_id)
        check_identifier(name, "checkpoint name")
        if step_of_checkpoint(name) is not None:
            raise InvalidIdentifierError(
                f"the checkpoint name {name!r} is like that of a run's step", hint="choose one without ':step:'"
            )
        checkpoint: SessionCheckpoint = await self._directory.supervisor.ask(
            CheckpointSession(session_id=session_id, name=name), timeout=None
        )
        return checkpoint

    async def release(self, session_id: str) -> bool:
        """Park a session now: it costs no memory until it is used again.

        Returns:
            False while a run uses it.

        Raises:
            UnknownSessionError: there is no such session.
            InvalidIdentifierError: the id cannot name a session.
        """
        check_identifier(session_id, "session id")
        if not await self._directory.supervisor.ask(ReleaseSession(session_id=session_id)):
            return False
        await self._require(session_id)
        return True

    async def fork(self, source: str, target: str, checkpoint_id: str | None = None) -> SessionHead:
        """Make a new session of what another one is, or was at a checkpoint. Neither sees what becomes of the other.

        The fork has the source's transcript, state, artifacts, usage and checkpoints up to there, and a copy of its
        memory as it is now. The runs stay the source's; where one was in progress, its open calls are answered in the
        fork with a message that says so. All of it is one transaction.

        Args:
            source: the session.
            target: the id of the fork.
            checkpoint_id: where to fork; None for the last checkpoint there is.

        Returns:
            Where the fork stands.

        Raises:
            UnknownSessionError: there is no session `source`.
            UnknownCheckpointError: it has no such checkpoint; the error names the nearest.
            SessionExistsError: there is a session `target`.
            RuntimeBusyError: a run waits for the session `target`.
            DamagedRecordError: a record up to there cannot be read; the error names the last checkpoint before it.
            StoreError: the store could not write it; nothing of the fork is there.
        """
        check_identifier(source, "session id")
        check_identifier(target, "session id")
        work = partial(fork_session, self._store, source, target, checkpoint_id)
        head: SessionHead = await self._directory.supervisor.ask(
            UseSessionAlone(session_id=target, work=work), timeout=None
        )
        return head

    async def delete(self, session_id: str) -> Deletion:
        """Remove a session and all it holds.

        Returns:
            What was removed, by kind.

        Raises:
            UnknownSessionError: there is no such session.
            RuntimeBusyError: a run uses it or waits for it.
            StoreError: nothing was removed.
        """
        work = partial(self._delete, check_identifier(session_id, "session id"))
        deletion: Deletion = await self._directory.supervisor.ask(
            UseSessionAlone(session_id=session_id, work=work), timeout=None
        )
        return deletion

    async def _delete(self, session_id: str) -> Deletion:
        await self._require(session_id)
        for run in await self._store.read_unfinished(session_id):
            # Of a runtime that recovers nothing: what was taken in is not to be lost.
            raise RuntimeBusyError(
                f"run {run.run_id!r} of session {session_id!r} has not ended", hint="cancel it, or let it end"
            )
        return await self._store.delete_session(session_id)

    async def _require(self, session_id: str) -> None:
        """Raise unless there is such a session; one that is damaged is there."""
        with contextlib.suppress(DamagedRecordError):
            await self.get(session_id)

    async def _fold(self, session_id: str) -> SessionFold:
        await self.get(session_id)
        return SessionFold(session_id, (stored.record for stored in await self._store.read_log(session_id)))


class Runs:
    """The runs of a data directory.

    Args:
        directory: where the runtime's actors are.
    """

    def __init__(self, directory: Directory) -> None:
        self._store = directory.store
        self._held = directory.held

    async def list(self, *, state: RunState | str | None = None) -> Sequence[RunEntry]:
        """Runs in the order of their ids. One whose entry cannot be read is left out; `runtime.health()` names it.

        Args:
            state: only those in this state.

        Raises:
            UsageError: there is no such state; the error names the nearest.
        """
        if state is not None and state not in set(RunState):
            near = difflib.get_close_matches(str(state), [*RunState], n=1)
            raise UsageError(
                f"there is no run state {state!r}",
                hint=f"did you mean {str(near[0])!r}?" if near else f"one of: {', '.join(RunState)}",
            )
        wanted = None if state is None else RunState(state)
        return [entry async for entry in self._all() if wanted is None or entry.state == wanted]

    async def _all(self) -> AsyncIterator[RunEntry]:
        after: str | None = None
        while True:
            page = await self._store.list_runs(after=after, limit=_PAGE)
            for entry in page:
                yield self._shown(entry)
            if len(page) < _PAGE:
                return
            after = page[-1].run_id

    async def get(self, run_id: str) -> RunEntry:
        """A run as it stands on disk; one that waits for room, which nothing on disk can say, is shown as suspended.

        Raises:
            UnknownRunError: there is no such run.
            InvalidIdentifierError: the id cannot name one.
            DamagedRecordError: its entry cannot be read.
        """
        entry = await self._store.read_run(check_identifier(run_id, "run id"))
        if entry is None:
            raise UnknownRunError(f"there is no run {run_id!r}", context={"run_id": run_id})
        return self._shown(entry)

    def _shown(self, entry: RunEntry) -> RunEntry:
        hold = self._held.get(entry.run_id)
        return entry if hold is None else hold.shown(entry)

    async def steps(self, run_id: str) -> Sequence[StepCompleted]:
        """A run's completed steps, in the order they completed; an outcome that was voided is left out.

        Raises:
            UnknownRunError: there is no such run.
            DamagedRecordError: a record cannot be read.
        """
        return await steps_of(self._store, await self.get(run_id))
