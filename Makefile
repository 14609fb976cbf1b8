# Everything runs from .venv, which is made on first use: nothing has to be activated.
# Choose the interpreter with `make PYTHON=python3.12 …`; choose where packages come from with pip's own settings
# (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL), for example for a CPU build of torch and torchvision. `make JOBS=8 test` runs
# the tests in eight processes.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help test lint format demo clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z.]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp is written last, so that an installation that broke off is done again.
$(STAMP): setup.py pyproject.toml
	@echo "installing into $(VENV); with the CUDA build of PyTorch this takes some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

test: lint ## Lint, types and tests with coverage
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal --cov --cov-report=term

lint: $(STAMP) ## ruff, codespell and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

format: $(STAMP) ## Let ruff sort imports and lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP) ## Run the whole loop on made-up images into demo_out/
	$(BIN)/nnunet-qa demo -o demo_out

clean: ## Remove .venv, caches, build products and demo_out/
	rm -rf $(VENV) build dist *.egg-info .coverage coverage.xml htmlcov .pytest_cache .ruff_cache .mypy_cache demo_out
	find nnunet_qa trainers dataset_conversion tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
