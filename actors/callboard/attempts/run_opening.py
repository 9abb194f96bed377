"""How an attempt begins: what the session and the run have on disk, and the attempt's first record."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from callboard.agents import Agent
from callboard.directory import Directory
from callboard.kernel import Ref
from callboard.live.journal import RunJournal
from callboard.live.live_run import LiveRun
from callboard.live.session_state import SessionState
from callboard.runs.entries import moved
from callboard.runs.history import Conversation
from callboard.runs.mail import RunMail
from callboard.runs.resuming import lives_of, way_records
from callboard.runs.stops import RunElsewhere, SessionElsewhere
from callboard.runs.ticket import RunTicket
from callboard.runs.tree_spending import recorded_below, spent_below, spent_in
from callboard.session import OpenedSession, SessionActor
from callboard_protocol.amounts import Amount
from callboard_protocol.commands import OpenSession
from callboard_protocol.errors import (
    FencedError,
    InterruptedByCrashError,
    PoisonousRunError,
    RunOvertakenError,
    SessionLockedError,
)
from callboard_protocol.records import LogRecord, RunBegan, RunResumed
from callboard_protocol.states import RunInput
from callboard_protocol.trusted import trusted


class RunOpening:
    """Opens a run for one attempt.

    Args:
        ticket: the run.
        agent: who runs.
        session: the actor that owns its session's log.
        directory: where the other actors are.

    Attributes:
        run: what the attempt has in its hands; None until its session is open, and after it has let go of it.
        conversation: what the run's model sees; empty until the run is under way.
        has_begun: whether the run has a first record, of whichever attempt.
        can_park: whether it may be left to a further attempt for want of something.
        strikes: crashes in a row that it may have caused.
        begins_afresh: whether the run leaves behind what it has recorded.
        way_back: records that go before the next one it writes, as it goes back within its session or itself.
    """

    def __init__(
        self, ticket: RunTicket, agent: Agent[Any, Any], session: Ref[SessionActor], directory: Directory
    ) -> None:
        self._ticket = ticket
        self._agent = agent
        self._session = session
        self._directory = directory
        self._in_flight: str | None = None
        self.run: LiveRun | None = None
        self.conversation = Conversation()
        self.has_begun = False
        self.can_park = False
        self.strikes = 0
        self.begins_afresh = False
        self.way_back: Sequence[LogRecord] = ()

    async def open(self, *, goes_on: bool) -> tuple[LiveRun, OpenedSession]:
        """Read what the session and the run itself have on disk.

        Args:
            goes_on: whether the run is to go on; otherwise it is only to be ended, and has nobody's state.

        Raises:
            PoisonousRunError: it made no progress at as many starts in a row as its budget allows.
            InterruptedByCrashError: it asked not to be carried on after a crash.
            RunNotResumableError: it had ended, and its session has moved on since.
            RunElsewhere: another process has begun it since this one took it in.
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
        if opened.own and entry.began_sequence is None:
            raise RunElsewhere
        journal = RunJournal(ticket.run_id, self._session, opened.own, durable=ticket.request.durable)
        self.can_park = ticket.request.durable and (ticket.is_recovered or journal.began is not None)
        if goes_on and journal.began is not None:
            self.strikes = self._strikes_against(journal)
        self._in_flight = journal.in_flight()
        left_behind, counting = lives_of(opened.own)
        if afresh:
            journal.begin_afresh()
            left_behind, counting = opened.own, ()
        self.begins_afresh = afresh
        ticket.spent_before = spent_in(left_behind)
        self.way_back = way_records(journal, opened)
        state_type = self._agent.state_type if goes_on else None
        state = SessionState(state_type, opened.state if ticket.shared is None else ticket.shared.state)
        before = max((getattr(stored.record, "running", 0.0) for stored in counting), default=0.0)
        run = LiveRun(ticket, self._agent, journal, self._session, self._directory, state, before)
        for stored in counting:
            run.meter.count(stored.record)
        if opened.own and ticket.request.durable:
            recorded: dict[str, Amount] = {}
            for stored in opened.own:
                recorded.update(recorded_below(stored.record))
            ticket.spent_below = await spent_below(self._directory.store, ticket.run_id, recorded)
        self.run, self.has_begun = run, journal.began is not None
        if ticket.has_mail and ticket.request.durable:
            ticket.has_mail = False
            ticket.mail = RunMail(await self._directory.store.read_letters(ticket.session_id, ticket.run_id))
        return run, opened

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
        # What begins afresh does not carry that one on, and delegates it anew.
        is_suspect = not ticket.children or ticket.request.on_crash == "restart"
        strikes = journal.strikes(crashed=ticket.entry.crashed and is_suspect)
        if ticket.entry.crashed and strikes >= ticket.limits(self._agent).max_resume_attempts:
            raise PoisonousRunError(
                f"run {ticket.run_id} was in flight at {strikes} crashes in a row without getting further",
                context={"strikes": strikes, "in_flight": journal.in_flight()},
            )
        return strikes

    # ---- the first record

    async def begin(self, run: LiveRun, opened: OpenedSession) -> RunBegan:
        """Write the attempt's first record, which takes the session's lock; the run's own first one.

        Raises:
            SessionElsewhere: another process has the session, or had it a moment ago.
            RunElsewhere: another process has the run, or has ended it.
        """
        ticket, journal = self._ticket, run.journal
        is_in_use = journal.began is None and opened.head.active_run is not None and not ticket.is_nested
        # By another process's run, which goes on first, or by one of this process that the store refused.
        if is_in_use and await self._directory.store.held_elsewhere(ticket.session_id):
            raise SessionElsewhere
        began_sequence = ticket.entry.began_sequence
        first: RunBegan | RunResumed
        if journal.began is None:
            began = first = self._began(run, opened)
            if began_sequence is None:
                began_sequence = opened.head.next_sequence - len(self.way_back)
        else:
            began, first = journal.began, self._resumed(run)
        entry = moved(
            ticket.entry,
            RunInput.START,
            began_sequence=began_sequence,
            attempts=run.attempt,
            strikes=self.strikes,
            crashed=False,
            problem=None,
        )
        try:
            # A run that nobody has been told of yet is refused, not held.
            may_wait = ticket.accepted.done()
            way_back, self.way_back = self.way_back, ()
            await journal.append(
                *way_back, first, run=entry if ticket.request.durable else None, seen=ticket.entry, may_wait=may_wait
            )
        except asyncio.CancelledError:
            # The journal lets a cancellation pass only once the record is on disk.
            ticket.entry, self.has_begun = entry, True
            raise
        except (SessionLockedError, FencedError) as refused:
            raise SessionElsewhere from refused
        except RunOvertakenError as refused:
            raise RunElsewhere from refused
        ticket.entry, self.has_begun = entry, True
        ticket.parked_for = ""
        ticket.accept()
        return began

    def _began(self, run: LiveRun, opened: OpenedSession) -> RunBegan:
        ticket = self._ticket
        return trusted(
            RunBegan,
            run_id=ticket.run_id,
            ordinal=run.journal.claim_ordinal(),
            at=run.clock.time(),
            request=ticket.request,
            agent=self._agent.snapshot(),
            state_sequence=opened.head.state_sequence,
            transcript_length=opened.head.transcript_length,
            messages=() if ticket.is_nested else (ticket.request.input_message(),),
            nested=ticket.is_nested,
            attempt=run.attempt,
            strikes=self.strikes,
        )

    def _resumed(self, run: LiveRun) -> RunResumed:
        return RunResumed(
            run_id=run.run_id,
            ordinal=run.journal.claim_ordinal(),
            at=run.clock.time(),
            attempt=run.attempt,
            strikes=self.strikes,
            agent=self._agent.snapshot(),
            in_flight=self._in_flight,
            running=run.running(),
        )
