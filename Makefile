# The whole workflow. Everything lives in .venv; remove it to begin afresh.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test smoke check clean

demo: .venv/installed          ## install, and run the whole recipe on this machine's CPU
	$(BIN)/algorist run recipes/tiny.toml

test: .venv/tested             ## the checks and the whole test suite
	$(BIN)/ruff format --check src tests bench docs
	$(BIN)/ruff check src tests bench docs
	$(BIN)/mypy
	$(BIN)/pytest

smoke: .venv/installed         ## the whole recipe at its smallest, from the beginning
	rm -rf runs/smoke
	$(BIN)/algorist run recipes/smoke.toml

check: .venv/tested            ## format, lint and types, mending what can be mended
	$(BIN)/ruff format src tests bench docs
	$(BIN)/ruff check --fix src tests bench docs
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv runs
