# One command each, on a machine with Python 3.11 or newer and make: everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Two workers of one thread each: the suite is made of many small pieces, not of large matrices.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: help install demo check test faults lint format clean

help:
	@echo "make install   create .venv and install sft with its development tools"
	@echo "make demo      the whole pipeline on bundled samples: build, train, evaluate, export, one exchange"
	@echo "make check     lint, types and the tests of what changed: a minute"
	@echo "make test      all tests, and the slowest twenty"
	@echo "make faults    the long fault injection and the planted bugs: half an hour; rewrites tests/faults/RESULTS.md"
	@echo "make lint      ruff, mypy and shellcheck"
	@echo "make format    let ruff format the code"
	@echo "make clean     remove .venv, runs/ and caches"

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sft needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/sft demo

check: lint
	$(PYTEST) $$($(BIN)/python -m tests.support.affected)

test: install
	$(PYTEST) --durations=20 --durations-min=1

faults: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.runner --long --report tests/faults
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.mutations --report tests/faults

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources slurm/*.sbatch slurm/*.sh .ci/run

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
