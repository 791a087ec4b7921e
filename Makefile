# The chores. `make quickstart` and `make test` work on a fresh machine with Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
# Options for pip, such as the index of PyTorch's CPU builds.
PIP_FLAGS ?=
BIN := $(VENV)/bin
RUN_INSTALLED := $(VENV)/.installed
DEV_INSTALLED := $(VENV)/.installed-dev
# Idle OpenMP threads that spin take the cores from their neighbours: tests side by side were 37 times slower.
TEST_ENV := OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: quickstart test test-all check numerics gpu bench docs clean

quickstart: $(RUN_INSTALLED)
	$(BIN)/halfbyte quickstart

test: $(DEV_INSTALLED)
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-all: $(DEV_INSTALLED)
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

check: $(DEV_INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

numerics: $(DEV_INSTALLED)
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 tests/invariants tests/unit/model tests/unit/train tests/unit/evaluate

# Where a Python with torch for the GPU is there already: make gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(DEV_INSTALLED))
	PYTHONPATH=src:$(PYTHONPATH) $(GPU_PYTHON) -m pytest -rs tests/gpu

# Goes on where the last call stopped. More words for the suite: make bench SUITE="--programs ours hf --budget-seconds 600"
SUITE ?=
bench: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(RUN_INSTALLED))
	$(GPU_PYTHON) benchmarks/suite.py $(SUITE)
	$(GPU_PYTHON) benchmarks/suite.py --tables

docs: $(RUN_INSTALLED)
	$(BIN)/python scripts/write_docs.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "halfbyte needs Python 3.11 or newer: make PYTHON=python3.12"; exit 3; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "the venv module is missing: on Debian and Ubuntu, apt-get install python3-venv"; exit 3; }

# constraints.txt pins what was tested, so that two machines get the same versions.
$(RUN_INSTALLED): $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV): 1.5 GB and a few minutes the first time, several GB where pip brings the CUDA build of PyTorch"
	$(BIN)/python -m pip install $(PIP_FLAGS) --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(DEV_INSTALLED): $(RUN_INSTALLED)
	$(BIN)/python -m pip install -q $(PIP_FLAGS) --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist
