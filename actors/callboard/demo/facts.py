"""What one reading of a Python file says: its shape, its longest function, and the places worth a second look.

The file is parsed and walked once; the auditor's tools each return a part of it. Nothing is imported or run.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

MAX_BYTES = 1_000_000
LONG_FUNCTION = 80

SEVERITIES = ("high", "medium", "low")

RULES: dict[str, tuple[str, str, str]] = {
    # rule: (family, severity, what it means)
    "shell-command": ("execution", "high", "a command line goes through a shell"),
    "unpickling": ("execution", "high", "bytes that are unpickled can run any code"),
    "insecure-temp-name": ("execution", "high", "the name is known before the file exists"),
    "unverified-tls": ("execution", "high", "certificates are not checked"),
    "dynamic-code": ("execution", "medium", "text that is not a constant is run as code"),
    "weak-hash": ("execution", "low", "MD5 and SHA-1 are no protection"),
    "debugger-left-in": ("execution", "medium", "stops for a debugger"),
    "assert-on-tuple": ("errors", "high", "a tuple is always true: this checks nothing"),
    "bare-except": ("errors", "medium", "also catches KeyboardInterrupt and SystemExit"),
    "swallowed-exception": ("errors", "low", "any error passes in silence"),
    "identity-with-literal": ("errors", "medium", "`is` compares identity, not value"),
    "mutable-default": ("state", "medium", "one default object is shared by every call"),
    "global-statement": ("state", "low", "a function rebinds its module's names"),
    "star-import": ("shape", "low", "nobody can tell which names come from there"),
    "long-function": ("shape", "low", f"longer than {LONG_FUNCTION} lines"),
    "does-not-parse": ("shape", "high", "not a Python file this interpreter can read"),
}

_CALLS = {
    "os.system": "shell-command",
    "os.popen": "shell-command",
    "subprocess.getoutput": "shell-command",
    "subprocess.getstatusoutput": "shell-command",
    "pickle.load": "unpickling",
    "pickle.loads": "unpickling",
    "pickle.Unpickler": "unpickling",
    "marshal.load": "unpickling",
    "marshal.loads": "unpickling",
    "shelve.open": "unpickling",
    "tempfile.mktemp": "insecure-temp-name",
    "ssl._create_unverified_context": "unverified-tls",
    "hashlib.md5": "weak-hash",
    "hashlib.sha1": "weak-hash",
    "pdb.set_trace": "debugger-left-in",
    "breakpoint": "debugger-left-in",
    "eval": "dynamic-code",
    "exec": "dynamic-code",
}
_SUBPROCESS = frozenset({"run", "call", "check_call", "check_output", "Popen"})
_MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True, order=True)
class Hit:
    """One place worth a second look."""

    line: int
    rule: str


@dataclass
class Facts:
    """What one reading says.

    Attributes:
        lines: the file's lines, decoded as Python would.
        error: why it does not parse, None where it does.
        error_line: where it stops parsing.
        functions: `(lines, first line, name)` of each `def`.
    """

    lines: list[str]
    error: str | None = None
    error_line: int = 1
    classes: int = 0
    handlers: int = 0
    branches: int = 0
    nodes: int = 0
    functions: list[tuple[int, int, str]] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)
    hits: set[Hit] = field(default_factory=set)


def read_facts(path: Path) -> Facts:
    """Read, parse and walk one file; the latest 256 are remembered, so that three tools cost one parse.

    Raises:
        OSError: it cannot be read.
    """
    state = path.stat()
    return _read_facts(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _read_facts(path: Path, _changed: int, _size: int) -> Facts:
    source = path.read_bytes()
    lines = source.decode(errors="replace").splitlines()
    if len(source) > MAX_BYTES:
        return Facts(lines, error=f"{len(source):,} bytes are more than this audit reads ({MAX_BYTES:,})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError as error:
        return Facts(lines, error=str(error.msg), error_line=error.lineno or 1)
    except (ValueError, RecursionError, MemoryError) as error:
        return Facts(lines, error=str(error) or type(error).__name__)
    facts = Facts(lines)
    _walk(tree, facts)
    return facts


def _walk(tree: ast.AST, facts: Facts) -> None:
    """Visit every node once, without recursion: generated files nest deeper than the interpreter's stack."""
    names: dict[str, str] = {}
    calls: list[ast.Call] = []
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        facts.nodes += 1
        look = _LOOKS.get(type(node))
        if look is not None:
            look(node, facts, names)
        if isinstance(node, ast.Call):
            calls.append(node)
        todo.extend(ast.iter_child_nodes(node))
    # Aliases are only all known at the end: an import may stand below its use.
    for call in calls:
        rule = _risky(call, names)
        if rule is not None:
            facts.hits.add(Hit(call.lineno, rule))


