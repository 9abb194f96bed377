"""What runs of this process draw on named accounts: asked of the store, which alone knows what all processes have.

Each account has one transaction under way at a time; what comes meanwhile goes into the next one together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from callboard import fault_points
from callboard_protocol.amounts import NO_LIMITS, Amount, Granted, Limits, MustWait, Refused
from callboard_protocol.drawing import BeginDraw, DrawChange, ReserveDraw, SettleDraw, left_of
from callboard_protocol.errors import CallboardError, RuntimeClosingError
from callboard_protocol.ledger import UnknownAccountError
from callboard_storage.store import Store

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_TRIES: Final = 0.05
"""How soon a reservation that waits notices that another process has settled one."""

TRIES_BETWEEN_LOOKS_AT_THE_DEAD: Final = 20
"""How many tries of waiting reservations go by before those of processes that died are given up for them."""

Outcome: TypeAlias = Granted | Refused | CallboardError | None


@dataclass(slots=True, eq=False)
class _Asked:
    """A change on its way to the store.

    Attributes:
        change: what is asked.
        answered: called with what came of it.
        is_wanted: whether anybody waits for it still.
    """

    change: DrawChange
    answered: Callable[[Outcome], None]
    is_wanted: Callable[[], bool]


class _Line:
    """What waits for one account.

    Attributes:
        next: goes into the next transaction.
        waiting: reservations that fit once others have settled.
        left: what was left of the account when it last answered.
        work: the transaction under way, and those behind it; None where nothing is.
        again: when `waiting` is tried again.
        tries: how often that was in a row.
    """

    __slots__ = ("again", "left", "next", "tries", "waiting", "work")

    def __init__(self) -> None:
        self.next: list[_Asked] = []
        self.waiting: list[_Asked] = []
        self.left: Limits = NO_LIMITS
        self.work: asyncio.Task[None] | None = None
        self.again: asyncio.TimerHandle | None = None
        self.tries = 0


class AccountDraws:
    """Reserves, settles and waits for room on named accounts.

    Args:
        store: where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lines: dict[str, _Line] = {}
        self._is_closed = False

    def left(self, account: str) -> Limits:
        """What was left of an account that a run draws on, as of its last answer; None where nothing limits it."""
        line = self._lines.get(account)
        return NO_LIMITS if line is None else line.left

    def knows(self, account: str) -> bool:
        """Whether the account has answered, and was open."""
        line = self._lines.get(account)
        return line is not None and line.left != NO_LIMITS

    async def begin(self, account: str, run_id: str, used: Amount) -> None:
        """A run begins to draw on an account, or goes on.

        Args:
            account: its name.
            run_id: the run.
            used: what it has spent since it last charged the account.

        Raises:
            UnknownAccountError: it is not open any more.
            StoreError: it cannot be read or written.
        """
        begun: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._put(account, _Asked(BeginDraw(run_id, used), _answer(begun), lambda: True))
        outcome = await asyncio.shield(begun)
        if isinstance(outcome, CallboardError):
            raise outcome

    def reserve(
        self, account: str, change: ReserveDraw, answered: Callable[[Outcome], None], is_wanted: Callable[[], bool]
    ) -> None:
        """Reserve, once there is room: `answered` is called with the grant, the refusal, or what went wrong.

        Args:
            account: its name.
            change: what is asked.
            answered: called once; with None where nobody wanted to know any more before the store was asked.
            is_wanted: whether anybody does.
        """
        self._put(account, _Asked(change, answered, is_wanted))

    def settle(self, account: str, run_id: str, reserved: Amount, true: Amount) -> None:
        """Put the true figure in the place of a reservation. Until that is on disk, the reservation stands."""
        self._put(account, _Asked(SettleDraw(run_id, reserved, true), _nobody, lambda: True))

    def changed(self, account: str) -> None:
        """The account has another budget: what waits may fit, or never will."""
        line = self._lines.get(account)
        if line is not None:
            self._try_again(account, line)

    def forget(self, account: str) -> None:
        """The account is closed."""
        self._lines.pop(account, None)

    def close(self) -> None:
        """Ask nothing more. What was settled and is not on disk stands there as reserved."""
        for line in self._lines.values():
            if line.again is not None:
                line.again.cancel()
            if line.work is not None:
                line.work.cancel()
            for one in (*line.waiting, *line.next):
                one.answered(RuntimeClosingError())
        self._lines.clear()
        self._is_closed = True

    def _put(self, account: str, asked: _Asked) -> None:
        if self._is_closed:
            asked.answered(RuntimeClosingError())
            return
        line = self._lines.get(account)
        if line is None:
            line = self._lines[account] = _Line()
        line.next.append(asked)
        self._begin_work(account, line)

    def _begin_work(self, account: str, line: _Line) -> None:
        if line.work is None:
            line.work = asyncio.get_running_loop().create_task(self._work(account, line), name=f"account {account}")

    async def _work(self, account: str, line: _Line) -> None:
        try:
            while line.next:
                asked, line.next = _still_wanted(line.next), []
                if asked:
                    await self._send(account, line, asked)
        finally:
            line.work = None
        line.waiting = _still_wanted(line.waiting)
        if line.waiting and line.again is None:
            # Other processes say nothing when they settle.
            loop = asyncio.get_running_loop()
            line.again = loop.call_later(SECONDS_BETWEEN_TRIES, self._try_again, account, line)

    async def _send(self, account: str, line: _Line, asked: list[_Asked]) -> None:
        for_the_dead = line.tries >= TRIES_BETWEEN_LOOKS_AT_THE_DEAD
        if for_the_dead:
            line.tries = 0
        try:
            drawn = await self._store.draw(account, [one.change for one in asked], for_the_dead=for_the_dead)
        except CallboardError as error:
            _answer_all(asked, error)
            return
        if drawn is None:
            _answer_all(asked, UnknownAccountError(f"the account {account!r} was closed", context={"account": account}))
            return
        if fault_points.armed is not None:
            fault_points.reach("account.drawn", account)
        line.left = left_of(drawn.entry)
        makes_room = False
        for one, answer in zip(asked, drawn.answers, strict=True):
            makes_room = makes_room or not isinstance(one.change, ReserveDraw)
            if isinstance(answer, MustWait):
                line.waiting.append(one)
            else:
                one.answered(answer)
        if makes_room and line.waiting:
            line.tries = 0
            line.next, line.waiting = [*line.waiting, *line.next], []

    def _try_again(self, account: str, line: _Line) -> None:
        if line.again is not None:
            line.again.cancel()
            line.again = None
        line.tries += 1
        line.next, line.waiting = [*line.waiting, *line.next], []
        self._begin_work(account, line)


def _still_wanted(asked: list[_Asked]) -> list[_Asked]:
    wanted = []
    for one in asked:
        if one.is_wanted():
            wanted.append(one)
        else:
            one.answered(None)
    return wanted


def _answer_all(asked: list[_Asked], error: CallboardError) -> None:
    for one in asked:
        if isinstance(one.change, SettleDraw):
            # It stands as reserved, which nobody overspends by; the run's next attempt or its end puts it right.
            logger.warning("what run %s has settled was not written: %s", one.change.run_id, error)
        one.answered(error.fresh())


def _answer(future: asyncio.Future[Outcome]) -> Callable[[Outcome], None]:
    def answer(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    return answer


def _nobody(outcome: Outcome) -> None:
    """Who waits for a settlement."""
