# Everything runs from .venv, which the first target that needs it makes; see scripts/install.sh for PYTHON and TORCH_INDEX.
.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := .venv/bin
export PYTHON TORCH_INDEX

install = @sh scripts/install.sh

.PHONY: help demo test check lint types format bench bench-replay clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a real vLLM with tiny models, real load, the breakdown and the page (ONCE=1 ends after the table)
	$(install) cpu
	@exec $(BIN)/python -m taxbreak_vllm.cli demo $(if $(filter-out 0,$(ONCE)),--once)

test: ## all tests, those on a real vLLM server included (ARGS='-m "not e2e"' for the quick ones)
	$(install) cpu,test
	$(BIN)/python -m pytest $(ARGS)

check: lint types test ## what CI runs: format, lint, types, tests

lint: ## ruff: format and rules
	$(install) cpu,dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: ## mypy, strict, on the package
	$(install) cpu,dev
	$(BIN)/mypy

format: ## let ruff rewrite what it can
	$(install) cpu,dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: ## speed and memory of the trace analysis beside its peers, in one run (BENCH=--huge for a 1.2 GB trace)
	$(install) cpu,test
	$(BIN)/python benchmarks/trace_speed.py $(BENCH)

bench-replay: ## speed of replay beside one process per signature, and whether two runs agree
	$(install) cpu,test
	$(BIN)/python benchmarks/replay_speed.py $(BENCH)

clean: ## remove .venv and every cache
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .demo build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
