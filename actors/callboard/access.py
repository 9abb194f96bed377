"""What a runtime lets its users read and change beside runs: `runtime.sessions`, `.runs`, `.agents`."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from callboard.agents import Agent
from callboard.directory import Directory
from callboard.history import Conversation
from callboard.results import records_of
from callboard_protocol.base import check_identifier
from callboard_protocol.commands import AdoptAgent, CheckpointSession, DropAgent, ReleaseSession
from callboard_protocol.errors import (
    DuplicateAgentError,
    RuntimeBusyError,
    UnknownAgentError,
    UnknownRunError,
    UnknownSessionError,
    UsageError,
)
from callboard_protocol.messages import Message
from callboard_protocol.records import SessionRewound, StepCompleted, transcript_of
from callboard_protocol.sessions import RunEntry, SessionArtifact, SessionCheckpoint, SessionHead
from callboard_protocol.states import RunState
from callboard_storage.store import Deletion

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
        if not isinstance(agent, str | Agent):
            raise UsageError(f"{agent!r:.60} is neither an agent nor the id of one", hint="runtime.run(agent, '...')")
        agent_id = agent if isinstance(agent, str) else agent.id
        known = self.by_id.get(agent_id)
        if known is None:
            near = difflib.get_close_matches(agent_id, self.by_id, n=1)
            raise UnknownAgentError(
                f"no agent {agent_id!r} is registered",
                hint=f"did you mean {near[0]!r}?" if near else None,
                context={"registered": [*self.by_id]},
            )
        if not isinstance(agent, str) and known is not agent:
            raise DuplicateAgentError(
                f"another agent is registered as {agent_id!r}", hint="pass the one that is registered, or its id"
            )
        return known


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
        """
        head = await self._store.read_head(check_identifier(session_id, "session id"))
        if head is None:
            raise UnknownSessionError(f"there is no session {session_id!r}", hint="runtime.sessions.list() names them")
        return head

    async def transcript(self, session_id: str) -> Sequence[Message]:
        """Every message of a session, in order.

        Raises:
            UnknownSessionError: there is no such session.
            DamagedRecordError: a record cannot be read.
        """
        await self.get(session_id)
        messages: list[Message] = []
        for stored in await self._store.read_log(session_id):
            if isinstance(stored.record, SessionRewound):
                del messages[stored.record.transcript_length :]
            messages.extend(transcript_of(stored.record))
        return [*Conversation(messages).view()]

    async def artifacts(self, session_id: str) -> Sequence[SessionArtifact]:
        """What the session's runs made, in order.

        Raises:
            UnknownSessionError: there is no such session.
            DamagedRecordError: a record cannot be read.
        """
        await self.get(session_id)
        return [
            SessionArtifact(
                session_id=session_id,
                run_id=stored.record.run_id,
                sequence=stored.sequence,
                artifact=stored.record.artifact,
                created_at=stored.record.at,
            )
            for stored in await self._store.read_log(session_id)
            if isinstance(stored.record, StepCompleted) and stored.record.artifact is not None
        ]

    async def checkpoints(self, session_id: str) -> Sequence[SessionCheckpoint]:
        """The checkpoints kept at the end of each run and under callers' names, the oldest first.

        Raises:
            UnknownSessionError: there is no such session.
        """
        await self.get(session_id)
        return await self._store.read_checkpoints(session_id)

    async def checkpoint(self, session_id: str, name: str) -> SessionCheckpoint:
        """Keep a checkpoint of where the session stands, under a name of your own.

        Raises:
            UnknownSessionError: there is no such session.
            InvalidIdentifierError: the name cannot be stored.
        """
        await self.get(session_id)
        check_identifier(name, "checkpoint name")
        checkpoint: SessionCheckpoint = await self._directory.supervisor.ask(
            CheckpointSession(session_id=session_id, name=name), timeout=None
        )
        return checkpoint

    async def release(self, session_id: str) -> bool:
        """Park a session now: it costs no memory until it is used again.

        Returns:
            False while a run uses it.

        Raises:
            InvalidIdentifierError: the id cannot name a session.
        """
        check_identifier(session_id, "session id")
        return await self._directory.supervisor.ask(ReleaseSession(session_id=session_id))

    async def delete(self, session_id: str) -> Deletion:
        """Remove a session and all it holds.

        Returns:
            What was removed, by kind.

        Raises:
            UnknownSessionError: there is no such session.
            RuntimeBusyError: a run uses it or waits for it.
        """
        await self.get(session_id)
        if not await self.release(session_id):
            raise RuntimeBusyError(f"session {session_id!r} has a run", hint="cancel it, or wait until it has ended")
        return await self._store.delete_session(session_id)


class Runs:
    """The runs of a data directory.

    Args:
        directory: where the runtime's actors are.
    """

    def __init__(self, directory: Directory) -> None:
        self._store = directory.store
        self._held = directory.held

    async def list(self, *, state: RunState | str | None = None) -> Sequence[RunEntry]:
        """Runs in the order of their ids.

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
        """
        entry = await self._store.read_run(check_identifier(run_id, "run id"))
        if entry is None:
            raise UnknownRunError(f"there is no run {run_id!r}", context={"run_id": run_id})
        return self._shown(entry)

    def _shown(self, entry: RunEntry) -> RunEntry:
        hold = self._held.get(entry.run_id)
        return entry if hold is None else hold.shown(entry)

    async def steps(self, run_id: str) -> Sequence[StepCompleted]:
        """A run's completed steps, in the order they completed.

        Raises:
            UnknownRunError: there is no such run.
            DamagedRecordError: a record cannot be read.
        """
        entry = await self.get(run_id)
        return [record async for record in records_of(self._store, entry) if isinstance(record, StepCompleted)]
