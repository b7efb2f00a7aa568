# Each target makes the environment that it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := modular_diffdiff tests benchmarks docs noxfile.py

.PHONY: demo test test-matrix command-lines fuzz lint benchmark pages

demo: $(VENV)/installed
	mkdir -p demo
	$(BIN)/modular-diffdiff demo --out demo --overwrite

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -n 2 --dist loadfile --no-loadscope-reorder

test-matrix: $(VENV)/installed
	$(BIN)/python -m pip install --quiet nox virtualenv
	$(BIN)/python -m nox

command-lines: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.command_lines

fuzz: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz 10000

pages: $(VENV)/installed
	PYTHONPATH=. $(BIN)/python docs/make_pages.py

lint: $(VENV)/installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/python docs/words.py

benchmark: $(VENV)/installed
	$(BIN)/python -m benchmarks $(COMMUNITY)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,lora,web,batch]"
	touch $@
