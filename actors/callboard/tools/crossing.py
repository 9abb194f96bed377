"""What passes between the runtime and a worker process: which function to call, with what, and what came of it."""

from __future__ import annotations

import importlib
import pickle
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from callboard_protocol.errors import ToolDefinitionError, UsageError

LENGTH: Final = struct.Struct(">Q")
"""In front of every message: how many bytes it has."""

MAIN: Final = "__main__"

_MOVE = "define it with `def` at the top level of a module"


@dataclass(frozen=True, slots=True)
class FunctionReference:
    """Where another process finds a tool's function.

    Attributes:
        module: the module's name.
        qualname: the function's name in it.
    """

    module: str
    qualname: str

    @classmethod
    def of(cls, function: Callable[..., Any] | None, tool: str) -> FunctionReference:
        """The reference of a function.

        Args:
            function: what the tool calls; None where it is no function's.
            tool: the tool's name, for the error.

        Raises:
            ToolDefinitionError: another process could not import it by name.
        """
        if function is None:
            raise ToolDefinitionError(
                f"tool {tool!r}: only a function runs in a process of its own, and this tool is a class",
                hint="decorate the part that must be killable: @tool(isolation='process')",
            )
        module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
        found = f"tool {tool!r}: a worker process imports its function by name, and"
        if not isinstance(module, str) or not isinstance(qualname, str):
            raise ToolDefinitionError(f"{found} a {type(function).__name__} has none", hint=_MOVE)
        if "<" in qualname:
            raise ToolDefinitionError(f"{found} {qualname} is defined inside another function", hint=_MOVE)
        if getattr(function, "__self__", None) is not None:
            raise ToolDefinitionError(f"{found} {qualname} is bound to an object of this process", hint=_MOVE)
        if module == MAIN and not _can_import_main():
            raise ToolDefinitionError(
                f"{found} {qualname} is defined in an interactive session, or in the __main__ module of a package",
                hint="put it into a module, and import that",
            )
        return cls(module, qualname)

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"

    def resolve(self) -> Callable[..., Any]:
        """Import the function.

        Raises:
            ImportError: there is no such module, or no such function in it.
        """
        found: Any = importlib.import_module(self.module)
        for name in self.qualname.split("."):
            found = getattr(found, name, None)
        # Where a decorator made a tool of it, the name stands for the tool.
        found = getattr(found, "function", found)
        if callable(found):
            function: Callable[..., Any] = found
            return function
        raise ImportError(f"there is no function {self.qualname!r} in module {self.module!r}")


def _can_import_main() -> bool:
    """Whether `multiprocessing` knows how to import the main module in another process."""
    main = sys.modules[MAIN]
    if main.__spec__ is not None:
        return not main.__spec__.name.endswith(MAIN)
    return Path(getattr(main, "__file__", "<none>")).is_file()


@dataclass(frozen=True, slots=True)
class CallIdentity:
    """What a worker is told of a call: it stands where the context stands among the arguments."""

    run_id: str
    session_id: str
    agent_id: str
    call_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Load:
    """Import a function, and whatever that imports.

    Attributes:
        function: which.
        main: how to import the runtime's main module first, as `multiprocessing.spawn` has it; None where the
            function is in another one.
    """

    function: FunctionReference
    main: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Call:
    """Call a function that was loaded.

    Attributes:
        function: which.
        arguments: its positional and its named arguments, pickled.
    """

    function: FunctionReference
    arguments: bytes


@dataclass(frozen=True, slots=True)
class Reported:
    """A live event of the call in hand.

    Attributes:
        event: its name.
        fields: what the tool knows of it, as plain data.
    """

    event: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Returned:
    """The call, or the loading, is done.

    Attributes:
        value: what it returned, pickled.
    """

    value: bytes


@dataclass(frozen=True, slots=True)
class Uncrossable:
    """The call is done, and what it returned cannot be pickled.

    Attributes:
        kind: the type of what it returned.
        why: what pickle said.
    """

    kind: str
    why: str


@dataclass(frozen=True, slots=True)
class Raised:
    """The call, or the loading, failed.

    Attributes:
        error: the exception, pickled; None where that cannot be.
        text: the exception in words.
        traceback: where it was raised.
    """

    error: bytes | None
    text: str
    traceback: str


def framed(message: object) -> bytes:
    """A message as it goes over the channel."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


class MainImport:
    """Whether this process is a worker that imports the runtime's main module right now."""

    under_way = False

    @classmethod
    def refuse(cls, what: str) -> None:
        """Keep a main module that is only imported from doing its work a second time.

        Raises:
            UsageError: it is being imported in a worker.
        """
        if cls.under_way:
            raise UsageError(
                f"{what} while a worker process imports the main module, where one of its tools is defined: begin "
                "under `if __name__ == '__main__':`, or move the tool into a module of its own"
            )
