# Everything happens in .venv; runs, caches and corpora live in $LATENTLM_HOME (~/.latentlm).

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help quickstart test test-end-to-end test-parts check bench clean

help:  ## what can be made
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

quickstart: .venv/installed  ## set up, then run experiments/quickstart.yaml to its table of results
	$(BIN)/latentlm run experiments/quickstart.yaml

# Two processes on two cores: what goes through the command line, and all else.
test: .venv/installed-dev  ## set up, then run every test
ifdef PYTEST_ARGS
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)
else
	+$(MAKE) --jobs=2 --keep-going test-end-to-end test-parts
endif

test-end-to-end: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/end_to_end

test-parts: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore=tests/end_to_end

check: .venv/installed-dev  ## formatting, lint and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/installed-bench  ## set up, then measure speed against the usual libraries
	OMP_NUM_THREADS=1 $(BIN)/latentlm bench $(BENCH_ARGS)

clean:  ## remove the environment and every cache in this folder; state stays
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# DeepSpeed compiles one op with g++; doing it here keeps the first run from looking hung.
.venv/installed: pyproject.toml
	@echo "setting up .venv: about 7 GB, a few minutes, once"
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet --editable .
	$(BIN)/latentlm doctor --build
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@

.venv/installed-bench: .venv/installed
	$(PIP) install --quiet --editable '.[bench]'
	@touch $@
