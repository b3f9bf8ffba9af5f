# SPDX-License-Identifier: Apache-2.0
# build: environment and libraries   test: the tests   check: what pre-commit checks
# demo: train with and without pruning   bench: the benchmarks   soak: the long tests
# wheel: one wheel in dist/   clean: remove what was built
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.SUFFIXES:

PYTHON ?= python3
export PE_WERROR := 1
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
FILES = $(wildcard $(shell git ls-files --cached --others --exclude-standard 2>/dev/null \
  || find . -type f -not -path './.*' -not -path './build/*' -not -path './dist/*'))

.PHONY: build test check demo bench soak wheel clean
.PHONY: check-text check-python check-types check-native check-spelling

build: prune_engine/_ops.so

# Set up once; again when what is installed, or how, has changed.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@echo "setting up $(VENV) (once; torch is large)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools wheel pybind11 ninja numpy torch
	$(PIP) --no-build-isolation --editable '.[test,train]'
	touch $@

# ninja compiles only what changed; both libraries come from this one command.
prune_engine/_ops.so: $(VENV)/.installed $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

test: build
	$(BIN)/python -m pytest -q

soak: build
	$(BIN)/python -m pytest -q -m "slow or soak"

demo: build
	$(BIN)/prune-engine train --compare --out runs/demo

bench: build
	$(BIN)/python -m pytest bench --benchmark-only

wheel: $(VENV)/.installed
	rm -rf build/lib* build/bdist*
	$(BIN)/python -m pip --disable-pip-version-check wheel --no-build-isolation --no-deps \
	  --wheel-dir dist .

clean:
	rm -rf build dist runs prune_engine.egg-info prune_engine/*.so $(VENV)/.installed $(VENV)/.dev
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

check: check-text check-python check-types check-native check-spelling

check-text: $(VENV)/.dev
	$(BIN)/trailing-whitespace-fixer $(FILES)
	$(BIN)/end-of-file-fixer $(FILES)
	$(BIN)/check-added-large-files --enforce-all --maxkb=300 $(FILES)
	$(BIN)/check-yaml $(filter %.yaml %.yml,$(FILES) .pre-commit-config.yaml)
	$(BIN)/check-toml $(filter %.toml,$(FILES))

check-python: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

check-types: $(VENV)/.dev
	$(BIN)/basedpyright

check-native: $(VENV)/.dev
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

check-spelling: $(VENV)/.dev
	$(BIN)/codespell $(FILES)
