# Two commands do everything: `make run` and `make test`. Each sets up a virtual environment first.

# The newest supported Python that really starts (a version manager's shim may be there and fail):
# it has the newest jax, and jaxlib before 0.11.1 can deadlock on a CPU.
starting = $(shell for p in $(foreach v,$(1),python3.$(v) $(wildcard $(HOME)/.pyenv/versions/3.$(v).*/bin/python)); do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PYTHON ?= $(call starting,13 12 11)
OLDEST_PYTHON ?= $(call starting,11)
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
export MPLBACKEND := Agg
# What one test has compiled, the next need not.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: run test lint types test-fast test-slow test-exhaustive test-oldest run-notebooks notebooks docs benchmarks accelerator clean

# A first table in two minutes: the strongest methods and a baseline. FULL=1 is all of it.
FIRST := --methods "fixed weights" MWGraD-Blob A-MWGraD-Blob --seeds 0 1 --num-epochs 15 \
	--output runs/multi_task_learning/digits-first

run: $(VENV)/.experiments  ## the main job: methods and seeds, two tasks, real digits
	$(BIN)/python -m experiments.multi_task_learning $(if $(FULL),,$(FIRST))
	@$(if $(FULL),,echo "These are three methods, two seeds and 15 epochs. The full table, of ten methods, five" \
	"seeds and 40 epochs, takes about a quarter of an hour: make run FULL=1")

test: lint types test-fast test-oldest test-slow run-notebooks docs

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/pyright --pythonpath $(BIN)/python & package=$$!; \
	$(BIN)/pyright -p tests/pyright.json --pythonpath $(BIN)/python && wait $$package

# These compile for most of their time: LLVM had better not optimise. Fusions through MLIR take
# twice the time of those without, which only some versions of jaxlib have; an unknown flag aborts.
PLAIN_FLAGS := $(XLA_FLAGS) --xla_backend_optimization_level=0
QUICK_FLAGS := $(PLAIN_FLAGS) --xla_cpu_use_fusion_emitters=false
fast = flags="$(PLAIN_FLAGS)"; \
	XLA_FLAGS="$(QUICK_FLAGS)" $(1) -c "import jax; jax.devices()" 2>/dev/null && flags="$(QUICK_FLAGS)"; \
	XLA_FLAGS="$$flags" $(1) -m pytest -m "not slow and not exhaustive" -n 2 --dist loadfile

# The contract suite runs with the annotations of the functions inside of the package checked.
test-fast: $(VENV)/.test
	$(call fast,$(BIN)/python) -p tests.typechecked tests/contract
	$(call fast,$(BIN)/python) --ignore tests/contract

test-slow: $(VENV)/.test
	$(PYTEST) -m "slow and not exhaustive" -n 2 --dist worksteal

test-exhaustive: $(VENV)/.test  ## what takes minutes to compile
	$(PYTEST) -m exhaustive -n 2 --dist loadfile

run-notebooks: $(VENV)/.test
	cd notebooks && ls *.py | PYTHONPATH=.. xargs -P 2 -I notebook sh -c 'echo notebook && ../$(BIN)/python notebook'

# What is quick of the contract; all of it takes as long as here (OLDEST_TESTS=tests/contract).
OLDEST_TESTS ?= tests/core/test_linalg.py $(patsubst %,tests/contract/test_%.py,methods kernels inference numpy_memory)

test-oldest:  ## factorisations and some of the contract on the oldest supported Python and its jax
ifeq ($(OLDEST_PYTHON),)
	@echo "test-oldest: no Python 3.11 found, nothing run"
else
	test -x .venv-oldest/bin/python || $(OLDEST_PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	.venv-oldest/bin/python -m pip install --quiet -e ".[test,experiments]"
	.venv-oldest/bin/python -c "import jax, sys; print('jax', jax.__version__, 'python', sys.version.split()[0])"
	$(call fast,.venv-oldest/bin/python) $(OLDEST_TESTS)
endif

notebooks: $(VENV)/.test
	$(BIN)/jupytext --to ipynb notebooks/*.py

docs: $(VENV)/.docs  ## the documentation, in docs/_build/html; a broken reference is an error
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

benchmarks: $(VENV)/.test
	$(BIN)/python -m experiments.benchmarks

accelerator: $(VENV)/.test  ## tests, speed and training on whatever device JAX sees; again to go on
	$(BIN)/python -m experiments.accelerator

clean:
	rm -rf .venv .venv-oldest .jax_cache .pytest_cache .ruff_cache .hypothesis docs/_build

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

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	@touch $@
