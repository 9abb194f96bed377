"""Named accounts as their users open, read and close them."""

from __future__ import annotations

import difflib

from callboard import fault_points
from callboard.supervision.runs_in_hand import RunsInHand
from callboard_protocol.drawing import standing
from callboard_protocol.errors import RuntimeBusyError
from callboard_protocol.ledger import UnknownAccountError
from callboard_protocol.named_accounts import Account, AccountEntry
from callboard_protocol.runs import RunBudget


class AccountKeeping:
    """The accounts of the data directory.

    Args:
        in_hand: the supervisor's runs.
    """

    def __init__(self, in_hand: RunsInHand) -> None:
        self._store = in_hand.store
        self._tickets = in_hand.tickets
        self._draws = in_hand.draws

    async def keep(self, name: str, budget: RunBudget, *, opens: bool) -> Account:
        """Give an account a budget.

        Raises:
            UnknownAccountError: there is none, and none is to be made.
        """
        entry = await self._store.keep_account(name, budget, opens=opens)
        if entry is None:
            raise await self._unknown(name)
        fault_points.reach("account.recorded", name)
        self._draws.changed(name)
        return standing(entry)

    async def look(self, name: str) -> Account:
        """How an account stands.

        Raises:
            UnknownAccountError: there is none.
        """
        return standing(await self._read(name))

    async def close(self, name: str) -> Account:
        """Forget an account.

        Raises:
            UnknownAccountError: there is none.
            RuntimeBusyError: a run that draws on it has not ended.
        """
        entry = await self._read(name)
        unfinished = [entry.request for entry in await self._store.read_unfinished()]
        unfinished += [ticket.request for ticket in self._tickets.values()]
        at_work = next((request.run_id for request in unfinished if request.account == name), None)
        if at_work is not None:
            raise RuntimeBusyError(f"run {at_work!r} draws on account {name!r}", hint="wait until it has ended")
        await self._store.delete_account(name)
        self._draws.forget(name)
        return standing(entry)

    async def check(self, name: str) -> None:
        """Let a run that names an account pass.

        Raises:
            UnknownAccountError: there is none.
        """
        if not self._draws.knows(name):
            await self._read(name)

    async def _read(self, name: str) -> AccountEntry:
        entry = await self._store.read_account(name)
        if entry is None:
            raise await self._unknown(name)
        return entry

    async def _unknown(self, name: str) -> UnknownAccountError:
        names = await self._store.list_accounts()
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "runtime.accounts.open(name, RunBudget(...)) opens one"
        return UnknownAccountError(f"no account {name!r} is open", hint=hint, context={"open": [*names]})
