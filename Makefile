# SPDX-License-Identifier: Apache-2.0
# build: environment and libraries   test: the tests, in minutes   check: what pre-commit checks
# test-full: what is too long for those: compilers, wheels, trainings, a brief soak
# demo: train with and without pruning   bench: the benchmarks   soak: the long tests
# test-integrations: the integrations with the frameworks' own packages, in an environment of theirs
# wheel: what is released, in dist/   test-wheel: the tests against that
# extremes: the same with the oldest and the newest torch and Python, as far as they can be had
# clean: remove what was built
# nvcc: find a CUDA compiler or take one from PyPI's packages, as CI does before its tests
# gpu: on a GPU machine, one sitting with its own python: tests, benchmark, counters, sanitizers
# gpu-build, gpu-tests, gpu-bench, sanitize: there, one thing alone
# sitting: what travels to such a machine and the calls to send, for one that is lent for minutes
# gpu-wheel: there too, the GPU's tests against a wheel that was built elsewhere
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.SUFFIXES:

PYTHON ?= python3
export PE_WERROR := 1
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
# What a set-up says goes to this file, which is named where the set-up fails.
SETUP_LOG := $(VENV)/setup.log
LOGGED = >> $(SETUP_LOG) 2>&1
FAILED = { tail -n 5 $(SETUP_LOG) >&2; echo "it failed; all that it said is in $(SETUP_LOG)" >&2; false; }
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
FILES = $(wildcard $(shell git ls-files --cached --others --exclude-standard 2>/dev/null \
  || find . -type f -not -path './.*' -not -path './build/*' -not -path './dist/*'))
# States saved by earlier versions are read byte for byte.
TEXTS = $(filter-out %.pt,$(FILES))

.PHONY: build test test-full test-integrations check demo bench soak wheel test-wheel extremes clean nvcc
.PHONY: gpu gpu-build gpu-tests gpu-bench gpu-wheel sanitize sitting
.PHONY: check-text check-python check-types check-native check-spelling

build: prune_engine/_ops.so

# Set up once; again when what is installed, or how, has changed.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@echo "setting up $(VENV) (once; torch is large)"
	@mkdir -p $(VENV) && : > $(SETUP_LOG)
	@{ $(PYTHON) -m venv $(VENV) && $(PIP) setuptools wheel pybind11 ninja numpy torch && \
	  $(PIP) --no-build-isolation --editable '.[test,train]'; } $(LOGGED) || $(FAILED)
	@touch $@

# ninja compiles only what changed; both libraries come from this one command.
prune_engine/_ops.so: $(VENV)/.installed $(wildcard $(VENV)/.nvcc) $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# Two files at a time, on a thread each: the tests that are about threads set their number. Which are
# begun first is in tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs --numprocesses 2 \
  --dist loadfile --no-loadscope-reorder

test: build
	$(PYTEST)

test-full: build $(VENV)/.dev
	$(PYTEST) -m "full and not slow and not cuda"

# Pinned releases in build/integrations, set up once; the library is the one of this tree.
test-integrations: build
	$(BIN)/python .ci/integrations.py

# The build's own search; what it prints is why there is none.
FIND_NVCC := $(BIN)/python csrc/build/toolkit.py

nvcc: $(VENV)/.nvcc

# The library is built again when this file appears. Without a compiler it does not, and the tests
# that need one say so.
$(VENV)/.nvcc: $(VENV)/.installed
	@if $(FIND_NVCC) || { echo "taking nvcc from PyPI's packages" && \
	  { $(PIP) --no-build-isolation --editable '.[nvcc]' $(LOGGED) || $(FAILED); } && $(FIND_NVCC); }; \
	then touch $@; \
	else echo "no nvcc, installed or as packages: no CUDA kernel is built or judged"; fi

# A slow test builds what is released, with the tools of the dev extra.
soak: build $(VENV)/.dev
	$(BIN)/python -m pytest -q -m "slow or soak"

demo: build
	$(BIN)/prune-engine train --compare --out runs/demo

