#!/usr/bin/env bash
# Tests that take too long for every change, or need other tools than a change. Usage:
#   tests/run.sh nightly            5,000 examples of every property, the tests marked large, which
#                                   take 5 GiB, and 10^5 calls whose memory must stay within 1%
#   tests/run.sh sanitize           ASAN, UBSAN, TSAN, valgrind and, where a GPU is,
#                                   compute-sanitizer; about ten minutes
#   tests/run.sh fuzz [SECONDS]     libFuzzer on rows, shards, rows of grouped teachers and the C++
#                                   entry, each so long (600)
#   tests/run.sh mutate [OPTIONS]   puts seeded bugs into a copy of the sources and says which tests
#                                   notice; hours. Options: --help
#   tests/run.sh all-archs          compiles the kernels for every architecture that is supported
#   tests/run.sh tidy               clang-tidy (or $CLANG_TIDY) on the C++ sources; some minutes
#   tests/run.sh wheel              makes the wheel and tries it in an environment of its own
# GKD_CMAKE_ARGS and JOBS hold as for make.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
jobs=${JOBS:-$(nproc)}
command=${1:-}
[ $# -eq 0 ] || shift
export PYTHONPATH=$PWD/python

# configure FOLDER OPTION...
configure() { cmake -S . -B "$1" -DPython3_EXECUTABLE="$python" "${@:2}"; }

case $command in
  nightly)
    make build
    options=(-q -o faulthandler_timeout=3600)
    "$python" -m pytest "${options[@]}" --hypothesis-profile=nightly \
      tests/python/loss/test_loss_properties.py tests/python/group/test_group_properties.py
    "$python" -m pytest "${options[@]}" -m large --large tests/python
    OMP_NUM_THREADS=1 "$python" tests/python/support/long_run.py --calls 100000
    ;;
  sanitize)
    make build
    PYTHON=$python JOBS=$jobs bash tests/sanitize/run.sh build/cpp build/sanitize
    ;;
  fuzz)
    # Findings land in build/fuzz. tests/fuzz/pack.py packs inputs that are worth keeping.
    make setup
    configure build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DGKD_BUILD_FUZZERS=ON -DGKD_WITH_CUDA=OFF \
      -DGKD_BUILD_PYTHON=OFF -DGKD_BUILD_TESTS=OFF
    cmake --build build/fuzz --parallel "$jobs"
    for target in row shard sparse loss; do
      mkdir -p "build/fuzz/$target"
      log=build/fuzz/$target.log
      OMP_NUM_THREADS=1 "build/fuzz/gkd_${target}_fuzzer" "build/fuzz/$target" \
        "build/fuzz/corpus/$target" -max_total_time="${1:-600}" -max_len=512 -len_control=0 \
        -print_final_stats=1 -artifact_prefix=build/fuzz/ >"$log" 2>&1 || { tail -40 "$log"; exit 1; }
      grep -E 'DONE|stat::' "$log"
    done
    ;;
  mutate)
    make setup
    "$python" -m tools.mutate "$@"
    ;;
  all-archs)
    make setup
    configure build/all-archs -DGKD_BUILD_PYTHON=OFF -DGKD_BUILD_TESTS=OFF \
      "-DTORCH_CUDA_ARCH_LIST=7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
    cmake --build build/all-archs --parallel "$jobs" --target gkd_kernels
    ;;
  tidy)
    # Every source of a CPU build once: the flags of one instruction set stand for the others'.
    tidy=${CLANG_TIDY:-clang-tidy}
    command -v "$tidy" >/dev/null || { echo "needs clang-tidy 14 or later on PATH, or CLANG_TIDY=..."; exit 1; }
    make setup
    configure build/tidy -DGKD_WITH_CUDA=OFF -DCMAKE_EXPORT_COMPILE_COMMANDS=ON
    git ls-files 'csrc/*.cpp' 'tests/cpp/test_*.cpp' | grep -v -e csrc/cuda/ -e tests/cpp/test_index |
      xargs -n 1 -P "$jobs" "$python" tools/tidy.py build/tidy "$tidy"
    ;;
  wheel)
    make wheel
    "$python" -m pytest -q tests/wheel
    ;;
  *)
    sed -n '2,/^set/{/^# /s/^# //p}' "$0"
    exit 2
    ;;
esac
