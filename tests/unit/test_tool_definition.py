from __future__ import annotations

import sys
import types
from collections.abc import Callable
from datetime import date, timedelta
from enum import Enum
from functools import partial
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from callboard.retry import Retry
from callboard.tool import FunctionTool, Tool, tool
from callboard.tools.context import ToolContext
from callboard_protocol.errors import (
    InvalidArgumentsError,
    NotImplementedYetError,
    ToolDefinitionError,
    ToolFailedError,
    UsageError,
)
from callboard_protocol.tools import Happened, NotHappened, Unknown

if TYPE_CHECKING:
    from decimal import Context as OnlyForTypeCheckers

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Address(BaseModel):
    street: str
    number: int = 1


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Deps:
    greeting = "hello"


@tool
async def send(ctx: ToolContext[Deps], to: Address, text: str, copies: int = 1, colour: Colour = Colour.RED) -> str:
    """Send a letter.

    It goes out the same day.

    Args:
        to: where it goes,
            street first.
        text (str): what it says.
        nobody: not an argument.

    Returns:
        The receipt.
    """
    return f"{ctx.deps.greeting} {to.street} {text} {copies} {colour.value}"


# ---- what a model is told


def test_the_name_and_description_come_from_the_function():
    assert (send.schema.name, send.schema.description) == ("send", "Send a letter.\n\nIt goes out the same day.")


def test_the_schema_comes_from_hints_and_docstring_and_hides_the_context():
    assert send.schema.parameters == {
        "type": "object",
        "additionalProperties": False,
        "required": ["to", "text"],
        "properties": {
            "to": {"$ref": "#/$defs/Address", "description": "where it goes, street first."},
            "text": {"type": "string", "description": "what it says."},
            "copies": {"type": "integer", "default": 1},
            "colour": {"$ref": "#/$defs/Colour", "default": "red"},
        },
        "$defs": {
            "Address": {
                "type": "object",
                "title": "Address",
                "required": ["street"],
                "properties": {"street": {"type": "string"}, "number": {"type": "integer", "default": 1}},
            },
            "Colour": {"type": "string", "title": "Colour", "enum": ["red", "blue"]},
        },
    }


def test_a_name_and_a_description_can_be_given():
    renamed = tool(name="post-letter", description="Post it.")(lambda: "posted")
    assert (renamed.schema.name, renamed.schema.description) == ("post-letter", "Post it.")


def test_a_description_in_the_annotation_wins_over_the_docstring():
    @tool
    async def count(number: Annotated[int, Field(description="from the hint", ge=0)]) -> int:
        """Count.

        Args:
            number: from the docstring.
        """
        return number

    assert count.parameters["properties"]["number"] == {"type": "integer", "description": "from the hint", "minimum": 0}


def test_a_property_named_title_stays():
    @tool
    async def rename(title: str) -> str:
        return title

    assert rename.parameters["properties"] == {"title": {"type": "string"}}


def test_annotations_may_name_what_is_defined_inside_a_function():
    class Local(BaseModel):
        value: int

    @tool
    async def take(local: Local) -> Local:
        return local

    assert take.validate({"local": {"value": "3"}}) == {"local": Local(value=3)}


def test_deps_imported_for_type_checkers_alone_do_not_matter():
    @tool
    async def peek(ctx: ToolContext[OnlyForTypeCheckers], text: str) -> str:
        return text

    assert list(peek.parameters["properties"]) == ["text"]


def test_a_bound_method_is_a_tool_without_its_self():
    class Shop:
        async def sell(self, item: str) -> str:
            return item

    assert list(tool(Shop().sell).parameters["properties"]) == ["item"]


def test_a_tool_without_parameters_takes_an_empty_object():
    @tool
    async def now() -> str:
        return "now"

    assert now.validate({}) == {}
    assert now.parameters == {"type": "object", "properties": {}, "additionalProperties": False}


# ---- the check of arguments


def test_arguments_are_converted_and_defaults_filled_in():
    valid = send.validate({"to": {"street": "Mill Lane"}, "text": "hi", "copies": "2"})
    assert valid == {"to": Address(street="Mill Lane"), "text": "hi", "copies": 2, "colour": Colour.RED}