bench: build
	$(BIN)/python -m pytest bench --benchmark-only

# The machine's own python3: it has the torch that drives its GPU. Nothing is downloaded.
GPU_PYTHON ?= $(PYTHON)
# Only the files that have such tests: the others may need packages that a GPU machine lacks.
GPU_FILES = $(shell grep -rl 'mark\.cuda' tests --include='test_*.py')
SITTING := $(GPU_PYTHON) bench/sitting.py

# The three calls, each with its own limit, 13 minutes in all. Each takes the library that is here,
# else builds one for this GPU alone.
gpu:
	@$(SITTING) all

# The machine's compiler is another than CI's: its new warnings are no reason to lose the machine.
gpu-build:
	@$(GPU_PYTHON) -c 'import sys, torch; \
	  sys.exit(0 if torch.cuda.is_available() else "make gpu needs a GPU, and torch finds none")'
	PE_CUDA=1 PE_WERROR=0 $(GPU_PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .

# All of the tests, in as much time as they need.
gpu-tests:
	@$(SITTING) 1 --only tests --seconds 900; first=$$?; \
	  $(SITTING) 3 --only nccl slow-tests --seconds 900 && exit $$first

gpu-bench:
	@$(SITTING) 1 --only benchmark

sanitize:
	@$(SITTING) 2 --only sanitizer --seconds 600

# Refused where the library is missing or older than its sources.
sitting: build
	$(BIN)/python bench/sitting.py pack

# The very file of `make wheel PYTHONS=`, brought along in dist/; nothing is built.
gpu-wheel:
	timeout --signal=INT --kill-after=10 330 $(GPU_PYTHON) .ci/suite.py dist/*-py3-none-*.whl -- \
	  -m cuda --durations=5 $(GPU_FILES)

# PYTHONS="python3.12 python3.13" chooses the Pythons of the wheels with the NumPy module; PYTHONS=
# builds the wheel for every Python alone.
wheel: $(VENV)/.dev
	$(BIN)/python .ci/wheels.py $(if $(filter undefined,$(origin PYTHONS)),,--python $(PYTHONS))

# The tests against the installed wheels: the one for every Python, and that of this Python.
test-wheel: wheel
	$(BIN)/python .ci/suite.py dist/*.whl
	$(BIN)/python .ci/suite.py dist/cpython/*-$$($(BIN)/python -c \
	  'import sys; print("cp%d%d" % sys.version_info[:2])')-*.whl

# The wheel for every Python alone, and not into dist/: this is for a test.
extremes: build $(VENV)/.dev
	$(BIN)/python .ci/wheels.py --python --dist build/extremes
	$(BIN)/python .ci/extremes.py build/extremes/*.whl

clean:
	rm -rf build dist runs prune_engine.egg-info prune_engine/*.so \
	  prune_engine/_build_info.json $(VENV)/.installed $(VENV)/.dev
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.dev: $(VENV)/.installed
	@echo "adding the tools of the dev extra to $(VENV)"
	@$(PIP) --no-build-isolation --editable '.[dev]' $(LOGGED) || $(FAILED)
	@touch $@

check: check-text check-python check-types check-native check-spelling

check-text: $(VENV)/.dev
	$(BIN)/trailing-whitespace-fixer $(TEXTS)
	$(BIN)/end-of-file-fixer $(TEXTS)
	$(BIN)/check-added-large-files --enforce-all --maxkb=300 $(FILES)
	$(BIN)/check-yaml $(filter %.yaml %.yml,$(FILES) .pre-commit-config.yaml)
	$(BIN)/check-toml $(filter %.toml,$(FILES))
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows $(wildcard .github/workflows/*)
	$(BIN)/hadolint .ci/Dockerfile
	$(BIN)/zizmor --offline --quiet .github/workflows

check-python: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

check-types: $(VENV)/.dev
	$(BIN)/basedpyright

check-native: $(VENV)/.dev
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

check-spelling: $(VENV)/.dev
	$(BIN)/codespell $(FILES)
