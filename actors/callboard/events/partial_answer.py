"""What a model has written of an answer that is still being written."""

from __future__ import annotations

from typing import Any


class PartialAnswer:
    """One answer on its way.

    Args:
        step: the step that asked.
        attempt: which attempt of the run.
        call_id: the step's call id.
        model: the model's name.

    Attributes:
        length: characters so far.
    """

    __slots__ = ("_pieces", "_who", "length")

    def __init__(self, step: str, attempt: int, call_id: str, model: str) -> None:
        self._who = {"step": step, "attempt": attempt, "call_id": call_id, "model": model}
        self._pieces: list[str] = []
        self.length = 0

    def add(self, text: str) -> None:
        """The model has written more."""
        self._pieces.append(text)
        self.length += len(text)

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._pieces)

    def told(self) -> dict[str, Any]:
        """Whose it is, as events say it."""
        return {**self._who}
