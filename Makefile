# make test: sets up .venv, builds, and runs every test there is for this machine.
PYTHON ?= python3
VENV := .venv
PY := $(CURDIR)/$(VENV)/bin/python
BUILD := build/cpp

.PHONY: setup build test format
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

format:
	clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