def test_validated_arguments_have_a_plain_form():
    valid = send.validate({"to": {"street": "Mill Lane"}, "text": "hi", "colour": "blue"})
    assert send.dump_arguments(valid) == {
        "to": {"street": "Mill Lane", "number": 1},
        "text": "hi",
        "copies": 1,
        "colour": "blue",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"to": {"street": "x"}}, "text: missing; expected string"),
        ({"to": {"street": "x"}, "text": 3}, "text: input should be a valid string, not 3"),
        ({"to": {}, "text": "x"}, "to.street: missing"),
        ({"to": {"street": "x"}, "text": "x", "copies": "two"}, "copies: input should be a valid integer"),
        ({"to": {"street": "x"}, "text": "x", "size": 1}, "size: there is no such argument; it takes to, text, copies"),
        (
            {"to": {"street": "x"}, "text": "x", "colour": "green"},
            "colour: input should be 'red' or 'blue', not 'green'",
        ),
        ("street x", "input should be a valid dictionary, not 'street x'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_words_a_model_can_act_on(arguments: Any, said: str):
    with pytest.raises(InvalidArgumentsError) as refused:
        send.validate(arguments)
    assert said in refused.value.message
    assert refused.value.message.startswith("the arguments of send do not fit: ")


def test_a_refusal_names_field_problem_and_expectation_for_programs_too():
    with pytest.raises(InvalidArgumentsError) as refused:
        send.validate({"to": {"street": "x"}})
    assert refused.value.context == {
        "tool": "send",
        "problems": [{"field": "text", "problem": "missing; expected string", "expected": "string"}],
    }


def test_a_refusal_does_not_repeat_a_long_value():
    with pytest.raises(InvalidArgumentsError) as refused:
        send.validate({"to": {"street": "x"}, "text": ["long"] * 1000})
    assert len(refused.value.message) < 300


# ---- definitions that cannot be


async def untyped(item) -> str:  # type: ignore[no-untyped-def]
    return str(item)


async def many(*items: str) -> str:
    return "".join(items)


async def any_names(**items: str) -> str:
    return "".join(items)


async def by_place(item: str, /) -> str:
    return item


async def takes_a_socket(item: Deps) -> str:
    return str(item)


async def gives_deps(item: str) -> Deps:
    return Deps()


async def field_default(item: int = Field(3, ge=1)) -> int:
    return item


async def late_context(item: str, ctx: ToolContext[Deps]) -> str:
    return item


async def unresolvable(item: OnlyForTypeCheckers) -> str:
    return str(item)


async def streams(item: str) -> Any:
    yield item


def generates(item: str) -> Any:
    yield item


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (untyped, "no type hint"),
        (many, "no name a model could use"),
        (any_names, "no name a model could use"),
        (by_place, "positional-only"),
        (takes_a_socket, "cannot be told about"),
        (gives_deps, "cannot be stored"),
        (field_default, "has a Field as its default"),
        (late_context, "must be the first parameter"),
        (unresolvable, "cannot be resolved"),
        (streams, "is a generator"),
        (generates, "is a generator"),
    ],
)
def test_a_function_that_does_not_say_enough_is_refused_at_decoration(function: Any, said: str):
    with pytest.raises(ToolDefinitionError, match=said):
        tool(function)


def test_a_method_is_refused_with_a_hint_to_bind_it():
    with pytest.raises(ToolDefinitionError, match=r"tool\(instance.method\)"):

        class Shop:
            @tool
            async def sell(self, item: str) -> str:
                return item


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"read_only": True, "on_in_doubt": "ask"}, "read-only call is never in doubt"),
        ({"idempotent": True, "on_in_doubt": "tell"}, "idempotent call is never in doubt"),
        ({"read_only": True, "writes_files": ("item",)}, "read_only and writes files"),
        ({"on_in_doubt": "shrug"}, "on_in_doubt='shrug' is not a choice"),
        ({"timeout": -1}, "makes no sense"),
        ({"timeout": 0}, "lets no call succeed"),
        ({"timeout": float("inf")}, "makes no sense"),
        ({"max_concurrency": 0}, "lets no call run"),
        ({"retry": 3}, "is no Retry"),
        ({"interrupt": "never"}, "interrupt='never' is not a choice"),
        ({"isolation": "thread"}, "async function runs on the loop"),
        ({"isolation": "moon"}, "isolation='moon' is not a choice"),
        ({"reads_files": ("path",)}, "no argument 'path'"),
        ({"approval": "yes"}, "neither a bool nor a plain function"),
        ({"name": "has spaces"}, "no model provider accepts"),
        ({"read_onyl": True}, "did you mean 'read_only'"),
    ],
)
def test_options_that_contradict_or_do_not_exist_are_refused(options: dict[str, Any], said: str):
    async def act(item: str) -> str:
        return item

    with pytest.raises(ToolDefinitionError, match=said):
        tool(**options)(act)


def test_an_async_approval_function_is_refused():
    async def ask(**_: Any) -> bool:
        return True

    with pytest.raises(ToolDefinitionError, match="approval"):
        tool(approval=ask)(untyped_free)  # type: ignore[arg-type]


async def untyped_free() -> str:
    return ""


class OfItsOwn(Tool[None]):
    name = "of_its_own"
    isolation = "process"

    def invoke(self, context: ToolContext[None], arguments: dict[str, Any]) -> str:
        return ""


async def wants_deps(ctx: ToolContext[dict[str, int]]) -> str:
    return ""


