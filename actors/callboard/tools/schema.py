"""What a function says about itself: its arguments as a JSON schema, and the check of what a model passes."""

from __future__ import annotations

import inspect
import itertools
import re
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NotRequired

from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails, PydanticSerializationError, to_jsonable_python
from typing_extensions import TypedDict

from callboard.tools.context import ToolContext
from callboard_protocol.base import JsonObject
from callboard_protocol.errors import InvalidArgumentsError, ToolDefinitionError

_SECTION: Final = re.compile(r"^(Args|Arguments|Parameters|Returns?|Yields?|Raises|Examples?|Notes?|Attributes):\s*$")
_ENTRY: Final = re.compile(r"^(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_NAME: Final = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")
_SHOWN: Final = 80
_make_typed_dict: Final[Any] = TypedDict


class ArgumentsContract:
    """The arguments of one tool: their JSON schema, and the check of what a model passes.

    Args:
        tool: the tool's name.
        fields: annotation by argument; one that may be left out is `NotRequired`.
        defaults: what stands for an argument left out.

    Attributes:
        schema: a JSON schema of an object.

    Raises:
        ToolDefinitionError: an annotation that has no JSON schema.
    """

    __slots__ = ("_adapter", "_count", "_defaults", "_tool", "_validate", "schema")

    def __init__(self, tool: str, fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._tool = tool
        self._defaults = dict(defaults)
        self._count = len(fields)
        # Looked up as a value, because type checkers read a call of it as a definition.
        arguments = _make_typed_dict("Arguments", dict(fields))
        arguments.__pydantic_config__ = ConfigDict(extra="forbid")
        try:
            self._adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(arguments)
            schema = self._adapter.json_schema(schema_generator=_PlainSchema)
        except (PydanticUserError, TypeError) as problem:
            raise ToolDefinitionError(
                f"tool {tool!r} has an argument that a model cannot be told about: {problem}",
                hint="annotate arguments with plain types or pydantic models",
            ) from problem
        schema.pop("title", None)
        for name, default in self._defaults.items():
            try:
                schema["properties"][name]["default"] = to_jsonable_python(default)
            except (PydanticSerializationError, ValueError):
                raise ToolDefinitionError(
                    f"tool {tool!r}: the default of {name!r} is a {type(default).__name__}, which no schema can show",
                    hint="use None and fill it in inside the function",
                ) from None
        self.schema: JsonObject = schema
        self._validate = self._adapter.validator.validate_python

    def validate(self, arguments: Any) -> dict[str, Any]:
        """The arguments as the function takes them: converted, defaults filled in.

        Raises:
            InvalidArgumentsError: they do not fit; the message says where, so that a model can mend it.
        """
        try:
            valid: dict[str, Any] = self._validate(arguments)
        except ValidationError as problem:
            raise self._refusal(problem) from None
        return valid if len(valid) == self._count else {**self._defaults, **valid}

    def dump(self, arguments: dict[str, Any]) -> Any:
        """Validated arguments as plain data, for records and digests."""
        return self._adapter.dump_python(arguments, mode="json", warnings="none")

    def _refusal(self, problem: ValidationError) -> InvalidArgumentsError:
        known = self.schema.get("properties", {})
        problems = [_mendable(error, known) for error in problem.errors(include_url=False, include_context=False)]
        text = "; ".join(f"{one['field']}: {one['problem']}" if one["field"] else one["problem"] for one in problems)
        return InvalidArgumentsError(
            f"the arguments of {self._tool} do not fit: {text}",
            hint="call it again with arguments that fit its schema",
            context={"tool": self._tool, "problems": problems},
        )


@dataclass(frozen=True, slots=True)
class FunctionShape:
    """What was read from a function.

    Attributes:
        takes_context: whether its first parameter is a `ToolContext`.
        needs_deps: whether that context says which deps it wants.
        description: the docstring up to its first section.
        arguments: the rest of its parameters.
        returns: the return annotation; None where there is none.
    """

    takes_context: bool
    needs_deps: bool
    description: str
    arguments: ArgumentsContract
    returns: Any


def read_function(function: Callable[..., Any], tool: str, local_names: Mapping[str, Any]) -> FunctionShape:
    """Read a function's signature and docstring.

    Args:
        function: the function; a bound method counts without its `self`.
        tool: the tool's name, for errors.
        local_names: names its annotations may use beside those of its module.

    Raises:
        ToolDefinitionError: a parameter without a type, or one that a model cannot fill in.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as problem:
        raise ToolDefinitionError(f"tool {tool!r} is no function whose signature can be read: {problem}") from None
    takes_context = bool(parameters) and _is_context(parameters[0].annotation, function, local_names)
    needs_deps = takes_context and _names_deps(parameters[0].annotation)
    description, documented = read_docstring(inspect.getdoc(function) or "")
    fields: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for parameter in parameters[takes_context:]:
        _refuse_shape(parameter, tool)
        annotation = _resolved(parameter.annotation, parameter.name, function, tool, local_names)
        if typing.get_origin(annotation) is ToolContext or annotation is ToolContext:
            raise ToolDefinitionError(f"tool {tool!r}: the ToolContext must be the first parameter")
        annotation = _described(annotation, documented.get(parameter.name))
        if parameter.default is not inspect.Parameter.empty:
            defaults[parameter.name] = parameter.default
            annotation = NotRequired[annotation]
        fields[parameter.name] = annotation
    said = inspect.signature(function).return_annotation
    returns = None if said is inspect.Signature.empty else _resolved(said, "return", function, tool, local_names)
    return FunctionShape(takes_context, needs_deps, description, ArgumentsContract(tool, fields, defaults), returns)


def read_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """The description, and what a Google-style ``Args:`` section says of each argument."""
    lines = docstring.splitlines()
    starts = [number for number, line in enumerate(lines) if _SECTION.match(line)]
    description = "\n".join(lines[: starts[0]] if starts else lines).strip()
    documented: dict[str, str] = {}
    for start, end in itertools.pairwise([*starts, len(lines)]):
        if not lines[start].startswith(("Args", "Arguments", "Parameters")):
            continue
        name = ""
        indent: int | None = None
        for line in lines[start + 1 : end]:
            text = line.strip()
            depth = len(line) - len(line.lstrip())
            indent = depth if indent is None and text else indent
            entry = _ENTRY.match(text) if depth == indent else None
            if entry is not None:
                name = entry[1]
                documented[name] = entry[2]
            elif name and text:
                documented[name] = f"{documented[name]} {text}".strip()
    return description, documented


def check_tool_name(name: object) -> str:
    """The name unchanged, if model providers accept it.

    Raises:
        ToolDefinitionError: they do not.
    """
    if not isinstance(name, str) or not _NAME.match(name):
        raise ToolDefinitionError(
            f"no model provider accepts the tool name {name!r}", hint="1 to 64 letters, digits, _ and -: tool(name=...)"
        )
    return name


def caller_names(depth: int) -> dict[str, Any]:
    """The local names of a caller, for annotations of functions that are defined inside another.

    Args:
        depth: 1 for whoever calls the caller of this function.
    """
    frame = sys._getframe(depth + 1)
    return dict(frame.f_locals) if frame.f_locals is not frame.f_globals else {}


class _PlainSchema(GenerateJsonSchema):
    """JSON schemas without the titles that repeat each name: a model pays for every token of them."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _is_context(annotation: Any, function: Callable[..., Any], local_names: Mapping[str, Any]) -> bool:
    if isinstance(annotation, str):
        # What stands in the brackets may be imported for type checkers alone, so the name is looked up by itself.
        name = annotation.partition("[")[0].strip()
        try:
            annotation = eval(name, {**_globals(function), **local_names})  # noqa: S307 - the module's own annotation
        except Exception:  # noqa: BLE001 - whatever it is, it is not a context
            return False
    return annotation is ToolContext or typing.get_origin(annotation) is ToolContext


def _names_deps(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.partition("[")[2].rstrip("] ") not in ("", "None", "Any", "object")
    return any(one not in (None, type(None), Any, object) for one in typing.get_args(annotation))


def _globals(function: Callable[..., Any]) -> dict[str, Any]:
    plain = inspect.unwrap(getattr(function, "func", function))
    names: dict[str, Any] = getattr(plain, "__globals__", {})
    return names


def _resolved(
    annotation: Any, name: str, function: Callable[..., Any], tool: str, local_names: Mapping[str, Any]
) -> Any:
    if annotation is None:
        return type(None)
    holder = type("Annotations", (), {"__annotations__": {name: annotation}})
    try:
        return typing.get_type_hints(holder, _globals(function), dict(local_names), include_extras=True)[name]
    except Exception as problem:
        raise ToolDefinitionError(
            f"tool {tool!r}: the annotation of {name!r} cannot be resolved: {problem}",
            hint="import it outside TYPE_CHECKING: it becomes the tool's schema",
        ) from problem


def _described(annotation: Any, text: str | None) -> Any:
    metadata = getattr(annotation, "__metadata__", ())
    if not text or any(isinstance(one, FieldInfo) and one.description for one in metadata):
        return annotation
    return Annotated[annotation, Field(description=text)]


def _refuse_shape(parameter: inspect.Parameter, tool: str) -> None:
    where = f"tool {tool!r}: the parameter {parameter}"
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise ToolDefinitionError(f"{where} has no name a model could use", hint="name each argument")
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise ToolDefinitionError(f"{where} is positional-only", hint="arguments are passed by name: remove the '/'")
    if parameter.annotation is inspect.Parameter.empty:
        hint = "a method is a tool once it is bound: tool(instance.method)" if parameter.name == "self" else None
        raise ToolDefinitionError(
            f"{where} has no type hint", hint=hint or "annotate it: a model must know what to pass"
        )
    if isinstance(parameter.default, FieldInfo):
        raise ToolDefinitionError(
            f"{where} has a Field as its default", hint=f"{parameter.name}: Annotated[..., Field(...)] = default"
        )


def _mendable(error: ErrorDetails, known: JsonObject) -> dict[str, str]:
    """One problem in words a model can act on."""
    field = ".".join(str(part) for part in error["loc"])
    given = repr(error["input"])
    given = given if len(given) <= _SHOWN else given[:_SHOWN] + "..."
    expected = _expected(known.get(str(error["loc"][0]), {})) if len(error["loc"]) == 1 else ""
    if error["type"] == "extra_forbidden":
        names = ", ".join(known) or "no arguments"
        return {"field": field, "problem": f"there is no such argument; it takes {names}", "expected": names}
    if error["type"] == "missing":
        return {"field": field, "problem": f"missing; expected {expected or 'a value'}", "expected": expected}
    problem = f"{error['msg'][:1].lower()}{error['msg'][1:]}, not {given}"
    if expected and expected not in problem:
        problem = f"{problem}; expected {expected}"
    return {"field": field, "problem": problem, "expected": expected}


def _expected(schema: JsonObject) -> str:
    """A property's schema in a few words."""
    if "enum" in schema:
        return "one of " + ", ".join(repr(choice) for choice in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return " or ".join(_expected(choice) for choice in choices)
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        items = _expected(schema.get("items", {})) if schema.get("items") else ""
        return f"array of {items}" if items else "array"
    return str(schema.get("type", ""))
