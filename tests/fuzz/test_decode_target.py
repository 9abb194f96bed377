"""The fuzz target, over its corpus in every run of the suite and with atheris where that is installed."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

TARGET = Path(__file__).with_name("decode_target.py")
CORPUS = TARGET.with_name("corpus")
STEP = {"run_id": "run", "ordinal": 1, "at": 1.5, "step": "1", "kind": "tool"}

target = runpy.run_path(str(TARGET))


def step_input(body: dict[str, Any]) -> bytes:
    """An input that is a StepCompleted with this body."""
    return bytes([1, target["NUMBERS"].index(3), 0, 0]) + msgpack.packb(body)


@pytest.mark.parametrize("seed", sorted(CORPUS.iterdir()), ids=lambda seed: seed.name)
def test_every_input_of_the_corpus_gives_a_model_or_a_typed_error(seed):
    model = target["one_input"](seed.read_bytes())
    if seed.name.startswith(("sealed-", "frame-")):
        assert model is not None
        assert type(model).__name__ == seed.name.partition("-")[2]


@pytest.mark.parametrize(
    "body",
    [
        STEP | {"messages": [0] * 200_000},
        STEP | {"messages": [{}] * 200_000},
        STEP | {f"field-{number}": 1 for number in range(100_000)},
        STEP | {"value": [{}] * 500_000},
        STEP | {"value": [[]] * 500_000},
        STEP | {"ordinal": msgpack.ExtType(4, b"\x7f" * 500_000)},
        STEP | {"value": {"x" * 300_000: "y" * 300_000}},
    ],
    ids=["wrong items", "empty items", "unknown fields", "maps", "lists", "an int", "text"],
)
def test_a_large_frame_takes_time_and_memory_in_proportion(body):
    target["one_input"](step_input(body))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs the extra `fuzz`: use `make fuzz`")
def test_a_minute_of_fuzzing_finds_nothing(tmp_path):
    shutil.copytree(CORPUS, tmp_path / "corpus")
    command = [
        sys.executable,
        TARGET,
        "-max_total_time=60",
        "-max_len=16384",
        "-rss_limit_mb=4096",
        tmp_path / "corpus",
    ]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
