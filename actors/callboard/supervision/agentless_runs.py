"""Unfinished runs whose agent this process lacks: left to another process on the directory, which may have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from callboard.runs.ticket import RunTicket
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.sessions import RunEntry
from callboard_protocol.states import FINAL


class AgentlessRuns:
    """Says which of the runs that nobody carries are for this process.

    Where it is alone on the directory, all of them are: those it has no agent for are parked, so that they are seen.
    Where it is not, it takes what it can carry on, and gives up what it had parked while it was alone.

    Args:
        in_hand: the supervisor's runs.
    """

    def __init__(self, in_hand: RunsInHand) -> None:
        self._in_hand = in_hand
        self._store = in_hand.store
        self._tickets = in_hand.tickets
        self._agents = in_hand.agents

    async def claim(self) -> Sequence[RunEntry]:
        """Claim the runs that are for this process, those that it has anyway included, in admission order."""
        if not self._store.has_company:
            return await self._store.claim_unfinished()
        unclaimed = {entry.run_id: entry for entry in await self._store.read_claimable()}
        for run_id in [run_id for run_id in unclaimed if self._in_hand.carries(run_id)]:
            del unclaimed[run_id]
        own = [run_id for run_id, entry in unclaimed.items() if await self._belongs_here(entry, unclaimed)]
        left = unclaimed.keys() - own
        if left:
            # A supervisor that failed may have had them.
            await self._store.release_unfinished(left)
        return await self._store.claim_unfinished(own) if own else ()

    async def give_up(self) -> Sequence[RunTicket]:
        """Give up the runs in hand that wait for an agent, and what they have delegated; those that were."""
        waiting = [ticket for ticket in self._tickets.values() if _waits_for_agent(ticket)]
        trees = {below.run_id: below for ticket in waiting for below in _tree(ticket)}
        if not trees:
            return ()
        released = await self._store.release_unfinished(trees)
        # Whoever has come by its agent or is being ended meanwhile claims the run again as it writes.
        return [trees[run_id] for run_id in released if trees[run_id].agent is None and trees[run_id].task is None]

    async def _belongs_here(self, entry: RunEntry, unclaimed: Mapping[str, RunEntry]) -> bool:
        """Whether this process has the agent of a run; of a delegated one, whether it has the run that waits for it, or
        nobody has, since that has ended.
        """
        parent_id = entry.request.parent_run_id
        if parent_id is None:
            return entry.request.agent_id in self._agents
        above = unclaimed.get(parent_id)
        if above is not None:
            return await self._belongs_here(above, unclaimed)
        if self._in_hand.carries(parent_id):
            return True
        above = await self._store.read_run(parent_id)
        return above is None or above.state in FINAL


def _waits_for_agent(ticket: RunTicket) -> bool:
    is_root = ticket.request.parent_run_id is None
    return is_root and ticket.agent is None and ticket.task is None and not ticket.is_elsewhere


def _tree(ticket: RunTicket) -> Iterator[RunTicket]:
    yield ticket
    for child in ticket.children.values():
        yield from _tree(child)