def within() -> Callable[[], str]:
    def nested() -> str:
        return ""

    return nested


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tool(isolation="process")(within()), "defined inside another function"),
        (lambda: tool(isolation="process", name="nameless")(lambda: ""), "defined inside another function"),
        (lambda: tool(isolation="process", name="partial")(partial(untyped_free)), "a partial has none"),
        (lambda: tool(isolation="process")(OfItsOwn.offers.__get__(3)), "bound to an object"),
        (lambda: tool(isolation="process")(wants_deps), "where the agent's deps are not"),
        (OfItsOwn, "only a function runs in a process of its own"),
    ],
)
def test_what_another_process_could_not_call_is_refused(make: Callable[[], Any], said: str):
    with pytest.raises(ToolDefinitionError, match=said):
        make()


@pytest.mark.parametrize(
    "described",
    [{}, {"__file__": "<stdin>"}, {"__file__": __file__, "__spec__": ModuleSpec("package.__main__", None)}],
)
def test_a_function_that_no_worker_finds_in_the_main_module_is_refused(
    monkeypatch: pytest.MonkeyPatch, described: dict[str, Any]
):
    main = types.ModuleType("__main__")
    vars(main).update(described)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(untyped_free, "__module__", "__main__")
    with pytest.raises(ToolDefinitionError, match="interactive session"):
        tool(isolation="process")(untyped_free)


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": 0}, {"on": ()}, {"on": (BaseException,)}, {"on": ("ConnectionError",)}, {"delay": -1}],
)
def test_a_retry_that_makes_no_sense_is_refused(wrong: dict[str, Any]):
    with pytest.raises(UsageError):
        Retry(**wrong)


# ---- how it behaves


def test_the_specification_says_how_it_behaves():
    @tool(timeout=timedelta(minutes=2), idempotent=True)
    async def act(item: str) -> str:
        return item

    assert act.specification.model_dump() == {
        "name": "act",
        "read_only": False,
        "idempotent": True,
        "on_in_doubt": None,
        "timeout": 120.0,
        "isolation": "loop",
    }


def test_async_functions_run_on_the_loop_and_others_in_a_thread_unless_told():
    def sync(item: str) -> str:
        return item

    class Callable:
        async def __call__(self, item: str) -> str:
            return item

    assert tool(untyped_free).isolation == "loop"
    assert tool(sync).isolation == "thread"
    assert tool(isolation="loop")(sync).isolation == "loop"
    assert tool(name="partial")(partial(untyped_free)).isolation == "loop"
    assert tool(name="callable")(Callable()).isolation == "loop"


def test_approval_is_never_always_or_a_function_of_the_arguments():
    async def pay(amount: int, to: str = "ann") -> str:
        return to

    assert not tool(pay).requires_approval({"amount": 1})
    assert tool(approval=True)(pay).requires_approval({"amount": 1})
    over_50 = tool(approval=lambda amount, **_: amount > 50)(pay)
    assert [over_50.requires_approval(over_50.validate({"amount": n})) for n in (50, 51)] == [False, True]


def test_an_approval_function_that_raises_keeps_the_call_from_being_made():
    @tool(approval=lambda: True)
    async def pay(amount: int) -> int:
        return amount

    with pytest.raises(ToolFailedError, match="the call was not made"):
        pay.requires_approval({"amount": 1})


# ---- calling it directly


async def test_a_tool_is_still_callable_like_its_function():
    @tool
    async def double(number: int) -> int:
        return number * 2

    @tool
    def halve(number: int) -> int:
        return number // 2

    assert (await double(4), await double(number=4), await halve(4)) == (8, 8, 2)
    assert double.__name__ == "double"
    assert isinstance(double, FunctionTool)


async def test_a_tool_with_a_context_can_be_given_one():
    context = ToolContext(Deps())
    assert await send(context, Address(street="x"), "hi") == "hello x hi 1 red"


async def test_a_tool_that_wants_deps_says_so_when_called_without_a_context():
    with pytest.raises(UsageError, match=r"await send\(ToolContext\(deps\)"):
        await send(Address(street="x"), "hi")


async def test_a_tool_with_a_context_but_no_deps_gets_an_empty_one():
    @tool
    async def attempt(ctx: ToolContext) -> int:
        return ctx.attempt

    assert await attempt() == 1


# ---- reconcile


async def test_reconcile_takes_what_the_tool_takes():
    @tool
    async def pay(ctx: ToolContext[Deps], amount: int) -> str:
        return "paid"

    @pay.reconcile
    async def _(ctx: ToolContext[Deps], amount: int) -> Happened[str] | NotHappened | Unknown:
        return Happened(f"paid {amount}")

    assert pay.can_reconcile
    assert await pay.ask_reconcile(ToolContext(Deps()), {"amount": 3}) == Happened("paid 3")


