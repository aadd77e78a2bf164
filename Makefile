# Everything here works on a clean clone: each target first gets what it needs.
# PYTHON=/path/to/python picks the interpreter for .venv (3.11 or newer).

PY := .venv/bin/python
PORT ?= 9200
FAULTS ?= 300
STAGES ?= 2
SEED ?=
INPUTS ?= 100000
export PORT ONCE LOG PYTHON

.DEFAULT_GOAL := help
.PHONY: help run test check bench estimates chaos fuzz lock clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

run: ## Start a hive, load the example model and ask it (PORT=9300: another port; ONCE=1: end after the answer; LOG=info: the hive's log)
	@scripts/venv run
	@exec $(PY) scripts/quickstart

check: ## Format, lint, types and imports
	@scripts/venv dev
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	.venv/bin/lint-imports

test: check ## Everything that must pass: check, then all tests
	@scripts/tools
	@PATH="$$PATH:$$(scripts/tools --path)" $(PY) -m pytest

bench: ## Measure, and print the table
	@scripts/venv dev
	$(PY) -m bench.main

estimates: ## Whether the estimates of memory hold: two real models at ten settings (QUICK=1: at two)
	@scripts/venv dev
	$(PY) -m bench.estimates $(if $(QUICK),--quick)

chaos: ## Faults at random into a hive that serves, and the table of what came of them (FAULTS=300 SEED=123: so many, the same ones again; STAGES=2: hives side by side)
	@scripts/venv dev
	@scripts/tools
	@PATH="$$PATH:$$(scripts/tools --path)" $(PY) -m tests.chaos.main --faults $(FAULTS) --stages $(STAGES) $(if $(SEED),--seed $(SEED))

fuzz: ## Damaged headers of models, requests and their bodies into their readers (INPUTS=1000: so many each; SEED=123)
	@scripts/venv dev
	@scripts/fuzz
	.tools/fuzz/bin/python -m tests.fuzz.gguf_header --inputs $(INPUTS) $(if $(SEED),--seed $(SEED))
	INPUTS=$(INPUTS) $(PY) -m pytest -q -s --timeout=0 -o faulthandler_timeout=0 tests/property/test_gguf.py tests/property/test_gateway_parsers.py
	INPUTS=$(INPUTS) $(if $(SEED),SEED=$(SEED)) $(PY) -m pytest -q --timeout=0 tests/property/test_asked.py

lock: ## Write the lock files again (UPGRADE=1: with the newest versions)
	@scripts/lock

clean: ## Remove what the other targets made, but for the state in .rbee
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .bench dist
