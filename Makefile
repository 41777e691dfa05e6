# Two commands on a fresh machine with python3 and make: `make smoke` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: help install smoke test lint bench clean

help:
	@echo "make smoke   install, then train, decouple and compare three small models (about 4 min)"
	@echo "make test    install, then lint and test"
	@echo "make bench   training throughput against a matmul and, if installed, transformers"
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

test: install lint
	$(BIN)/python -m pytest

bench: install
	$(BIN)/python benchmarks/train_throughput.py

clean:
	rm -rf runs/smoke
