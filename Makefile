# Two targets are all a newcomer needs: `make quickstart` and `make test`. Both make .venv and install into it.
PYTHON ?= python3
# The CPU build of torch; on a GPU machine: make quickstart TORCH=torch
TORCH ?= torch==2.13.0
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart test test-all lint bench setup
quickstart: setup
	$(BIN)/e2bench quickstart

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu and not network"

test-all: setup
	$(BIN)/python -m pytest -m "not gpu and not network"

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: setup
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

setup: .venv/installed
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@
