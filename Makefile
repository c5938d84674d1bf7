# make demo     install, run the demo study on this machine, say where its report is
# make test     install, run the tests that take under a minute each
# make check    install, lint, format and type checks
# make study-report  the pages of docs/studies from the results in the repository, without a GPU
# make docs     build the pages of docs/ as a site, check every link of it
#
# EXTRA=cuda    install the GPU packages (default: cpu)
# PYTHON=...    the Python to build .venv with (default: the first of python3.12, python3.11, python3 that fits)
# ARGS=...      more arguments for pytest or for `blindsweep run demo`

EXTRA ?= cpu
PYTHON ?=
ARGS ?=
VENV := .venv
DOCS_VENV := .venv-docs
STAMP := $(VENV)/.installed-$(EXTRA)

.DEFAULT_GOAL := setup
.PHONY: setup demo test test-all check format lock study-report docs clean help

setup: $(STAMP)

# scripts/setup.py runs on any Python 3.8 or newer and finds the one for .venv itself.
$(STAMP): pyproject.toml scripts/setup.py $(wildcard constraints/$(EXTRA)-*.txt)
	@for python in $(PYTHON) python3 python3.12 python3.11 python; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1; then \
			exec $$python scripts/setup.py --extra "$(EXTRA)" --python "$(PYTHON)"; \
		fi; \
	done; \
	echo "setup: no Python found; install Python 3.11 or 3.12, or name one: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

demo: setup
	@$(VENV)/bin/blindsweep run demo $(ARGS)

# Two processes, each file of tests in one of them: one alone leaves a third of two cores idle, while workers start and end.
test: setup
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: setup
	$(VENV)/bin/python -m pytest -m "not gpu" $(ARGS)

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

study-report: setup
	@$(VENV)/bin/python -m analysis.publication pages

lock: setup
	$(VENV)/bin/python scripts/setup.py --lock

# The site needs few packages and no torch, so it has an environment of its own: docstrings are read and not imported.
docs: $(DOCS_VENV)/.installed
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --quiet
	@$(DOCS_VENV)/bin/python scripts/check_site.py site

$(DOCS_VENV)/.installed: pyproject.toml
	@for python in $(PYTHON) python3.12 python3.11 python3; do \
		if $$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
			$$python -m venv --clear $(DOCS_VENV) && break; \
		fi; \
	done; \
	test -x $(DOCS_VENV)/bin/python || { echo "docs: no Python 3.11 or newer found; name one: make docs PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(DOCS_VENV)/bin/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"]))' \
		| xargs $(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check
	@touch $@

# The studies' results are kept: only what can be made again in minutes goes.
clean:
	rm -rf $(VENV) $(DOCS_VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find pipelines sweep analysis tests scripts -name __pycache__ -type d -exec rm -rf {} +

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -9
