# make train   set up .venv and train on the embedded handwritten digits
# make test    the whole suite
# make check   what CI runs: tests, lint, types, and known holes of dependencies
# make package wheel and sdist in dist/, built twice and tried
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
EXTRAS := tune,cluster,serve,report,heic,tiff,dev

.PHONY: train test check lint types audit licences package test-oldest clean

train: $(STAMP)
	$(BIN)/convsmith train --preset digits
	$(BIN)/convsmith evaluate "$$(ls -td runs/*/ | head -n 1)" --split test
	@echo
	@echo "convsmith is in $(BIN). With your own images, in one folder per class:"
	@echo "      . $(BIN)/activate"
	@echo "      convsmith train --data FOLDER"

# Files of tests run beside each other, a process per core, in the order that tests/conftest.py gives them.
PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(BIN)/python $(PYTEST)

check: test lint types audit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS),export]'
	$(BIN)/pip install --quiet --no-deps captum  # the oracle of Grad-CAM; it asks for numpy below 2 without need
	touch $(STAMP)

# What builds, installs and audits has an environment of its own, so that it is not among what is tested.
TOOLS := .venv-tools/bin
TOOLS_STAMP := .venv-tools/.installed
$(TOOLS_STAMP):
	$(PYTHON) -m venv .venv-tools
	$(TOOLS)/pip install --quiet build pip-audit uv
	touch $(TOOLS_STAMP)

audit: $(STAMP)
	test -e $(TOOLS_STAMP) || $(MAKE) $(TOOLS_STAMP) || echo "audit: SKIPPED, since its tools cannot be installed from here"
	test ! -e $(TOOLS_STAMP) || $(TOOLS)/python tools/audit.py "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

licences: $(STAMP)
	$(BIN)/python tools/licences.py

package: $(TOOLS_STAMP)
	$(TOOLS)/python tools/package.py

# The suite on the lower bounds of pyproject.toml; about 6 GB to download. The extra `export` asks for a newer torch than
# the core, so that it is tried apart. The newest result is in docs/results/oldest.json.
OLDEST := $(TOOLS)/uv pip install --quiet --resolution lowest-direct
test-oldest: $(TOOLS_STAMP)
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	test -x .venv-oldest-export/bin/python || $(PYTHON) -m venv .venv-oldest-export
	$(OLDEST) --python .venv-oldest --editable '.[$(EXTRAS)]'
	$(OLDEST) --python .venv-oldest --no-deps captum
	$(OLDEST) --python .venv-oldest-export --editable '.[export,dev]'
	.venv-oldest/bin/python $(PYTEST) -W ignore::DeprecationWarning
	.venv-oldest-export/bin/python -m pytest -W ignore::DeprecationWarning tests/test_export.py tests/prediction

clean:
	rm -rf .venv .venv-tools .venv-oldest .venv-oldest-export dist
