"""Registers, spills and instructions per class of the fused CUDA kernels, from their machine code.

    python -m benchmarks.machine_code           # writes build/machine_code.csv, checks the budget
    python -m benchmarks.machine_code --architectures 90

Compiles the fused kernels and reads the code with nvdisasm, of PyPI's nvidia-cuda-nvdisasm.
NVDISASM and CUDACXX name other programs. No GPU is needed, and nothing is measured.

Instructions are warp instructions per 32 classes on the path of a whole vector of an aligned row
(`sweeps.py`). A row's total adds its passes up (`budget.py`). In a flat row every warp has classes
of the group; in one with a small group hardly any has. How often a warp visits a key of the window
is counted on an emulated device (`count_cuda.py`), as often where rows are streamed. The copy on
chip, and what a row costs whatever its length, are not in the total.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.budget import COLUMNS, ROWS, STREAMED, Kernel, Visits
from benchmarks.control_flow import Block, functions, loops
from benchmarks.sweeps import costs

ROOT = Path(__file__).resolve().parents[1]
COUNTS = ROOT / "benchmarks" / "results" / "counts_cuda.csv"
ARCHITECTURES = (80, 86, 90, 100, 120)
#: Clusters and grids are compiled for this one alone: all five would take minutes.
EVERY_STRATEGY = 90
FLAGS = "-std=c++17 -O3 -DNDEBUG --expt-relaxed-constexpr -DTHRUST_CUB_WRAPPED_NAMESPACE=gkd_cub"
ELEMENTS = {"f": ("float32", 4), "13__nv_bfloat16": ("bfloat16", 2), "6__half": ("float16", 2)}
KERNEL = re.compile(r"fused_kernelI(f|13__nv_bfloat16|6__half)N.*?Lb0ELb([01])EEE")
#: Block groups, by strategy.
GROUPS = {"block": "SingleBlock", "cluster": "ClusterGroup", "grid": "GridGroup"}
#: The kernels of gkd.loss; what cross-entropy adds is counted on an emulated device.
SOURCE = """#include "cuda/fused/kernel.cuh"
namespace gkd::cuda {{
{kernels}
}}
"""
INSTANCE = "template __global__ void fused_kernel<{}, {}, false, {}>(const FusedCall<float>);"
RESOURCES = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def _in_packages(program: str) -> str | None:
    packages = Path(sysconfig.get_path("purelib"))
    return next(map(str, sorted(packages.glob(f"nvidia/cu*/bin/{program}"))), None)


def find_nvcc() -> str | None:
    """As cmake/toolkit.cmake does: CUDACXX, CUDA_HOME or PATH; else the one beside torch."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or ""
    found = os.environ.get("CUDACXX") or shutil.which(Path(home, "bin", "nvcc"))
    return found or shutil.which("nvcc") or _in_packages("nvcc")


def find_nvdisasm() -> str | None:
    return os.environ.get("NVDISASM") or _in_packages("nvdisasm") or shutil.which("nvdisasm")


def _in_rows(kind: str, blocks: list[Block]) -> int:
    """In the loop over rows, which is the largest."""
    rows = max(loops(blocks), key=lambda loop: len(loop.body))
    return sum(blocks[b].count()[kind] for b in rows.body)


def read_kernels(architecture: int, strategy: str, listing: str, said: str) -> Iterator[Kernel]:
    """The float and 16-bit kernels of a file: from what nvdisasm printed, and what ptxas said."""
    resources = {}
    for part in said.split("Compiling entry function '")[1:]:
        if found := RESOURCES.search(part):
            resources[part.split("'")[0]] = [int(number) for number in found.groups()]
    for name, blocks in functions(listing).items():
        if match := KERNEL.search(name):
            stack, stored, loaded, registers = resources[name]
            dtype, element_bytes = ELEMENTS[match[1]]
            name_of = STREAMED + strategy if match[2] == "1" else strategy
            sizes = (element_bytes, registers, stack, stored + loaded)
            of_rows = (_in_rows("fence", blocks), _in_rows("wait", blocks))
            yield Kernel(
                architecture, name_of, dtype, *sizes, *of_rows, costs(blocks, element_bytes)
            )


def compile_kernels(job: tuple[int, str], nvcc: str, nvdisasm: str) -> list[Kernel]:
    architecture, strategy = job
    with tempfile.TemporaryDirectory() as folder:
        cubin, source = str(Path(folder, "kernels.cubin")), Path(folder, "kernels.cu")
        streamed = ("false",) if strategy == "block" else ("false", "true")
        elements = ("float", "__half", "__nv_bfloat16")
        kernels = [INSTANCE.format(e, GROUPS[strategy], s) for e in elements for s in streamed]
        source.write_text(SOURCE.format(kernels="\n".join(kernels)))
        command = [nvcc, *FLAGS.split(), f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v"]
        command += ["-Icsrc", str(source), "-o", cubin]
        compiled = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if compiled.returncode != 0:
            raise RuntimeError(compiled.stderr)
        listed = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True)
    return list(read_kernels(architecture, strategy, listed.stdout, compiled.stderr))


def window_visits() -> Visits:
    """As the emulated device counts them."""
    with COUNTS.open() as file:
        return {
            (line["strategy"], line["dtype"], line["row"]): float(line["value"])
            for line in csv.DictReader(file)
            if line["quantity"] == "window_visits_per_class"
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "machine_code.csv")
    args = parser.parse_args()
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None or nvdisasm is None:
        print(f"no {'nvcc' if nvcc is None else 'nvdisasm'}: the machine code was not read")
        return
    jobs = [(architecture, "block") for architecture in args.architectures]
    if EVERY_STRATEGY in args.architectures:
        jobs += [(EVERY_STRATEGY, "cluster"), (EVERY_STRATEGY, "grid")]
    with ThreadPoolExecutor(args.jobs) as pool:
        compiled = pool.map(partial(compile_kernels, nvcc=nvcc, nvdisasm=nvdisasm), jobs)
        kernels = [kernel for part in compiled for kernel in part]
    visits = window_visits()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(line for kernel in kernels for line in kernel.lines(visits))
    faults = [f"{kernel.name}: {fault}" for kernel in kernels for fault in kernel.faults(visits)]
    for kernel in kernels:
        rows = ROWS if not kernel.missing() else ()
        totals = [f"{kernel.total(row, visits):.1f} {row}" for row in rows]
        print(
            f"{kernel.name}: {kernel.registers} registers, {kernel.spills} bytes spilled,"
            f" {' and '.join(totals)} instructions per class"
        )
    if faults:
        sys.exit("\n".join(["above the budget:", *faults]))


if __name__ == "__main__":
    main()
