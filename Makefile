# Everything runs in .venv, which is made on first use and pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STORES := $(VENV)/stores
AZURITE := $(VENV)/azurite

.PHONY: help demo ui test test-matrix test-browser screenshots test-stores test-faults test-cluster proof check bench clean
help: ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}: call make PYTHON=python3.12")'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Installing Airflow and what the provider needs into $(VENV) (about a minute, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## Make one image in real Airflow: against the emulator, or ModelScope with MODELSCOPE_API_TOKEN set
	@$(BIN)/python -m tests.demo

ui: $(READY) ## Airflow's UI on localhost, with the emulator, the connection and the examples ready
	@$(BIN)/python -m tests.ui

test: $(READY) ## The tests
	@$(BIN)/python -m pytest

test-matrix: $(READY) ## The tests on the built wheel, with each Airflow and Python, oldest and newest; half an hour
	@$(BIN)/nox --parallel 2

test-browser: $(READY) ## What a person sees, in a real browser, which is Debian's chromium; two minutes
	@$(BIN)/python -m pytest tests/browser

screenshots: $(READY) ## The README's pictures of the gallery, made anew; a minute
	@$(BIN)/python -m tests.browser.screenshots

$(STORES)/.ready: $(READY)
	@echo "Installing Airflow's providers for Google and Azure beside it, which are large (some minutes, once) ..."
	@test -d $(STORES) || $(PYTHON) -m venv $(STORES)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$$($(STORES)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dev.pth"
	@$(STORES)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[stores]'
	@touch $@

$(AZURITE)/.ready: Makefile | $(READY)
	@if command -v node >/dev/null && command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(AZURITE) azurite@3.37.0 && touch $@; fi

test-stores: $(STORES)/.ready $(AZURITE)/.ready ## Images in S3, Azure, GCS and on disk, over the real protocols; a minute
	@$(STORES)/bin/python -m pytest tests/stores

test-faults: $(READY) ## Kill and cut off what a real Airflow on PostgreSQL needs, and count the images; four minutes
	@$(BIN)/python -m pytest tests/faults

test-cluster: $(READY) ## Sixty images on seven machines of Airflow, two of which are killed; needs Redis; six minutes
	@$(BIN)/python -m pytest tests/cluster -s

proof: $(READY) ## What only a busy Airflow on PostgreSQL can show; ten minutes
	@$(BIN)/python -m pytest tests/proof -rA --durations=0 --durations-min=1

check: $(READY) ## Lint and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

bench: $(READY) ## What a wait costs beside other ways to wait, and what known durations save; eight minutes
	@$(BIN)/python -m tests.bench_waiting
	@$(BIN)/python -m dev.bench_intervals

clean: ## Remove what the commands above made
	rm -rf $(VENV) .nox .demo .ui .mypy_cache .pytest_cache .ruff_cache
