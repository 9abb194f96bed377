"""Errors as data and back: what is recorded when something fails, and what a replay raises."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json, to_json

from callboard_protocol.errors import CallboardError, RunError
from callboard_protocol.runs import ErrorDetails

_DEPTH = 3


class StepFailedError(RunError):
    """A function given to `ctx.step` raised. The message and the context name the original exception."""

    code = "step_failed"
    default_hint = "`error_details.cause` and the traceback in `error_snapshot` show what it raised"


def describe(error: BaseException, *, depth: int = _DEPTH) -> ErrorDetails:
    """An exception as data.

    Args:
        error: any exception.
        depth: how many causes to keep.
    """
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    nested = None if cause is None or depth <= 0 else describe(cause, depth=depth - 1)
    if isinstance(error, CallboardError):
        return ErrorDetails(
            code=error.code,
            message=_storable(error.message),
            hint=_storable(error.hint),
            retryable=error.retryable,
            context=_plain(error.context),
            cause=nested,
        )
    return ErrorDetails(
        code=type(error).__name__,
        message=text_of(error) or type(error).__name__,
        # Only for the error itself: among its causes the hint would say the same again.
        hint=_FOREIGN if depth == _DEPTH else "",
        cause=nested,
    )


_FOREIGN = "it was raised outside Callboard: the traceback in `error_snapshot` shows where"


def text_of(error: BaseException) -> str:
    """What an exception says, fit to be stored: its class may be a user's, whose `__str__` can fail in any way."""
    try:
        return _storable(error.message if isinstance(error, CallboardError) else str(error))
    except Exception:  # noqa: BLE001 - as said
        return ""


def in_words(error: BaseException) -> str:
    """An exception's type and what it says, in one line."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _storable(text: str) -> str:
    """The text without the lone surrogates that UTF-8 cannot carry; an error must not fail for how it is worded."""
    return text.encode(errors="backslashreplace").decode()


def _plain(context: dict[str, Any]) -> dict[str, Any]:
    if not context:
        return context
    try:
        plain: dict[str, Any] = from_json(
            to_json(context, fallback=lambda value: f"<{type(value).__qualname__}>", bytes_mode="base64")
        )
    except Exception:  # noqa: BLE001 - a context nobody can read must not hide the error it belongs to
        return {}
    return plain


def restore(details: ErrorDetails) -> CallboardError:
    """The error that `describe` saw, as the class its code stands for; a plain `CallboardError` for an unknown code.

    The same data gives the same type and text wherever it is restored, so a pattern that catches it behaves alike
    live and on replay.
    """
    error_class = _class_of(details.code)
    error = error_class.__new__(error_class)
    Exception.__init__(error, details.message)
    error.message = details.message
    error.hint = details.hint
    error.context = dict(details.context)
    error.retryable = details.retryable
    for name, value in error.context.items():
        if name in error_class.__annotations__:
            setattr(error, name, value)
    if details.cause is not None:
        error.__cause__ = restore(details.cause)
    return error


def _class_of(code: str) -> type[CallboardError]:
    if code not in _by_code:
        # Looked up anew: a user's own class may have been defined since.
        waiting: list[type[CallboardError]] = [CallboardError]
        while waiting:
            error_class = waiting.pop()
            _by_code.setdefault(error_class.code, error_class)
            waiting.extend(error_class.__subclasses__())
    return _by_code.get(code, CallboardError)


_by_code: dict[str, type[CallboardError]] = {}
