#!/usr/bin/env bash
# Every sanitizer over what it is good for, each after it has caught an error planted for it.
# Usage: run.sh BUILD FOLDER; BUILD has the tests without sanitizers, for valgrind. Logs go to
# FOLDER.  STAGES picks from "asan python tsan valgrind gpu" (default: all).
set -uo pipefail
build=$(cd "$1" && pwd)
out=$(mkdir -p "$2" && cd "$2" && pwd)
summary=$out/summary.txt
cd "$(dirname "$0")/../.." || exit
python=$(command -v "${PYTHON:-python3}")
stages=${STAGES:-asan python tsan valgrind gpu}
cxx=${CXX:-g++}
failed=0
source tests/sanitize/stages.sh
: >"$summary"

tree() {  # tree NAME SANITIZERS TARGET...: configures build/NAME and builds the targets
  local name=$1 sanitizers=$2
  shift 2
  cmake -S . -B "build/$name" -DCMAKE_CXX_COMPILER="$cxx" -DGKD_SANITIZE="$sanitizers" \
    -DGKD_WITH_CUDA=OFF -DPython3_EXECUTABLE="$python" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/build/$name/package/gkd" &&
    cmake --build "build/$name" --parallel "${JOBS:-$(nproc)}" --target "$@"
}

plant() {  # plant NAME FLAG...: the program with an error of each kind
  local name=$1
  shift
  "$cxx" -std=c++17 -g -O1 -pthread "$@" tests/sanitize/planted.cpp -o "$out/planted-$name" &&
    "$out/planted-$name" none
}

# ASAN and UBSAN. A leak at exit is no finding: torch and Python keep what they hold until the end.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
programs="gkd_math_test gkd_row_test gkd_ops_test"
stage asan-plant plant asan -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all
stage asan-heap caught heap-buffer-overflow "$out/planted-asan" heap
stage asan-signed caught "signed integer overflow" "$out/planted-asan" signed
stage asan-float caught "is outside the range of representable values" "$out/planted-asan" float
stage asan-build tree asan address,undefined $programs gkd_row_replay gkd_shard_replay gkd_sparse_replay gkd_loss_replay _C
for program in $programs; do stage "asan-$program" "build/asan/$program"; done
for fuzzed in row shard sparse loss; do
  stage "asan-corpus-$fuzzed" "build/asan/gkd_${fuzzed}_replay" "build/asan/corpus/$fuzzed"
done

# The interpreter is not built with ASAN, so its runtime is loaded first; libstdc++ with it, since
# the runtime looks for __cxa_throw before any library has brought it. Left out: tests that start
# processes or compilers, which would inherit the runtime, and one that asks for more memory than
# the runtime lets anybody ask for.
python_suite() {
  cp python/gkd/*.py python/gkd/*.pyi build/asan/package/gkd/ || return
  local runtime
  runtime="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libstdc++.so)"
  env LD_PRELOAD="$runtime" PYTHONPATH="$PWD/build/asan/package" PYTHONMALLOC=malloc \
    "$python" -m pytest -q -p no:cacheprovider \
    -o pythonpath="build/asan/package tests/python/support ." \
    tests/python/{loss,group,autograd,linear} tests/python/distributed/test_shard_stages.py \
    tests/python/package/test_module.py tests/python/robustness/test_{memory,threads}.py \
    -k 'not compiles and not compiled and not exports and not info_names and not out_of_memory and not forked_process and not first_calls'
}
stage python-build tree asan address,undefined _C
stage python-suite python_suite

# TSAN: std::threads alone, since the OpenMP runtime's own barriers are unknown to it.
stage tsan-plant plant tsan -fsanitize=thread
stage tsan-race caught "data race" "$out/planted-tsan" race
stage tsan-build tree tsan thread gkd_threads_test
stage tsan-threads build/tsan/gkd_threads_test

# memcheck knows no AVX-512 and says so to CPUID, so that the kernels up to AVX2 are run.
if command -v valgrind >/dev/null; then
  memcheck=(valgrind -q --error-exitcode=9)
  stage valgrind-plant plant valgrind
  stage valgrind-uninitialised caught "depends on uninitialised value" "${memcheck[@]}" \
    "$out/planted-valgrind" uninitialised
  # valgrind computes long double in 64 bits, which is too little for one test's truth.
  stage valgrind-math "${memcheck[@]}" "$build/gkd_math_test" \
    --gtest_filter=-Binary.KeepsDigitsOfASmallSideAndOfASmallGap
  stage valgrind-row "${memcheck[@]}" "$build/gkd_row_test"
else
  echo "valgrind: not installed, left out" | tee -a "$summary"
fi

# compute-sanitizer's tools and their plants are gpu_check.sh's.
if nvidia-smi -L 2>/dev/null | grep -q GPU; then
  STAGES="build sanitize" PYTHON=$python stage gpu-compute-sanitizer bash tests/gpu_check.sh "$out/gpu"
else
  echo "gpu: none visible, compute-sanitizer left out" | tee -a "$summary"
fi
exit "$failed"
