# Every command of the README; `make` alone lists them.
#
# The virtual environment is created and filled on demand. Stamp files inside it remember what was
# installed: a second run starts at once, a changed dependency or another PYTHON installs again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
CREATED := $(VENV)/.created-with-$(subst /,_,$(PYTHON))
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-slow bench docs lint clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s  %s\n", $$1, $$2}' Makefile
	@echo 'Another Python (3.10 or later): make test PYTHON=python3.12'

demo: $(VENV)/.installed-demo ## Fit two posteriors, baseball by a guide and a planet by fit: tables and figures
	$(BIN)/python -m experiments baseball --demo --resume
	$(BIN)/python -m experiments exoplanet

test: lint ## Run the linters and the tests
	$(PYTEST)

test-slow: $(VENV)/.installed-test ## Run the tests that take longer
	$(PYTEST) -m slow

bench: $(VENV)/.installed-demo ## Measure speed and memory: the tables of docs/benchmarks.md
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed-docs ## Build the documentation: docs/_build/html
	rm -rf docs/api/generated
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -E docs docs/_build/html

lint: $(VENV)/.installed-test ## Run ruff, mypy and the check of private attributes
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python .ci/private_attributes.py

clean: ## Remove the virtual environment, caches and build outputs (results/ stays)
	rm -rf $(VENV) build dist docs/_build docs/api/generated docs/tutorials *.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-demo: EXTRAS := experiments
$(VENV)/.installed-test: EXTRAS := experiments,test
$(VENV)/.installed-docs: EXTRAS := docs
$(VENV)/.installed-demo $(VENV)/.installed-test $(VENV)/.installed-docs: $(CREATED) setup.cfg pyproject.toml constraints.txt
	@echo 'installing into $(VENV), which takes minutes the first time (log: $(LOG))'
	@$(BIN)/python -m pip install -c constraints.txt -e '.[$(EXTRAS)]' >$(LOG) 2>&1 || { \
	  cat $(LOG) >&2; \
	  exit 1; }
	@touch $@

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo 'error: "$(PYTHON)" is not a Python 3.10 or later; name one: make ... PYTHON=python3.12' >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo 'error: "$(PYTHON)" cannot create virtual environments: it has no ensurepip or venv.' >&2; \
	  echo 'Debian and Ubuntu ship them apart: apt install python3-venv' >&2; \
	  exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
