# Every target works on a fresh clone: it makes .venv and installs the pinned dependencies when they are missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo up test test-slow test-faults bench lint format engine screenshots lock clean services

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than Python 3.10; set PYTHON=/path/to/python3.10 or newer" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train,server,worker,dashboard]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.app

install: $(VENV)/.dev ## Create .venv with everything, development tools included

demo: $(VENV)/.app ## Start everything, train the debug config and show it beside its bound (ARGS=--exit ends by itself)
	@$(BIN)/n2n demo $(ARGS)

up: $(VENV)/.app ## Start the API, one local worker and the page
	@$(BIN)/n2n up $(ARGS)

services: ## Install what the tests talk to: PostgreSQL, Chromium and Slurm
	@scripts/test_services.sh

lint: $(VENV)/.dev ## Check format, style, types and who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# the engine's loops, once before many processes want them at the same time
engine: $(VENV)/.dev
	@$(BIN)/python -m nanollama.apps.gssm.entropy config=configs/gssm/debug.yaml num_sequences=2 > /dev/null

test: $(VENV)/.dev services ## Run every check and every test that is not slow
	@$(MAKE) --no-print-directory -j2 lint engine
	$(PYTEST) -n $(JOBS) --dist loadgroup $(ARGS)

test-slow: engine services ## Run the long loops and the training tests
	$(PYTEST) -n $(JOBS) --dist loadgroup -m slow $(ARGS)

FAULTS := tests/e2e/faults tests/worker/test_slurm_cluster.py tests/worker/test_slurm_faults.py

test-faults: engine services ## Run the crashes on real processes, at length
	$(PYTEST) -n $(JOBS) --dist loadgroup -m "" $(FAULTS) $(ARGS)

bench: $(VENV)/.dev ## Measure speed, each figure beside the naive way in the same run
	$(BIN)/python -m tests.bench $(ARGS)

screenshots: $(VENV)/.dev services ## Take the screenshots of the documentation again
	N2N_SCREENSHOTS=docs/images $(PYTEST) -m browser tests/e2e

lock: $(VENV)/.dev ## Resolve constraints.txt anew
	$(BIN)/python scripts/lock.py $(BIN)/python

clean: ## Remove what was installed and built; runs under .n2n stay
	rm -rf $(VENV) .bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
