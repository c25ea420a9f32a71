# make demo: install into .venv and run everything on phantom images.
# make check: the fast checks, without services.  make test: all checks.  make services: what all of them need (as root).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo check test services lowest coverage format reference docs clean

demo: .venv/installed
	$(BIN)/busi-tune run --demo

check: .venv/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m 'not slow and not services'

# Tests are skipped, by name, where a service is missing. In the order of their folders, the quick unit tests come last;
# by default, files with few but slow tests would come last, and one process would wait for the other.
test: .venv/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -rs

# Debian packages for the tests: PostgreSQL, Node.js, compilers for C and C++, OpenCV, Chromium, zsh and fish.
services:
	.ci/postgres
	.ci/node
	.ci/compiler
	.ci/chromium
	.ci/shells

# The fast tests on the lowest versions that pyproject.toml allows.
lowest:
	$(PYTHON) -m venv .venv-lowest
	.ci/lowest > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[test]'
	.venv-lowest/bin/pytest --numprocesses 2 --dist worksteal -m 'not slow and not services'

# Which lines no test reaches; child processes count, too.
coverage: .venv/installed-for-tests
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --cov --cov-report term-missing:skip-covered

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
	rm -rf site .venv .venv-lowest .mypy_cache .pytest_cache .ruff_cache .hypothesis
