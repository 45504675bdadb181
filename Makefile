# Two commands matter: `make quickstart` and `make test`. Everything is made inside this folder.
VENV := .venv
PYTHON ?= python3
MINUTES ?= 10
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/tools/bin
TOOLS_STAMP := $(VENV)/tools/.installed
LOCK := $(TOOLS)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --quiet --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)
export OMP_NUM_THREADS ?= 1

.PHONY: help quickstart test test-slow lint format docs dist publish lock audit tables fuzz clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Every package is checked against its hash but torch, whose build differs by platform.
$(STAMP): pyproject.toml constraints.txt locks/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-deps --require-hashes -r locks/dev.txt
	$(VENV)/bin/pip install --quiet -c constraints.txt torch
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation -e .
	$(VENV)/bin/pip check
	@touch $@

$(TOOLS_STAMP): locks/tools.txt
	$(PYTHON) -m venv $(VENV)/tools
	$(TOOLS)/pip install --quiet --no-deps --require-hashes -r locks/tools.txt
	@touch $@

quickstart: $(STAMP)  ## learn to swing up a pendulum from bad data: set-up, dataset, training, evaluation, table
	$(VENV)/bin/tql quickstart

test: lint docs  ## linter, formatter check, type checker, documentation and the whole test suite
	$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP) $(TOOLS_STAMP)  ## the tests that take minutes, the quickstart's bars among them
	$(VENV)/bin/pytest -m slow

lint: $(STAMP)  ## linter, formatter check, type checker
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)  ## format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(STAMP)  ## the documentation site, site/index.html; fails on broken links and undocumented names
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

dist: $(TOOLS_STAMP)  ## wheel and source distribution, in dist/
	rm -rf dist
	$(TOOLS)/uv build --quiet

publish: dist  ## upload dist/ to the package index, with the token in UV_PUBLISH_TOKEN
	$(TOOLS)/uv publish

lock: $(TOOLS_STAMP)  ## write locks/ anew from pyproject.toml; UPGRADE=1 takes the newest versions
	$(LOCK) pyproject.toml --extra dev --group build -c constraints.txt --no-emit-package torch -o locks/dev.txt
	$(LOCK) --group tools -c locks/dev.txt -o locks/tools.txt

audit: $(TOOLS_STAMP)  ## known vulnerabilities of what the set-up installs, where PyPI can be asked
	$(TOOLS)/python locks/audit.py constraints.txt locks/dev.txt locks/tools.txt

tables: $(STAMP)  ## build the measured tables of README and docs/ from results/
	$(VENV)/bin/python -m benchmarks.tables

fuzz: $(STAMP)  ## mutated files for every reader; MINUTES=10
	$(VENV)/bin/python -m tests.fuzz $(MINUTES)

clean:  ## remove the virtual environment, runs and caches; datasets stay
	rm -rf $(VENV) runs build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