def _look_at_import(node: ast.AST, facts: Facts, names: dict[str, str]) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            facts.imports.add(alias.name.partition(".")[0])
            names[alias.asname or alias.name] = alias.name
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        facts.imports.add(node.module.partition(".")[0])
        for alias in node.names:
            names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            if alias.name == "*":
                facts.hits.add(Hit(node.lineno, "star-import"))


def _look_at_function(node: ast.AST, facts: Facts, names: dict[str, str]) -> None:
    if not isinstance(node, _FUNCTIONS):
        return
    for default in (*node.args.defaults, *(value for value in node.args.kw_defaults if value is not None)):
        if isinstance(default, _MUTABLE):
            facts.hits.add(Hit(default.lineno, "mutable-default"))
    if not isinstance(node, ast.Lambda):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        facts.functions.append((length, node.lineno, node.name))
        if length > LONG_FUNCTION:
            facts.hits.add(Hit(node.lineno, "long-function"))


def _look_at_handler(node: ast.AST, facts: Facts, names: dict[str, str]) -> None:
    if not isinstance(node, ast.ExceptHandler):
        return
    facts.handlers += 1
    silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
    if node.type is None and not any(isinstance(inner, ast.Raise) for inner in node.body):
        facts.hits.add(Hit(node.lineno, "bare-except"))
    elif silent and isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}:
        facts.hits.add(Hit(node.lineno, "swallowed-exception"))


def _look_at_assert(node: ast.AST, facts: Facts, names: dict[str, str]) -> None:
    if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple) and node.test.elts:
        facts.hits.add(Hit(node.lineno, "assert-on-tuple"))


def _look_at_compare(node: ast.AST, facts: Facts, names: dict[str, str]) -> None:
    if not isinstance(node, ast.Compare):
        return
    for operator, right in zip(node.ops, node.comparators, strict=True):
        identity = isinstance(operator, ast.Is | ast.IsNot) and isinstance(right, ast.Constant)
        if identity and type(ast.literal_eval(right)) in {str, bytes, int, float}:
            facts.hits.add(Hit(node.lineno, "identity-with-literal"))


def _look_at_global(node: ast.AST, facts: Facts, names: dict[str, str]) -> None:
    if isinstance(node, ast.Global):
        facts.hits.add(Hit(node.lineno, "global-statement"))


def _count_class(node: ast.AST, facts: Facts, names: dict[str, str]) -> None:
    facts.classes += 1


def _count_branch(node: ast.AST, facts: Facts, names: dict[str, str]) -> None:
    facts.branches += 1


_LOOKS: dict[type[ast.AST], Callable[[ast.AST, Facts, dict[str, str]], None]] = {
    ast.Import: _look_at_import,
    ast.ImportFrom: _look_at_import,
    ast.FunctionDef: _look_at_function,
    ast.AsyncFunctionDef: _look_at_function,
    ast.Lambda: _look_at_function,
    ast.ExceptHandler: _look_at_handler,
    ast.Assert: _look_at_assert,
    ast.Compare: _look_at_compare,
    ast.Global: _look_at_global,
    ast.ClassDef: _count_class,
    ast.If: _count_branch,
    ast.For: _count_branch,
    ast.While: _count_branch,
    ast.Match: _count_branch,
    ast.Try: _count_branch,
}


def _risky(call: ast.Call, names: dict[str, str]) -> str | None:
    name = _dotted(call.func)
    if name is None:
        return None
    head, dot, rest = name.partition(".")
    full = names.get(name) or names.get(head, head) + dot + rest
    module, _, function = full.rpartition(".")
    if module == "subprocess" and function in _SUBPROCESS:
        shell = any(keyword.arg == "shell" and _is_true(keyword.value) for keyword in call.keywords)
        return "shell-command" if shell else None
    rule = _CALLS.get(full)
    if rule == "dynamic-code" and call.args and isinstance(call.args[0], ast.Constant):
        return None
    if rule == "weak-hash" and any(keyword.arg == "usedforsecurity" for keyword in call.keywords):
        return None
    return rule


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and bool(node.value)


def _dotted(node: ast.expr) -> str | None:
    """`a.b.c` as text; None for anything that is not a plain dotted name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    parts.append(node.id)
    return ".".join(reversed(parts))


def by_severity(hits: set[Hit], families: set[str]) -> Iterator[Hit]:
    """The hits of some families, the worst first, then by line."""
    wanted = (hit for hit in hits if RULES[hit.rule][0] in families)
    yield from sorted(wanted, key=lambda hit: (SEVERITIES.index(RULES[hit.rule][1]), hit.line, hit.rule))
