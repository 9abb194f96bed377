# Everything a contributor types. Each target does all of its own set-up: Python 3.11, pip and a package index suffice.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_VENV := .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready
FUZZ_VENV := .venv-fuzz
FUZZ_READY := $(FUZZ_VENV)/.ready
FUZZ_SECONDS ?= 300

.PHONY: demo test check crash model fuzz bench clean

demo: $(READY)
	$(BIN)/callboard demo $(ARGS)

# Two at a time: most of the suite waits for disks and for processes that it has started.
test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/types/typed_use.py
	$(BIN)/pyright --project pyproject.toml

crash: $(READY)
	$(BIN)/python -m pytest -m "slow or not slow" tests/crash tests/disk_faults $(ARGS)

model: $(READY)
	$(BIN)/python -m pytest -m "slow or not slow" tests/property/store_model $(ARGS)

# What it finds, it leaves in .fuzz as crash-*; its corpus grows there from run to run.
fuzz: $(FUZZ_READY)
	mkdir -p .fuzz/corpus
	$(FUZZ_VENV)/bin/python tests/fuzz/decode_target.py -max_total_time=$(FUZZ_SECONDS) -max_len=16384 \
		-artifact_prefix=.fuzz/ .fuzz/corpus tests/fuzz/corpus $(ARGS)

bench: $(BENCH_READY)
	$(BENCH_VENV)/bin/python -m bench $(ARGS)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(FUZZ_READY): pyproject.toml
	$(PYTHON) -m venv $(FUZZ_VENV)
	$(FUZZ_VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	touch $@

$(BENCH_READY): pyproject.toml
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(FUZZ_VENV) .fuzz .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
