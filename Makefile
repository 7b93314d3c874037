# Every command runs in .venv, which is created on first use with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STORES := $(VENV)/stores
AZURITE := $(VENV)/azurite
SITE := $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo ui check test test-fuzz test-integration test-browser test-stores test-faults test-records \
	test-form test-cluster proof test-matrix bench bench-batch bench-landing evidence screenshots docs docs-serve clean
help: ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is required, {sys.executable} is {v[0]}.{v[1]}. Name another one: make PYTHON=python3.12")'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Installing Airflow and the development tools into $(VENV) (about two minutes, once) ..."
	@$(BIN)/python $(INSTALL) --upgrade pip # the pip of the venv module may be too old for --group
	@$(BIN)/python $(INSTALL) --group dev --editable .
	@touch $@

demo: $(READY) ## Create one image in a real Airflow, with the emulator or, if MODELSCOPE_API_TOKEN is set, with ModelScope
	@$(BIN)/python -m dev.demo

ui: $(READY) ## Start Airflow's UI on localhost with the emulator, the connection and the example Dags
	@$(BIN)/python -m dev.ui

check: $(READY) ## Lint, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

test: $(READY) ## Unit and contract tests, in two processes; a minute
	@$(BIN)/python -m pytest -n 2 tests/unit

test-fuzz: $(READY) ## Generated requests, responses and emulator calls, in two processes; three minutes
	@$(BIN)/python -m pytest -n 2 tests/fuzz

test-integration: $(READY) ## Dags in a real Airflow; three minutes
	@$(BIN)/python -m pytest tests/integration

test-browser: $(READY) ## The gallery in a real browser, Debian's chromium; five minutes
	@$(BIN)/python -m pytest tests/browser

$(STORES)/.ready: $(READY)
	@echo "Installing Airflow's providers for Google and Azure in an environment of their own (some minutes, once) ..."
	@test -d $(STORES) || $(PYTHON) -m venv $(STORES)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$$($(STORES)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dev.pth"
	@$(STORES)/bin/python $(INSTALL) --upgrade pip
	@$(STORES)/bin/python $(INSTALL) --group stores --editable .
	@touch $@

$(AZURITE)/.ready: Makefile | $(READY)
	@if command -v node >/dev/null && command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(AZURITE) azurite@3.37.0 && touch $@; fi

test-stores: $(STORES)/.ready $(AZURITE)/.ready ## Images in servers of S3, Azure and GCS, and on disk; a minute
	@$(STORES)/bin/python -m pytest tests/stores

test-faults: $(READY) ## Kill and disconnect parts of a real Airflow on PostgreSQL and count images and submissions; seven minutes
	@$(BIN)/python -m pytest tests/faults

test-records: $(READY) ## The kills of test-faults on Airflow 3.2, with the records in object storage; four minutes
	@$(BIN)/nox --session records

test-form: $(READY) ## The connection form of Airflow 3.4 in a real browser; two minutes
	@$(BIN)/nox --session form

test-cluster: $(READY) ## Sixty images on an Airflow of seven machines, two of which are killed; needs Redis; six minutes
	@$(BIN)/python -m pytest tests/cluster -s

proof: $(READY) ## Promises that only a busy Airflow on PostgreSQL can show; ten minutes
	@$(BIN)/python -m pytest tests/proof -rA --durations=0 --durations-min=1

test-matrix: $(READY) ## The tests on the built wheel, with each Airflow and Python, oldest and newest dependencies; an hour
	@$(BIN)/nox --parallel 2

bench: $(READY) ## The cost of a wait beside other ways to wait, and what polling and the submit queue save; eight minutes
	@$(BIN)/python -m dev.bench_waiting
	@$(BIN)/python -m dev.bench_intervals
	@$(BIN)/python -m dev.bench_slots

bench-batch: $(READY) ## How busy a batch keeps an account, and what it costs, beside mapped tasks and loops; half an hour
	@$(BIN)/python -m dev.bench_batch

bench-landing: $(READY) ## The cost of storing an image beside bare copying; ten minutes
	@$(BIN)/python -m dev.bench_landing

evidence: $(READY) ## Put the figures that the benches and suites wrote on the page of evidence
	@$(BIN)/python -m dev.evidence

screenshots: $(READY) ## Take the screenshots of the docs again; two minutes
	@$(BIN)/python -m dev.screenshots

docs: $(READY) ## Build the documentation site, docs/_build/html, without a network; half a minute
	@rm -rf docs/_build # a page that was renamed must not stay
	@$(SITE) -d docs/_build/doctrees docs docs/_build/html
	@for language in $(notdir $(wildcard docs/locale/*)); do \
		$(SITE) -D language=$$language -d docs/_build/doctrees-$$language docs docs/_build/html/$$language || exit 1; done
	@echo "Open docs/_build/html/index.html, or run make docs-serve"

docs-serve: docs ## Build the documentation site, and serve it on localhost:8000
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory docs/_build/html 8000

clean: ## Remove everything that these commands created
	rm -rf $(VENV) .nox .demo .ui docs/_build .mypy_cache .pytest_cache .ruff_cache
	find docs/locale -name '*.mo' -delete
