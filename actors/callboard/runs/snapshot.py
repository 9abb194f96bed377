"""What a failed run looked like when it failed."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_jsonable_python

from callboard_protocol.failures import text_of
from callboard_protocol.messages import Message
from callboard_protocol.runs import ErrorSnapshot, RunUsage

_SECRET = re.compile(
    r"pass(word|wd|phrase)|secret|token|api_?key|authorization|cookie|credential|private_?key", re.IGNORECASE
)
_REDACTED = "[redacted]"
_LAST_MESSAGES = 6
_TRACEBACK_CHARACTERS = 8000


def snapshot_of(
    error: BaseException, usage: RunUsage, messages: Sequence[Message], state: Any, tool_calls: Sequence[str]
) -> ErrorSnapshot:
    """The run at the moment `error` ended it. Values under keys that name secrets are left out.

    Args:
        error: what ended it.
        usage: what it had consumed.
        messages: its conversation.
        state: the session's state.
        tool_calls: its tool calls in order, as ``name(call_id)``.
    """
    text = "".join(traceback.format_exception(error))
    return ErrorSnapshot(
        type=type(error).__name__,
        message=text_of(error),
        traceback=text[-_TRACEBACK_CHARACTERS:],
        tool_calls=tuple(tool_calls),
        last_messages=tuple(_redacted_message(message) for message in messages[-_LAST_MESSAGES:]),
        usage=usage,
        state=redact(_shown(state)),
        at=time.time(),
    )


def _shown(state: Any) -> Any:
    try:
        return to_jsonable_python(state, fallback=repr)
    except Exception:  # noqa: BLE001 - a state that cannot be shown must not hide what went wrong
        return f"<{type(state).__qualname__}>"


def redact(value: Any) -> Any:
    """Plain data with the values of secret-sounding keys replaced."""
    if isinstance(value, Mapping):
        return {
            key: _REDACTED if isinstance(key, str) and _SECRET.search(key) else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


def _redacted_message(message: Message) -> Message:
    if not message.tool_calls:
        return message
    calls = tuple(call.model_copy(update={"arguments": redact(call.arguments)}) for call in message.tool_calls)
    return message.model_copy(update={"tool_calls": calls})
