.PHONY: install check quick test docs

install:  ## Install the package with everything its checks need.
	pip install -e '.[dev]'

check:  ## Lint, format, types and import contracts; no tests.
	ruff check .
	ruff format --check .
	mypy
	lint-imports

quick: check  ## Checks and the tests that take at most a second or two each.
	pytest -n auto --dist loadscope -m "not slow"

test: check  ## Everything the gate runs.
	pytest -n auto --dist loadscope

docs:  ## Write docs/reference/ anew from the commands and configuration classes.
	python -m llmctl.cli.reference
