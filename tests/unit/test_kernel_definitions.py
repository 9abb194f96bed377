from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Never, TypeVar

import pytest

from callboard.kernel import Actor, ActorDefinitionError, handles
from callboard_protocol.commands import Command, Request

if TYPE_CHECKING:
    from decimal import Decimal


class Open(Command):
    pass


class Close(Command):
    pass


class Price(Request[int]):
    pass


CommandT = TypeVar("CommandT", bound=Command)
GoodsT = TypeVar("GoodsT")


class Base(Actor[CommandT]):
    """Still generic: what it accepts is left to its subclasses."""

    @handles
    def open(self, message: Open) -> None:
        """Handled once, for every subclass."""


def test_a_subclass_of_a_generic_actor_declares_for_it():
    class Shop(Base[Open | Close]):
        @handles
        def close(self, message: Close) -> None: ...

    assert set(Shop.handler_table) == {Open, Close}


def test_a_subclass_of_a_declared_actor_inherits_its_handlers_and_may_override_them():
    class Shop(Actor[Open | Close]):
        @handles
        def open(self, message: Open) -> None: ...

        @handles
        def close(self, message: Close) -> None: ...

    class Kiosk(Shop):
        @handles
        async def open(self, message: Open) -> None: ...  # type: ignore[override]

    assert set(Kiosk.handler_table) == {Open, Close}
    assert Kiosk.handler_table[Open].function is Kiosk.__dict__["open"]
    assert Kiosk.handler_table[Close] is not None


def test_a_declared_actor_may_be_generic_in_something_else():
    class Shop(Actor[Open], Generic[GoodsT]):
        @handles
        def open(self, message: Open) -> None: ...

    class Bakery(Shop[int]):
        pass

    assert set(Bakery.handler_table) == {Open}


def test_overriding_a_handler_without_the_decorator_is_an_error_that_says_so():
    with pytest.raises(ActorDefinitionError, match=r"Open has no handler \(is open overridden without @handles\?\)"):

        class Kiosk(Base[Open]):
            def open(self, message: Open) -> None: ...


def test_an_actor_must_say_what_it_accepts():
    with pytest.raises(ActorDefinitionError, match="does not say what it accepts"):

        class Silent(Actor):  # type: ignore[type-arg]
            pass


def test_an_actor_may_accept_nothing():
    class Deaf(Actor[Never]):
        pass

    assert Deaf.handler_table == {}


def test_only_messages_can_be_declared():
    with pytest.raises(ActorDefinitionError, match="neither a Command, a Request, nor a union of them"):

        class Odd(Actor[int | Open]):  # type: ignore[type-var]
            @handles
            def open(self, message: Open) -> None: ...


def test_one_method_may_handle_several_messages():
    class Door(Actor[Open | Close]):
        @handles
        def move(self, message: Open | Close) -> None: ...

    assert Door.handler_table[Open].function is Door.handler_table[Close].function


def test_messages_local_to_a_function_are_found():
    class Local(Command):
        pass

    class Here(Actor[Local]):
        @handles
        def local(self, message: Local) -> None: ...

    assert set(Here.handler_table) == {Local}


def test_a_return_type_known_to_type_checkers_alone_does_no_harm():
    class Till(Actor[Price]):
        @handles
        def price(self, message: Price) -> Decimal:  # type: ignore[empty-body]
            ...

    assert set(Till.handler_table) == {Price}


def test_a_message_type_that_cannot_be_resolved_is_named():
    with pytest.raises(ActorDefinitionError, match=r"Till.price: .*'Nowhere' is not defined"):

        class Till(Actor[Price]):
            @handles
            def price(self, message: Nowhere) -> int: ...  # type: ignore[name-defined,empty-body]  # noqa: F821


def test_a_handler_takes_itself_and_one_annotated_message():
    with pytest.raises(ActorDefinitionError, match="must take self and one annotated message"):

        class Bare(Actor[Price]):
            @handles
            def price(self, message) -> int: ...  # type: ignore[no-untyped-def,empty-body]

    with pytest.raises(ActorDefinitionError, match="must take self and one annotated message"):

        class Wide(Actor[Price]):
            @handles
            def price(self, message: Price, discount: int) -> int: ...  # type: ignore[empty-body]


def test_only_an_async_method_can_be_concurrent():
    with pytest.raises(ActorDefinitionError, match="concurrent, but not an `async def`"):

        @handles(concurrent=True)
        def price(self: object, message: Price) -> int:
            return 1
