#!/usr/bin/env bash
# Builds, tests, sanitizes and benchmarks on a machine with torch, nvcc and a GPU, without a package
# index.  Usage: gpu_check.sh FOLDER, whose summary.txt is a page of what came of it.
#
# STAGES picks from the list below, by name or first words (default: all). After `build` each can be
# run alone: the folder keeps the others' lines. A stage is stopped after LIMIT seconds (540).
# COMMIT names the commit where no repository is; TORCH_CUDA_ARCH_LIST and GKD_CMAKE_ARGS hold.
# WITHOUT names tools whose absence is no failure: nvidia-smi, compute-sanitizer, torch.compile.
# REHEARSAL=COMMAND runs every program for the GPU under the command, which brings a device that is
# no GPU, at tiny sizes: it shows that this script and all that it runs work, and measures nothing.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: gpu_check.sh FOLDER"; exit 2; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit
all="build kernels python-1 python-2 python-3 python-4
sanitize-memcheck sanitize-racecheck sanitize-initcheck sanitize-synccheck sanitize-python
bench-kernels bench-float32-flat bench-float32-peaked bench-bfloat16-flat bench-bfloat16-peaked"
stages=${STAGES:-$all}
stages=${stages//$'\n'/ }
export out python build jobs rehearsal tiny compile
python=$(command -v "${PYTHON:-python3}")
build=${GKD_BUILD_DIR:-build/gpu}
jobs=${JOBS:-$(nproc)}
rehearsal=${REHEARSAL:-}
tiny=${REHEARSAL:+--tiny}
compile=
without=${WITHOUT:-${REHEARSAL:+nvidia-smi compute-sanitizer torch.compile}}
limit=${LIMIT:-540}
summary=$out/stages.txt
failed=0
source tests/sanitize/stages.sh
# Lines of a rehearsal and of a GPU never stand on one page.
kind=${REHEARSAL:+rehearsal}
[ "$(cat "$out/kind" 2>/dev/null || echo "$kind")" = "$kind" ] || { echo "$out holds results of the other kind"; exit 2; }
echo "$kind" >"$out/kind"
for pick in $stages; do
  grep -qxE -- "$pick(-.*)?" <<<"${all// /$'\n'}" || { echo "no stage $pick among: $all"; exit 2; }
done

facts='import torch
print(torch.cuda.get_device_name())
print("%d.%d" % torch.cuda.get_device_capability())
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")'
facts=$($rehearsal "$python" -c "$facts") || exit 1
{ read -r device; read -r capability; read -r versions; } <<<"$facts"
commit=${COMMIT:-$(git describe --always --dirty 2>/dev/null || echo "commit unknown")}
where="[$device, $commit]"
# PTX too: what a card later than the list would run has to compile as well.
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability+PTX}
export PYTHONPATH=$PWD/python GKD_BUILD_DIR=$build

# has TOOL COMMAND...: whether the tool works here, shown by the command. The summary says so where
# it does not, and that is a failure unless `without` has the tool.
has() {
  if timeout --kill-after=10 120 "${@:2}" >"$out/$1.txt" 2>&1; then
    note "$1" "works $where"
    return 0
  fi
  if [[ " $without " == *" $1 "* ]]; then
    note "$1" "not here, left out with all that needs it $where"
  else
    note "$1" "FAILED, not here; WITHOUT=$1 would leave it out $where"
    failed=1
  fi
  grep "^$1: " "$summary"
  return 1
}

build_all() {
  # A carried copy of GoogleTest's sources serves where no package has it.
  local carried=${GOOGLETEST_SOURCES:-third_party/googletest} options=()
  [ -d "$carried" ] && options+=("-DFETCHCONTENT_SOURCE_DIR_GOOGLETEST=$(cd "$carried" && pwd)")
  cmake -S . -B "$build" -DPython3_EXECUTABLE="$python" -DGKD_BUILD_BENCHMARKS=ON \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/python/gkd" ${GKD_CMAKE_ARGS:-} \
    ${options[@]+"${options[@]}"} && cmake --build "$build" --parallel "$jobs" &&
    echo "compiled for $TORCH_CUDA_ARCH_LIST" >"$build/compiled_for"
}

# The kernel tests that a sanitizer or a rehearsal has the time for.
export small="--gtest_filter=Kernels.EveryPair*:Kernels.Settings*:Kernels.Ties*:Kernels.Unaligned*"
kernels() {
  local rc=0
  ctest --test-dir "$build" -L cpu ${tiny:+-R Corpus} --parallel "$jobs" --output-on-failure || rc=1
  $rehearsal "$build/gkd_planted" none || rc=1
  $rehearsal "$build/gkd_kernel_test" --gtest_brief=1 ${tiny:+"$small"} || rc=1
  return "$rc"
}

