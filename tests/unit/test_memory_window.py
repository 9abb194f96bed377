from __future__ import annotations

from typing import Any

import pytest

from callboard.memories import WindowMemory
from callboard.memory import Exchange, Memory
from callboard_protocol.errors import UsageError
from callboard_protocol.messages import Message

pytestmark = pytest.mark.anyio

HELLO = Message.user("hello")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def remembered(memory: WindowMemory, *exchanges: tuple[str, str]) -> dict[str, Any]:
    held: dict[str, Any] = {}
    for number, (asked, answered) in enumerate(exchanges):
        changed = await memory.writeback(held, Exchange(f"r{number}", asked, answered))
        held = {**held, **changed}
    return held


async def test_it_is_a_memory():
    assert isinstance(WindowMemory(), Memory)
    assert (WindowMemory().size, WindowMemory().on_error) == (8, "continue")


async def test_it_says_nothing_before_the_first_exchange():
    assert list(await WindowMemory().inject({}, HELLO)) == []


async def test_it_recalls_exchanges_oldest_first_in_one_text():
    memory = WindowMemory()
    held = await remembered(memory, ("one?", "1"), ("two?", "2"))
    assert list(await memory.inject(held, HELLO)) == [
        "Earlier in this session:\n- They said: one?\n  You answered: 1\n- They said: two?\n  You answered: 2"
    ]


async def test_it_forgets_what_is_past_its_size():
    memory = WindowMemory(2)
    held = await remembered(memory, *((f"q{n}", f"a{n}") for n in range(5)))
    assert held == {"window": [["q3", "a3"], ["q4", "a4"]]}


async def test_it_changes_nothing_of_what_it_is_given():
    memory = WindowMemory(1)
    held = await remembered(memory, ("q0", "a0"))
    before = {"window": [[*held["window"][0]]]}
    await memory.writeback(held, Exchange("r", "q1", "a1"))
    await memory.inject(held, HELLO)
    assert held == before


async def test_a_smaller_window_takes_over_what_a_larger_one_held():
    held = await remembered(WindowMemory(5), *((f"q{n}", f"a{n}") for n in range(5)))
    changed = await WindowMemory(2).writeback(held, Exchange("r", "q5", "a5"))
    assert changed == {"window": [["q4", "a4"], ["q5", "a5"]]}


@pytest.mark.parametrize("size", [0, -3])
async def test_a_window_of_nothing_is_refused(size: int):
    with pytest.raises(UsageError, match="remembers nothing"):
        WindowMemory(size)