async def test_a_tool_without_reconcile_does_not_know():
    assert not send.can_reconcile
    assert await send.ask_reconcile(ToolContext(Deps()), {}) == Unknown()


def test_reconcile_of_a_tool_that_may_be_repeated_is_refused():
    async def pay(amount: int) -> int:
        return amount

    with pytest.raises(ToolDefinitionError, match="never in doubt"):
        tool(read_only=True)(pay).reconcile(pay)  # type: ignore[arg-type]


def test_reconcile_that_takes_something_else_is_refused():
    @tool
    async def pay(amount: int) -> int:
        return amount

    with pytest.raises(ToolDefinitionError, match="must be async and take: amount"):

        @pay.reconcile
        async def _(order: str) -> Happened[int] | NotHappened | Unknown:
            return Unknown()


# ---- tools from a schema, and classes

LOOK_UP = {
    "type": "object",
    "required": ["key"],
    "additionalProperties": False,
    "properties": {
        "key": {"type": "string"},
        "limit": {"type": "integer"},
        "kind": {"enum": ["a", "b"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}


async def look_up(arguments: dict[str, Any], ctx: ToolContext[Any]) -> Any:
    return arguments["key"]


def test_a_tool_from_a_schema_shows_that_schema():
    made = Tool.from_schema("look_up", "Look it up.", LOOK_UP, look_up, read_only=True)
    assert made.schema.parameters == LOOK_UP
    assert made.specification.read_only
    assert made.specification.isolation == "loop"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "key: missing; expected string"),
        ({"key": 3}, "key: expected string, not 3"),
        ({"key": "x", "limit": True}, "limit: expected integer, not True"),
        ({"key": "x", "limit": 1.5}, "limit: expected integer, not 1.5"),
        ({"key": "x", "kind": "c"}, "kind: expected one of 'a', 'b', not 'c'"),
        ({"key": "x", "tags": ["ok", 3]}, "tags.1: expected string, not 3"),
        ({"key": "x", "what": 1}, "what: there is no such argument; it takes key, limit, kind, tags"),
        ("x", "expected object, not 'x'"),
    ],
)
def test_arguments_are_checked_against_a_given_schema(arguments: Any, said: str):
    made = Tool.from_schema("look_up", "", LOOK_UP, look_up)
    with pytest.raises(InvalidArgumentsError) as refused:
        made.validate(arguments)
    assert said in refused.value.message


def test_arguments_that_fit_a_given_schema_stay_as_they_are():
    made = Tool.from_schema("look_up", "", LOOK_UP, look_up)
    arguments = {"key": "x", "limit": 2.0, "tags": []}
    assert made.validate(arguments) is arguments
    assert made.dump_arguments(arguments) is arguments


def test_a_schema_that_is_not_an_objects_is_refused():
    with pytest.raises(ToolDefinitionError, match="not that of an object"):
        Tool.from_schema("look_up", "", {"type": "string"}, look_up)


class Greet(Tool[Deps]):
    name = "greet"
    description = "Greet someone."
    parameters = {"type": "object", "required": ["who"], "properties": {"who": {"type": "string"}}}
    result_type = date
    timeout = timedelta(seconds=5)

    async def invoke(self, context: ToolContext[Deps], arguments: dict[str, Any]) -> date:
        return date(2024, 1, 2)

    async def fallback(self, context: ToolContext[Deps], arguments: dict[str, Any], error: Exception) -> str:
        return "nobody there"


def test_a_class_of_its_own_says_what_it_is_in_attributes():
    greet = Greet()
    assert greet.schema.parameters == Greet.parameters
    assert greet.specification.timeout == 5.0
    assert greet.load_result(greet.dump_result(date(2024, 1, 2))) == date(2024, 1, 2)


def test_a_tool_offers_the_optional_methods_that_its_class_overrides():
    greet = Greet()
    assert greet.offers("fallback")
    assert not any(greet.offers(name) for name in ("before_invoke", "after_invoke", "invoke_stream", "reconcile"))


async def test_extension_points_of_later_releases_say_that_they_are_not_offered():
    greet, context = Greet(), ToolContext(Deps())
    assert await greet.preflight(context) is None
    for call in (
        greet.invoke_batch(context, {}),
        greet.invoke_background(context, {}),
        greet.poll_job(context, "ref"),
        greet.cancel_job(context, "ref"),
    ):
        with pytest.raises(NotImplementedYetError):
            await call


def test_a_class_without_a_name_is_refused():
    with pytest.raises(ToolDefinitionError, match="no model provider accepts the tool name ''"):
        Tool()


def test_literals_and_unions_reach_the_model():
    @tool
    async def pick(mode: Literal["fast", "slow"], limit: int | None = None) -> str:
        return mode

    assert pick.parameters["properties"] == {
        "mode": {"type": "string", "enum": ["fast", "slow"]},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
    }
