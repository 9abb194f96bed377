"""What every error says: what was wrong, what to do next, whether to try again, and whose fault it is."""

from typing import Any, ClassVar, Literal, Self

Fault = Literal["caller", "agent", "tool", "model", "store", "runtime"]
"""Who can mend it: the calling code, the agent's pattern, a tool, a model provider, the disk, or Callboard itself."""


class CallboardError(Exception):
    """The root of everything Callboard raises.

    Args:
        message: what was wrong and where, in one sentence.
        hint: what to do next; the class's own hint where none is given.
        context: small, plain values that help a program to react (ids, limits, figures).
        retryable: overrides the class's answer to "can the same call succeed later?".
    """

    code: ClassVar[str] = "callboard_error"
    fault: ClassVar[Fault] = "runtime"
    default_hint: ClassVar[str] = ""
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        context: dict[str, Any] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.context: dict[str, Any] = {} if context is None else context
        self.retryable = self.default_retryable if retryable is None else retryable

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def fresh(self) -> Self:
        """An equal error of the same class, for a second receiver: tracebacks must not be shared between tasks."""
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)
        twin.args = self.args
        twin.__cause__ = self.__cause__
        return twin
