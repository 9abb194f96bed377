"""How the package shows itself: users see one package, whichever room a class lives in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def present(namespace: Mapping[str, object], names: Iterable[str]) -> None:
    """Give every class of Callboard's among `names` the module ``callboard``, in tracebacks, reprs and docs.

    Args:
        namespace: the package's.
        names: what it exports.
    """
    for name in names:
        public = namespace[name]
        if isinstance(public, type) and public.__module__.startswith("callboard"):
            public.__module__ = "callboard"
