"""One attempt of a run, from opening its session to its last record."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from callboard.agents import Agent
from callboard.clock import Timer
from callboard.directory import Directory
from callboard.entries import ended_early, moved, parked, result_of, write_entry
from callboard.history import Conversation
from callboard.journal import RunJournal
from callboard.kernel import Ref
from callboard.lifecycle_steps import MemorySteps, lifecycle_record, state_after_last_step
from callboard.live_run import LiveRun, SessionState
from callboard.mail import RunMail
from callboard.memory import MemoryActor
from callboard.model_step import feedback_for, say
from callboard.plain_steps import NOT_MEANT_FOR_US, failed
from callboard.resuming import can_pass, own_since_beginning, way_records
from callboard.run import RunContext
from callboard.run_info import InheritedDeps, RunInfo, run_at_work
from callboard.scopes import Scope
from callboard.session import OpenedSession, SessionActor
from callboard.snapshot import snapshot_of
from callboard.stops import ParkRun, SessionElsewhere, StopRun, StruckRunWaits, cancelled
from callboard.ticket import RunTicket
from callboard.tree_spending import recorded_below, spent_below
from callboard_protocol.amounts import Amount, less, total
from callboard_protocol.commands import (
    CloseRun,
    OpenRunAccount,
    OpenSession,
    ResumeStruckRun,
    StopDelegated,
)
from callboard_protocol.errors import (
    ActorError,
    AgentDefinitionError,
    CallboardError,
    DamagedRecordError,
    FencedError,
    InterruptedByCrashError,
    OutputValidationError,
    PoisonousRunError,
    RunNotResumableError,
    SessionLockedError,
    StepTimeoutError,
    StoreError,
    StoreFullError,
    UnpersistableValueError,
)
from callboard_protocol.failures import describe
from callboard_protocol.messages import Message, render_for_model
from callboard_protocol.records import LogRecord, RunBegan, RunEnded, RunResumed, RunSuspended
from callboard_protocol.runs import RunResult, RunUsage, StopReason
from callboard_protocol.sessions import SessionCheckpoint, step_checkpoint_id
from callboard_protocol.states import STOP_INPUTS, RunInput, RunState
from callboard_protocol.tools import PendingCall
from callboard_protocol.trusted import trusted

_STORE_FAILED = "the run stopped without writing; it carries on from its last completed step"


class RunAttempt:
    """Carries one run as far as it goes.

    Args:
        ticket: the run.
        agent: who runs.
        session: the actor that owns its session's log.
        memory: the session's memory actor, where the agent has a memory.
        directory: where the other actors are.
    """

    def __init__(
        self,
        ticket: RunTicket,
        agent: Agent[Any, Any],
        session: Ref[SessionActor],
        memory: Ref[MemoryActor] | None,
        directory: Directory,
    ) -> None:
        self._ticket = ticket
        self._agent = agent
        self._session = session
        self._memory = memory
        self._directory = directory
        self._run: LiveRun | None = None
        self._conversation = Conversation()
        self._has_begun = False
        self._can_park = False
        self._strikes = 0
        self._in_flight: str | None = None
        self._way_back: Sequence[LogRecord] = ()
        self._token = 0
        self._opened_at = self._acquired_at = directory.clock.monotonic()

    async def perform(self) -> RunResult[Any] | None:
        """Run until there is a result. Whatever goes wrong is in the result; there is none yet where the run is to
        go on later.
        """
        run_at_work.set(self._ticket.run_id)
        try:
            try:
                output = await self._work()
            except (GeneratorExit, SessionElsewhere):
                raise
            except StruckRunWaits:
                return None
            except BaseException as error:  # noqa: BLE001  (whatever a pattern raises is how its run ends)
                if await self._put_off(error):
                    return None
                return await self._broken_off(error)
            if self._ticket.stop is not None:
                # The pattern swallowed the cancellation.
                return await self._stopped(self._ticket.stop)
            return await self._ended("completed", output=output)
        except StoreError as error:
            await self._stop_children(leaves=True)
            return self._unwritten(error)
        finally:
            if self._run is not None:
                self._run.hold.close()
            if self._session.is_alive():
                self._session.tell(CloseRun(run_id=self._ticket.run_id))
            if self._run is not None and self._token:
                held = self._directory.clock.monotonic() - self._acquired_at
                self._run.publish(("session.released", None, {"fence": self._token, "held": held}))

    # ---- the way through

    async def _work(self) -> Any:
        ticket = self._ticket
        if ticket.stop is not None:
            raise ticket.stop
        run, opened = await self._open(self._agent.state_type, goes_on=True)
        if ticket.mail.cancellation is not None:
            # It was posted while nobody carried the run.
            wanted = ticket.mail.cancellation
            ticket.stopped_by, ticket.reason = wanted.by, wanted.reason
            raise cancelled(ticket.run_id, wanted.by, wanted.reason)
        if self._strikes:
            run.is_struck = True
            if not await self._directory.supervisor.ask(ResumeStruckRun(run_id=ticket.run_id), timeout=None):
                raise StruckRunWaits
        memory = MemorySteps(run, self._memory)
        async with AsyncExitStack() as stack:
            # After a crash the start is on disk first: to open the deps may be what ends the process. Else it is only
            # tried, again and again if need be, and leaves no trace.
            is_tried = self._can_park and not ticket.entry.crashed
            if is_tried:
                run.deps = await self._open_deps(run, stack)
            spent = total([run.meter.spent(), *ticket.spent_below.values()])
            run.limits = await self._directory.supervisor.ask(
                OpenRunAccount(run_id=ticket.run_id, spent=spent, running=run.running()), timeout=None
            )
            began = await self._begin(run, opened)
            self._acquired_at, self._token = self._directory.clock.monotonic(), opened.lease.token
            self._announce(run, opened)
            if not is_tried:
                run.deps = await self._open_deps(run, stack)
            if ticket.request.resume_from_checkpoint is None:
                await memory.inject(ticket.request.input_message())
            else:
                memory.take_over(opened.injected)
            if run.instructions:
                self._conversation.add(Message.system(run.instructions))
            for message in opened.transcript if ticket.shared is None else ticket.shared.without_instructions():
                self._conversation.add(message)
            if ticket.is_nested:
                say(self._conversation, (ticket.request.input_message(),))
            for message in began.messages:
                self._conversation.add(message)
            scope = Scope("", self._conversation, self._watch, in_transcript=not ticket.is_nested)
            output = await self._validated(run, scope)
            await self._stop_children(leaves=False)
            await memory.write_back(output)
            return output

    async def _open(self, state_type: type[Any] | None, *, goes_on: bool) -> tuple[LiveRun, OpenedSession]:
        """Read what the session and the run itself have on disk.

        Args:
            state_type: the agent's.
            goes_on: whether the run is to go on; otherwise it is only to be ended.

        Raises:
            PoisonousRunError: it made no progress at as many starts in a row as its budget allows.
            InterruptedByCrashError: it asked not to be carried on after a crash.
            RunNotResumableError: it had ended, and its session has moved on since.
        """
        ticket = self._ticket
        entry = ticket.entry
        afresh = goes_on and entry.crashed and ticket.request.on_crash == "restart"
        opened: OpenedSession = await self._session.ask(
            OpenSession(
                run_id=ticket.run_id,
                resume_from_checkpoint=ticket.request.resume_from_checkpoint,
                is_nested=ticket.is_nested,
                began_sequence=ticket.entry.began_sequence,
                begins_afresh=afresh,
                failure=entry.problem if goes_on else None,
            ),
            timeout=None,
        )
        journal = RunJournal(ticket.run_id, self._session, opened.own, durable=ticket.request.durable)
        self._can_park = ticket.request.durable and (ticket.is_recovered or journal.began is not None)
        if goes_on and journal.began is not None:
            self._strikes = self._strikes_against(journal)
        self._in_flight = journal.in_flight()
        counting = own_since_beginning(opened.own)
        if afresh:
            journal.begin_afresh()
            counting = ()
        self._way_back = way_records(journal, opened)
        state = SessionState(state_type, opened.state if ticket.shared is None else ticket.shared.state)
        before = max((getattr(stored.record, "running", 0.0) for stored in counting), default=0.0)
        run = LiveRun(ticket, self._agent, journal, self._session, self._directory, state, before)
        recorded: dict[str, Amount] = {}
        for stored in counting:
            run.meter.count(stored.record)
            recorded.update(recorded_below(stored.record))
        if journal.began is not None and ticket.request.durable:
            ticket.spent_below = await spent_below(self._directory.store, ticket.run_id, recorded)
        self._run, self._has_begun = run, journal.began is not None
        if ticket.has_mail and ticket.request.durable:
            ticket.has_mail = False
            ticket.mail = RunMail(await self._directory.store.read_letters(ticket.session_id, ticket.run_id))
        return run, opened

    def _announce(self, run: LiveRun, opened: OpenedSession) -> None:
        """Tell whoever watches what the run stands on."""
        head, agent = opened.head, self._agent
        run.publish(
            (
                "run.validated",
                None,
                {"agent_version": agent.version, "model": run.model_name, "tools": tuple(agent.tools)},
            ),
            (
                "session.acquired",
                None,
                {"fence": opened.lease.token, "waited": self._acquired_at - self._opened_at},
            ),
            (
                "session.run.started",
                None,
                {"run_count": head.run_count + 1, "transcript_length": head.transcript_length},
            ),
            (
                "context.created",
                None,
                {
                    "assembler": type(agent.context).__name__,
                    "transcript_length": head.transcript_length,
                    "artifact_count": head.artifact_count,
                },
            ),
        )

    @property
    def _watch(self) -> Callable[[str], Timer] | None:
        """Starts the timer of a step; None where the agent limits none."""
        limit = self._agent.step_timeout
        if limit is None:
            return None
        clock = self._directory.clock

        def out_of_time(step: str) -> None:
            if self._ticket.hold is not None and self._ticket.hold.is_suspended:
                return  # what takes so long is the store's want of room
            if self._ticket.boundary is not None and self._ticket.boundary.is_closed:
                return  # or the rest of the run, which the step waits for before it is left
            error = StepTimeoutError(
                f"run {self._ticket.run_id}: step {step} ran past the agent's step_timeout of {limit:g} s",
                context={"step": step, "step_timeout": limit},
            )
            self._ticket.stop_with(StopRun("timeout", error))

        return lambda step: clock.call_later(limit, out_of_time, step)

    async def _begin(self, run: LiveRun, opened: OpenedSession) -> RunBegan:
        """Write the attempt's first record, which takes the session's lock.

        Raises:
            SessionElsewhere: another process has the session, or had it a moment ago.
        """
        ticket, journal = self._ticket, run.journal
        is_in_use = journal.began is None and opened.head.active_run is not None and not ticket.is_nested
        # By another process's run, which goes on first, or by one of this process that the store refused.
        if is_in_use and await self._directory.store.held_elsewhere(ticket.session_id):
            raise SessionElsewhere
        entry = ticket.entry
        began_sequence = entry.began_sequence
        first: LogRecord
        if journal.began is None:
            began = first = trusted(
                RunBegan,
                run_id=ticket.run_id,
                ordinal=journal.claim_ordinal(),
                at=run.clock.time(),
                request=ticket.request,
                agent=self._agent.snapshot(),
                state_sequence=opened.head.state_sequence,
                transcript_length=opened.head.transcript_length,
                messages=() if ticket.is_nested else (ticket.request.input_message(),),
                nested=ticket.is_nested,
                attempt=run.attempt,
                strikes=self._strikes,
            )
            if began_sequence is None:
                began_sequence = opened.head.next_sequence - len(self._way_back)
        else:
            began = journal.began
            first = RunResumed(
                run_id=ticket.run_id,
                ordinal=journal.claim_ordinal(),
                at=run.clock.time(),
                attempt=run.attempt,
                strikes=self._strikes,
                agent=self._agent.snapshot(),
                in_flight=self._in_flight,
                running=run.running(),
            )
        entry = moved(
            entry,
            RunInput.START,
            began_sequence=began_sequence,
            attempts=run.attempt,
            strikes=self._strikes,
            crashed=False,
            problem=None,
        )
        try:
            # A run that nobody has been told of yet is refused, not held.
            may_wait = ticket.accepted.done()
            way_back, self._way_back = self._way_back, ()
            await journal.append(*way_back, first, run=entry if ticket.request.durable else None, may_wait=may_wait)
        except asyncio.CancelledError:
            # The journal lets a cancellation pass only once the record is on disk.
            ticket.entry, self._has_begun = entry, True
            raise
        except (SessionLockedError, FencedError) as refused:
            raise SessionElsewhere from refused
        ticket.entry, self._has_begun = entry, True
        ticket.parked_for = ""
        ticket.accept()
        return began

    def _strikes_against(self, journal: RunJournal) -> int:
        """Crashes in a row that the run may have caused.

        Raises:
            PoisonousRunError: they are as many as its budget allows.
            InterruptedByCrashError: it asked not to be carried on after one.
        """
        ticket = self._ticket
        if ticket.entry.crashed and ticket.request.on_crash == "fail":
            raise InterruptedByCrashError(f"run {ticket.run_id} was in flight when its process ended")
        # Where a run that it delegated was in flight, it is that one which may have caused the crash.
        strikes = journal.strikes(crashed=ticket.entry.crashed and not ticket.children)
        if ticket.entry.crashed and strikes >= ticket.limits(self._agent).max_resume_attempts:
            raise PoisonousRunError(
                f"run {ticket.run_id} was in flight at {strikes} crashes in a row without getting further",
                context={"strikes": strikes, "in_flight": journal.in_flight()},
            )
        return strikes

    async def _open_deps(self, run: LiveRun, stack: AsyncExitStack) -> Any:
        deps = self._agent.deps if self._ticket.deps is None else self._ticket.deps
        if isinstance(deps, InheritedDeps):
            return deps.value
        if not callable(deps):
            return deps
        info = RunInfo(run.run_id, run.session_id, self._agent.id, run.attempt, dict(run.request.metadata))
        try:
            return await stack.enter_async_context(self._manager(deps(info)))
        except (Exception, *NOT_MEANT_FOR_US) as problem:
            who = f"the deps factory of agent {self._agent.id!r}"
            error = problem if isinstance(problem, CallboardError) else failed(who, problem)
            if self._can_park:
                raise ParkRun(error.message) from problem
            if error is problem:
                raise
            raise error from problem

    def _manager(self, opened: object) -> AbstractAsyncContextManager[Any]:
        if isinstance(opened, AbstractAsyncContextManager):
            return opened
        raise AgentDefinitionError(
            f"the deps factory of agent {self._agent.id!r} gave a {type(opened).__qualname__}, which is no async "
            "context manager",
            hint="@asynccontextmanager async def deps(info: RunInfo): yield ...",
        )

    async def _validated(self, run: LiveRun, scope: Scope) -> Any:
        """The pattern's output, sent back to the model until it fits the agent's output type."""
        context: RunContext[Any] = RunContext(run, scope)
        retries = run.budget.max_validation_retries
        for retry in range(retries + 1):
            raw = await self._agent.pattern.run(context)
            try:
                return self._agent.output.validate(raw)
            except ValueError as problem:
                if retry == retries:
                    raise OutputValidationError(
                        f"run {run.run_id}: the output does not fit {self._agent.output.type!r} after {retries} "
                        f"retries: {problem}",
                        context={"retries": retries},
                    ) from None
                feedback = Message.user(feedback_for(str(problem)))
                step = f"/validation.{retry}"
                if step not in run.journal.completed:
                    told = {"retry": retry + 1, "max_validation_retries": retries, "message": str(problem)}
                    await run.complete(
                        lifecycle_record(
                            run,
                            step,
                            "validation",
                            "output",
                            value=told,
                            messages=(feedback,) if scope.in_transcript else (),
                        )
                    )
                self._conversation.add(feedback)
                scope.begin_again()
        raise AssertionError("the loop above returns or raises")

    # ---- the end

    async def _put_off(self, error: BaseException) -> bool:
        """Leave the run to a further attempt where that can be what it takes; whether it was left to one."""
        if self._ticket.stop is not None:
            return False
        if isinstance(error, ParkRun):
            await self._stop_children(leaves=True)
            await self._parked(error)
            return True
        if self._can_be_tried_again(error):
            await self._stop_children(leaves=True)
            await self._tried_again(error)
            return True
        return False

    async def _broken_off(self, error: BaseException) -> RunResult[Any]:
        """End the run as what came out of its pattern says."""
        if isinstance(error, BaseExceptionGroup):
            # Of a task group around branches, say: what ends the run may be among what it gathered.
            error = _stop_in(error) or _first_of(error, StoreError) or error
        if self._ticket.stop is not None and not isinstance(error, StopRun | StoreError):
            # Whatever its pattern makes of being stopped, that is why the run ends.
            error = self._ticket.stop
        elif isinstance(error, asyncio.CancelledError) and _is_cancelled():
            # By the loop, which is about to end without the runtime having been closed.
            error = StopRun("interrupted")
        elif isinstance(error, asyncio.CancelledError):
            # Nobody stopped this run: its own code awaited something that was cancelled.
            error = failed(f"agent {self._agent.id!r}", error)
        if isinstance(error, StopRun):
            return await self._stopped(error)
        if isinstance(error, DamagedRecordError) and self._is_own(error) and self._ticket.request.durable:
            return await self._set_aside(error)
        if isinstance(error, StoreFullError) and self._ticket.stop is not None:
            return await self._gave_up(error, self._ticket.stop)
        if isinstance(error, StoreError):
            return self._unwritten(error)
        return await self._ended("failed", error=error)

    def _can_be_tried_again(self, error: BaseException) -> bool:
        """Whether the run's error can pass, and has not been given its chances."""
        ticket, run = self._ticket, self._run
        if run is None or not ticket.request.durable or ticket.entry.state != RunState.RUNNING:
            return False
        return can_pass(error) and self._retries < run.budget.max_resume_attempts

    @property
    def _retries(self) -> int:
        """How often in a row the run has been tried again by now: since a step of it last succeeded."""
        return 0 if self._run is None or self._run.journal.got_further else self._ticket.entry.retries

    async def _tried_again(self, error: BaseException) -> None:
        """Leave the run to a further attempt, which begins after a pause."""
        ticket, run = self._ticket, self._run
        assert run is not None
        problem = describe(error)
        pending = (PendingCall(reason="retry", message=problem.message),)
        entry = moved(ticket.entry, RunInput.INTERRUPT, retries=self._retries + 1, problem=problem, pending=pending)
        await run.journal.append(run=entry)
        ticket.entry = entry

    async def _parked(self, park: ParkRun) -> None:
        """Leave the run to a further attempt, which is made when it may have what it lacks."""
        ticket, run = self._ticket, self._run
        was, entry = ticket.entry, parked(ticket.entry, park.reason)
        if was.state == RunState.RUNNING and run is not None:
            await run.journal.append(run=entry)
        elif ticket.parked_for != park.reason:
            await write_entry(self._directory.store, entry)
        ticket.entry, ticket.parked_for = entry, park.reason

    async def _gave_up(self, error: StoreFullError, stop: StopRun) -> RunResult[Any]:
        """The run was stopped while it waited for room, and lets go of what it held."""
        if stop.stop_reason == "interrupted":
            return self._unwritten(error)
        # Only beginnings are let go of then. What they said never came about, so the run ends as the log has it.
        if self._run is not None:
            self._run.hold.close()
            self._run = None
        return await self._stopped(stop)

    async def _stopped(self, stop: StopRun) -> RunResult[Any]:
        if stop.stop_reason in ("suspended", "interrupted"):
            await self._stop_children(leaves=True)
        if stop.stop_reason == "suspended":
            return await self._suspended(stop)
        if stop.stop_reason == "interrupted":
            return await self._interrupted()
        return await self._ended(stop.stop_reason, error=stop.error)

    async def _ended(
        self, stop_reason: StopReason, *, output: Any = None, error: BaseException | None = None
    ) -> RunResult[Any]:
        """Write how the run ended, and all that it has delegated before. An output that cannot be stored is how it
        failed.
        """
        ticket = self._ticket
        if self._run is None and ticket.entry.began_sequence is not None:
            # It was stopped before it went on; what an earlier attempt left open is closed all the same.
            try:
                await self._open(None, goes_on=False)
            except (DamagedRecordError, RunNotResumableError):
                # Nothing can be closed in what cannot be read, and the run must not be stuck for that. What has
                # moved on since its end is none of its own.
                await self._stop_children(leaves=False)
                return await self._never_began(stop_reason, error)
        # Whoever stops the run from now on comes too late, and must not cut its ending short.
        ticket.stop = ticket.stop or StopRun(stop_reason)
        await self._stop_children(leaves=False)
        run = self._run
        if run is None or not self._has_begun:
            return await self._never_began(stop_reason, error)
        self._tell_of_chances(run, error)
        ordinal = run.journal.claim_ordinal()
        keeps_snapshot = True
        while True:
            try:
                return await self._close(run, ordinal, stop_reason, output, error, keeps_snapshot=keeps_snapshot)
            except UnpersistableValueError as problem:
                if not ticket.request.durable:
                    # It may be any of the run's records, none of which is on disk: nothing of the run is kept.
                    return self._result("failed", problem)
                if stop_reason == "completed":
                    stop_reason, error, output = "failed", problem, None
                    problem.message = f"run {run.run_id} came to its end, which cannot be stored: {problem.message}"
                elif keeps_snapshot:
                    keeps_snapshot = False
                else:
                    raise

    def _tell_of_chances(self, run: LiveRun, error: BaseException | None) -> None:
        """Say of a run that fails how often it had been carried on."""
        if isinstance(error, PoisonousRunError):
            told = {"strikes": error.context["strikes"], "in_flight": error.context["in_flight"]}
        elif error is not None and can_pass(error) and self._retries:
            assert isinstance(error, CallboardError)
            error.context["tried"] = self._retries + 1
            error.hint = error.hint or "runtime.resume(run_id) tries once more, when what it needs is there again"
            told = {"retries": self._retries}
        else:
            return
        run.publish(("run.resume_exhausted", None, told))

    async def _close(
        self,
        run: LiveRun,
        ordinal: int,
        stop_reason: StopReason,
        output: Any,
        error: BaseException | None,
        *,
        keeps_snapshot: bool,
    ) -> RunResult[Any]:
        """Write the run's last record, its entry and its checkpoint in one transaction."""
        ticket, journal = self._ticket, run.journal
        plain = self._agent.output.dump(output) if stop_reason == "completed" else None
        details = None if error is None else describe(error)
        snapshot = None
        if error is not None and stop_reason != "cancelled" and keeps_snapshot:
            snapshot = snapshot_of(
                error, run.meter.usage(), self._conversation.view(), run.state.value, journal.tool_calls
            )
        closing = () if ticket.is_nested else self._closing(run, stop_reason, plain)
        tail = state_after_last_step(run, ordinal) if stop_reason == "completed" else ()
        record = trusted(
            RunEnded,
            run_id=run.run_id,
            ordinal=ordinal + len(tail),
            at=run.clock.time(),
            stop_reason=stop_reason,
            output=plain,
            usage=run.meter.usage(),
            error_details=details,
            error_snapshot=snapshot,
            messages=closing,
            running=run.running(),
            cancelled_by=ticket.stopped_by,
            reason=ticket.reason,
        )
        spent = total([run.meter.spent(), *ticket.spent_below.values()])
        entry = moved(
            ticket.entry,
            STOP_INPUTS[stop_reason],
            stop_reason=stop_reason,
            ended_at=record.at,
            pending=(),
            problem=None,
            spent=(*spent,),
            charged=(*less(spent, Amount(*ticket.entry.spent)),),
        )
        steps = journal.steps + len(tail)
        checkpoint = trusted(
            SessionCheckpoint,
            checkpoint_id=step_checkpoint_id(run.run_id, steps),
            session_id=run.session_id,
            run_id=run.run_id,
            step_index=steps,
            created_at=record.at,
        )
        await journal.append(*self._way_back, *tail, record, run=entry, checkpoint=checkpoint)
        ticket.entry = entry
        return result_of(entry, record, tuple(journal.artifacts), output)

    def _closing(self, run: LiveRun, stop_reason: StopReason, output: Any) -> tuple[Message, ...]:
        """What the run's end adds to the transcript: answers for calls left open, and its own if that is not there."""
        journal = run.journal
        closing = [
            Message.tool(f"not answered: the run ended as {stop_reason}", tool_call_id=call_id, name=name)
            for call_id, name in journal.open_calls.items()
        ]
        if stop_reason == "completed":
            answer = render_for_model(output)
            if journal.last_answer is None or (self._agent.output.is_text and journal.last_answer != answer):
                closing.append(Message.assistant(answer))
        return tuple(closing)

    async def _stop_children(self, *, leaves: bool) -> None:
        """Have what the run delegated and no longer waits for stopped, before the run itself writes that it has.

        Args:
            leaves: leave it to the run's next attempt; otherwise it is cancelled.
        """
        ticket = self._ticket
        if not ticket.children:
            return
        reason, by = ticket.why_below()
        message = StopDelegated(parent_id=ticket.run_id, leaves=leaves, reason=reason, by=by)
        # A supervisor that has failed has stopped all of them.
        with contextlib.suppress(ActorError):
            await self._directory.supervisor.ask(message, timeout=None)

    async def _suspended(self, stop: StopRun) -> RunResult[Any]:
        run, ticket = self._run, self._ticket
        assert run is not None, "only a step suspends a run"
        ticket.stop = stop
        record = RunSuspended(
            run_id=run.run_id, ordinal=run.journal.claim_ordinal(), at=run.clock.time(), pending=stop.pending
        )
        entry = moved(ticket.entry, RunInput.SUSPEND, pending=stop.pending, stop_reason="suspended")
        await run.journal.append(record, run=entry)
        ticket.entry = entry
        return self._result("suspended")

    async def _set_aside(self, error: DamagedRecordError) -> RunResult[Any]:
        """Its session cannot be read. The run stays on disk, unfailed, until somebody has mended that."""
        ticket = self._ticket
        if not ticket.accepted.done():
            # Its first record would have said that it is taken in, and that cannot be written.
            await write_entry(self._directory.store, ticket.entry)
        await self._interrupted()
        ticket.unreadable = error
        return self._result("interrupted", error)

    def _is_own(self, error: DamagedRecordError) -> bool:
        return bool(error.context.get("session_id") == self._ticket.session_id)

    async def _interrupted(self) -> RunResult[Any]:
        """Leave the run so that the next start carries it on, and does not count this as a crash."""
        ticket = self._ticket
        if ticket.request.durable and ticket.entry.state == RunState.RUNNING and self._run is not None:
            entry = moved(ticket.entry, RunInput.INTERRUPT)
            await self._run.journal.append(run=entry, may_wait=False)
            ticket.entry = entry
        return self._result("interrupted")

    async def _never_began(self, stop_reason: StopReason, error: BaseException | None) -> RunResult[Any]:
        ticket = self._ticket
        ticket.entry = ended_early(ticket.entry, stop_reason, error, self._directory.clock.time())
        if ticket.request.durable:
            await write_entry(self._directory.store, ticket.entry)
        return result_of(ticket.entry)

    def _unwritten(self, error: CallboardError) -> RunResult[Any]:
        """The store refused: nothing more is written, and what is on disk stands."""
        if not error.hint:
            error.hint = _STORE_FAILED
        self._ticket.accept(error)
        # Where only room was missing, a later start carries the run on.
        return self._result("interrupted" if isinstance(error, StoreFullError) else "failed", error)

    def _result(self, stop_reason: StopReason, error: BaseException | None = None) -> RunResult[Any]:
        ticket = self._ticket
        return RunResult(
            run_id=ticket.run_id,
            session_id=ticket.session_id,
            agent_id=ticket.request.agent_id,
            stop_reason=stop_reason,
            usage=RunUsage() if self._run is None else self._run.meter.usage(),
            artifacts=() if self._run is None else tuple(self._run.journal.artifacts),
            error_details=None if error is None else describe(error),
            pending=ticket.entry.pending,
            metadata=ticket.request.metadata,
        )


def _stop_in(group: BaseExceptionGroup[BaseException]) -> StopRun | None:
    """What stops the run, among what branches in a task group raised: what they wait for is asked together."""
    stops = group.subgroup(StopRun)
    if stops is None:
        return None
    found: list[StopRun] = []
    waiting: list[BaseException] = [stops]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        elif isinstance(error, StopRun):
            found.append(error)
    ending = [stop for stop in found if stop.stop_reason != "suspended"]
    return ending[0] if ending else StopRun("suspended", pending=tuple(call for stop in found for call in stop.pending))


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


def _first_of(group: BaseExceptionGroup[BaseException], kind: type[BaseException]) -> BaseException | None:
    """The first exception of a kind in a group, however deep."""
    for error in group.exceptions:
        found = _first_of(error, kind) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, kind):
            return found
    return None
