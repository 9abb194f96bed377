"""Budget arithmetic: reserve, settle and release on a tree of accounts (named account, run, child runs).

A reservation is taken before the work is dispatched, at the account and at every account above it, for the most the
work can cost; settling puts the true figure in its place. What is spent and what is reserved together never pass a
limit, so a limit holds at any fan-out.

The ledger waits for nobody: `MustWait` tells the caller that other reservations must settle first. A call whose own
reservation stays open while child runs work (a tool that delegates) settles its count before the first child
reserves; otherwise a child can be told to wait for its own ancestor.
"""

from __future__ import annotations

from collections.abc import Iterator

from callboard_protocol.account import UNLIMITED, Account
from callboard_protocol.amounts import (
    NO_LIMITS,
    TOKEN_FLOOR,
    ZERO,
    Amount,
    Answer,
    Granted,
    Limits,
    MustWait,
    Refused,
)
from callboard_protocol.errors import UsageError


class UnknownAccountError(UsageError, LookupError):
    """No account is open under that id."""

    code = "unknown_account"
    default_hint = "open it first; a closed account is unknown"


class AccountOpenError(UsageError):
    """The account cannot be opened or closed as it stands."""

    code = "account_open"


class UnreservedAmountError(UsageError):
    """More was settled or released than the account has reserved."""

    code = "unreserved_amount"
    default_hint = "settle or release each reservation once, with the amount that was granted"


