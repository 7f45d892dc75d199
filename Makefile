# The project's front door. `make help` lists what there is; every target sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo dev test lint lock clean

help:  ## show this list
	@echo "make demo                    one video's whole way on this machine: upload to events (VIDEO=path for yours)"
	@echo "make dev                     the same stack with Dagster's UI, until Ctrl-C (FRESH=1 forgets everything first)"
	@echo "make test                    the whole test suite"
	@echo "make lint                    style, types"
	@echo "make lock                    renew requirements.lock after a change in pyproject.toml"
	@echo "make clean                   remove .venv and .capstone (the local stack's data)"
	@echo
	@echo "After the first of them, .venv/bin/capstone --help lists the commands."

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing some 170 pinned packages, about 6 GB with PyTorch: minutes on the first run, never again."
	$(BIN)/python -m pip install --disable-pip-version-check --no-input --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-input --no-deps --no-build-isolation -e .
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/capstone demo $(if $(VIDEO),"$(VIDEO)")

dev: $(INSTALLED)
	@$(BIN)/capstone dev $(if $(FRESH),--fresh)

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(INSTALLED)
	$(BIN)/python -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/lock/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) .capstone
