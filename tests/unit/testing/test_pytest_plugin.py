"""The pytest plugin, in test sessions of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from callboard.models.base import ONLY_OFFLINE
from callboard_pytest import plugin

ASKS = """
import pytest
from typing import Any
from callboard import Agent, Model, ModelRequest, ModelResponse, RealModelRefusedError, Runtime, SyncRuntime

class Provider(Model):
    name = "provider"

    async def generate(self, request: ModelRequest) -> ModelResponse[Any]:
        return ModelResponse(text="from far away")

def asked():
    with SyncRuntime([Agent("a", model=Provider())]) as runtime:
        return runtime.run("a", "hello")
"""


def session(path: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest over one test file, in a process and a folder of its own."""
    (path / "test_it.py").write_text(test)
    environment = {name: value for name, value in os.environ.items() if name != ONLY_OFFLINE}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=path, env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def passes(path: Path, test: str, *options: str) -> None:
    done = session(path, test, *options)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plugin_and_the_runtime_mean_the_same_variable() -> None:
    assert plugin._ONLY_OFFLINE == ONLY_OFFLINE


def test_a_session_that_has_no_agents_does_not_import_callboard(tmp_path: Path) -> None:
    passes(tmp_path, "import sys\n\ndef test_it():\n    assert 'callboard' not in sys.modules\n")


def test_importing_callboard_and_its_testing_kit_imports_no_pytest() -> None:
    script = "import sys, callboard, callboard.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_real_model_is_refused_before_a_request_leaves_unless_its_test_is_marked(tmp_path: Path) -> None:
    passes(
        tmp_path,
        ASKS
        + """
def test_refused():
    result = asked()
    assert result.stop_reason == "failed"
    assert result.error_details.code == "real_model_refused"
    assert "'provider'" in result.error_details.message
    assert "allow_real_models" in result.error_details.hint

@pytest.mark.allow_real_models
def test_marked():
    assert asked().output == "from far away"

def test_not_marked():
    assert asked().stop_reason == "failed"

def test_a_double(monkeypatch):
    monkeypatch.setattr(Provider, "is_offline", True)
    assert asked().output == "from far away"
""",
        "--strict-markers",
    )


def test_real_models_are_asked_in_a_session_that_allows_them(tmp_path: Path) -> None:
    passes(tmp_path, ASKS + "\ndef test_it():\n    assert asked().output == 'from far away'\n", "--allow-real-models")


RUNS = """
import asyncio
import pytest
from callboard import Agent, ScriptedModel

agent = Agent("a", model=ScriptedModel(["done"]))
"""


def test_the_runtime_fixture_keeps_its_sessions_where_the_test_says(tmp_path: Path) -> None:
    passes(
        tmp_path,
        RUNS
        + """
@pytest.mark.callboard_store("directory")
def test_restart(runtime, callboard_store):
    async def one_life(run_id):
        async with runtime:
            runtime.agents.register(agent)
            await runtime.run(agent, "go", run_id=run_id, session_id="s")
            return len(await runtime.sessions.transcript("s"))

    assert asyncio.run(one_life("first")) == 2
    assert asyncio.run(one_life("second")) == 4
    assert callboard_store.is_dir()

def test_memory(runtime, callboard_store, tmp_path):
    async def live():
        async with runtime:
            runtime.agents.register(agent)
            await runtime.run(agent, "go")

    asyncio.run(live())
    assert callboard_store is None
    assert not [*tmp_path.iterdir()]
""",
        "--strict-markers",
    )


def test_misuse_of_the_runtime_fixture_says_what_to_do(tmp_path: Path) -> None:
    done = session(
        tmp_path,
        RUNS
        + """
@pytest.mark.callboard_store("cloud")
def test_nowhere(runtime): pass

def test_open(runtime): asyncio.run(runtime.start())
""",
    )
    assert done.returncode == 1
    assert "'memory' or 'directory'" in done.stdout
    assert "left its runtime open" in done.stdout
    assert "1 passed, 2 errors" in done.stdout
