# make demo: sets up .venv, builds, distils a recogniser.  make test: every test there is for this
# machine.  Set PYTHON to use another interpreter, GKD_CMAKE_ARGS to pass options to CMake.
# Longer tests and other tools: tests/run.sh.
PYTHON ?= python3
VENV := .venv
PY := $(CURDIR)/$(VENV)/bin/python
BUILD := build/cpp
JOBS ?= $(shell nproc)
CPP_FILES = $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

.PHONY: setup library build test lint format docs demo bench counters wheel gpu-check

# Two steps of the targets below: the environment, and what `import gkd` needs. The libraries go
# beside the Python files, and .venv/bin/python finds the package there.
setup: $(VENV)/.ready
$(VENV)/.ready: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	touch $@
library: setup
	cmake -S . -B $(BUILD) $(GKD_CMAKE_ARGS) -DPython3_EXECUTABLE=$(PY) -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/python/gkd
	cmake --build $(BUILD) --parallel $(JOBS) --target package
	@echo $(CURDIR)/python >$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gkd.pth

# The library and the tests' programs.
build: library
	cmake --build $(BUILD) --parallel $(JOBS)

test: build
	ctest --test-dir $(BUILD) --output-on-failure
	GKD_BUILD_DIR=$(BUILD) PYTHONPATH=$(CURDIR)/python $(PY) -m pytest -q tests/python

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_FILES)

format: setup
	$(VENV)/bin/clang-format -i $(CPP_FILES)
	$(PY) -m ruff format .

# The documents as pages, build/docs/index.html; a warning is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# Distils a glyph recogniser; DEMO takes options, as in: make demo DEMO="--epochs 4 --seed 1"
demo: library
	PYTHONPATH=$(CURDIR)/python $(PY) -m examples.glyphs $(DEMO)

# BENCH_ARGS: what python -m benchmarks takes, such as --device cuda or --quick.
bench: library
	PYTHONPATH=$(CURDIR)/python $(PY) -m benchmarks $(BENCH_ARGS)

# What a class costs in the fused CUDA kernels, without a GPU: their machine code within its budget,
# and no count above those in the repository. EMULATOR names a program that runs and counts CUDA
# kernels on the CPU; gkd_count_cuda needs GKD_CMAKE_ARGS as in .ci/run.
counters: build
	$(PY) -m benchmarks.machine_code
	$(PY) -m benchmarks.count_cuda "$(EMULATOR)" $(BUILD)/gkd_count_cuda

# dist/gkd-VERSION+TAG-py3-none-*.whl for the torch of the interpreter FOR, without _C and so for every
# Python. Torch's libraries, CUDA's and libgomp stay outside it: torch brings them, and a second copy
# in one process would be a second state.
FOR ?= $(PY)
wheel: setup
	rm -rf build/lib.* build/bdist.* build/wheel
	GKD_CMAKE_ARGS="$(GKD_CMAKE_ARGS) -DGKD_BUILD_PYTHON=OFF" MAX_JOBS=$(JOBS) \
	  $(FOR) -m pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH $(PY) -m auditwheel repair -w dist --exclude 'libtorch*' \
	  --exclude 'libc10*' --exclude 'libcudart*' --exclude 'libgomp*' build/wheel/*.whl

# Everything that a GPU is for, on a machine with torch, nvcc and a GPU but no package index: builds,
# tests, sanitizers and benchmarks in the interpreter's own environment; STAGES picks from them.
GPU_RESULTS ?= gpu-results
gpu-check:
	PYTHON=$(PYTHON) JOBS=$(JOBS) bash tests/gpu_check.sh $(GPU_RESULTS)
