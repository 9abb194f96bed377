"""Where in a value the part is that cannot be stored, and why: looked for only once storing it failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

from callboard_protocol.errors import UnpersistableValueError

_LONGEST_PATH = 120
_LONGEST_LEAF = 1 << 30


class Search:
    """A walk through a record's body in the order it is written.

    Args:
        max_depth: how deep containers may be nested.
        packs: whether a value that is no container is stored as it is.
        comes_back: whether a value can be a key: stored, and read again.
        stored_form: what stands for one level of a value that is not stored as it is; raises where nothing does.
        size: how many bytes a value takes that can be stored.
    """

    def __init__(
        self,
        max_depth: int,
        packs: Callable[[object], bool],
        comes_back: Callable[[object], bool],
        stored_form: Callable[[object], object],
        size: Callable[[object], int],
    ) -> None:
        self._max_depth = max_depth
        self._packs = packs
        self._comes_back = comes_back
        self._stored_form = stored_form
        self._size = size

    def error(self, record: str, body: dict[str, Any]) -> UnpersistableValueError:
        """The error that names the place."""
        path, reason = next(self._faults(body, "", 1), ("", "holds a value that cannot be stored"))
        return self._error(record, path, reason)

    def too_large(self, record: str, body: dict[str, Any], size: int, most: int) -> UnpersistableValueError:
        """The error that names what most of an over-long record consists of.

        Args:
            record: the record's kind.
            body: the record, as it would be stored.
            size: its bytes.
            most: the bytes it may have.
        """
        path = ""
        value: Any = body
        heaviest = size
        while type(value) in {dict, list} and value:
            parts = [(place, value[item] if type(value) is dict else item) for place, item in self._items(value)]
            part_size, (place, part) = max(
                ((self._size(part), (place, part)) for place, part in parts), key=itemgetter(0)
            )
            if 2 * part_size < heaviest:
                break
            path, value, heaviest = f"{path}{place}".lstrip("."), part, part_size
        return self._error(
            record,
            path,
            f"takes {heaviest:,} bytes of a record that would take {size:,}; at most {most:,} can be stored",
            hint="keep it elsewhere (a file, an object store) and store where it is",
            size=size,
            most=most,
        )

    @staticmethod
    def _error(record: str, path: str, reason: str, hint: str | None = None, **context: int) -> UnpersistableValueError:
        if len(path) > _LONGEST_PATH:
            path = path[:_LONGEST_PATH] + "..."
        return UnpersistableValueError(
            f"{path or record} {reason}", hint=hint, context={"record": record, "path": path, **context}
        )

    def _faults(self, value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
        kind = type(value)
        if kind is dict or kind is list:
            if depth > self._max_depth:
                yield path, f"is nested more than {self._max_depth} deep"
                return
            for place, item in self._items(value):
                if isinstance(value, dict) and not self._comes_back(item):
                    yield f"{path}{place}", f"has a {type(item).__name__} as its key, which cannot be stored"
                part = value[item] if isinstance(value, dict) else item
                yield from self._faults(part, f"{path}{place}".lstrip("."), depth + 1)
        elif not self._packs(value):
            yield from self._odd(value, path, depth)

    def _odd(self, value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
        kind = type(value).__name__
        if isinstance(value, str | bytes) and len(value) > _LONGEST_LEAF:
            yield path, f"is a {kind} of {len(value):,} characters or bytes, which is too long to be stored"
        elif isinstance(value, str):
            yield path, f"is a {kind} with a lone surrogate, which UTF-8 cannot carry"
        elif isinstance(value, set | frozenset):
            yield path, f"is a {kind}, which has no order: store a sorted list"
        else:
            try:
                form = self._stored_form(value)
            except Exception as error:  # noqa: BLE001 - whatever a user's model raises is the reason
                yield path, f"is a {kind}" if isinstance(error, TypeError) else f"is a {kind} that fails: {error}"
                return
            yield from self._faults(form, path, depth)

    @staticmethod
    def _items(container: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(container, list):
            yield from ((f"[{index}]", item) for index, item in enumerate(container))
        else:
            for key in container:
                yield (f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"), key
