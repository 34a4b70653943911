#!/usr/bin/env bash
# Builds, tests, sanitizes and benchmarks on a machine with torch, nvcc and a GPU, without a package
# index, and writes what came of it into a folder.  Usage: gpu_check.sh FOLDER
# STAGES picks from "build kernels python sanitize bench" (default: all).
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}")
stages=${STAGES:-build kernels python sanitize bench}
build=build/gpu
failed=0
source tests/sanitize/stages.sh

# The card's own architecture: nothing else has to be compiled for.
arch=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
"$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())' |
  tee "$out/machine.txt"
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv |
  tee -a "$out/machine.txt"

build() {
  # A carried copy of GoogleTest's sources serves where no package has it.
  local carried=${GOOGLETEST_SOURCES:-third_party/googletest} options=()
  [ -d "$carried" ] && options+=("-DFETCHCONTENT_SOURCE_DIR_GOOGLETEST=$(cd "$carried" && pwd)")
  cmake -S . -B "$build" -DPython3_EXECUTABLE="$python" "-DTORCH_CUDA_ARCH_LIST=$arch" \
    -DGKD_BUILD_BENCHMARKS=ON -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/python/gkd" \
    ${options[@]+"${options[@]}"} && cmake --build "$build" --parallel
}

export PYTHONPATH=$PWD/python GKD_BUILD_DIR=$build
stage build build
stage kernels "$build/gkd_kernel_test"
stage python-all "$python" -m pytest -q tests/python
# Sanitizers miss what lies inside a caching allocator's blocks.
small="--gtest_filter=Kernels.EveryPairOfDtypes:Kernels.SettingsOfTheFamily:Kernels.TiesStayTogether"
declare -A words=([memcheck]="Invalid __global__ write" [racecheck]="Race reported"
  [initcheck]="Uninitialized __global__ memory read" [synccheck]="Barrier error")
for tool in memcheck racecheck initcheck synccheck; do
  stage "sanitize-planted-$tool" caught "${words[$tool]}" compute-sanitizer --tool "$tool" \
    --error-exitcode 9 "$build/gkd_planted" "$tool"
  stage "sanitize-$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
    "$build/gkd_kernel_test" "$small"
done
PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage sanitize-python compute-sanitizer --error-exitcode 9 \
  "$python" -m pytest -q -x tests/python/test_strides.py -k cuda
stage bench-kernels "$build/gkd_bench_cuda"
stage bench-python "$python" -m benchmarks --device cuda --output "$out/benchmarks.csv"
cat "$out/summary.txt"
exit "$failed"