class Ledger:
    """A tree of accounts. Not thread-safe: it belongs to one actor. A method that raises has changed nothing."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def __contains__(self, account_id: object) -> bool:
        return account_id in self._accounts

    def __len__(self) -> int:
        return len(self._accounts)

    def open(
        self,
        account_id: str,
        limits: Limits = NO_LIMITS,
        parent: str | None = None,
        spent: Amount = ZERO,
        *,
        reserved: Amount = ZERO,
        counted_above: bool = False,
    ) -> None:
        """Open an account.

        Args:
            account_id: its name, unique in the ledger.
            limits: the most it and everything below it may spend.
            parent: the account it draws on too.
            spent: what it had spent before: its own work and that of accounts below it that stay closed. It may be
                past the limits; nothing more is granted then.
            reserved: what is reserved of it already, and of no account above.
            counted_above: whether the accounts above have `spent` in theirs already: True for a run that was closed
                in this ledger and goes on, False where a ledger is rebuilt after a crash.

        Raises:
            AccountOpenError: it is open already.
            UnknownAccountError: the parent is not open.
        """
        if account_id in self._accounts:
            raise AccountOpenError(f"the account {account_id!r} is open already", hint="set_limits changes its limits")
        above = None if parent is None else self._account(parent)
        account = Account(account_id, limits, () if above is None else above.chain)
        for node in (account,) if counted_above else account.chain:
            node.spend(spent)
        account.hold(reserved)
        if above is not None:
            above.children += 1
        self._accounts[account_id] = account

    def close(self, account_id: str) -> Amount:
        """Close an account; what it spent stays in the accounts above. What it still has reserved counts as spent.

        Returns:
            All that it spent, with everything below it.

        Raises:
            UnknownAccountError: it is not open.
            AccountOpenError: accounts below it are open.
        """
        account = self._account(account_id)
        if account.children:
            raise AccountOpenError(
                f"the account {account_id!r} has {account.children} open below it", hint="close those first"
            )
        # A call nobody settled may have taken effect: charging the most it can have cost keeps the limits above true.
        unsettled = account.reserved()
        if unsettled != ZERO:
            self.settle(account_id, unsettled, unsettled)
        if len(account.chain) > 1:
            account.chain[1].children -= 1
        del self._accounts[account_id]
        return account.spent()

    def set_limits(self, account_id: str, limits: Limits) -> None:
        """Change an account's limits. What is spent and reserved stands, even past the new ones.

        Raises:
            UnknownAccountError: it is not open.
        """
        self._account(account_id).limit_to(limits)

    def count(self, account_id: str, amount: Amount) -> None:
        """Count what was spent of an account, and of those above it, where no reservation was made here. Figures below
        zero take back what was counted before.

        Raises:
            UnknownAccountError: it is not open.
        """
        for node in self._account(account_id).chain:
            node.spend(amount)

    def reserve(
        self,
        account_id: str,
        amount: Amount,
        *,
        can_cap_tokens: bool = False,
        token_floor: int = TOKEN_FLOOR,
        output: Amount | None = None,
    ) -> Answer:
        """Reserve `amount` at an account and at every account above it, or nowhere.

        Args:
            account_id: where the work is done.
            amount: the most it can cost. A figure of zero fits everywhere, even where a limit is overdrawn.
            can_cap_tokens: whether this is a model call that may be told to write less.
            token_floor: the fewest output tokens to cap to; a call that asks for fewer gets them all or waits.
            output: what of `amount` is for tokens yet to be written: their number and their price. All of its tokens
                and all of its price where not given.

        Raises:
            UnknownAccountError: it is not open.
        """
        try:
            chain = self._accounts[account_id].chain
        except KeyError:
            raise _unknown(account_id) from None
        steps, tool_calls, tokens, cost = amount
        answer: Answer
        for node in chain:
            if (
                steps > node.room_steps
                or tool_calls > node.room_tool_calls
                or tokens > node.room_tokens
                or cost > node.room_cost
            ):
                answer = _squeeze(chain, amount, (output or amount) if can_cap_tokens else ZERO, token_floor)
                if not isinstance(answer, Granted):
                    return answer
                steps, tool_calls, tokens, cost = answer.amount
                break
        else:
            answer = Granted(amount)
        for node in chain:
            if steps:
                node.room_steps -= steps
            if tool_calls:
                node.room_tool_calls -= tool_calls
            if tokens:
                node.room_tokens -= tokens
            if cost:
                node.room_cost -= cost
        return answer

    def settle(self, account_id: str, reserved: Amount, true: Amount) -> None:
        """Put what a piece of work cost in the place of what was reserved for it.

        Args:
            account_id: where it was reserved.
            reserved: the amount that was granted.
            true: what it came to. It counts in full where it is more than was reserved.

        Raises:
            UnknownAccountError: the account is not open.
            UnreservedAmountError: less than `reserved` is reserved there.
        """
        try:
            account = self._accounts[account_id]
        except KeyError:
            raise _unknown(account_id) from None
        steps, tool_calls, tokens, cost = reserved
        if (
            (steps and steps > account.limit_steps - account.room_steps - account.spent_steps)
            or (
                tool_calls
                and tool_calls > account.limit_tool_calls - account.room_tool_calls - account.spent_tool_calls
            )
            or (tokens and tokens > account.limit_tokens - account.room_tokens - account.spent_tokens)
            or (cost and cost > account.limit_cost - account.room_cost - account.spent_cost)
        ):
            raise UnreservedAmountError(
                f"{reserved} is not reserved at {account_id!r}, only {account.reserved()}",
                context={"account_id": account_id},
            )
        true_steps, true_tool_calls, true_tokens, true_cost = true
        steps -= true_steps
        tool_calls -= true_tool_calls
        tokens -= true_tokens
        cost -= true_cost
        for node in account.chain:
            if true_steps:
                node.spent_steps += true_steps
            if true_tool_calls:
                node.spent_tool_calls += true_tool_calls
            if true_tokens:
                node.spent_tokens += true_tokens
            if true_cost:
                node.spent_cost += true_cost
            if steps:
                node.room_steps += steps
            if tool_calls:
                node.room_tool_calls += tool_calls
            if tokens:
                node.room_tokens += tokens
            if cost:
                node.room_cost += cost

    def release(self, account_id: str, reserved: Amount) -> None:
        """Give a reservation back: its work was not done.

        Raises:
            UnknownAccountError: the account is not open.
            UnreservedAmountError: less than `reserved` is reserved there.
        """
        self.settle(account_id, reserved, ZERO)

    def spent(self, account_id: str) -> Amount:
        """What an account and everything below it have spent.

        Raises:
            UnknownAccountError: it is not open.
        """
        return self._account(account_id).spent()

    def reserved(self, account_id: str) -> Amount:
        """What is reserved at an account and below it, and not settled yet.

        Raises:
            UnknownAccountError: it is not open.
        """
        return self._account(account_id).reserved()

    def left(self, account_id: str) -> Limits:
        """What could be reserved now, with every account above in view; None where nothing limits it.

        Raises:
            UnknownAccountError: it is not open.
        """
        chain = self._account(account_id).chain
        return Limits(
            _least((node.limit_steps, node.room_steps) for node in chain),
            _least((node.limit_tool_calls, node.room_tool_calls) for node in chain),
            _least((node.limit_tokens, node.room_tokens) for node in chain),
            _least((node.limit_cost, node.room_cost) for node in chain),
        )

    def _account(self, account_id: str) -> Account:
        try:
            return self._accounts[account_id]
        except KeyError:
            raise _unknown(account_id) from None


def _unknown(account_id: str) -> UnknownAccountError:
    return UnknownAccountError(f"no account {account_id!r} is open", context={"account_id": account_id})


def _least(rooms: Iterator[tuple[int, int]]) -> int | None:
    limited = [room for limit, room in rooms if limit != UNLIMITED]
    return max(0, min(limited)) if limited else None


def _squeeze(chain: tuple[Account, ...], amount: Amount, output: Amount, token_floor: int) -> Answer:
    """What becomes of a reservation that is too large for some account: capped, told to wait, or refused.

    Refusal anywhere outweighs waiting, waiting anywhere outweighs a cap.
    """
    floor = max(1, min(token_floor, output.tokens))
    kept = output.tokens
    cappables = (0, 0, output.tokens, output.cost_nano_usd)
    wait: MustWait | None = None
    for node in chain:
        for (limit, now, ever), wanted, cappable in zip(node.rooms(), amount, cappables, strict=True):
            if wanted <= max(now, 0):
                continue
            affordable = _affordable(now, wanted, cappable, output.tokens)
            if affordable >= floor:
                kept = min(kept, affordable)
            elif wanted <= ever or _affordable(ever, wanted, cappable, output.tokens) >= floor:
                wait = wait or MustWait(node.account_id, limit)
            else:
                return Refused(node.account_id, limit)
    if wait is not None:
        return wait
    if kept == output.tokens:
        return Granted(amount)
    steps, tool_calls, tokens, cost = amount
    # Rounded up, so that the price of what is kept is never understated.
    kept_cost = -(-output.cost_nano_usd * kept // output.tokens)
    tokens -= output.tokens - kept
    cost -= output.cost_nano_usd - kept_cost
    return Granted(Amount(steps, tool_calls, tokens, cost), kept)


def _affordable(room: int, wanted: int, cappable: int, output_tokens: int) -> int:
    """How many output tokens fit, where `cappable` of the `wanted` figure goes in proportion to them."""
    return (room - (wanted - cappable)) * output_tokens // cappable if cappable else 0
