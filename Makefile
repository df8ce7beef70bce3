# make demo   set up .venv, run the whole pipeline on the embedded corpus
# make test   the same set-up, then the test suite
# make check  linting, types and the fast tests
# make test-gpu   what needs a GPU, on one

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: help setup setup-dev demo test test-long test-gpu check clean

help:
	@sed -n 's/^# make/make/p' Makefile

# Without an NVIDIA GPU the pinned version is asked for alone first, so that a local CPU build is
# taken where the package index offers one.
$(VENV)/.ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; set PYTHON=..."; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	command -v nvidia-smi >/dev/null 2>&1 || $(PY) -m pip install --quiet "torch==2.13.0"
	$(PY) -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	$(PY) -m pip install --quiet -r requirements-dev.txt
	touch $@

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

demo: setup
	$(PY) -m pipeline run recipes/demo_mlstm.yaml
	$(PY) -m pipeline run recipes/demo_transformer.yaml

test: setup-dev
	$(PY) -m pytest -m "not long"

test-long: setup-dev
	$(PY) -m pytest

test-gpu: setup-dev
	$(PY) -m pytest -m gpu tests/gpu tests/pipeline

check: setup-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -m "not long" tests/data_prep tests/pipeline -x

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
