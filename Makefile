# Two commands on a fresh machine with python3 and make: `make smoke` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: help install smoke test lint clean

help:
	@echo "make smoke   install, then train, decouple and compare three small models"
	@echo "make test    install, then lint and test"
	@echo "make clean   remove runs/smoke"

$(BIN)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

install: $(BIN)/.installed

smoke: install
	$(BIN)/downscale study experiments/smoke.py --out runs/smoke

lint: install
	$(BIN)/ruff check .

# The TPU compiler, which needs no TPU.
$(BIN)/.compiler: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tpu]'
	touch $@

test: install lint $(BIN)/.compiler
	$(BIN)/python -m pytest
	$(BIN)/python benchmarks/compiled_programs.py

clean:
	rm -rf runs/smoke
