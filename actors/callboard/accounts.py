"""What a runtime's users do with named accounts: `runtime.accounts`."""

from __future__ import annotations

from collections.abc import Sequence

from callboard.directory import Directory
from callboard_protocol.base import check_identifier
from callboard_protocol.commands import CloseAccount, OpenAccount, ReadAccount
from callboard_protocol.named_accounts import Account, check_account_budget
from callboard_protocol.runs import RunBudget


class Accounts:
    """The named accounts of a data directory: budgets that many runs draw on together, and that outlive them.

    A run draws on one with ``account=name``. What runs spent is written in the transaction that ends them.

    Args:
        directory: where the runtime's actors are.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def open(self, name: str, budget: RunBudget) -> Account:
        """Open an account, or give one that is there this budget; what it has spent stays.

        Args:
            name: its name, for good.
            budget: the most its runs may spend together, calls, tokens and money.

        Raises:
            InvalidIdentifierError: the name cannot be stored.
            UsageError: the budget limits nothing, or limits time.
            StoreError: nothing was changed.
        """
        return await self._keep(name, budget, opens=True)

    async def set_budget(self, name: str, budget: RunBudget) -> Account:
        """Give an account another budget. What its runs have spent stays, even past the new limits.

        Raises:
            UnknownAccountError: no account is open under that name; the error names the nearest.
            UsageError: the budget limits nothing, or limits time.
            StoreError: nothing was changed.
        """
        return await self._keep(name, budget, opens=False)

    async def _keep(self, name: str, budget: RunBudget, *, opens: bool) -> Account:
        check_identifier(name, "account name")
        check_account_budget(name, budget)
        account: Account = await self._directory.supervisor.ask(
            OpenAccount(name=name, budget=budget, opens=opens), timeout=None
        )
        return account

    async def get(self, name: str) -> Account:
        """How an account stands: its budget, and what is spent, reserved and left of it.

        Raises:
            UnknownAccountError: no account is open under that name; the error names the nearest.
        """
        check_identifier(name, "account name")
        account: Account = await self._directory.supervisor.ask(ReadAccount(name=name), timeout=None)
        return account

    async def list(self) -> Sequence[Account]:
        """How all accounts stand, by name."""
        return [await self.get(name) for name in await self._directory.store.list_accounts()]

    async def close(self, name: str) -> Account:
        """Close an account for good: what it had spent is forgotten, and a run that names it is refused.

        Returns:
            How it stood.

        Raises:
            UnknownAccountError: no account is open under that name; the error names the nearest.
            RuntimeBusyError: a run that draws on it has not ended.
            StoreError: nothing was changed.
        """
        check_identifier(name, "account name")
        account: Account = await self._directory.supervisor.ask(CloseAccount(name=name), timeout=None)
        return account
