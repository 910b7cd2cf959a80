# Two commands set everything up on a machine that has Python 3.11 or newer and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE # images set it; tests start hundreds of processes, and each would compile the package anew

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: pyproject.toml
	@echo "Installing into $(VENV), with all that tests need: some minutes, and 2.3 GB of disk."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@# Only for the Qwen and Mistral vocabularies that they ship as data, which tests read; none of their code runs.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps dashscope==2.0.2 mistral-common==1.13.1
	@touch $@

install: $(VENV)/installed ## make .venv and install the package with its development tools

demo: install ## ask the shipped demo model about the shipped pictures
	$(BIN)/tilewise demo

test: install build/torch-npu ## run the default test suite (no GPU, no network, some minutes on two cores)
	@# In the order of names: else files of few tests, which are the long ones, come last, and one worker waits.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

build/torch-npu: tests/platforms/ascend/wheels.py $(VENV)/installed
	$(BIN)/python -m tests.platforms.ascend.wheels
	@touch $@

test-ascend: install build/torch-npu ## the contract of the engine over an NPU's ops, each call against torch_npu's schemas (minutes)
	$(BIN)/python -m pytest -n 2 tests/platforms/ascend tests/equal --npu --card

test-slow: install ## run the tests that take minutes or gigabytes
	$(BIN)/python -m pytest -m slow

test-clients: install ## drive a server with other projects' clients, and read what their libraries write
	$(BIN)/python -m tests.clients.environments
	$(BIN)/python -m pytest tests/clients tests/weights tests/quantize -m clients

test-harness: install ## run the tests that evaluate with lm_eval, which is installed for them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[eval,plot]'
	$(BIN)/python -m pytest -m harness tests/evals

test-cuda: install ## kernels and engine on an NVIDIA GPU
	$(BIN)/python -m pytest tests/platforms/cuda
	$(BIN)/python -m pytest -m cuda tests/platforms/cuda

test-card: install ## the contract of the engine over a simulated GPU: what lies where, and who waits for whom (minutes)
	TILEWISE_CUDA_KERNELS=0 $(BIN)/python -m pytest -n 2 tests/equal --card

test-ahead: install ## compile all kernels for six kinds of cards since Ampere, without a GPU (minutes)
	$(BIN)/python -m pytest -m ahead tests/platforms/cuda/test_ahead.py

test-ray: install ## ranks and servers on a Ray cluster of two nodes, which are killed (some minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[ray]'
	$(BIN)/python -m pytest -m ray -s tests/cluster

test-browser: install ## the web chat in Chromium, over a real server (some minutes)
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium fonts-wqy-microhei; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test-browser]'
	$(BIN)/python -m pytest -m browser tests/ui

test-schema: install ## thousands of generated requests, right and wrong, to a real server (some minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test-server]'
	$(BIN)/python -m pytest -m schema tests/server/test_schema.py

test-sanitize: install ## the kernels' tests under the sanitizers of addresses and undefined behaviour (some minutes)
	$(BIN)/python -m pytest -m sanitize tests/platforms/native

soak: install ## mixed traffic for MINUTES (60), and whether anything grows meanwhile
	$(BIN)/python -m tests.endurance.soak --minutes $(or $(MINUTES),60)

kills: install ## REQUESTS (20000) while engines and processes that open pictures are killed at random
	$(BIN)/python -m tests.endurance.kills --requests $(or $(REQUESTS),20000)

faults: install ## memory that ends, a clock that jumps, 10,000 requests at once (needs root; some minutes)
	$(BIN)/python -m tests.endurance.faults

fuzz: install ## fuzzing, led by coverage: all targets for MINUTES (5) together, JOBS (1) at a time, or FUZZ=one; INPUT=file tries a finding again
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),5) --jobs $(or $(JOBS),1) $(if $(FUZZ),--target $(FUZZ)) $(if $(INPUT),--input $(INPUT))

test-batch: install ## a batch of 20,000 lines, killed ten times (some minutes)
	$(BIN)/python -m pytest -m slow tests/jobs

WHEEL := build/wheel
test-wheel: ## build the wheel, install it into an empty environment, and use it there, away from the checkout
	rm -rf $(WHEEL) build/lib build/bdist.*
	$(PYTHON) -m venv $(WHEEL)/env
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL) .
	$(WHEEL)/env/bin/python -m pip install --quiet --disable-pip-version-check $(WHEEL)/*.whl
	$(WHEEL)/env/bin/python deploy/check_wheel.py $(WHEEL)/*.whl

lint-deploy: .venv-deploy/installed ## lint images, manifests, units and workflows, with linters of their own environment
	.venv-deploy/bin/python deploy/lint.py

.venv-deploy/installed: deploy/requirements-lint.txt
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

check: install ## formatting, lint, strict types, and bounds and licences of dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_dependencies.py tests/test_advisories.py

audit: install .venv-audit/installed ## look up what is installed in a database of known weaknesses (needs a network)
	@mkdir -p build
	$(BIN)/python -m pip freeze --exclude-editable > build/installed.txt
	.venv-audit/bin/python deploy/audit.py build/installed.txt

.venv-audit/installed: deploy/requirements-audit.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

format: install ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-gpu: install ## ops, engines and transformers on an NVIDIA GPU, under nine minutes (docs/cuda.md)
	$(BIN)/python -m benchmarks.gpu

eval-demo: install ## accuracy of the demo model a task, on held-out pictures
	$(BIN)/python training/score.py

matrix: install ## compare every model with transformers, and write docs/support.md and the matrix of README.md
	@mkdir -p build
	$(BIN)/python -m pytest tests/models --parity-json build/parity.json
	$(BIN)/python docs/matrix.py build/parity.json

monitoring: install ## write the table of metrics in docs/monitoring.md, and the Grafana dashboard
	$(BIN)/python docs/metrics.py
	$(BIN)/python docs/dashboard.py

equality: install ## the contract of the engine: what was tried, and the worst difference of logits
	$(BIN)/python -m pytest tests/equal --equality

compatibility: install ## write docs/compatibility.md, api.md and cli.md from the tables of flags and fields, and draw tiles
	$(BIN)/python -m docs.compatibility
	$(BIN)/python -m docs.api
	$(BIN)/python -m docs.cli
	$(BIN)/python -m docs.tiles

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: $(VENV)/docs ## build the documentation into build/site, and test that it is whole and loads nothing from elsewhere
	$(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -m 'docs or not docs' tests/test_docs.py

docs-serve: $(VENV)/docs ## show the documentation at http://127.0.0.1:8010, and again whenever a page changes
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8010

clean: ## remove the environment and caches
	rm -rf $(VENV) .venv-audit .venv-clients .venv-deploy build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

.PHONY: help install demo test test-slow test-batch test-clients test-harness test-cuda test-ahead test-ascend test-browser test-ray test-schema test-sanitize check format eval-demo matrix
.PHONY: audit fuzz soak kills docs docs-serve compatibility monitoring equality bench-gpu test-wheel lint-deploy clean
