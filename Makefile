# Everything runs in its own .venv, made when missing and renewed when requirements.lock or pyproject.toml change.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Idle threads of torch and Numba sleep instead of spinning: on a busy machine spinning costs a factor of four.
export OMP_WAIT_POLICY ?= passive


.PHONY: demo test lint bench format clean help

help:
	@echo "make demo    set everything up and train the demo network, with a report"
	@echo "make test    set everything up and run the tests"
	@echo "make lint    format check, lint, types, import contract"
	@echo "make bench   speed against floors and peers (minutes)"

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c "import sys; sys.exit('spiketide needs Python >= 3.10, this is ' + sys.version.split()[0] if sys.version_info < (3, 10) else 0)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/spiketide demo --json

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/delays.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
