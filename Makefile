# Everything runs in .venv, which is made on first use. pip's own configuration decides where packages come
# from: where it offers a CPU build of torch, that is what gets installed.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
BASE = $(VENV)/.installed
DEV = $(VENV)/.installed-dev
DOCS = $(VENV)/.installed-docs
REQUIREMENTS = pyproject.toml constraints.txt

.PHONY: quickstart test test-slow lint docs clean

quickstart: $(BASE)
	$(VENV)/bin/gvcot quickstart

test: $(DEV)
	$(VENV)/bin/pytest

test-slow: $(DEV)
	$(VENV)/bin/pytest -m slow

lint: $(DEV)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/basedpyright
	$(VENV)/bin/lint-imports

docs: $(DOCS)
	$(VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site

# torch first, by itself: a CPU build must be found before anything asks for another one.
$(BASE): $(REQUIREMENTS)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(DEV): $(BASE)
	$(PIP) -e '.[dev]'
	touch $@

$(DOCS): $(BASE)
	$(PIP) -e '.[docs]'
	touch $@
