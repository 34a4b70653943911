"""Counts of the fused CUDA kernels on an emulated device, held against those in the repository.

    python -m benchmarks.count_cuda EMULATOR build/cpp/gkd_count_cuda            # checks
    python -m benchmarks.count_cuda EMULATOR build/cpp/gkd_count_cuda --rewrite  # writes the CSV

EMULATOR runs a program and appends each launch's counts, a line of JSON, to the file that
PTXEMU_COUNT names. The check fails if a count is more than 5% above that in
`results/counts_cuda.csv`. **Nothing is measured**: these are counts of PTX, of which machine code
has fewer instructions; those that never become machine instructions are left out.

"sparse": `gkd.sparse_loss` of the flat row with a group of 200 classes, for all of its kernels
together. Device memory sees the student read once and the gradient written once, and the bytes that
"group_bytes" counts for each class of the group.

One row per call, T = 4, with a gradient. Rows: "flat", normal logits of spread 1; "small", the same
with 8 of the teacher's logits 80 higher, which are the group. What grows with the classes is the
slope between two lengths, in warp instructions per 32 classes; "per_row" is what is left for all
blocks of a row together, in warp instructions. The other counts are of the longer row.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.budget import STREAMED

RESULTS = Path(__file__).parent / "results" / "counts_cuda.csv"
COLUMNS = ("strategy", "dtype", "row", "quantity", "value")
ROOM = 0.05
PER_CLASS = "instructions_per_class"
#: A row of sparse_loss, and the classes of its group.
SPARSE, GROUP_CLASSES = "sparse", 200
#: Of training_loss over loss, and the most that may be.
TRAINING, MOST_TRAINING = "training_over_loss", 1.15
#: Less than this is no change: a count of nearly nothing has no 5%.
LEAST = 0.02
#: PTX that names registers, and what ptxas folds into other instructions.
FREE = {"move", "param", "predicate", "fp32_sign", "total"}
DOUBLE = {"fp64", "fp64_div", "compare_fp64"}
ROW_KINDS = ("flat", "small")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
WARP = 32
#: The emulator compiles each kernel once: without optimisation in a fifth of the time.
UNOPTIMIZED = "-O0"
#: Classes of the longer row, and blocks. A block's segment differs by whole tiles of 8,192 classes
#: between the rows.
ROWS = {
    "block": (20_000, 1),
    "cluster": (85_742, 8),
    "grid": (120_000, 8),
    "streamed cluster": (85_742, 8),
}
TILE = 8192


def launches(command: list[str], flags: str) -> list[dict[str, Any]]:
    """What a command's kernel launches did on an emulated device, compiled with these flags."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "counts")
        environment = {**os.environ, "PTXEMU_CXXFLAGS": flags, "PTXEMU_COUNT": str(path)}
        subprocess.run(command, check=True, env=environment)
        return [json.loads(line) for line in path.read_text().splitlines()]


def run(emulator: str, program: str, *arguments: str) -> list[dict[str, Any]]:
    """Of gkd_count_cuda; the emulator adds a flag for the counters."""
    return launches([emulator, program, *arguments], UNOPTIMIZED)


def fused(found: list[dict[str, Any]], kernel: str = "fused_kernel") -> dict[str, Any]:
    (launch,) = [launch for launch in found if kernel in launch["kernel"]]
    return launch


def moved(launch: dict[str, Any]) -> int:
    """Bytes that a launch loads from and stores to device memory."""
    memory: dict[str, dict[str, int]] = launch["memory"]
    return sum(c["bytes"] for name, c in memory.items() if name.startswith("global."))


def instructions(launch: dict[str, Any]) -> Counter[str]:
    counts: dict[str, int] = launch["warp_instructions"]
    return Counter(
        all=sum(number for kind, number in counts.items() if kind not in FREE),
        double=sum(number for kind, number in counts.items() if kind in DOUBLE),
        barriers=counts.get("barrier", 0),
    )


def quantities(
    long: dict[str, Any], short: dict[str, Any], classes: int, fewer: int, element_bytes: int
) -> Iterator[tuple[str, float]]:
    """What is held of a row of some classes and one of fewer."""
    yield from of_instructions(long, short, classes, fewer)
    memory = {name: Counter(counts) for name, counts in long["memory"].items()}
    atomic, stores = memory["shared.atomic"], memory["global.store"]
    # Requests of 32-bit atomics: one for each class, which is counted, and one for each visit of a
    # key in the window. Those of 64 bits are the search's ("loops": compared and swapped).
    requests = atomic["requests"] - atomic["loops"]
    requests -= short["memory"]["shared.atomic"]["requests"]
    requests += short["memory"]["shared.atomic"].get("loops", 0)
    yield "window_visits_per_class", max(0.0, WARP * requests / (classes - fewer) - 1)
    # 1 where every sector is written whole, and shared memory is read at full width.
    yield "sectors_per_32_bytes_stored", 32 * stores["sectors"] / stores["bytes"]
    for name in ("load", "store"):
        shared = memory[f"shared.{name}"]
        yield f"wavefronts_per_128_bytes_{name}", 128 * shared["wavefronts"] / shared["bytes"]
    yield "wavefronts_per_atomic", atomic["wavefronts"] / atomic["requests"]
    yield "global_elements_per_class", moved(long) / classes / element_bytes


