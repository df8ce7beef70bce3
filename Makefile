# make demo   set up .venv, run the whole pipeline on the embedded corpus
# make test   the same set-up, then the test suite
# make check  linting, types and the fast tests
# make audit  known vulnerabilities of what is installed; needs the network
# make test-gpu   what needs a GPU, on one

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: help setup setup-dev demo test test-long test-gpu check audit clean

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

# Not part of `make test`: the list of vulnerabilities is asked for over the network, and changes.
audit: setup
	@$(PY) -m pip_audit --version >/dev/null 2>&1 || $(PY) -m pip install --quiet pip-audit || \
		{ echo "audit: pip-audit cannot be installed from here: nothing was checked"; exit 1; }
	@$(PY) -c 'from urllib.request import urlopen; urlopen("https://pypi.org/pypi/pip/json", timeout=20)' \
		2>/dev/null || \
		{ echo "audit: pypi.org, which lists vulnerabilities, is not reached: nothing was checked"; exit 1; }
	$(PY) -m pip_audit --local

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
