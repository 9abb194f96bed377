"""Fixtures and markers for tests of agents. Nothing of Callboard is imported before a test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from callboard import Runtime
    from callboard.testing import FakeClock

_ONLY_OFFLINE: Final = "CALLBOARD_ONLY_OFFLINE_MODELS"
"""As in `callboard.models.base`, which must not be imported for it; a test holds the two together."""

_BEFORE: Final = pytest.StashKey[str | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command line's option."""
    parser.getgroup("callboard").addoption(
        "--allow-real-models",
        action="store_true",
        help="let the agents of all tests ask models that answer from outside the test process",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The markers."""
    config.addinivalue_line(
        "markers", "allow_real_models: let this test's agents ask models that answer from outside the test process"
    )
    config.addinivalue_line(
        "markers",
        "callboard_store(where): where the `runtime` fixture keeps its sessions: 'memory' (the default) or 'directory'",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forbid real models in this test and in processes it starts, unless it may ask them."""
    item.stash[_BEFORE] = os.environ.get(_ONLY_OFFLINE)
    may_ask = item.config.getoption("--allow-real-models") or item.get_closest_marker("allow_real_models")
    os.environ[_ONLY_OFFLINE] = "0" if may_ask else "1"


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Leave the environment as it was."""
    before = item.stash.get(_BEFORE, None)
    if before is None:
        os.environ.pop(_ONLY_OFFLINE, None)
    else:
        os.environ[_ONLY_OFFLINE] = before


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that stands still until `fake_clock.advance(seconds)`; the `runtime` fixture goes by it."""
    from callboard.testing import FakeClock  # noqa: PLC0415  (only tests that ask for it pay for the import)

    return FakeClock()


@pytest.fixture
def callboard_store(request: pytest.FixtureRequest) -> Path | None:
    """Where the `runtime` fixture keeps its sessions: None for memory, or a fresh directory."""
    marker = request.node.get_closest_marker("callboard_store")
    where = marker.args[0] if marker is not None and marker.args else "memory"
    if where not in {"memory", "directory"}:
        raise pytest.UsageError(f"callboard_store({where!r}) is no place: 'memory' or 'directory'")
    directory: Path = request.getfixturevalue("tmp_path")
    return None if where == "memory" else directory / "callboard"


@pytest.fixture
def runtime(request: pytest.FixtureRequest, callboard_store: Path | None) -> Iterator[Runtime]:
    """A runtime to open in the test: ``async with runtime: ...``. Closed and opened again, it has restarted.

    It goes by `fake_clock` where the test asks for that too, and works with whichever plugin runs async tests.
    """
    from callboard import Runtime  # noqa: PLC0415  (only tests that ask for it pay for the import)

    clock = request.getfixturevalue("fake_clock") if "fake_clock" in request.fixturenames else None
    made = Runtime(store=callboard_store, clock=clock)
    yield made
    if made.is_open:
        pytest.fail("the test left its runtime open: `async with runtime: ...` closes it", pytrace=False)
