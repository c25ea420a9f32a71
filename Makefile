# make demo: install into .venv and run everything on phantom images.  make test: all checks, as CI runs them.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test format reference docs clean

demo: .venv/installed
	$(BIN)/busi-tune run --demo

test: .venv/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	.ci/postgres
	.ci/node
	.ci/compiler
	$(BIN)/pytest --numprocesses 2 --dist loadfile

format: .venv/installed-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The reference pages that are made from the code.
reference: .venv/installed-for-tests
	$(BIN)/python docs/reference/make_options.py
	$(BIN)/python docs/reference/schemas.py

# The pages as a site in site/. A link or an anchor that leads nowhere stops it; with --quiet it would not.
docs: .venv/installed-for-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "busi-tune needs Python 3.11 or newer; run make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[train]'
	touch $@

.venv/installed-for-tests: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

# MkDocs alone, without what training needs.
.venv/installed-for-docs: pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf site .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
