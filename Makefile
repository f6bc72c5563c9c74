# Two targets are all a newcomer needs: `make quickstart` and `make test`. Both make .venv and install into it:
# quickstart what running needs, the others what they need beside it, at the versions of requirements/lock.txt.
PYTHON ?= python3
# On PyPI this release is for Linux the CUDA build (3 GB to fetch). Without a GPU, take PyTorch's own CPU index:
# make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

# Of the benchmarks; the embedded tiny model by default.
MODEL ?= e2bench/assets/tiny

# Tests run side by side, one process a core; each computes with one thread.
JOBS ?= auto
FAST := -m "not slow and not gpu and not network" -n $(JOBS)

.PHONY: quickstart test test-all test-lowest test-newest lint types docs coverage mutation bench reproduce pictures setup newest lock
quickstart: setup
	$(BIN)/e2bench quickstart

test: .venv/test
	$(BIN)/python -m pytest $(FAST)

test-all: .venv/dev
	$(BIN)/python -m pytest -m "not gpu and not network" -n $(JOBS)

lint: .venv/dev types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The package as it is imported, by links, for mypy alone.
types:
	rm -rf build/types && mkdir -p build/types/e2bench
	ln -s $(CURDIR)/e2bench/* $(CURDIR)/tasks $(CURDIR)/train build/types/e2bench/

# The site of the docs, with the pages of the committed runs, in build/site.
docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

# Of the fast tier, lines and branches; the report goes to the terminal and to build/coverage.
coverage: .venv/dev
	$(BIN)/python -m pytest $(FAST) --cov --cov-report=term --cov-report=html

# Which changes of a line no test notices (docs/mutation.md).
mutation: .venv/dev
	nice -n 15 $(BIN)/python tests/mutation.py

bench: .venv/test
	$(BIN)/python benchmarks/scoring.py
	for name in generation perplexity startup; do $(BIN)/python benchmarks/$$name.py --model "$(MODEL)" || exit 1; done
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/length.py

# The tiny model and the paper in miniature, from nothing: hours, in resumable steps.
reproduce: .venv/test
	$(BIN)/python -m e2bench.train.reproduce

# The report over all runs on SmolLM2, whose Figure 7 is the README's first picture.
pictures: .venv/run
	$(BIN)/python -c 'import e2bench; e2bench.report(["results/smollm2", "results/smollm2-e2"], "results/smollm2-e2/report")'

# The fast tests at both ends of the ranges in pyproject.toml; torch is what TORCH says. Warnings are listed at the end
# and fail nothing: a package's new release may deprecate what its last one asked for.
test-lowest: .venv-lowest/test
	.venv-lowest/bin/python -m pytest $(FAST) -W default

test-newest: newest
	.venv-newest/bin/python -m pytest $(FAST) -W default

# What pip gives today, always made anew.
newest:
	rm -rf .venv-newest
	$(call install,.venv-newest,[test])

setup: .venv/run

# $(call install,ENVIRONMENT,EXTRAS,OPTIONS)
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
install = test -x $1/bin/python || $(PYTHON) -m venv $1; \
	$1/bin/python -m pip install -q "$(TORCH)" $(TORCH_FROM) && $1/bin/python -m pip install -q -e ".$2" $3

LOCKED := -c requirements/lock.txt
.venv/run: pyproject.toml requirements/lock.txt
	$(call install,.venv,,$(LOCKED))
	touch $@
.venv/test: .venv/run
	$(call install,.venv,[test],$(LOCKED))
	touch $@
.venv/dev: .venv/test
	$(call install,.venv,[dev],$(LOCKED))
	touch $@
.venv-lowest/test: pyproject.toml requirements/lowest.txt
	$(call install,.venv-lowest,,--no-deps -r requirements/lowest.txt)
	touch $@

# Resolve both sets anew: the newest versions for every system and Python, and the lowest of each range for Python 3.11
# on Linux. torch is left out with what its CUDA build brings, since its builds differ.
RESOLVE = $(BIN)/uv pip compile -q pyproject.toml --python-version 3.11 --no-annotate --no-header -c build/torch.txt
WITHOUT_TORCH := grep -vE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)=='
lock: .venv/dev
	mkdir -p build && echo "$(TORCH)" > build/torch.txt
	{ echo "# The versions that make installs. Renew: make lock"; $(RESOLVE) --extra dev --universal --upgrade | $(WITHOUT_TORCH); } > build/lock.txt
	{ echo "# The lowest of each declared range, for make test-lowest. Renew: make lock"; \
	  $(RESOLVE) --extra test --python-platform linux --resolution lowest-direct | $(WITHOUT_TORCH); } > build/lowest.txt
	mv build/lock.txt build/lowest.txt requirements/
