# Two commands do everything: `make run` and `make test`. Each sets up a virtual environment first.

# The newest Python that really starts (a version manager's shim may be there and fail).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
NEWEST_PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 \
	$(wildcard $(foreach v,14 13 12,$(HOME)/.pyenv/versions/3.$(v)*/bin/python)); do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
export MPLBACKEND := Agg
# What one test has compiled, the next need not.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.3

.PHONY: run test lint types test-fast test-slow test-exhaustive test-newest run-notebooks notebooks benchmarks clean

run: $(VENV)/.experiments  ## the main job: ten methods, five seeds, two tasks, real digits
	$(BIN)/python -m experiments.multi_task_learning

test: lint types test-fast test-slow run-notebooks

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/pyright --pythonpath $(BIN)/python

# These compile for most of their time: LLVM had better not optimise. Fusions through MLIR take
# twice the time of those without, which only some versions of jaxlib have; an unknown flag aborts.
PLAIN_FLAGS := $(XLA_FLAGS) --xla_backend_optimization_level=0
QUICK_FLAGS := $(PLAIN_FLAGS) --xla_cpu_use_fusion_emitters=false

test-fast: $(VENV)/.test
	flags="$(PLAIN_FLAGS)"; \
	XLA_FLAGS="$(QUICK_FLAGS)" $(BIN)/python -c "import jax; jax.devices()" 2>/dev/null && flags="$(QUICK_FLAGS)"; \
	XLA_FLAGS="$$flags" $(PYTEST) -m "not slow and not exhaustive" -n 2 --dist loadfile

test-slow: $(VENV)/.test
	$(PYTEST) -m "slow and not exhaustive" -n 2 --dist loadfile

test-exhaustive: $(VENV)/.test  ## what takes minutes to compile
	$(PYTEST) -m exhaustive -n 2 --dist loadfile

run-notebooks: $(VENV)/.test
	cd notebooks && for notebook in *.py; do echo "$$notebook" && PYTHONPATH=.. ../$(BIN)/python $$notebook || exit 1; done

test-newest:  ## the fast tests on the newest jax, where a Python ≥ 3.12 is found
ifeq ($(NEWEST_PYTHON),)
	@echo "test-newest: no Python >= 3.12 found, nothing run"
else
	$(NEWEST_PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade pip
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e ".[test,experiments]"
	.venv-newest/bin/python -c "import jax, sys; print('jax', jax.__version__, 'python', sys.version.split()[0])"
	.venv-newest/bin/python -m pytest -m "not slow and not exhaustive" -n 2 --dist loadfile
endif

notebooks: $(VENV)/.test
	$(BIN)/jupytext --to ipynb notebooks/*.py

benchmarks: $(VENV)/.test
	$(BIN)/python -m experiments.benchmarks

clean:
	rm -rf .venv .venv-newest .jax_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 found; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.experiments: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[experiments]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[test,experiments,notebooks]"
	@touch $@ $(VENV)/.experiments
