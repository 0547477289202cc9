# `make` prints this list. Every target does its own set-up from nothing: some Python, pip and make are enough.
SHELL := /bin/bash
.DEFAULT_GOAL := help
UV := .uv/bin/uv
BIN := .venv/bin
QUICK_PEERS := boto3-threads asyncio-putitem
SLOW_PEERS := powertools taskiq-aio-sqs aiosqs
PYTHON_VERSION := $(shell cat .python-version)

help:  ## Print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready .venv-emulator/.ready  ## Make .venv (with .venv/bin/dispatcher) and the emulator's environment

demo: setup  ## Show the whole system at work on this machine; needs no AWS account
	@$(BIN)/dispatcher demo $(ARGS)

test: setup  ## Run every test
	@$(BIN)/pytest -n 4 --dist worksteal $(ARGS)

lint: setup  ## Format check and lint
	@$(BIN)/ruff format --check --quiet . || { echo "run 'make fmt'"; exit 1; }
	@$(BIN)/ruff check --quiet .

types: setup  ## mypy, strict
	@$(BIN)/mypy

layers: setup  ## Imports point one way
	@$(BIN)/lint-imports --no-cache | tail -n 8

check: setup  ## What CI runs
	@.ci/browser
	@$(MAKE) --no-print-directory --jobs 4 --output-sync lint types layers docs
	@$(MAKE) --no-print-directory bench-check
	@# Terraform waits for one core while the tests wait for time; check-deploy runs tests/deploy itself
	@$(MAKE) --no-print-directory --jobs 2 check-deploy test ARGS=--ignore=tests/deploy

page: setup  ## The page at / in a real Chromium; screenshots in build/page
	@.ci/browser && $(BIN)/pytest -n 2 -q tests/page $(ARGS)

docs: setup .venv-docs/.ready  ## The documentation site: build/docs/index.html
	@$(BIN)/python docs/reference.py
	@PYTHONPATH=. .venv-docs/bin/sphinx-build -W --keep-going -q -b html docs build/docs && echo "docs: build/docs/index.html"

dist: setup  ## Source distribution and wheel in build/dist, and the wheel tried in an environment of its own
	@rm -rf build/dist && $(UV) build --quiet --no-build-isolation --python $(BIN)/python --out-dir build/dist .
	@$(BIN)/pytest -q tests/packaging && ls build/dist

changelog: setup  ## What changelog.d would make of CHANGELOG.md; ARGS=--yes makes it
	@$(BIN)/towncrier build --version $$($(BIN)/python -c 'import dispatcher; print(dispatcher.__version__)') $(if $(ARGS),$(ARGS),--draft 2>/dev/null)

check-deploy: setup .venv-deploy/.ready  ## Terraform, Dockerfile, compose, alerts, dashboards: all that needs no account
	@.ci/tools && .ci/deploy

image: ## Build the image and try it: read-only, no capabilities, SIGTERM; with Docker, or as root on Debian without
	@.ci/image $(ARGS)

compose:  ## Start docker-compose.yml for real where containers run
	@.ci/compose $(ARGS)

e2e-prometheus: setup  ## A real Prometheus on real dispatchers: rules load, dashboards answer, outages ring
	@.ci/tools && $(BIN)/pytest -q -s e2e/test_prometheus.py $(ARGS)

e2e-terraform: setup  ## Apply the per-Region roots to an emulator, and run the daemon with what they print (six minutes)
	@$(BIN)/pytest -q -s e2e/test_terraform.py $(ARGS)

fmt: setup  ## Format and fix
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

lock: .uv/.ready  ## Rewrite the hash-pinned requirement files
	@set -e; compile() { $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.12 \
	    --custom-compile-command 'make lock' --upgrade "$$@"; }; \
	compile requirements/bootstrap.in -o requirements/bootstrap.txt; \
	compile pyproject.toml -o requirements/runtime.txt; \
	compile pyproject.toml --group dev -c requirements/runtime.txt -o requirements/dev.txt; \
	compile --group emulator -o requirements/emulator.txt; \
	compile pyproject.toml --extra tracing -c requirements/dev.txt -o requirements/tracing.txt; \
	compile requirements/docs.in -o requirements/docs.txt; \
	compile requirements/security.in -o requirements/security.txt; \
	compile requirements/build.in -c requirements/dev.txt -o requirements/build.txt; \
	$(UV) pip compile --quiet --generate-hashes --no-emit-index-url --python-version $(PYTHON_VERSION) \
	    --custom-compile-command 'make lock' --upgrade requirements/localstack.in -o requirements/localstack.txt; \
	$(UV) pip compile --quiet --generate-hashes --no-emit-index-url --python-version $(PYTHON_VERSION) \
	    --custom-compile-command 'make lock' --upgrade requirements/deploy.in -o requirements/deploy.txt; \
	for peer in $(QUICK_PEERS) $(SLOW_PEERS); do compile benchmarks/peers/$$peer.in -o benchmarks/peers/$$peer.txt; done

duel: setup  ## Projected wait against the original, on an emulator, side by side
	@$(BIN)/python -m benchmarks.duel $(ARGS)

bench: setup bench-peers  ## What moving a message costs, beside what people use today (25 minutes): benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks.bench all $(ARGS)