def of_instructions(
    long: dict[str, Any], short: dict[str, Any], classes: int, fewer: int
) -> Iterator[tuple[str, float]]:
    whole, part = instructions(long), instructions(short)
    for kind in ("all", "double"):
        per_class = (whole[kind] - part[kind]) / (classes - fewer)
        name = "instructions" if kind == "all" else "double"
        yield f"{name}_per_class", WARP * per_class
        yield f"{name}_per_row", whole[kind] - per_class * classes
    yield "barriers_per_row", whole["barriers"] / long["warps"]


def sparse_quantities(
    long: list[dict[str, Any]],
    short: list[dict[str, Any]],
    classes: int,
    fewer: int,
    element_bytes: int,
) -> Iterator[tuple[str, float]]:
    """The same of a sparse row, whose device memory is that of all kernels."""
    main, part = fused(long, "sparse_kernel"), fused(short, "sparse_kernel")
    yield from of_instructions(main, part, classes, fewer)
    total, less = (
        sum(moved(launch) for launch in launches if "gkd::cuda::" in launch["kernel"])
        for launches in (long, short)
    )
    yield "global_elements_per_class", (total - less) / (classes - fewer) / element_bytes
    yield "group_bytes", (total - 2 * classes * element_bytes) / GROUP_CLASSES


def count(emulator: str, program: str) -> dict[tuple[str, ...], float]:
    """Every quantity, by strategy, dtype, kind of row and name."""

    def both(case: tuple[str, str, str]) -> dict[tuple[str, ...], float]:
        strategy, dtype, row = case
        classes, blocks = ROWS[strategy]
        fewer = classes - TILE * blocks
        if row == SPARSE:
            long, short = (
                run(emulator, program, dtype, strategy, "flat", str(length), SPARSE)
                for length in (classes, fewer)
            )
            found = sparse_quantities(long, short, classes, fewer, BYTES[dtype])
            return {(*case, name): value for name, value in found}

        def counted(*loss: str) -> Iterator[tuple[str, float]]:
            long, short = (
                fused(run(emulator, program, dtype, strategy, row, str(length), *loss))
                for length in (classes, fewer)
            )
            return quantities(long, short, classes, fewer, BYTES[dtype])

        found = list(counted())
        if row == "flat":
            training = dict(counted("training"))
            found.append((TRAINING, training[PER_CLASS] / dict(found)[PER_CLASS]))
        return {(*case, name): value for name, value in found}

    cases = [
        case
        for case in product(ROWS, BYTES, (*ROW_KINDS, SPARSE))
        if not case[0].startswith(STREAMED) or (case[1] == "float32" and case[2] != SPARSE)
    ]
    first = list({case[0].removeprefix(STREAMED): case for case in reversed(cases)}.values())
    # The emulator compiles a file of kernels on its first launch, and two processes must not do
    # the same file: first those that all strategies share, then each strategy's own.
    run(emulator, program, "float32", "multi_kernel", "flat", "1000")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(both, first))
        found += pool.map(both, [case for case in cases if case not in first])
    counts = {key: value for part in found for key, value in part.items()}
    return {key: counts[key] for case in cases for key in counts if key[:3] == case}


def risen(found: dict[tuple[str, ...], float], held: dict[tuple[str, ...], float]) -> Iterator[str]:
    """The counts that rose, or that are not held."""
    for key, value in found.items():
        if key[-1] == TRAINING and value > MOST_TRAINING:
            yield f"{' '.join(key)}: {value:.2f}, {MOST_TRAINING} allowed"
        if key not in held:
            yield f"{' '.join(key)}: not in {RESULTS.name}"
        elif value > held[key] + ROOM * abs(held[key]) + LEAST:
            yield f"{' '.join(key)}: {value:.2f}, was {held[key]:.2f}"


def read() -> dict[tuple[str, ...], float]:
    with RESULTS.open() as file:
        return {tuple(line[:-1]): float(line[-1]) for line in list(csv.reader(file))[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("emulator")
    parser.add_argument("program")
    parser.add_argument("--rewrite", action="store_true", help="write the CSV instead of checking")
    args = parser.parse_args()
    for path in (args.emulator, args.program):
        if not os.access(path, os.X_OK):
            print(f"no program at '{path}': the CUDA kernels' counts were not taken")
            return
    found = count(args.emulator, args.program)
    if args.rewrite:
        with RESULTS.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([*key, f"{value:.3f}"] for key, value in found.items())
        return
    if faults := list(risen(found, read())):
        sys.exit("\n".join(["counts that rose by more than 5% (--rewrite accepts them):", *faults]))
    print(f"{len(found)} counts, none above {RESULTS.name}")


if __name__ == "__main__":
    main()
