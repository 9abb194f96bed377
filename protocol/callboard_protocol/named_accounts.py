"""Named accounts: budgets that many runs draw on together, and that outlive them."""

from callboard_protocol.amounts import Amount, Limits
from callboard_protocol.base import Frozen
from callboard_protocol.errors import UsageError
from callboard_protocol.runs import RunBudget


class AccountEntry(Frozen):
    """An account in the table of accounts.

    Attributes:
        name: its name.
        budget: the most its runs may spend together.
        spent: what ended runs spent: model calls, tool calls, tokens, billionths of a US dollar. As stored, it lacks
            what is in charges that were not taken in yet.
        opened_at: unix seconds.
        used: what unfinished runs have spent since they last charged it, all together.
        reserved: what calls in flight may still cost, all together.
    """

    name: str
    budget: RunBudget
    spent: tuple[int, int, int, int] = (0, 0, 0, 0)
    opened_at: float = 0.0
    used: tuple[int, int, int, int] = (0, 0, 0, 0)
    reserved: tuple[int, int, int, int] = (0, 0, 0, 0)


class AccountDraw(Frozen):
    """What one unfinished run, with all below it, draws on its account; its charge takes the place of this.

    Attributes:
        account: the account.
        run_id: the run.
        owner: the open store whose process carries the run, or did when it died.
        used: what it has spent since it last charged the account: model calls, tool calls, tokens, billionths of a US
            dollar.
        reserved: what its calls in flight may still cost.
    """

    account: str
    run_id: str
    owner: bytes
    used: tuple[int, int, int, int] = (0, 0, 0, 0)
    reserved: tuple[int, int, int, int] = (0, 0, 0, 0)


class AccountCharge(Frozen):
    """What one end of a run charged to its account, written in the transaction that ended the run.

    Attributes:
        account: the account.
        run_id: the run.
        attempt: the attempt that ended; a run that is resumed after its end charges what came on top.
        amount: model calls, tool calls, tokens, billionths of a US dollar.
    """

    account: str
    run_id: str
    attempt: int
    amount: tuple[int, int, int, int]


class AccountFigures(Frozen):
    """AccountFigures of an account.

    Attributes:
        steps: model calls.
        tool_calls: tool calls.
        tokens: tokens read and written.
        cost_usd: US dollars.
    """

    steps: int | None = None
    tool_calls: int | None = None
    tokens: int | None = None
    cost_usd: float | None = None

    @classmethod
    def of(cls, figures: Amount | Limits) -> "AccountFigures":
        """The same for people; None where nothing limits."""
        cost = figures.cost_nano_usd
        return cls(
            steps=figures.steps,
            tool_calls=figures.tool_calls,
            tokens=figures.tokens,
            cost_usd=None if cost is None else cost / 1_000_000_000,
        )


class Account(Frozen):
    """How an account stands, with the runs of every process on the data directory in view.

    Attributes:
        name: its name.
        budget: the most its runs may spend together.
        spent: what its runs spent, those at work included.
        reserved: what calls in flight may still cost.
        left: what could be reserved now; None where nothing limits it.
    """

    name: str
    budget: RunBudget
    spent: AccountFigures
    reserved: AccountFigures
    left: AccountFigures


def check_account_budget(name: str, budget: object) -> RunBudget:
    """The budget unchanged, if an account can have it.

    Raises:
        UsageError: it is no budget, limits nothing, or limits what an account does not count.
    """
    if not isinstance(budget, RunBudget):
        raise UsageError(f"account {name!r}: budget={budget!r:.60} is no budget", hint="RunBudget(max_cost_usd=...)")
    if budget.max_duration is not None:
        raise UsageError(
            f"account {name!r}: an account counts calls, tokens and money, and no time",
            hint="give max_duration to the runs or their agents",
        )
    if Limits.of(budget) == Limits():
        raise UsageError(
            f"account {name!r}: the budget limits nothing",
            hint="at least one of max_steps, max_tool_calls, max_total_tokens, max_cost_usd",
        )
    return budget
