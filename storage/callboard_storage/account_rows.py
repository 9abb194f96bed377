"""Named accounts on disk: an entry each, charges that it has not taken in, and what unfinished runs draw on it.

A run that ends writes its charge without reading the account, so that runs which end side by side need not wait for one
another. Whoever changes the entry next takes the charges in, and each of them ends what its run has drawn: until then
both are there, and the charge is what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

from callboard_protocol.amounts import Amount, Answer, total
from callboard_protocol.base import Frozen
from callboard_protocol.drawing import (
    BeginDraw,
    DrawChange,
    Drawn,
    SettleDraw,
    change_draw,
    spend,
    spend_reserved,
    without_draw,
)
from callboard_protocol.named_accounts import AccountCharge, AccountDraw, AccountEntry
from callboard_protocol.runs import RunBudget
from callboard_protocol.states import FINAL
from callboard_storage import keys
from callboard_storage.batch import Change, Table
from callboard_storage.codec import pack, seal
from callboard_storage.reading import Snapshot, decoded, run

ModelT = TypeVar("ModelT", bound=Frozen)

_FIRST_PAGE: Final = 4
_PAGES_GROW_BY: Final = 8


class AccountChanges(NamedTuple):
    """An account as it is to be, and what that changes on disk."""

    drawn: Drawn
    rows: tuple[Change, ...]


def read(snapshot: Snapshot, name: str) -> AccountEntry | None:
    """An account, with all charges to it taken in; None where there is none.

    Raises:
        DamagedRecordError: it, or a charge to it, cannot be read.
    """
    found = _opened(snapshot, name)
    return None if found is None else found.entry


def names(snapshot: Snapshot) -> list[str]:
    """The names of all accounts, in order."""
    return [key.decode() for key, _ in snapshot.rows("accounts")]


def draws(snapshot: Snapshot, name: str) -> Iterator[AccountDraw]:
    """What unfinished runs draw on an account, and ended ones whose charge was not taken in yet.

    Raises:
        DamagedRecordError: one of them cannot be read.
    """
    for _, draw in _rows_of(snapshot, "draws", name, AccountDraw):
        yield draw


def kept(
    snapshot: Snapshot,
    name: str,
    budget: RunBudget | None,
    now: float,
    *,
    opens: bool,
    is_alive: Callable[[bytes], bool],
) -> AccountChanges | None:
    """What keeping an account as it is asked for changes; None where there is no such account and none is made.

    Args:
        snapshot: where it is.
        name: its name.
        budget: what it gets; None for the one it has.
        now: unix seconds.
        opens: whether it is made where it is missing.
        is_alive: whether an open store is.
    """
    rows = _opened(snapshot, name)
    if rows is None:
        if budget is None or not opens:
            return None
        rows = _Rows(snapshot, AccountEntry(name=name, budget=budget, opened_at=now))
    elif budget is not None:
        rows.entry = rows.entry.model_copy(update={"budget": budget})
    rows.spend_for_the_gone(is_alive)
    return rows.changes(())


def drawn(
    snapshot: Snapshot,
    name: str,
    changes: Sequence[DrawChange],
    owner: bytes,
    is_alive: Callable[[bytes], bool] | None = None,
) -> AccountChanges | None:
    """What changes to what runs draw on an account come to, one after the other; None where there is no such account.

    Args:
        snapshot: where it is.
        name: its name.
        changes: what is asked.
        owner: the open store that asks.
        is_alive: whether an open store is, where what those have reserved that died is to count as spent first.
    """
    rows = _opened(snapshot, name)
    if rows is None:
        return None
    if is_alive is not None:
        rows.spend_for_the_gone(is_alive)
    answers: list[Answer | None] = []
    for change in changes:
        draw = rows.draw_of(change.run_id)
        if isinstance(change, SettleDraw) and (draw is None or draw.owner != owner):
            answers.append(None)  # the run has been charged since, or goes on in another process, from what it records
            continue
        if draw is None:
            draw = AccountDraw(account=name, run_id=change.run_id, owner=owner)
        elif isinstance(change, BeginDraw):
            draw = draw.model_copy(update={"owner": owner})
        rows.entry, changed, answer = change_draw(rows.entry, draw, change)
        rows.put(changed)
        answers.append(answer)
    return rows.changes(answers)


class _Rows:
    """An account's rows, as they are to be."""

    def __init__(self, snapshot: Snapshot, entry: AccountEntry, frame: bytes | None = None) -> None:
        self.entry = entry
        self._snapshot = snapshot
        self._frame = frame
        self._charges: list[bytes] = []
        self._draws: dict[bytes, AccountDraw | None] = {}

    def take_in_charges(self) -> None:
        amounts = []
        for key, charge in _rows_of(self._snapshot, "charges", self.entry.name, AccountCharge):
            self._charges.append(key)
            amounts.append(Amount(*charge.amount))
            self.end_draw(charge.run_id)
        if amounts:
            self.entry = spend(self.entry, total(amounts))

    def draw_of(self, run_id: str) -> AccountDraw | None:
        key = keys.draw_key(self.entry.name, run_id)
        if key not in self._draws:
            frame = self._snapshot.get("draws", key)
            return None if frame is None else decoded(self._snapshot, "draws", key, frame, AccountDraw)
        return self._draws[key]

    def put(self, draw: AccountDraw) -> None:
        is_empty = not any((*draw.used, *draw.reserved))
        self._draws[keys.draw_key(draw.account, draw.run_id)] = None if is_empty else draw

    def end_draw(self, run_id: str) -> None:
        draw = self.draw_of(run_id)
        if draw is not None:
            self.entry = without_draw(self.entry, draw)
            self._draws[keys.draw_key(draw.account, run_id)] = None

    def spend_for_the_gone(self, is_alive: Callable[[bytes], bool]) -> None:
        """Count as spent what runs have reserved whose process died, and what runs have drawn that are no more."""
        for key, draw in _rows_of(self._snapshot, "draws", self.entry.name, AccountDraw):
            if key in self._draws:
                continue
            stored, lives = run(self._snapshot, draw.run_id), is_alive(draw.owner)
            if (stored is None and not lives) or (stored is not None and stored.state in FINAL):
                drawn_in_all = total([Amount(*draw.used), Amount(*draw.reserved)])
                self.entry = spend(without_draw(self.entry, draw), drawn_in_all)
                self._draws[key] = None
            elif not lives and any(draw.reserved):
                self.entry, changed = spend_reserved(self.entry, draw)
                self.put(changed)

    def changes(self, answers: Iterable[Answer | None]) -> AccountChanges:
        rows: list[Change] = [("charges", key, None) for key in self._charges]
        for key, draw in self._draws.items():
            rows.append(("draws", key, None if draw is None else seal(key, *pack(draw))))
        key = keys.account_key(self.entry.name)
        frame = seal(key, *pack(self.entry))
        if frame != self._frame:
            rows.append(("accounts", key, frame))
        return AccountChanges(Drawn(self.entry, (*answers,)), (*rows,))


def _opened(snapshot: Snapshot, name: str) -> _Rows | None:
    """An account's rows, with all charges taken in; None where there is no such account."""
    key = keys.account_key(name)
    frame = snapshot.get("accounts", key)
    if frame is None:
        return None
    rows = _Rows(snapshot, decoded(snapshot, "accounts", key, frame, AccountEntry), frame)
    rows.take_in_charges()
    return rows


def _rows_of(snapshot: Snapshot, table: Table, name: str, model: type[ModelT]) -> Iterator[tuple[bytes, ModelT]]:
    """An account's rows of a table, by their keys. Few, most often, among those of many other accounts."""
    prefix = after = keys.account_prefix(name)
    limit = _FIRST_PAGE
    while True:
        page = snapshot.rows(table, after, limit)
        for key, frame in page:
            if not key.startswith(prefix):
                return
            yield key, decoded(snapshot, table, key, frame, model)
        if len(page) < limit:
            return
        after, limit = page[-1][0], limit * _PAGES_GROW_BY
