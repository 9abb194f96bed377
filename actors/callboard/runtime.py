"""Runtime: the front door. One per process and event loop, on one data directory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from callboard.access import Agents, Runs, Sessions
from callboard.accounts import Accounts
from callboard.agents import Agent
from callboard.clock import SYSTEM_CLOCK, Clock
from callboard.directory import Directory
from callboard.event_bus import Subscription
from callboard.health import RuntimeHealth
from callboard.limits import RuntimeLimits, RuntimeStats
from callboard.requests import RunOptions, request_for
from callboard.run_calls import RunCalls
from callboard.run_events import follow_run
from callboard.run_handle import RunHandle, RunStream
from callboard.runs.run_info import run_at_work
from callboard.runs.ticket import RunTicket
from callboard.runtime_life import RuntimeLife
from callboard_protocol.base import as_seconds, check_identifier, check_name
from callboard_protocol.commands import CancelRun, DecideCall, ResumeRun, SendSignal, Subscribe, Unsubscribe
from callboard_protocol.errors import UsageError
from callboard_protocol.event_base import Event
from callboard_protocol.events import check_known_name
from callboard_protocol.messages import ContentPart
from callboard_protocol.runs import RunBudget, RunRequest, RunResult
from callboard_protocol.tools import Decision
from callboard_storage.store import Store

D = TypeVar("D")
T = TypeVar("T")


class Runtime:
    """Runs agents, durably, inside your own process.

    Args:
        agents: those it may run; `runtime.agents` adds more later.
        store: a directory, which is made where it is missing; None keeps everything in memory; or a `Store`.
        limits: how much it takes on at a time.
        recover: whether unfinished runs of the directory are carried on when it starts.
        drain_timeout: seconds or a timedelta that runs have, when it closes, to come to the end of the step they are
            in; a step that takes longer is cut short. The next start carries all of them on. Runs that are not
            durable have that time to come to their end.
        clock: what runs go by: their deadlines, sleeps and pauses, and the times they record; the machine's own where
            None. For tests: see `callboard.testing.FakeClock`.

    Raises:
        DuplicateAgentError: two different agents have one id.
        UsageError: `limits` or `clock` is something else.
    """

    def __init__(
        self,
        agents: Sequence[Agent[Any, Any]] = (),
        *,
        store: str | os.PathLike[str] | Store | None = None,
        limits: RuntimeLimits | None = None,
        recover: bool = True,
        drain_timeout: float | timedelta = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self.agents = Agents(agents)
        if not isinstance(limits, RuntimeLimits | None):
            raise UsageError(
                f"limits={limits!r:.60} does not fit", hint="limits=RuntimeLimits(max_concurrent_runs=...)"
            )
        if not isinstance(clock, Clock | None):
            raise UsageError(f"clock={clock!r:.60} tells no time", hint="clock=callboard.testing.FakeClock()")
        self._life = RuntimeLife(
            self.agents,
            RuntimeLimits() if limits is None else limits,
            location=store,
            recover=recover,
            drain_timeout=as_seconds(drain_timeout),
            clock=SYSTEM_CLOCK if clock is None else clock,
        )
        self._calls = RunCalls(self._life)

    # ---- its life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Open the data directory, start the actors, and queue what was left unfinished.

        Raises:
            StoreOpenError: the directory cannot be opened; the error says what to do.
            UsageError: it is open already, or `limits` bound a store that was made with limits of its own.
        """
        await self._life.start()

    async def aclose(self, *, reason: str = "aclose", drain_timeout: float | timedelta | None = None) -> None:
        """Take no more runs in, let those in flight come to the end of their step within `drain_timeout`, and close the
        directory.

        What is left unfinished is carried on by the next start. Closing twice is harmless: whoever calls this while it
        closes waits until it has. Cancelling this ends the patience, not the closing: runs are stopped where they are,
        and the cancellation is raised once all is closed.

        Args:
            reason: why, for the events.
            drain_timeout: seconds or a timedelta in place of the runtime's own. A closing that is under way is not made
                longer by it, and ends now where it is 0.

        Raises:
            WrongLoopError: it was opened on another event loop; it stays open.
            ForkedError: it was opened by the parent of this process, and is still the parent's.
            UsageError: the reason is no text.
        """
        given: object = reason
        if not isinstance(given, str):
            raise UsageError(f"reason={reason!r:.60} is no text", hint="aclose(reason='deployment')")
        within = None if drain_timeout is None else as_seconds(drain_timeout)
        await self._life.close(reason, within)

    @property
    def is_open(self) -> bool:
        """Whether it has been started and not closed."""
        return self._life.is_open

    @property
    def _open(self) -> Directory:
        return self._life.directory

    # ---- runs

    @overload
    async def run(
        self,
        agent: Agent[D, T],
        input: str | Sequence[ContentPart],
        *,
        deps: D | None = None,
        **options: Unpack[RunOptions],
    ) -> RunResult[T]: ...
    @overload
    async def run(
        self,
        agent: str,
        input: str | Sequence[ContentPart],
        *,
        deps: Any = None,
        **options: Unpack[RunOptions],
    ) -> RunResult[Any]: ...
    @overload
    async def run(self, agent: RunRequest, *, deps: Any = None) -> RunResult[Any]: ...
    async def run(
        self,
        agent: Agent[Any, Any] | str | RunRequest,
        input: str | Sequence[ContentPart] | None = None,  # noqa: A002  (the public API's name)
        *,
        deps: Any = None,
        **options: Unpack[RunOptions],
    ) -> RunResult[Any]:
        """Run an agent and wait for its result. Cancelling this call cancels the run.

        A run that fails, times out or exhausts its budget returns a result that says so.

        Args:
            agent: an agent, its id, or a whole `RunRequest` (then without the rest).
            input: what the user says: text, or content parts.
            deps: stands in for the agent's own `deps`: a value or a factory. It is not stored: a run that is carried
                on after a crash gets the agent's own.
            **options: the other fields of `RunRequest`; session and run ids are generated where not given.

        Raises:
            UnknownAgentError: no such agent; the error names the nearest.
            InvalidIdentifierError: an id cannot be stored.
            RunConflictError: the run id is known with another request.
            RuntimeBusyError: a limit is reached; nothing was started.
            SessionHeldByAncestorError: the run that makes this call holds that session, and would wait for itself.
            RuntimeClosedError: the runtime is not open.
        """
        known, request, is_new = request_for(self.agents, agent, input, options)
        try:
            ticket = await self._calls.take_in(known, request, deps, is_new=is_new, awaited_by=run_at_work.get())
            return await asyncio.shield(ticket.result)
        except asyncio.CancelledError:
            await self._calls.abandon(request.run_id)
            raise

    @overload
    async def submit(
        self,
        agent: Agent[D, T],
        input: str | Sequence[ContentPart],
        *,
        deps: D | None = None,
        **options: Unpack[RunOptions],
    ) -> RunHandle[T]: ...
    @overload
    async def submit(
        self,
        agent: str,
        input: str | Sequence[ContentPart],
        *,
        deps: Any = None,
        **options: Unpack[RunOptions],
    ) -> RunHandle[Any]: ...
    @overload
    async def submit(self, agent: RunRequest, *, deps: Any = None) -> RunHandle[Any]: ...
    async def submit(
        self,
        agent: Agent[Any, Any] | str | RunRequest,
        input: str | Sequence[ContentPart] | None = None,  # noqa: A002  (the public API's name)
        *,
        deps: Any = None,
        **options: Unpack[RunOptions],
    ) -> RunHandle[Any]:
        """Take a run in: once this returns it is on disk, and goes on without the caller.

        The same request under the same run id gives the same run: submitting twice runs once.

        Args:
            agent: an agent, its id, or a whole `RunRequest` (then without the rest).
            input: what the user says: text, or content parts.
            deps: as for `run`.
            **options: as for `run`.

        Raises:
            UnknownAgentError: no such agent; the error names the nearest.
            InvalidIdentifierError: an id cannot be stored.
            RunConflictError: the run id is known with another request.
            RuntimeBusyError: a limit is reached; nothing was started.
            RuntimeClosedError: the runtime is not open.
        """
        known, request, is_new = request_for(self.agents, agent, input, options)
        return self._handle(await self._calls.take_in(known, request, deps, is_new=is_new))

    @overload
    def stream(
        self,
        agent: Agent[D, T],
        input: str | Sequence[ContentPart],
        *,
        deps: D | None = None,
        **options: Unpack[RunOptions],
    ) -> RunStream[T]: ...
    @overload
    def stream(
        self,
        agent: str,
        input: str | Sequence[ContentPart],
        *,
        deps: Any = None,
        **options: Unpack[RunOptions],
    ) -> RunStream[Any]: ...
    @overload
    def stream(self, agent: RunRequest, *, deps: Any = None) -> RunStream[Any]: ...
    def stream(
        self,
        agent: Agent[Any, Any] | str | RunRequest,
        input: str | Sequence[ContentPart] | None = None,  # noqa: A002  (the public API's name)
        *,
        deps: Any = None,
        **options: Unpack[RunOptions],
    ) -> RunStream[Any]:
        """Run an agent and follow its events: ``async with runtime.stream(...) as stream``. Leaving the block before
        the run has ended cancels it.

        Args:
            agent: an agent, its id, or a whole `RunRequest` (then without the rest).
            input: what the user says: text, or content parts.
            deps: as for `run`.
            **options: as for `run`.

        Raises:
            UnknownAgentError: no such agent; the error names the nearest.
            InvalidIdentifierError: an id cannot be stored.
        """
        known, request, is_new = request_for(self.agents, agent, input, options)

        async def start() -> RunHandle[Any]:
            try:
                awaited_by = run_at_work.get()
                ticket = await self._calls.take_in(known, request, deps, is_new=is_new, awaited_by=awaited_by)
                return self._handle(ticket)
            except asyncio.CancelledError:
                await self._calls.abandon(request.run_id)
                raise

        return RunStream(self, request.run_id, start)

    def _handle(self, ticket: RunTicket) -> RunHandle[Any]:
        return RunHandle(self, ticket.run_id, lambda: self._calls.settled(ticket))

    async def wait(self, run_id: str) -> RunResult[Any]:
        """Wait until a run has stopped, whoever submitted it.

        Raises:
            UnknownRunError: there is no such run.
            SessionHeldByAncestorError: the run that calls this holds that run's session, and would wait for itself.
        """
        check_identifier(run_id, "run id")
        return await self._calls.wait(run_id)

    async def cancel(self, run_id: str, *, reason: str = "", by: str = "") -> bool:
        """Stop a run; returns once it has stopped. A finished run is left as it is.

        Args:
            run_id: which.
            reason: why; the result says it.
            by: who asks; the result says it.

        Returns:
            Whether this stopped it.

        Raises:
            UnknownRunError: there is no such run.
        """
        check_identifier(run_id, "run id")
        stopped = await self._open.supervisor.ask(CancelRun(run_id=run_id, reason=reason, by=by), timeout=None)
        if not stopped:
            await self.runs.get(run_id)
        return stopped

    async def decide(self, call_id: str, decision: Decision, *, by: str, note: str = "") -> None:
        """Decide a call that a suspended run asks about; the run goes on with it. From any process on the directory,
        before or after a restart. Once this returns, the decision is on disk and stands.

        Args:
            call_id: as in `pending` of the run's result.
            decision: `Allow` or `Deny` where an approval is asked for; `Happened`, `NotHappened` or `Deny` for a call
                in doubt. It holds for the arguments that `pending` showed.
            by: who decides.
            note: why.

        Raises:
            UnknownCallError: no run asks about such a call.
            AlreadyDecidedError: it was decided before.
            RunEndedError: its run has ended.
            UsageError: that is no answer to what is asked.
            UnpersistableValueError: the result it names cannot be stored.
        """
        check_name(call_id, "call id")
        check_name(by, "name of who decides")
        message = DecideCall(call_id=call_id, decision=decision, by=by, note=note)
        await self._open.supervisor.ask(message, timeout=None)

    async def send(self, run_id: str, channel: str, value: Any) -> None:
        """Send a value to a run, which takes it with ``ctx.receive(channel, ...)``, also if it does so only later. From
        any process on the directory. Once this returns, the value is on disk, behind those sent before it.

        Args:
            run_id: which.
            channel: order holds per channel.
            value: plain data, or a model or dataclass, which becomes plain.

        Raises:
            UnknownRunError: there is no such run.
            RunEndedError: it has ended. What it did not receive before that is dropped.
            UnpersistableValueError: the value cannot be stored.
            StoreFullError: there is no room for it.
        """
        check_identifier(run_id, "run id")
        check_name(channel, "name of the channel")
        await self._open.supervisor.ask(SendSignal(run_id=run_id, channel=channel, value=value), timeout=None)

    async def resume(self, run_id: str, *, budget: RunBudget | None = None) -> RunHandle[Any]:
        """Let a run go on: one that failed, ran out of its time or its budget, one that nobody carries on since the
        runtime was opened with `recover=False`, and one that is parked. Where it failed over a step, that step is made
        again; every other step keeps its outcome.

        To resume a run that waits or is at work is harmless.

        Args:
            run_id: which.
            budget: limits in the place of all those it had, from now on. What it has used up counts.

        Returns:
            Its handle. It is on disk that the run is to go on.

        Raises:
            UnknownRunError: there is no such run.
            RunNotResumableError: it completed, was cancelled or waits for a decision; or its session has moved on.
            UnknownAgentError: its agent is not registered.
            StoreFullError: the store has no room for more work.
        """
        check_identifier(run_id, "run id")
        if not isinstance(budget, RunBudget | None):
            raise UsageError(f"budget={budget!r:.60} is no budget", hint="budget=RunBudget(max_steps=...)")
        ticket = await self._open.supervisor.ask(ResumeRun(run_id=run_id, budget=budget), timeout=None)
        return self._handle(ticket)

    # ---- what else there is

    @property
    def sessions(self) -> Sessions:
        """The sessions of the data directory."""
        return Sessions(self._life.here)

    @property
    def runs(self) -> Runs:
        """The runs of the data directory."""
        return Runs(self._life.here)

    @property
    def accounts(self) -> Accounts:
        """The named accounts of the data directory."""
        return Accounts(self._life.here)

    async def subscribe(self, run_id: str | None = None, *, names: Sequence[str] = ()) -> Subscription:
        """Watch events as they happen. Close the subscription when done.

        Args:
            run_id: only this run's; every run's where None.
            names: only events of these names; all where empty.

        Raises:
            UsageError: a name that looks like a built-in event's is none; the error names the nearest.
        """
        for name in names:
            check_known_name(name)
        if run_id is not None:
            check_identifier(run_id, "run id")
        subscription: Subscription = await self._open.bus.ask(Subscribe(run_id=run_id, names=frozenset(names)))
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription after what has been published up to now; that can still be read."""
        self._open.bus.tell(Unsubscribe(subscription=subscription))

    def events(self, run_id: str, *, after: str | None = None) -> AsyncIterator[Event]:
        """A run's events, from the beginning or from where a reader left off: what is on disk, then what happens.

        Args:
            run_id: which.
            after: an event's `cursor`; what came up to it is left out.

        Raises:
            UnknownRunError: there is no such run.
            UsageError: `after` is no cursor.
        """
        return follow_run(self._life.here, check_identifier(run_id, "run id"), after)

    def stats(self) -> RuntimeStats:
        """What is in hand right now.

        Raises:
            RuntimeClosedError: the runtime is not open.
        """
        return self._open.describe()

    def health(self) -> RuntimeHealth:
        """What is wrong, if anything: actors that are not running, a store that is full, stalled or damaged, something
        that blocks the event loop. From any thread: one that does not answer may be why somebody asks.

        Raises:
            RuntimeClosedError: the runtime is not open.
        """
        return self._life.health()
