PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin
STAMPS := .venv/.stamp .venv-lowest/.stamp

.DEFAULT_GOAL := help
.PHONY: setup demo test test-lowest test-all check bench format help

# Everything below runs on the weights that travel with the package: no download, no telemetry.
demo test test-lowest test-all bench: export HF_HUB_OFFLINE := 1
demo test test-lowest test-all bench: export HF_HUB_DISABLE_TELEMETRY := 1

setup: .venv/.stamp  ## make .venv with the versions of constraints.txt

.venv/.stamp: constraints.txt
.venv-lowest/.stamp: constraints-lowest.txt

# torch comes first and alone, so that a CPU build is taken where the index offers one.
$(STAMPS): %/.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make setup needs Python 3.11 or newer, and '$(PYTHON)' is not. Try: make setup PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install "$$(grep '^torch==' $(filter %.txt,$^))"
	$*/bin/python -m pip install -c $(filter %.txt,$^) -e ".[dev]"
	@touch $@

demo: setup  ## erase a concept on the playground; pictures and numbers land in demo/
	$(BIN)/diffusers-erase demo --out demo --overwrite

test: setup  ## the tests, without the slow ones
	$(BIN)/python -m pytest

test-lowest: .venv-lowest/.stamp  ## the tests, with the oldest versions that pyproject.toml allows
	$(LOWEST)/python -m pytest

test-all: setup test-lowest  ## the tests, with the slow ones, and test-lowest
	$(BIN)/python -m pytest -m ''

check: setup  ## format, lint, types, floor plan, spelling; changes nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: setup  ## the tables of docs/playground.md, and what sampling and erasing cost
	$(BIN)/python tests/benchmarks/sampling.py
	$(BIN)/python tests/benchmarks/playground.py

format: setup  ## rewrite the code in the house format, imports sorted
	$(BIN)/ruff check --fix --select I
	$(BIN)/ruff format

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
