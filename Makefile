# `make test` and `make demo` need nothing but a Python of 3.11 or newer: each sets up .venv once.
# PYTHON=/path/to/python picks another one than the first that is found.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
CANDIDATES := $(PYTHON) python3.11 python3 python3.12 python3.13 python3.14
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.PHONY: help setup test lint types unit slow demo clean

help:
	@echo "make demo   fit a prior to the bundled radon data and eight schools; figures in ./demo"
	@echo "make test   everything CI runs: make lint (ruff), make types (pyright), make unit (pytest)"
	@echo "make slow   the long tests"
	@echo "make clean  remove .venv"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c "" 2>/dev/null; then \
	    found=""; for candidate in $(CANDIDATES); do \
	        if "$$candidate" -c "$(SUITABLE)" 2>/dev/null; then found="$$candidate"; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "bayesmeta needs Python 3.11 or newer with venv; none of these is: $(CANDIDATES)." >&2; \
	        echo "Install one (Debian: apt-get install python3 python3-venv), or say make PYTHON=/path/to/python." >&2; \
	        exit 1; \
	    fi; \
	    echo "Creating $(VENV) with $$("$$found" --version)."; \
	    "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo "Installing bayesmeta and what it needs into $(VENV) (some minutes, the first time only)."
	@# torch alone first: a pip that sees it together with the rest may pick a newer build.
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[test]'
	@touch $(READY)

test: lint types unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(READY)
	@# One thread for each of the processes that share the tests, or they wait for each other.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8

slow: $(READY)
	$(BIN)/python -m pytest -m slow

demo: $(READY)
	$(BIN)/bayesmeta demo --out demo --overwrite

clean:
	rm -rf $(VENV)
