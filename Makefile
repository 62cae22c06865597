# Everything runs from .venv, which the first target that needs it makes; see scripts/install.sh for PYTHON and TORCH_INDEX.
.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := .venv/bin
export PYTHON TORCH_INDEX
# pip leaves compiling to the first import of a module, so what that compiles is kept, whatever the caller's wish
export PYTHONDONTWRITEBYTECODE =

install = @sh scripts/install.sh
# N processes, a module to one of them; longest first, as tests/conftest.py sorts them
N = 2
pytest = $(BIN)/python -m pytest -n $(N) --dist loadfile --no-loadscope-reorder

.PHONY: help demo demo-fleet test test-nightly check lint types format bench bench-step bench-scrape bench-replay bench-serving bench-advice bench-limit bench-whatif bench-whatif-pairs bench-workload bench-workload-pairs soak compat dashboards pictures check-api check-dashboards check-deploy release-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-22s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a real vLLM with tiny models, real load, the breakdown and the page (ONCE=1 ends after the table)
	$(install) cpu
	@exec $(BIN)/python -m taxbreak_vllm.cli demo $(if $(filter-out 0,$(ONCE)),--once)

demo-fleet: ## two such servers, an archive of what they recorded, and the report of both as one page, fleet.html
	$(install) cpu,archive
	@exec $(BIN)/python -m taxbreak_vllm.cli demo --once --fleet fleet.html

test: ## the tests of every change, those on a real vLLM server included (ARGS='-m "not e2e"' for the quick ones)
	$(install) cpu,test
	$(pytest) -m '$(shell sh scripts/proofs.sh)' $(ARGS)

test-nightly: ## the rest: every injected fault, ranks, Ray, replay of two models, demo, dashboards, older vLLMs
	$(install) cpu,test
	$(pytest) -m nightly $(ARGS)
	NIGHT=1 $(pytest) -m hypothesis $(ARGS)
	@sh scripts/compat.sh 0.26.0 0.29.0

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

bench-step: ## what an unrecorded step costs worker and engine, beside empty wrappers, and what recording one holds up
	$(install) cpu,test
	$(BIN)/python benchmarks/step_cost.py --json benchmarks/results/step_cost.json
	$(BIN)/python benchmarks/stop_cost.py --json benchmarks/results/stop_cost.json
	$(BIN)/python benchmarks/loop_cost.py
	$(BIN)/python benchmarks/request_cost.py

bench-replay: ## speed of replay beside one process per signature, and whether two runs agree
	$(install) cpu,test
	$(BIN)/python benchmarks/replay_speed.py $(BENCH)

bench-scrape: ## time of a scrape, /healthz, the breakdown and the page while the analysis runs flat out
	$(install) cpu,test
	$(BIN)/python benchmarks/scrape.py $(BENCH)

.PHONY: bench-limit
bench-limit: ## work per op from recorded shapes beside torch's counter and TraceLens's definitions (BENCH='--traces DIR')
	$(install) cpu,test
	$(BIN)/python benchmarks/limit_ops.py $(BENCH)

.PHONY: bench-transition
bench-transition: ## the batch from which on the device decides, recorded, beside the timed steps of vLLM on the CPU (BENCH='--rounds 4')
	$(install) cpu,test
	$(BIN)/python benchmarks/transition.py $(BENCH)

bench-whatif: ## what if: which traces can be asked, how wrong, how quick; two simulated devices (BENCH='--traces DIR')
	$(install) cpu,test
	$(BIN)/python benchmarks/whatif.py $(BENCH)
	$(BIN)/python benchmarks/foresee_cost.py $(BENCH)
	$(BIN)/python benchmarks/slider_cost.py $(BENCH)
	$(BIN)/python benchmarks/whatif_devices.py

bench-whatif-pairs: ## what whatif predicts of a vLLM on the CPU, and what that server then takes (BENCH=--quick on a busy machine)
	$(install) cpu,test
	$(BIN)/python benchmarks/whatif_pairs.py $(BENCH)

bench-workload: ## a server's steps scheduled again, 10,000 of each setting, and how fast
	$(install) cpu,test
	$(BIN)/python benchmarks/workload.py $(BENCH)
	VLLM_PLUGINS= VLLM_LOGGING_LEVEL=ERROR OMP_NUM_THREADS=1 $(BIN)/python benchmarks/workload_speed.py

bench-workload-pairs: ## what workload predicts of other traffic and settings, and what servers then make of them (BENCH='--device cpu')
	$(install) cpu,test
	$(BIN)/python benchmarks/workload_pairs.py $(BENCH)

.PHONY: bench-archive
bench-archive: ## processor time, memory and bytes of copying captures to an archive (BENCH='--captures 2000')
	$(install) cpu,archive,test
	$(BIN)/python benchmarks/archive_cost.py $(BENCH)

.PHONY: bench-fleet
bench-fleet: ## what a fleet's report finds of planted changes and slow hosts; 20,000 captures here and on Ray (some 30 min)
	$(install) cpu,archive,test
	$(BIN)/python benchmarks/fleet_changes.py $(BENCH)
	$(BIN)/python benchmarks/fleet_speed.py

check-api: ## schemathesis, promtool and Prometheus on a real sidecar, with what they say
	$(install) cpu,test
	$(BIN)/python -m pytest -s tests/service/test_schemathesis.py tests/service/test_prometheus.py

bench-serving: ## what the plugin costs a server, as `vllm bench serve` sees it, from pairs of fresh starts (BENCH='--restarts 20')
	$(install) cpu,test
	$(BIN)/python benchmarks/serving_overhead.py $(BENCH)

bench-advice: ## each switch that a server's advice can name, turned: what was promised, what came of it (BENCH='--only few-seqs')
	$(install) cpu,test
	$(BIN)/python benchmarks/advice_switches.py $(BENCH)

soak: ## 30,000 requests to a server that records much: answers, memory, disk (SOAK='--requests 100000')
	$(install) cpu,test
	$(BIN)/python benchmarks/soak.py $(SOAK)

compat: ## the tests on a real server with vLLM 0.26.0, 0.29.0 and 0.32.0 (VERSIONS='0.30.0', ARGS=tests/e2e/test_offline.py)
	@ARGS='$(ARGS)' sh scripts/compat.sh $(VERSIONS)

dashboards: ## write the Grafana dashboards anew from their script
	$(install) cpu,dev
	$(BIN)/python dashboards/generate.py

check-dashboards: ## each panel of the dashboards with its values, from a real Prometheus (URL=http://… of a running sidecar)
	$(install) cpu,test
	@sh scripts/system_packages.sh prometheus
	$(BIN)/python dashboards/check.py $(if $(URL),--url $(URL))

check-deploy: ## compose file, Dockerfile and Helm chart, judged by the tools that will read them
	@sh deploy/checks/run.sh

pictures: ## the pictures of docs/images anew, in Chromium (ARGS='step page', ARGS='live --url http://…')
	$(install) cpu,test
	@sh scripts/system_packages.sh chromium
	$(BIN)/python scripts/pictures.py $(ARGS)

release-check: ## sdist and wheel in dist/, twine check, the wheel in a new venv, its sidecar: what is left is to upload
	@$${PYTHON:-python3} scripts/release_check.py

clean: ## remove .venv and every cache
	rm -rf .venv .venv-compat .venv-deploy .mypy_cache .pytest_cache .ruff_cache .hypothesis .demo build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
