PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: quickstart test lint benchmark clean

# One environment, rebuilt when the requirements change.
$(STAMP): setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77.0.3,<82" wheel
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/python -m kd_mtl.quickstart $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(STAMP)
	$(BIN)/python tools/benchmark.py $(ARGS)

clean:
	rm -rf $(VENV) build output
