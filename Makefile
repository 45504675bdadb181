# Two commands matter: `make quickstart` and `make test`. Everything is made inside this folder.
VENV := .venv
PYTHON ?= python3
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: help quickstart test test-slow lint format clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet torch==2.13.0
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

quickstart: $(STAMP)  ## learn to swing up a pendulum from bad data: set-up, dataset, training, evaluation, table
	$(VENV)/bin/tql quickstart

test: lint  ## linter, formatter check, type checker and the whole test suite
	$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)  ## the tests that take minutes: the quickstart's bars
	$(VENV)/bin/pytest -m slow

lint: $(STAMP)  ## linter, formatter check, type checker
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)  ## format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:  ## remove the virtual environment, runs and caches; datasets stay
	rm -rf $(VENV) runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
