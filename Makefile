# Two commands: `make demo` shows the whole way, `make test` proves it. Each sets up what it lacks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROFILE ?= demo
PHOTOS ?=
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true
export TOKENIZERS_PARALLELISM ?= false
# Bytecode is made once: a process that imports diffusers takes 15 s of a slow core without it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test check audit bench lock clean

help: ## Show what there is to do
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/ready ## Make .venv from requirements.lock and check the compiler

# The lock is complete: nothing is to be resolved. Bytecode is made where a module is first used, most is never.
$(VENV)/ready: requirements.lock pyproject.toml infra/setup/check.py
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "error: $$($(PYTHON) --version) cannot run this; use PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "error: no venv module; apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	$(BIN)/python infra/setup/check.py
	@touch $@

demo: setup ## The main job, end to end, into ./.demo (PHOTOS=DIR: on your own photographs)
	$(BIN)/python infra/demo/demo.py --profile $(PROFILE) $(if $(PHOTOS),--photos '$(PHOTOS)')

# Tests that train on several ranks, one after the other: ranks of two tests at once wait for each other's cores (a step
# of two ranks of `mini` took 15 s on two cores).
RANKS := tests/e2e $(addprefix tests/integration/test_,elastic.py poisoned_training.py train.py zero_engine.py)

test: setup ## All tests but those marked gpu: unit, integration, and the jobs as their users submit them
	$(BIN)/python -m pytest -m "not gpu" $(RANKS)
	$(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder $(RANKS:%=--ignore=%) tests/integration tests/unit

# Results of benches and the list of calibration images hold hashes, which look like keys, and JSON takes no comment that
# says so; pinned revisions likewise.
SECRETS := $(BIN)/python -m detect_secrets.pre_commit_hook --no-verify \
	--exclude-files '^tests/bench/results/.*\.json$$|^platform/lookalike/assets/calibration/images\.json$$|\.safetensors$$' --exclude-lines '^ *revision: .?[0-9a-f]{40}'

check: setup ## Lint, format, types, import contracts, secrets, licences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy platform/lookalike pipelines jobs infra/demo infra/local infra/setup
	$(BIN)/lint-imports
	git ls-files -z | xargs -0 $(SECRETS)
	$(BIN)/python infra/setup/licences.py

audit: setup ## Known vulnerabilities of each package of requirements.lock, and which packages could not be audited
	$(BIN)/python infra/setup/audit.py

bench: setup ## What takes too long for the tests; results go to tests/bench/results
	$(BIN)/python -m pytest tests/bench -m "not gpu" --timeout 7200 -s

lock: ## Resolve requirements.lock anew from pyproject.toml
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/pip install --quiet --upgrade pip && .lock-venv/bin/pip install --quiet 'torch==2.13.0' -e '.[dev]'
	{ echo '# Exact versions of everything; `make setup` installs them. Made by `make lock` from pyproject.toml.'; \
		.lock-venv/bin/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > requirements.lock
	rm -rf .lock-venv

clean: ## Remove what the demo and the tools left behind (not .venv)
	rm -rf .demo .local .mypy_cache .ruff_cache .import_linter_cache
