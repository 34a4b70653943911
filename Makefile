# make demo: sets up .venv, builds, distils a recogniser.  make test: every test there is for this
# machine.  Set PYTHON to use another interpreter, GKD_CMAKE_ARGS to pass options to CMake.
PYTHON ?= python3
VENV := .venv
PY := $(CURDIR)/$(VENV)/bin/python
BUILD := build/cpp
CPP_FILES = $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

.PHONY: setup build test demo demo-full bench lint format gpu-check all-archs
setup: $(VENV)/.ready
$(VENV)/.ready: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	touch $@

build: setup
	cmake -S . -B $(BUILD) $(GKD_CMAKE_ARGS) -DPython3_EXECUTABLE=$(PY) -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/python/gkd
	cmake --build $(BUILD) --parallel

test: build lint
	ctest --test-dir $(BUILD) --output-on-failure
	PYTHONPATH=$(CURDIR)/python $(PY) -m pytest -q tests/python

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_FILES)

# Distils a glyph recogniser; DEMO takes options, as in: make demo DEMO="--epochs 4 --seed 1"
demo: build
	PYTHONPATH=$(CURDIR)/python $(PY) -m examples.glyphs $(DEMO)

# The study of the losses, an hour or more; it goes on where it was stopped. STUDY takes options.
STUDY_OUT := examples/glyphs/out/study
demo-full: build
	PYTHONPATH=$(CURDIR)/python $(PY) -m examples.glyphs.sweep --out $(STUDY_OUT) $(STUDY)
	PYTHONPATH=$(CURDIR)/python $(PY) -m examples.glyphs.report --runs $(STUDY_OUT)/runs.jsonl --figures $(STUDY_OUT)

# Everything that a GPU is for, on a machine with torch, nvcc and a GPU but no package index: builds,
# tests, sanitizers and benchmarks in the interpreter's own environment; results go to gpu-results/.
gpu-check:
	PYTHON=$(PYTHON) bash tests/gpu_check.sh gpu-results

# Compiles the kernels for every architecture that is supported.
all-archs: setup
	cmake -S . -B build/all-archs -DPython3_EXECUTABLE=$(PY) -DGKD_BUILD_PYTHON=OFF -DGKD_BUILD_TESTS=OFF "-DTORCH_CUDA_ARCH_LIST=7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
	cmake --build build/all-archs --parallel --target gkd_kernels

# BENCH_ARGS: what python -m benchmarks takes, such as --device cuda or --quick.
bench: build
	PYTHONPATH=$(CURDIR)/python $(PY) -m benchmarks $(BENCH_ARGS)

format:
	$(VENV)/bin/clang-format -i $(CPP_FILES)
	$(PY) -m ruff format .
