# Everything happens in .venv; runs, caches and corpora live in $LATENTLM_HOME (~/.latentlm).

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help quickstart test test-on-ray test-without-ray check bench clean

help:  ## what can be made
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

quickstart: .venv/installed  ## set up, then run experiments/quickstart.yaml to its table of results
	$(BIN)/latentlm run experiments/quickstart.yaml

# Tests that start a Ray in one process and all others in another: two Rays starve each other.
test: .venv/installed-dev  ## set up, then run every test
ifdef PYTEST_ARGS
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)
else
	+$(MAKE) --jobs=2 --keep-going test-on-ray test-without-ray
endif

test-on-ray: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray

test-without-ray: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not ray"

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
