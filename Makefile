# Everything runs in .venv, which is made on first use. pip's own configuration decides where packages come
# from: where it offers a CPU build of torch, that is what gets installed.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
BASE = $(VENV)/.installed
DEV = $(VENV)/.installed-dev
DOCS = $(VENV)/.installed-docs
REQUIREMENTS = pyproject.toml constraints.txt

.PHONY: quickstart test test-slow lint docs clean warm-start

quickstart: $(BASE)
	$(VENV)/bin/gvcot quickstart

test: $(DEV)
	$(VENV)/bin/pytest

test-slow: $(DEV)
	$(VENV)/bin/pytest -m slow

lint: $(DEV)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python
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

# Rebuilds the shipped warm start from nothing (about 40 minutes on two cores), in runs/.
warm-start: $(BASE)
	$(VENV)/bin/gvcot sft tiny-codec
	$(VENV)/bin/gvcot sft tiny-base
	$(VENV)/bin/gvcot sft tiny-stage1a
	$(VENV)/bin/gvcot sft tiny-stage1
	$(VENV)/bin/gvcot sft tiny-stage2
	$(VENV)/bin/gvcot export runs/tiny-stage2 gvcot/assets/warm_start --half
