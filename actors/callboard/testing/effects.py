"""What has happened in the world, whatever the runtime knows of it: noted by tools, counted by a test."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

WORLD: Final = "CALLBOARD_WORLD"
"""The environment variable that names the folder which stands for the world of one story."""

_FILE: Final = "effects"


@dataclass(frozen=True, slots=True)
class Effects:
    """How often each effect took place.

    Attributes:
        exact: those that must take place exactly as often as in a run that nobody kills.
        repeatable: those that may take place once more where a kill struck them: of function steps and of read-only
            or idempotent tools.
    """

    exact: Counter[str] = field(default_factory=Counter)
    repeatable: Counter[str] = field(default_factory=Counter)

    def differences(self, reference: Effects) -> list[str]:
        """What of this a kill does not excuse."""
        found = [
            f"effect {effect!r} took place {times} times instead of {expected}"
            for effect, times, expected in _beside(self.exact, reference.exact)
            if times != expected
        ]
        found += [
            f"effect {effect!r}, which may be repeated once, took place {times} times instead of {expected}"
            for effect, times, expected in _beside(self.repeatable, reference.repeatable)
            if not expected <= times <= expected + 1
        ]
        return found


def note_effect(effect: str, *, may_repeat: bool = False) -> None:
    """Note that something took place, so that `kill_everywhere` can count it. Does nothing elsewhere.

    Call it where the effect happens: in the code that charges the card, not beside the call of it.

    Args:
        effect: what took place: ``"refunded order 7"``.
        may_repeat: whether it may take place again after a crash: what function steps and read-only or idempotent
            tools do.
    """
    world = os.environ.get(WORLD, "")
    if not world:
        return
    line = json.dumps({"effect": effect, "may_repeat": may_repeat}) + "\n"
    descriptor = os.open(Path(world) / _FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def noted_effects(world: Path) -> Effects:
    """What `note_effect` has noted in such a folder."""
    effects = Effects()
    notes = world / _FILE
    if notes.exists():
        for line in notes.read_text().splitlines():
            noted = json.loads(line)
            (effects.repeatable if noted["may_repeat"] else effects.exact)[noted["effect"]] += 1
    return effects


def _beside(counted: Counter[str], reference: Counter[str]) -> list[tuple[str, int, int]]:
    return [(effect, counted[effect], reference[effect]) for effect in sorted({*counted, *reference})]
