# make test: sets up .venv, builds, and runs every test there is for this machine.
PYTHON ?= python3
VENV := .venv
PY := $(CURDIR)/$(VENV)/bin/python
BUILD := build/cpp
CPP_FILES = $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

.PHONY: setup build test lint format
setup: $(VENV)/.ready
$(VENV)/.ready: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	touch $@

build: setup
	cmake -S . -B $(BUILD) $(GKD_CMAKE_ARGS) -DPython3_EXECUTABLE=$(PY) -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/python/gkd
	cmake --build $(BUILD) --parallel

test: build
	ctest --test-dir $(BUILD) -L cpu --output-on-failure
	PYTHONPATH=$(CURDIR)/python $(PY) -m pytest -q tests/python

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	clang-format --dry-run -Werror $(CPP_FILES)

format:
	clang-format -i $(CPP_FILES)
	$(PY) -m ruff format .
