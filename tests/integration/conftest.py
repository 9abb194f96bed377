"""A runtime that is used wrongly, and must work all the same when the test is over."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from callboard import Agent, CallboardError, ModelRequest, RunResult, Runtime, ScriptedModel

PATIENCE = 30

Play = Callable[..., Awaitable[RunResult[Any]]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Refused:
    """Expectations of errors, raised or told."""

    @contextmanager
    def __call__(self, kind: type[CallboardError], says: str, *, hint: str) -> Iterator[None]:
        """The block raises exactly this error: what it says, and what it advises, as regular expressions."""
        with pytest.raises(CallboardError) as caught:
            yield
        error = caught.value
        assert type(error) is kind, error
        self.check(error, kind, says, hint)
        assert str(error) == f"{error.message} ({error.hint})"

    def told(self, result: RunResult[Any], kind: type[CallboardError], says: str, *, hint: str) -> None:
        """A run failed with this error."""
        assert (result.stop_reason, result.final_output) == ("failed", None), result
        self.check(result.error_details, kind, says, hint)

    def check(self, error: Any, kind: type[CallboardError], says: str, hint: str) -> None:
        assert error.code == kind.code, error
        assert re.search(says, error.message), error.message
        assert hint, "an error that does not say what to do next"
        assert re.search(hint, error.hint), error.hint


@pytest.fixture
def refused() -> Refused:
    return Refused()


def _echo(request: ModelRequest) -> str:
    return f"you said {request.messages[-1].text!r}"


@pytest.fixture
def echo() -> Agent[None, str]:
    return Agent("echo", model=ScriptedModel(_echo))


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "memory" else tmp_path / "data"


@pytest.fixture
async def runtime(echo: Agent[None, str], store: Path | None) -> AsyncIterator[Runtime]:
    """An open runtime. After the test it must still do its work, and owe nothing."""
    async with Runtime([echo], store=store) as runtime:
        yield runtime
        still = await asyncio.wait_for(runtime.run("echo", "still there?"), PATIENCE)
        assert still.output == "you said 'still there?'"
        assert runtime.health().healthy
        assert runtime.stats().running == runtime.stats().queued == 0


@pytest.fixture
def play(runtime: Runtime) -> Play:
    """Runs an agent that does something wrong. Whatever comes of it, the session lives and its next run works."""

    async def play(agent: Agent[Any, Any], said: str = "go", **options: Any) -> RunResult[Any]:
        runtime.agents.register(agent)
        result = await asyncio.wait_for(runtime.run(agent, said, session_id="s", **options), PATIENCE)
        after = await asyncio.wait_for(runtime.run("echo", "and now?", session_id="s"), PATIENCE)
        assert after.output == "you said 'and now?'"
        for entry in await runtime.runs.list():
            if entry.session_id == "s":
                assert entry.state not in {"running", "queued", "interrupted"}, f"{entry.run_id} never ended"
        return result

    return play
