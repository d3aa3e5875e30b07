# make train   set up .venv and train on the embedded handwritten digits
# make test    the whole suite
# make check   what CI runs: tests, lint, types
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: train test check lint types test-oldest clean

train: $(STAMP)
	$(BIN)/convsmith train --preset digits
	$(BIN)/convsmith evaluate "$$(ls -td runs/*/ | head -n 1)" --split test

# Files of tests run beside each other, a process per core, in the order that tests/conftest.py gives them.
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(BIN)/python $(PYTEST)

check: test lint types

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[timm,tune,cluster,export,serve,report,dev]'
	$(BIN)/pip install --quiet --no-deps captum  # the oracle of Grad-CAM; it asks for numpy below 2 without need
	touch $(STAMP)

# The suite on the versions that the project promises as lower bounds; about 3 GB to download.
OLDEST := torch==2.4.1 torchvision==0.19.1 torchmetrics==1.4.1 wandb==0.17.9 numpy==1.26.4 matplotlib==3.9.2 scikit-learn==1.5.2 \
	pyarrow==16.0.0
test-oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --editable '.[timm,tune,cluster,serve,report,dev]' $(OLDEST)
	.venv-oldest/bin/python $(PYTEST) -W ignore::DeprecationWarning

clean:
	rm -rf .venv .venv-oldest
