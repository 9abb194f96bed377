"""A session's state, as a run's pattern and tools change it."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from callboard.live.journal import Unfit
from callboard.output import readable
from callboard_protocol.digests import fingerprint
from callboard_protocol.errors import UnpersistableValueError
from callboard_protocol.failures import text_of
from callboard_protocol.records import StepCompleted


class SessionState:
    """The session's state as the pattern and its tools change it, and whether it changed since it was last written.

    Args:
        state_type: the agent's; None where the session keeps no state.
        plain: what was written last; None for a new session.
    """

    __slots__ = ("_adapter", "_digest", "_kept", "value")

    def __init__(self, state_type: type[Any] | None, plain: Any) -> None:
        self._adapter: TypeAdapter[Any] | None = None if state_type is None else TypeAdapter(state_type)
        self._kept = plain
        self.value: Any = None
        self._digest = b""
        if self._adapter is not None and state_type is not None:
            self.value = state_type() if plain is None else self._adapter.validate_python(plain)
            self._digest = fingerprint(self._adapter.dump_python(self.value))

    def changed(self) -> tuple[bool, Any]:
        """Whether it differs from what was written last, and its plain form then; `Unfit` where it has none."""
        if self._adapter is None:
            return False, None
        try:
            plain = self._adapter.dump_python(self.value, warnings="none")
            digest = fingerprint(plain)
            if digest == self._digest:
                return False, None
            # Written once, it would have to be read by every later run of the session.
            self._adapter.validate_python(plain)
        except Exception as problem:  # noqa: BLE001  (pydantic's own errors, and those of a user's validators)
            said = readable(problem) if isinstance(problem, ValidationError) else text_of(problem)
            return True, Unfit(
                UnpersistableValueError(
                    f"the session's state is not what its state_type says: {said}",
                    hint="keep plain data of the declared types in ctx.state",
                )
            )
        self._digest = digest
        return True, plain

    def plain(self) -> Any:
        """Its plain form now, written or not; that of another agent where this one keeps no state.

        Raises:
            UnpersistableValueError: it has none.
        """
        if self._adapter is None:
            return self._kept
        try:
            return self._adapter.dump_python(self.value, warnings="none")
        except Exception as problem:
            raise UnpersistableValueError(f"the session's state has no plain form: {text_of(problem)}") from problem

    def owe(self) -> None:
        """What was to be written was not: the next record writes it."""
        self._digest = b""

    def apply(self, record: StepCompleted) -> None:
        """Take over the state a recorded step left."""
        if record.state_changed:
            self.replace(record.state)

    def replace(self, plain: Any) -> None:
        """Take over a state that is written already."""
        self._kept = plain
        if self._adapter is not None:
            self.value = self._adapter.validate_python(plain)
            self._digest = fingerprint(plain)
