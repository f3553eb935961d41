# make run    environment, installation, the whole pipeline, and the table of results
# make test   the tests (make test-all: then the long ones too)
# make lint, make types
# make params   params.yaml anew, from the defaults in stages/config.py
# make clean    caches (make distclean: the environment and every result too)
#
# PIP_ARGS goes to pip, e.g. for CPU-only wheels of PyTorch:  make run PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# PYTHON names the interpreter (3.11) where neither python3.11 nor python3 is it. pip's own PIP_* variables and configuration are honoured.

PYTHON ?=
PIP_ARGS ?=
PYTEST_ARGS ?=
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: help run test test-all lint types params clean distclean
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

run: .venv/.installed
	@[ -d .dvc ] || dvc init --quiet --no-scm
	@git rev-parse --git-dir >/dev/null 2>&1 || dvc config --quiet --local core.no_scm true
	dvc repro
	@npas report

test: .venv/.installed-dev
	pytest -m "not full and not device and not adbd" $(PYTEST_ARGS)

test-all: test
	pytest -rs -m "(full or adbd) and not device" $(PYTEST_ARGS)

lint: .venv/.installed-dev
	ruff check .

types: .venv/.installed-dev
	mypy

# One pip call for everything, so that torch and torchvision are chosen together. The stamp is redone when pyproject.toml changes.
.venv/.installed: pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install --quiet $(PIP_ARGS) -e .
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install --quiet $(PIP_ARGS) -e ".[dev]"
	@touch $@ .venv/.installed

# A pyenv shim may exist and not work, so each candidate is asked for its version.
.venv/bin/python:
	@for python in $(PYTHON) python3.11 python3 python; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Error: npas needs Python 3.11, and none of '$(PYTHON) python3.11 python3 python' is it." >&2; \
	  echo "Hint: install Python 3.11 (with its venv module), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; \
	fi; \
	echo "environment: .venv (from $$found; the first installation takes some minutes)"; \
	"$$found" -m venv .venv || { rm -rf .venv; echo "Hint: the venv module of Python 3.11 is missing; on Debian and Ubuntu: apt install python3.11-venv" >&2; exit 2; }

# params.yaml anew from the defaults of stages/config.py: after adding or tuning one
params: .venv/.installed
	python -m npas_cli.options > params.yaml.new && mv params.yaml.new params.yaml

clean:
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find stages npas_cli tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .npas .dvc/cache .dvc/tmp *.egg-info probe pretrain replace_ops search_scheme search_pruner compile bench lifelong report.html dvc.lock