# part N: every fourth file of the suite, from the N-th on.
part() {
  local files=(tests/python/*/test_*.py) mine=() k
  [ -z "$tiny" ] || files=(tests/python/{group/test_adaptive_size,loss/test_loss,loss/test_strides,autograd/test_transforms}.py)
  for ((k = $1 - 1; k < ${#files[@]}; k += 4)); do mine+=("${files[k]}"); done
  $rehearsal "$python" -m pytest -q -rs "${mine[@]}" ${tiny:+-k cuda}
}

# sanitize TOOL WORDS: what the tool says of its planted error, and then that it finds none.
sanitize() {
  local tool=(compute-sanitizer --tool "$1" --error-exitcode 9)
  caught "$2" "${tool[@]}" "$build/gkd_planted" "$1" && "${tool[@]}" "$build/gkd_planted" none &&
    "${tool[@]}" "$build/gkd_kernel_test" "$small"
}

# Sanitizers miss what lies inside a caching allocator's blocks.
sanitize_python() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 \
    "$python" -m pytest -q -x tests/python/loss/test_strides.py -k cuda
}

bench_kernels() {
  $rehearsal "$build/gkd_bench_cuda" $tiny >"$out/kernels.csv" &&
    $rehearsal "$build/gkd_bench_cuda" --parts $tiny >"$out/kernel_parts.csv" || return
  cat "$out/kernels.csv" "$out/kernel_parts.csv"
  echo "counted: $(cat "$out"/kernel{s,_parts}.csv | grep -cv -e '^#' -e '^dtype') lines"
}

# grid DTYPE DISTRIBUTION: 16 points, two stages each; 3 s a line beside torch.compile's minutes.
grid() {
  $rehearsal "$python" -m benchmarks --device cuda --budget 3 --dtypes "$1" --distributions "$2" \
    $tiny $compile --output "$out/grid-$1-$2.csv" || return
  echo "counted: $(($(wc -l <"$out/grid-$1-$2.csv") - 1)) lines"
}
export -f caught build_all kernels part sanitize sanitize_python bench_kernels grid

# The page: written anew after each stage, since a job may be stopped between any two.
page() {
  {
    [ -z "$rehearsal" ] || echo "REHEARSAL on a device that is no GPU, at tiny sizes: it measures nothing."
    echo "$device, $versions, $("$python" --version), $(nproc) CPU cores"
    echo "$commit, $(cat "$build/compiled_for")"
    grep -v '^timeout: ' "$out/nvidia-smi.txt"
    echo
    cat "$summary"
    if [ -s "$out/kernels.csv" ]; then
      echo
      grep '^#' "$out/kernels.csv"
      echo "The kernels that the library picks, cold cache: percentage of a copy's speed"
      # The line after a copy's is that of the library's own choice.
      awk -F, 'own { printf "%-8s %5d x %-8d %-5s %-12s %10s us %7s GB/s %6s%%\n", $1, $2, $3, $4, $5, $6, $9, $10 }
               { own = $5 == "copy" }' "$out/kernels.csv"
    fi
  } >"$out/summary.txt" 2>/dev/null
  local parts=("$out"/grid-*.csv)
  [ ! -e "${parts[0]}" ] || awk 'NR == 1 || FNR > 1' "${parts[@]}" >"$out/benchmarks.csv"
}

has nvidia-smi nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv
stage build build_all
stage kernels kernels
for k in 1 2 3 4; do stage "python-$k" part "$k"; done
if picked sanitize-{memcheck,racecheck,initcheck,synccheck,python} && has compute-sanitizer compute-sanitizer --version; then
  stage sanitize-memcheck sanitize memcheck "Invalid __global__ write"
  stage sanitize-racecheck sanitize racecheck "Race reported"
  stage sanitize-initcheck sanitize initcheck "Uninitialized __global__ memory read"
  stage sanitize-synccheck sanitize synccheck "Barrier error"
  stage sanitize-python sanitize_python
fi
stage bench-kernels bench_kernels
compiles='import torch
torch.compile(lambda x: x + 1)(torch.ones(4, device="cuda"))'
if picked bench-{float32,bfloat16}-{flat,peaked}; then
  has torch.compile $rehearsal "$python" -c "$compiles" || compile=--no-compile
  for dtype in float32 bfloat16; do
    for logits in flat peaked; do stage "bench-$dtype-$logits" grid "$dtype" "$logits"; done
  done
fi
page
cat "$out/summary.txt"
exit "$failed"
