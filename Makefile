# Every habit of this house; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE :=

UI_SOURCES := $(shell find ui -name node_modules -prune -o -type f -print)
RUST_SOURCES := $(shell find native -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock

.PHONY: help setup core ui demo check test crash simulate fuzz conformance bench bench-peers proto docs clean lock native check-rust check-python

help: ## list the habits
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.built core ui ## make .venv with everything locked, build the native half, leave .venv/bin/buildnet

$(VENV)/.packages: requirements/runtime.lock requirements/dev.lock
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here; install Python 3.11 or name one: make PYTHON=python3.12"; exit 1; }
	@command -v cargo >/dev/null || { echo "cargo is not here; install Rust 1.88 or later"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements/runtime.lock -r requirements/dev.lock
	@touch $@

$(VENV)/.built: $(VENV)/.packages $(RUST_SOURCES) pyproject.toml
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --locked --quiet
	@touch $@

# Looks by itself whether there is anything to do: a time of a file says nothing of what it was made of.
core: $(VENV)/.built ## compile the scheduler's core and the ledger's, if what is compiled is not of these sources
	@$(BIN)/python scripts/compile_core.py

ui: $(VENV)/.ui ## build the page that the server shows at /

# Without Node.js everything else works, and the page says what is missing.
$(VENV)/.ui: $(UI_SOURCES) | $(VENV)/.packages
	@if ! command -v npm >/dev/null; then \
		echo "npm is not here, so the page at / is not built; install nodejs (18 or later) and npm, then make ui"; \
	else \
		cd ui && npm ci --silent --no-audit --no-fund && npm run --silent build -- --logLevel warn && touch ../$@; \
	fi

native: ## build the native half unoptimised, for a quick turn while editing Rust
	cargo build --locked -p buildnet-py --features pyo3/extension-module
	cp target/debug/lib_native.so src/buildnet/_native.abi3.so.new && mv src/buildnet/_native.abi3.so.new src/buildnet/_native.abi3.so

demo: setup ## compile a real C project on BuildNET, three times, and prove one result
	@$(BIN)/python -m demo

check: check-rust check-python ## formats, lints, types, layers, generated code, stubs

check-rust:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --quiet -- -D warnings

check-python: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest buildnet._native --mypy-config-file pyproject.toml
	PYTHONPATH=src $(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

test: setup ## every test: Rust, Python, flows over real sockets, third-party clients; JOBS=2 files at once
	cargo test --locked --workspace --quiet
	tests/clients/install.sh
	$(BIN)/pytest -n $(or $(JOBS),2) --dist loadfile
	$(BIN)/pytest -n $(or $(JOBS),2) -q --interpreted tests/explore tests/sim tests/unit/test_placement.py tests/unit/test_scheduler_core.py tests/unit/test_ledger_*.py

crash: setup ## kill a server a hundred times while it is written to, and look for what was acknowledged: KILLS=100
	$(BIN)/python -m tests.faults.campaign --kills $(or $(KILLS),100)
	$(BIN)/python -m tests.faults.campaign --kills $(or $(KILLS),100) --durability power --writes 3000
	$(BIN)/python -m tests.faults.campaign --kills $(or $(KILLS),100) --evict
	$(BIN)/python -m tests.faults.power --cuts $(or $(CUTS),50)
	$(BIN)/python -m tests.faults.power --cuts $(or $(CUTS),50) --evict
	$(BIN)/python -m tests.faults.engine_campaign --kills $(or $(KILLS),100) --actions $(or $(ACTIONS),2000) --partitions $(or $(PARTITIONS),20)
	BUILDNET_CANCEL_CLIENTS=500 $(BIN)/pytest -q tests/faults/test_cancels.py
	$(BIN)/python -m tests.faults.ledger_campaign --kills $(or $(KILLS),200)
	$(BIN)/python -m tests.faults.ledger_campaign --kills $(or $(KILLS),200) --durability power

simulate: setup ## the scheduler with 1,000 workers and 100,000 actions under faults: SEED=1
	$(BIN)/python -m tests.sim.large $(or $(SEED),1)

fuzz: ## mutate what comes from outside for FUZZ_S=300 seconds a target
	BUILDNET_FUZZ_S=$(or $(FUZZ_S),300) cargo test --locked --package buildnet-fuzz --release --no-fail-fast
	BUILDNET_FUZZ_S=$(or $(FUZZ_S),300) $(BIN)/pytest -q --timeout 0 tests/faults/test_any_message.py

conformance: setup ## score a server against the REAPI: make conformance URL=grpc://HOST:PORT INSTANCE=NAME REPORT=FILE.json
	$(BIN)/pytest tests/conformance -q --tb=line $(if $(URL),--url $(URL)) $(if $(INSTANCE),--instance $(INSTANCE)) \
		$(if $(TOKEN),--bearer-token $(TOKEN)) $(if $(REPORT),--conformance-report $(REPORT))

bench: setup ## print each figure beside its peer or physical limit
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

bench-peers: setup ## measure this and other caches under one load; each answer is verified
	$(BIN)/python -m bench.peers $(PEERS_FLAGS)

proto: $(VENV)/.packages ## generate Rust and Python from proto/
	$(BIN)/python proto/generate.py

docs: setup ## check that what the documentation shows is what happens
	$(BIN)/pytest tests/docs -q

lock: ## resolve dependencies anew into requirements/*.lock and Cargo.lock
	$(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/pip install --quiet pip-tools
	cd requirements && ../$(VENV)/lock/bin/pip-compile --quiet --generate-hashes --strip-extras --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options -o runtime.lock ../pyproject.toml
	cd requirements && ../$(VENV)/lock/bin/pip-compile --quiet --generate-hashes --strip-extras --no-header --allow-unsafe \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options -o dev.lock dev.in
	cargo update

clean: ## remove what was built
	rm -rf target $(VENV) dist src/buildnet/_native*.so src/buildnet/*/_compiled src/buildnet/edge/web/static ui/node_modules
	find src tests bench -name __pycache__ -prune -exec rm -rf {} +
