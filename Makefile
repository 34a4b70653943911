# make demo: sets up .venv, builds, distils a recogniser.  make test: every test there is for this
# machine.  Set PYTHON to use another interpreter, GKD_CMAKE_ARGS to pass options to CMake.
PYTHON ?= python3
VENV := .venv
PY := $(CURDIR)/$(VENV)/bin/python
BUILD := build/cpp
CLANG_TIDY ?= clang-tidy
JOBS ?= $(shell nproc)
CPP_FILES = $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

.PHONY: setup library build test inputs nightly mutate sanitize fuzz demo demo-full bench docs figures lint style tidy format gpu-check all-archs wheel wheel-test
setup: $(VENV)/.ready
$(VENV)/.ready: requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	touch $@

# The libraries go beside the Python files, and .venv/bin/python finds the package there.
library: setup
	cmake -S . -B $(BUILD) $(GKD_CMAKE_ARGS) -DPython3_EXECUTABLE=$(PY) -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/python/gkd
	cmake --build $(BUILD) --parallel $(JOBS) --target gkd _C
	@echo $(CURDIR)/python >$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gkd.pth

# The tests' programs too.
build: library
	cmake --build $(BUILD) --parallel $(JOBS)

test: build style docs
	ctest --test-dir $(BUILD) --output-on-failure
	GKD_BUILD_DIR=$(BUILD) PYTHONPATH=$(CURDIR)/python $(PY) -m pytest -q tests/python

# Counts the bad inputs and the regressions of other kernels that a test answers for.
inputs: build
	$(PY) tests/python/account.py --gtest $(BUILD)

# 5,000 examples of every law; the tests marked large, which take 5 GiB; 10^5 calls, after which
# memory must be where it was after 10^3, within 1%.
nightly: build
	PYTHONPATH=$(CURDIR)/python $(PY) -m pytest -q tests/python/loss/test_loss_properties.py tests/python/group/test_group_properties.py \
	    --hypothesis-profile=nightly -o faulthandler_timeout=3600
	PYTHONPATH=$(CURDIR)/python $(PY) -m pytest -q tests/python -m large --large -o faulthandler_timeout=3600
	PYTHONPATH=$(CURDIR)/python OMP_NUM_THREADS=1 $(PY) tests/python/support/long_run.py --calls 100000

# What test asks for, and clang-tidy, which takes some minutes.
lint: style tidy
style: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_FILES)

# Every source of a CPU build once: the flags of one instruction set stand for the others'.
tidy: setup
	@command -v $(CLANG_TIDY) >/dev/null || { echo "make tidy needs clang-tidy 14 or later on PATH, or CLANG_TIDY=..."; exit 1; }
	cmake -S . -B build/tidy -DGKD_WITH_CUDA=OFF -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DPython3_EXECUTABLE=$(PY)
	git ls-files 'csrc/*.cpp' 'tests/cpp/test_*.cpp' | grep -v -e csrc/cuda/ -e tests/cpp/test_index | \
	  xargs -n 1 -P $(JOBS) $(PY) tests/tidy.py build/tidy $(CLANG_TIDY)

# The documents as pages, build/docs/index.html; a warning is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# Every figure of README and docs from the committed CSVs, but for the demo's own.
figures: library
	$(PY) -m benchmarks.figures
	PYTHONPATH=$(CURDIR)/python $(PY) docs/figures/concept.py
	$(PY) docs/figures/regimes.py

# Distils a glyph recogniser; DEMO takes options, as in: make demo DEMO="--epochs 4 --seed 1"
demo: library
	PYTHONPATH=$(CURDIR)/python $(PY) -m examples.glyphs $(DEMO)

# The study of the losses, an hour or more; it goes on where it was stopped. STUDY takes options.
STUDY_OUT := examples/glyphs/out/study
demo-full: library
	PYTHONPATH=$(CURDIR)/python $(PY) -m examples.glyphs.sweep --out $(STUDY_OUT) $(STUDY)
	PYTHONPATH=$(CURDIR)/python $(PY) -m examples.glyphs.report --runs $(STUDY_OUT)/runs.jsonl --figures $(STUDY_OUT)

# Everything that a GPU is for, on a machine with torch, nvcc and a GPU but no package index: builds,
# tests, sanitizers and benchmarks in the interpreter's own environment; STAGES picks from them.
GPU_RESULTS ?= gpu-results
gpu-check:
	PYTHON=$(PYTHON) JOBS=$(JOBS) bash tests/gpu_check.sh $(GPU_RESULTS)

# ASAN, UBSAN, TSAN, valgrind and, where a GPU is, compute-sanitizer; about ten minutes.
sanitize: build
	PYTHON=$(PY) JOBS=$(JOBS) bash tests/sanitize/run.sh $(BUILD) build/sanitize

# libFuzzer on rows, whole and in shards, and on the C++ entry, FUZZ_SECONDS each; findings land in
# build/fuzz.
FUZZ_SECONDS ?= 600
fuzz: setup
	cmake -S . -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DGKD_BUILD_FUZZERS=ON -DGKD_WITH_CUDA=OFF -DGKD_BUILD_PYTHON=OFF -DGKD_BUILD_TESTS=OFF -DPython3_EXECUTABLE=$(PY)
	cmake --build build/fuzz --parallel $(JOBS)
	for f in row shard loss; do mkdir -p build/fuzz/$$f; OMP_NUM_THREADS=1 build/fuzz/gkd_$${f}_fuzzer build/fuzz/$$f tests/fuzz/corpus/$$f \
	  -max_total_time=$(FUZZ_SECONDS) -max_len=512 -len_control=0 -print_final_stats=1 -artifact_prefix=build/fuzz/ >build/fuzz/$$f.log 2>&1 || \
	  { tail -40 build/fuzz/$$f.log; exit 1; }; grep -E 'DONE|stat::' build/fuzz/$$f.log; done

# Compiles the kernels for every architecture that is supported.
all-archs: setup
	cmake -S . -B build/all-archs -DPython3_EXECUTABLE=$(PY) -DGKD_BUILD_PYTHON=OFF -DGKD_BUILD_TESTS=OFF "-DTORCH_CUDA_ARCH_LIST=7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
	cmake --build build/all-archs --parallel $(JOBS) --target gkd_kernels

# BENCH_ARGS: what python -m benchmarks takes, such as --device cuda or --quick.
bench: library
	PYTHONPATH=$(CURDIR)/python $(PY) -m benchmarks $(BENCH_ARGS)

# dist/gkd-*.whl, of the libraries that `build` made. Torch's libraries, CUDA's and libgomp stay
# outside it: torch brings them, and a second copy in one process would be a second state.
wheel: build
	rm -rf build/lib.* build/wheel dist
	GKD_BUILD_DIR=$(BUILD) $(PY) -m pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH $(PY) -m auditwheel repair -w dist --exclude 'libtorch*' \
	  --exclude 'libc10*' --exclude 'libcudart*' --exclude 'libgomp*' build/wheel/*.whl

# The wheel in an environment of its own beside torch, run outside this tree, and a C++ build with it.
wheel-test: wheel
	$(PY) -m pytest -q tests/wheel

# Puts seeded bugs into a copy of the sources and says which tests notice. MUTATE: options and names,
# as in make mutate MUTATE=--help
mutate: setup
	$(PY) -m tests.mutate $(MUTATE)

format:
	$(VENV)/bin/clang-format -i $(CPP_FILES)
	$(PY) -m ruff format .
