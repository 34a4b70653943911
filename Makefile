# make test: sets up .venv, builds, and runs every test there is for this machine.
PYTHON ?= python3
VENV := .venv
PY := $(CURDIR)/$(VENV)/bin/python
BUILD := build/cpp

.PHONY: setup build test bench format
setup: $(VENV)/.ready
$(VENV)/.ready: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	touch $@

build: setup
	cmake -S . -B $(BUILD) -DPython3_EXECUTABLE=$(PY) -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/python/gkd
	cmake --build $(BUILD) --parallel

test: build
	ctest --test-dir $(BUILD) -L cpu --output-on-failure
	PYTHONPATH=$(CURDIR)/python $(PY) -m pytest -q tests/python

# BENCH_ARGS: what python -m benchmarks takes, such as --device cuda or --quick.
bench: build
	PYTHONPATH=$(CURDIR)/python $(PY) -m benchmarks $(BENCH_ARGS)

format:
	clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
