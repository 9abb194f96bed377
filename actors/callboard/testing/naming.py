"""Code by its name, so that another process can import it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from callboard_protocol.base import Frozen
from callboard_protocol.errors import UsageError

_HOW = "give 'module:attribute', 'path/to/file.py:attribute', or a function at the top level of a module"


class CodeName(Frozen):
    """Where something in a module is found.

    Attributes:
        module: the module's name; empty where only its file is known.
        file: the module's source file; empty where only its name is known.
        attribute: what of it, dots allowed.
    """

    module: str = ""
    file: str = ""
    attribute: str

    def __str__(self) -> str:
        return f"{self.module or self.file}:{self.attribute}"

    def load(self) -> Any:
        """What it names.

        Raises:
            UsageError: the module cannot be imported, or has no such attribute.
        """
        try:
            found: Any = _imported(self.module, self.file)
        except Exception as problem:
            raise UsageError(
                f"{self.module or self.file} cannot be imported: {type(problem).__name__}: {problem}", hint=_HOW
            ) from problem
        for part in self.attribute.split("."):
            if not hasattr(found, part):
                raise UsageError(f"{self}: there is no {part!r} in {found!r:.80}", hint=_HOW)
            found = getattr(found, part)
        return found


def name_of(code: object) -> CodeName:
    """The name of a function, or what a text names.

    Args:
        code: ``"module:attribute"``, ``"path/to/file.py:attribute"``, or a function another process can import.

    Raises:
        UsageError: another process could not find it.
    """
    if isinstance(code, str):
        where, colon, attribute = code.rpartition(":")
        if not colon or not where or not attribute:
            raise UsageError(f"{code!r} names nothing that can be imported", hint=_HOW)
        if where.endswith(".py"):
            return CodeName(file=str(Path(where).resolve()), attribute=attribute)
        return CodeName(module=where, attribute=attribute)
    name = getattr(code, "__qualname__", None)
    if not callable(code) or not isinstance(name, str):
        raise UsageError(f"{code!r:.80} is no name and no function", hint=_HOW)
    if "<" in name:
        raise UsageError(f"another process cannot import {name!r}: it is made when its function runs", hint=_HOW)
    file = inspect.getsourcefile(code)
    module = code.__module__
    return CodeName(module="" if module == "__main__" else module, file=file or "", attribute=name)


def _imported(name: str, file: str) -> ModuleType:
    if name:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as problem:
            # A test module, say: pytest finds it by its file.
            if not file or not f"{name}.".startswith(f"{problem.name}."):
                raise
        else:
            found = getattr(module, "__file__", None)
            if not file or (found is not None and Path(found).samefile(file)):
                return module
    alone = name or Path(file).stem
    spec = importlib.util.spec_from_file_location(alone, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alone] = module
    spec.loader.exec_module(module)
    return module
