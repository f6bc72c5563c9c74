# Two targets are all a newcomer needs: `make quickstart` and `make test`. Both make .venv and install into it.
PYTHON ?= python3
# The CPU build of torch; on a GPU machine: make quickstart TORCH=torch
TORCH ?= torch==2.13.0
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

# Of the benchmarks; the embedded tiny model by default.
MODEL ?= e2bench/assets/tiny

.PHONY: quickstart test test-all lint types coverage mutation bench reproduce setup
quickstart: setup
	$(BIN)/e2bench quickstart

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu and not network"

test-all: setup
	$(BIN)/python -m pytest -m "not gpu and not network"

lint: setup types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The package as it is imported, by links, for mypy alone.
types:
	rm -rf build/types && mkdir -p build/types/e2bench
	ln -s $(CURDIR)/e2bench/* $(CURDIR)/tasks $(CURDIR)/train build/types/e2bench/

# Of the fast tier, lines and branches; the report goes to the terminal and to build/coverage.
coverage: setup
	$(BIN)/python -m pytest -m "not slow and not gpu and not network" --cov --cov-report=term --cov-report=html

# Hours, on one core: which changes of a line no test notices (docs/mutation.md).
mutation: setup
	nice -n 15 $(BIN)/python tests/mutation.py

bench: setup
	$(BIN)/python benchmarks/scoring.py
	for name in generation perplexity startup; do $(BIN)/python benchmarks/$$name.py --model "$(MODEL)" || exit 1; done
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/length.py

# The tiny model and the paper in miniature, from nothing: hours, in resumable steps.
reproduce: setup
	$(BIN)/python -m e2bench.train.reproduce

setup: .venv/installed
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@
