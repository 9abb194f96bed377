"""One attempt of a run: the way through, from opening its session to whatever stops it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from callboard.agents import Agent
from callboard.attempts.deps import open_deps
from callboard.attempts.output_validation import fitting_output
from callboard.attempts.run_ending import RunEnding
from callboard.attempts.run_leaving import RunLeaving
from callboard.attempts.run_opening import RunOpening
from callboard.clock import Timer
from callboard.directory import Directory
from callboard.kernel import Ref
from callboard.live.live_run import LiveRun
from callboard.live.scopes import Scope
from callboard.memory import MemoryActor
from callboard.runs.run_info import run_at_work
from callboard.runs.stops import RunElsewhere, SessionElsewhere, StopRun, StruckRunWaits, cancelled
from callboard.runs.ticket import RunTicket
from callboard.session import OpenedSession, SessionActor
from callboard.steps.lifecycle_steps import MemorySteps
from callboard.steps.model_step import say
from callboard_protocol.commands import CloseRun, OpenRunAccount, ResumeStruckRun
from callboard_protocol.errors import RunOvertakenError, StepTimeoutError, StoreError
from callboard_protocol.messages import Message
from callboard_protocol.records import RunBegan
from callboard_protocol.runs import RunResult


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
        self._opening = RunOpening(ticket, agent, session, directory)
        self._leaving = RunLeaving(ticket, directory, self._opening)
        self._ending = RunEnding(ticket, directory, self._opening, self._leaving)
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
            except (GeneratorExit, SessionElsewhere, RunElsewhere):
                raise
            except StruckRunWaits:
                return None
            except BaseException as error:  # noqa: BLE001  (whatever a pattern raises is how its run ends)
                if await self._leaving.put_off(error):
                    return None
                return await self._ending.break_off(error)
            if self._ticket.stop is not None:
                # The pattern swallowed the cancellation.
                return await self._ending.stop(self._ticket.stop)
            return await self._ending.end("completed", output=output)
        except RunOvertakenError as overtaken:
            raise RunElsewhere from overtaken
        except StoreError as error:
            await self._leaving.stop_children(leaves=True)
            return self._leaving.unwritten(error)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        run = self._opening.run
        if run is not None:
            run.hold.close()
        if self._session.is_alive():
            self._session.tell(CloseRun(run_id=self._ticket.run_id))
        if run is not None and self._token:
            held = self._directory.clock.monotonic() - self._acquired_at
            run.publish(("session.released", None, {"fence": self._token, "held": held}))

    # ---- the way through

    async def _work(self) -> Any:
        ticket, opening = self._ticket, self._opening
        if ticket.stop is not None:
            raise ticket.stop
        run, opened = await opening.open(goes_on=True)
        if ticket.mail.cancellation is not None:
            # It was posted while nobody carried the run.
            wanted = ticket.mail.cancellation
            ticket.stopped_by, ticket.reason = wanted.by, wanted.reason
            raise cancelled(ticket.run_id, wanted.by, wanted.reason)
        if opening.strikes:
            run.is_struck = True
            if not await self._directory.supervisor.ask(ResumeStruckRun(run_id=ticket.run_id), timeout=None):
                raise StruckRunWaits
        if opening.begins_afresh:
            await self._leaving.end_earlier_life()
        memory = MemorySteps(run, self._memory)
        async with AsyncExitStack() as stack:
            # After a crash the start is on disk first: to open the deps may be what ends the process. Else it is only
            # tried, again and again if need be, and leaves no trace.
            is_tried = opening.can_park and not ticket.entry.crashed
            if is_tried:
                run.deps = await open_deps(run, stack, can_park=opening.can_park)
            run.limits = await self._directory.supervisor.ask(
                OpenRunAccount(run_id=ticket.run_id, spent=run.spent(), running=run.running()), timeout=None
            )
            began = await opening.begin(run, opened)
            self._acquired_at, self._token = self._directory.clock.monotonic(), opened.lease.token
            self._announce(run, opened)
            if not is_tried:
                run.deps = await open_deps(run, stack, can_park=opening.can_park)
            if ticket.request.resume_from_checkpoint is None:
                await memory.inject(ticket.request.input_message())
            else:
                memory.take_over(opened.injected)
            self._converse(run, opened, began)
            in_transcript = not ticket.is_nested
            scope = Scope("", opening.conversation, self._watch, in_transcript=in_transcript, life=began.attempt)
            output = await fitting_output(run, scope)
            await self._leaving.stop_children(leaves=False)
            await memory.write_back(output)
            return output

    def _converse(self, run: LiveRun, opened: OpenedSession, began: RunBegan) -> None:
        """Give the run's model what was said before: in the session, or in the scope it was delegated from."""
        ticket, conversation = self._ticket, self._opening.conversation
        if run.instructions:
            conversation.add(Message.system(run.instructions))
        for message in opened.transcript if ticket.shared is None else ticket.shared.without_instructions():
            conversation.add(message)
        if ticket.is_nested:
            say(conversation, (ticket.request.input_message(),))
        for message in began.messages:
            conversation.add(message)

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
