from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from callboard.tools.context import ToolContext

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_the_idempotency_key_is_the_calls_id_at_every_attempt():
    first, second = ToolContext(call_id="run:3", attempt=1), ToolContext(call_id="run:3", attempt=2)
    assert first.idempotency_key == second.idempotency_key == "run:3"


def test_it_holds_nothing_but_its_fields():
    context: ToolContext[None] = ToolContext()
    assert not hasattr(context, "__dict__")
    assert sys.getsizeof(context) < 200
    with pytest.raises(AttributeError):
        context.surprise = 1  # type: ignore[attr-defined]


async def test_progress_without_a_watcher_does_nothing():
    context: ToolContext[None] = ToolContext()
    await context.progress(1, 2, "half")
    context.report(2, 2)


async def test_progress_is_told_with_what_the_tool_knows():
    told: list[Any] = []
    context: ToolContext[None] = ToolContext(publish=lambda *event: told.append(event))
    await context.progress(1, 2, "half")
    assert told == [("tool.progress", {"done": 1, "total": 2, "note": "half"})]


async def test_a_call_on_a_thread_tells_the_loop():
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    context: ToolContext[None] = ToolContext(publish=lambda *_: told.set_result(threading.get_ident()))
    context.move_to_thread(asyncio.get_running_loop())
    await asyncio.to_thread(context.report, 1)
    assert await told == threading.get_ident()


def test_a_call_that_outlives_its_loop_is_not_heard():
    loop = asyncio.new_event_loop()
    loop.close()
    context: ToolContext[None] = ToolContext(publish=lambda *_: pytest.fail("heard"))
    context.move_to_thread(loop)
    context.report(1)