bench-quick: setup $(foreach peer,$(QUICK_PEERS),.venv-bench/$(peer)/.ready)  ## The same against two peers, in two minutes
	@$(BIN)/python -m benchmarks.bench quick $(ARGS)

bench-check: setup $(foreach peer,$(QUICK_PEERS),.venv-bench/$(peer)/.ready)  ## Have the stored ratios been lost?
	@$(BIN)/python -m benchmarks.bench check

bench-flame: setup  ## Where the daemon's processor time goes: benchmarks/flame-*.svg
	@$(BIN)/python -m benchmarks.bench flame

bench-peers: $(foreach peer,$(QUICK_PEERS) $(SLOW_PEERS),.venv-bench/$(peer)/.ready)
	@if command -v npm >/dev/null; then (cd benchmarks/peers && npm install --silent --no-package-lock); fi
	@# Debian's packages: golang-go and golang-github-aws-aws-sdk-go-v2-dev
	@if command -v go >/dev/null; then mkdir -p .venv-bench/go-sdk && GOPATH=/usr/share/gocode GO111MODULE=off \
	    go build -o .venv-bench/go-sdk/peer benchmarks/peers/go/main.go; fi

conformance:  ## The contract suites on DynamoDB Local and LocalStack, too; fetches both
	@.ci/conformance $(ARGS)

chaos: setup  ## Three dispatchers, faults of every kind, kill -9 and SIGTERM at random: five minutes on an emulator
	@$(BIN)/python -m tests.chaos $(ARGS)

soak: setup  ## Thirty minutes of a steady rate with faults and no kills: does anything leak?
	@$(BIN)/python -m tests.chaos --minutes 30 --rate 20 --no-kills $(ARGS)

mutants: setup  ## Deliberate bugs, each of which a test must find (three minutes)
	@$(BIN)/python -m tests.mutants $(ARGS)

audit: .venv-security/.ready  ## Known vulnerabilities in what the daemon runs on; needs the network's advisory database
	@.venv-security/bin/pip-audit --strict --disable-pip --require-hashes -r requirements/runtime.txt \
	    || { echo "audit: vulnerabilities above, or no advisory database could be asked: then nothing was audited"; exit 1; }

sbom: .venv-security/.ready  ## Software bill of materials, CycloneDX: build/sbom.json
	@mkdir -p build && .venv-security/bin/cyclonedx-py requirements requirements/runtime.txt --pyproject pyproject.toml \
	    --output-reproducible --of JSON -o build/sbom.json && echo "sbom: build/sbom.json"

clean:  ## Remove the environments and caches
	rm -rf .venv .venv-bench .venv-deploy .venv-docs .venv-emulator .venv-security .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build

# uv installs the rest quickly; it is itself installed by pip, by hash. Python comes from .python-version.
.uv/.ready: requirements/bootstrap.txt
	@echo "setup: uv"
	@python3 -m venv --clear .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check \
	    --require-hashes -r requirements/bootstrap.txt && touch $@

.venv/.ready: .uv/.ready requirements/dev.txt pyproject.toml
	@echo "setup: .venv (Python $(PYTHON_VERSION))"
	@$(UV) venv --quiet --clear --python $(PYTHON_VERSION) .venv
	@VIRTUAL_ENV=.venv $(UV) pip install --quiet --require-hashes -r requirements/dev.txt
	@VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-deps --no-build-isolation -e . && touch $@

.venv-emulator/.ready: .uv/.ready requirements/emulator.txt
	@echo "setup: .venv-emulator (MiniStack pins a botocore of its own)"
	@$(UV) venv --quiet --clear --python $(PYTHON_VERSION) .venv-emulator
	@VIRTUAL_ENV=.venv-emulator $(UV) pip install --quiet --require-hashes -r requirements/emulator.txt && touch $@

.venv-security/.ready: .uv/.ready requirements/security.txt
	@echo "setup: .venv-security"
	@$(UV) venv --quiet --clear --python $(PYTHON_VERSION) .venv-security
	@VIRTUAL_ENV=.venv-security $(UV) pip install --quiet --require-hashes -r requirements/security.txt && touch $@

.venv-bench/%/.ready: benchmarks/peers/%.txt | .uv/.ready
	@echo "setup: .venv-bench/$*"
	@$(UV) venv --quiet --clear --python $(PYTHON_VERSION) .venv-bench/$*
	@VIRTUAL_ENV=.venv-bench/$* $(UV) pip install --quiet --require-hashes -r $< && touch $@

.venv-docs/.ready: .uv/.ready requirements/docs.txt
	@echo "setup: .venv-docs (Sphinx)"
	@$(UV) venv --quiet --clear --python $(PYTHON_VERSION) .venv-docs
	@VIRTUAL_ENV=.venv-docs $(UV) pip install --quiet --require-hashes -r requirements/docs.txt && touch $@

.venv-deploy/.ready: .uv/.ready requirements/deploy.txt
	@echo "setup: .venv-deploy (checkov, hadolint)"
	@$(UV) venv --quiet --clear --python $(PYTHON_VERSION) .venv-deploy
	@VIRTUAL_ENV=.venv-deploy $(UV) pip install --quiet --require-hashes -r requirements/deploy.txt && touch $@

.PHONY: help setup demo test lint types layers check page docs dist changelog check-deploy image compose e2e-prometheus e2e-terraform fmt lock duel bench bench-quick bench-check bench-flame bench-peers chaos soak conformance mutants audit sbom clean
