# Two commands on a fresh machine: `make quickstart` and `make test`. Each makes .venv first where it is missing.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
WORKERS ?= 2
MINUTES ?= 8
OUT ?= outputs/gpu
BIN := $(VENV)/bin
UV := $(shell command -v uv)
PIP := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input)
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

# Tests read no model or data set from a hub and report nowhere; tests/conftest.py sets the same for plain pytest.
TEST_ENV := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 WANDB_MODE=disabled
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# What a user needs, and then one stamp for each set of extras; a newer pyproject.toml or constraints.txt makes both anew.
comma := ,
USER_STAMP := $(VENV)/.setup
STAMP := $(USER_STAMP)-$(subst $(comma),-,$(EXTRAS))

.DEFAULT_GOAL := help
.PHONY: help setup quickstart bench gpu compare compare-methods test test-all test-newest docs house lint format clean same

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with the tested stack (EXTRAS=dev,deepspeed for more)

$(USER_STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "There is no $(PYTHON) here. Name a Python of 3.11 or newer: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit("srpo-trl needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + ". Give another one: make setup PYTHON=/path/to/python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "[setup 1/3] virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[setup 2/3] $(TORCH): downloads 0.2 GB as a CPU build, 3 GB with CUDA"
	@$(PIP) $(TORCH)
	@echo "[setup 3/3] srpo-trl, TRL, transformers and what they need: downloads 0.2 GB"
	@$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(STAMP): $(USER_STAMP)
	@echo "[setup] srpo-trl[$(EXTRAS)], the tools to work on it: downloads 0.4 GB"
	@$(PIP) --constraint constraints.txt --editable '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

quickstart: $(USER_STAMP) ## Train a tiny model with GRPO, SDPO and SRPO in minutes on a CPU
	$(BIN)/srpo-trl quickstart

bench: setup ## Time ours and its peers at CPU sizes, on one thread (an hour), and BEFORE=COMMIT beside them
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks --device cpu $(if $(BEFORE),--before $(BEFORE))

gpu: setup ## Measure everything on one GPU in MINUTES=8, into OUT; again to go on (docs/gpu.md)
	$(BIN)/python -m benchmarks.gpu --minutes $(MINUTES) --out $(OUT) $(if $(MODEL),--model $(MODEL))

compare: setup ## The learning study: four offline tasks, up to 27 rows, 5 seeds (hours on a CPU; resumes where it stopped)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.learning

compare-methods: setup ## Every method on one offline task, 3 seeds, 60 steps (an hour on a CPU; resumes where it stopped)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.family

same: setup ## Compare short runs of this tree with those of REV=<commit>, bit for bit
	$(BIN)/python scripts/same --rev $(REV) $(if $(ONLY),--only $(ONLY))

test: lint ## Lint, type-check, run the fast tests and the notebooks
	$(PYTEST) -m "not slow" tests

test-all: lint ## Everything: slow tests, other versions of the stack, then the mutants
	$(PYTEST) tests
	$(BIN)/python scripts/version_matrix.py
	$(TEST_ENV) $(BIN)/python scripts/mutants

test-newest: setup ## The core tests with the newest versions that pyproject.toml allows
	$(BIN)/python scripts/version_matrix.py newest

docs: setup ## Build the documentation as a site in build/site, warnings as errors
	$(BIN)/mkdocs build --strict
	@echo "Open build/site/index.html in a browser. While you write: $(BIN)/mkdocs serve"

house: setup ## Figures of the source tree and their limits: floors, cycles, sizes, names
	$(BIN)/python scripts/house.py

lint: setup ## ruff check, ruff format --check, mypy, and the limits of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/house.py

format: setup ## Let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment and caches; outputs stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
