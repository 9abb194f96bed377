"""Named accounts in the supervisor's ledger: read from the store when first needed, and kept in step with it."""

from __future__ import annotations

import asyncio
import difflib

from callboard import fault_points
from callboard.runs_in_hand import RunsInHand
from callboard.ticket import RunTicket
from callboard.tree_spending import spent_by
from callboard_protocol.amounts import ZERO, Amount, Limits, less, total
from callboard_protocol.errors import RuntimeBusyError
from callboard_protocol.ledger import UnknownAccountError
from callboard_protocol.named_accounts import Account, AccountEntry, AccountFigures
from callboard_protocol.runs import RunBudget
from callboard_protocol.states import FINAL


class _Kept:
    """An account that is in the ledger.

    Attributes:
        entry: as it was read last.
        settled: what of the ledger's figure stands for runs that have ended, here or in other processes.
        counted: runs whose past is in the ledger's figure.
    """

    __slots__ = ("counted", "entry", "settled")

    def __init__(self, entry: AccountEntry, counted: set[str]) -> None:
        self.entry = entry
        self.settled = Amount(*entry.spent)
        self.counted = counted


class AccountKeeping:
    """The accounts that runs of this process draw on.

    The ledger counts what this process's runs spend, as they do. What ended runs of other processes spent is looked up
    whenever a run begins.

    Args:
        in_hand: the supervisor's runs.
    """

    def __init__(self, in_hand: RunsInHand) -> None:
        self._store = in_hand.store
        self._tickets = in_hand.tickets
        self._budgets = in_hand.budgets
        self._kept: dict[str, _Kept] = {}
        self._turn = asyncio.Lock()

    async def keep(self, name: str, budget: RunBudget, *, opens: bool) -> Account:
        """Give an account a budget.

        Raises:
            UnknownAccountError: there is none, and none is to be made.
        """
        async with self._turn:
            known = self._settled(name)
            entry = await self._store.keep_account(name, budget, opens=opens)
            if entry is None:
                raise await self._unknown(name)
            fault_points.reach("account.recorded", name)
            await self._take_over(entry, known)
        return self._standing(name)

    async def look(self, name: str) -> Account:
        """How an account stands.

        Raises:
            UnknownAccountError: there is none.
        """
        await self._refresh(name)
        return self._standing(name)

    async def close(self, name: str) -> Account:
        """Forget an account.

        Raises:
            UnknownAccountError: there is none.
            RuntimeBusyError: a run that draws on it has not ended.
        """
        await self._refresh(name)
        async with self._turn:
            unfinished = [entry.request for entry in await self._store.read_unfinished()]
            unfinished += [ticket.request for ticket in self._tickets.values()]
            at_work = next((request.run_id for request in unfinished if request.account == name), None)
            if at_work is not None:
                raise RuntimeBusyError(f"run {at_work!r} draws on account {name!r}", hint="wait until it has ended")
            standing = self._standing(name)
            await self._store.delete_account(name)
            self._forget(name)
        return standing

    async def check(self, name: str) -> None:
        """Let a run that names an account pass.

        Raises:
            UnknownAccountError: there is none.
        """
        if name not in self._kept:
            await self._refresh(name)

    async def begin(self, run_id: str, name: str) -> tuple[str, bool]:
        """The account that a run begins to draw on, as the ledger calls it, and whether that has the run's past in it.

        Raises:
            UnknownAccountError: it was closed meanwhile.
        """
        kept = await self._refresh(name)
        was_counted = run_id in kept.counted
        kept.counted.add(run_id)
        return self._budgets.name_of(name), was_counted

    def ended(self, ticket: RunTicket, counted: Amount | None) -> None:
        """A run has charged its account on disk for what the ledger had counted as it went.

        Args:
            ticket: the run.
            counted: what that was, all attempts together; None where the run has only been ended.
        """
        name = ticket.request.account or ""
        kept = self._kept.get(name)
        if kept is None or ticket.entry.state not in FINAL or ticket.run_id not in kept.counted:
            return  # where it is not counted yet, the next look finds what it charged
        kept.settled = total([kept.settled, Amount(*ticket.entry.charged)])
        if counted is not None:
            # Of calls that were cut short the ledger has charged the most; what is recorded is what stands.
            recorded = Amount(*ticket.entry.spent)
            self._budgets.adjust_account(name, Limits.of(kept.entry.budget), less(recorded, counted))

    # ---- in step with the store

    async def _refresh(self, name: str) -> _Kept:
        async with self._turn:
            known = self._settled(name)
            # An account that is read for the first time takes its charges in: they are not to pile up.
            entry = await (
                self._store.read_account(name) if name in self._kept else self._store.keep_account(name, None)
            )
            if entry is None:
                self._forget(name)
                raise await self._unknown(name)
            return await self._take_over(entry, known)

    def _settled(self, name: str) -> Amount:
        """What ended runs have charged, as far as this process knows: all of it is on disk."""
        kept = self._kept.get(name)
        return ZERO if kept is None else kept.settled

    async def _take_over(self, entry: AccountEntry, known: Amount) -> _Kept:
        """Bring the ledger in step with what was read.

        Args:
            entry: as it was read.
            known: what was known to be settled before that: what has been settled since may be in it or not.
        """
        kept = self._kept.get(entry.name)
        limits = Limits.of(entry.budget)
        if kept is None:
            below = await self._unfinished(entry.name)
            spent = total([Amount(*entry.spent), *below.values()])
            self._budgets.open_account(entry.name, limits, spent)
            kept = self._kept[entry.name] = _Kept(entry, {*below})
            return kept
        # A charge of our own may be in it before we hear of that; the next look makes up for it.
        others = less(Amount(*entry.spent), known)
        self._budgets.adjust_account(entry.name, limits, others)
        kept.settled = total([kept.settled, others])
        kept.entry = entry
        return kept

    async def _unfinished(self, name: str) -> dict[str, Amount]:
        """What each unfinished run of this process has spent since it last charged the account."""
        found: dict[str, Amount] = {}
        for ticket in list(self._tickets.values()):
            if ticket.request.account == name and ticket.entry.began_sequence is not None and not ticket.is_elsewhere:
                charged = Amount(*ticket.entry.spent)
                found[ticket.run_id] = less(await spent_by(self._store, ticket.entry), charged)
        return found

    def _forget(self, name: str) -> None:
        if self._kept.pop(name, None) is not None:
            self._budgets.close_account(name)

    def _standing(self, name: str) -> Account:
        spent, reserved, left = self._budgets.standing(name)
        return Account(
            name=name,
            budget=self._kept[name].entry.budget,
            spent=AccountFigures.of(spent),
            reserved=AccountFigures.of(reserved),
            left=AccountFigures.of(left),
        )

    async def _unknown(self, name: str) -> UnknownAccountError:
        names = await self._store.list_accounts()
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "runtime.accounts.open(name, RunBudget(...)) opens one"
        return UnknownAccountError(f"no account {name!r} is open", hint=hint, context={"open": [*names]})
