# Needs Python >= 3.11, Node >= 20 (tests only), make and the package registries; everything else is set up here.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin
NODE_MODULES := tests/sdk/node_modules/.installed tests/clients_js/node_modules/.installed

.DEFAULT_GOAL := help
.PHONY: help demo serve test check bench chaos fmt lock clean

help: ## show what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: .venv/.runtime ## prompts as jobs, streamed and told by webhook, without an API key
	@$(BIN)/tramontane batch examples/prompts.txt --live --simulator --receive --data-dir .tramontane/demo

serve: .venv/.runtime ## API and worker; MISTRAL_API_KEY, or ARGS=--simulator
	@exec $(BIN)/tramontane serve $(ARGS)

test: .venv/.dev $(NODE_MODULES) ## the whole test suite; ARGS goes to pytest
	$(BIN)/pytest $(ARGS)

check: .venv/.dev ## format, lint, types, import layers, dead links
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/links.py

bench: .venv/.dev ## the figures of docs/performance.md
	$(BIN)/python -m bench $(ARGS)

chaos: .venv/.dev ## 300 kills, then every fault at once with a report (ARGS goes to it), then more fuzzing
	TRAMONTANE_CHAOS_KILLS=300 $(BIN)/pytest tests/e2e/test_chaos.py tests/e2e/test_webhook_crashes.py -n 0 --timeout 3600
	PYTHONPATH=tests:tests/e2e $(BIN)/python -m chaos $(ARGS)
	TRAMONTANE_FUZZ=1 $(BIN)/pytest tests/api/test_schema_fuzz.py tests/api/test_fuzz.py

fmt: .venv/.dev ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: .venv/.dev ## renew requirements*.lock from pyproject.toml
	./scripts/lock

clean: ## remove what make has set up (data directories stay)
	rm -rf .venv tests/sdk/node_modules tests/clients_js/node_modules

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or say make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || { rm -rf .venv; \
	  $(PYTHON) -m venv --without-pip .venv && $(PYTHON) -m pip --python .venv/bin/python install --quiet pip; } || { rm -rf .venv; \
	  echo "$(PYTHON) has neither ensurepip nor pip: install python3-venv (Debian) or python3-pip"; exit 1; }

.venv/.runtime: requirements.lock pyproject.toml | .venv/bin/python
	@echo "installing the locked dependencies into .venv (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.runtime
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	@touch $@

tests/%/node_modules/.installed: tests/%/package-lock.json
	@if command -v npm >/dev/null; then cd tests/$* && npm ci --silent --no-audit --no-fund; \
	else echo "npm is missing: the tests that need it will skip"; mkdir -p $(dir $@); fi
	@touch $@
