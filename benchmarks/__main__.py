"""Runs the grid and writes one CSV: ``python -m benchmarks [--device cpu|cuda] [--quick]``."""

from __future__ import annotations

import argparse
import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import contenders as peers
from benchmarks.machine import describe, load
from benchmarks.measure import STAGES, interleave, logits, peak_bytes, peak_bytes_apart, quantiles


@dataclass(frozen=True)
class Shape:
    rows: int
    classes: int


#: 1,000: a small head. 10,000 to 2,059,906: faces at fixed work, so that a figure shows growth.
CPU = [
    Shape(256, 1_000),
    Shape(128, 10_000),
    Shape(16, 85_742),
    Shape(4, 360_232),
    Shape(1, 2_059_906),
]
CUDA = [
    Shape(4096, 1_000),
    Shape(64, 10_000),
    Shape(1024, 10_000),
    Shape(128, 85_742),
    Shape(4096, 131_072),
    Shape(128, 360_232),
    Shape(128, 1_000_000),
    Shape(64, 2_059_906),
]
#: For a rehearsal, which may be on a device that is a program.
TINY = [Shape(3, 50), Shape(2, 3_000)]


def takes_memory(name: str, stage: str, distribution: str, options: argparse.Namespace) -> bool:
    """On the CPU each peak costs a process: none that says nothing new."""
    if options.no_memory or distribution != options.distributions[0]:
        return False
    return name == "gkd" or (stage == "forward_backward" and name.startswith(("user", "kd")))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="two shapes, nothing compiled")
    parser.add_argument(
        "--tiny", action="store_true", help="a rehearsal: short rows, and nan for every time"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--budget", type=float, default=6.0, help="seconds per line of the grid")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument(
        "--distributions",
        nargs="+",
        default=["flat", "peaked"],
        help="flat, peaked, or a .pt file of a dict with student and teacher logits, as make demo "
        "writes one (examples/glyphs/out/logits.pt): it has its own shape, beside the grid's",
    )
    parser.add_argument("--classes", nargs="+", type=int, help="only these of the grid")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/latest.csv"))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    grid = CUDA if options.device == "cuda" else CPU
    if options.quick:
        grid = [Shape(16, 10_000), Shape(4, 85_742)]
    if options.tiny:
        grid, options.budget = TINY, 0.0
        print("--tiny: a rehearsal, nothing is measured")
    if options.classes:
        grid = [shape for shape in grid if shape.classes in options.classes]
    found = peers.available(options.device, not (options.no_compile or options.quick))
    for name, reason in peers.MISSING.items():
        print(f"{name}: left out ({reason})")
    machine = describe(options.device)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = None
        for shape, dtype, distribution in points(grid, options):
            for line in lines(shape, dtype, distribution, found, options):
                line = {**machine, **line}
                writer = writer or start(file, line)
                writer.writerow(line)
            file.flush()
    print(options.output)


def points(grid: list[Shape], options: argparse.Namespace) -> list[tuple[Shape, str, str]]:
    """The grid, and saved logits in the shape they have."""
    drawn = [x for x in options.distributions if not x.endswith(".pt")]
    saved = [x for x in options.distributions if x.endswith(".pt")]
    found = [(shape, dtype, x) for shape in grid for dtype in options.dtypes for x in drawn]
    for path in saved:
        shape = Shape(*torch.load(path, weights_only=True)["student"].shape)
        found += [(shape, dtype, path) for dtype in options.dtypes]
    return found


def start(file, line) -> csv.DictWriter:  # type: ignore[no-untyped-def]
    writer = csv.DictWriter(file, fieldnames=list(line))
    writer.writeheader()
    return writer


def lines(shape, dtype, distribution, found, options):  # type: ignore[no-untyped-def]
    """One line per stage and contender of one point of the grid."""
    student, teacher = logits(
        shape.rows, shape.classes, getattr(torch, dtype), distribution, options.device
    )
    size = shape.rows * shape.classes
    for stage in STAGES:
        losses = {contender.name: contender.make() for contender in found}
        samples = interleave(losses, student, teacher, stage, options.budget)
        for name, sample in samples.items():
            if options.tiny:  # whatever the device is, nobody shall take these for figures
                sample.seconds, sample.ratios = [math.nan], [math.nan]
            p20, median, p80 = (x / size * 1e9 for x in quantiles(sample.seconds))
            low, ratio, high = quantiles(sample.ratios)
            peak = -1
            if options.device == "cuda":
                how = "forward" if name in peers.FORWARD_ONLY else stage
                peak = peak_bytes(losses[name], student, teacher, how)
            elif takes_memory(name, stage, distribution, options):
                peak = peak_bytes_apart(
                    name, shape.rows, shape.classes, dtype, distribution, stage, options.threads
                )
            peak = -1 if options.tiny else peak
            yield {
                "device": options.device,
                "load": round(load(), 2),
                "rows": shape.rows,
                "classes": shape.classes,
                "dtype": dtype,
                "distribution": Path(distribution).stem,
                "stage": stage,
                "contender": name,
                "rounds": len(sample.seconds),
                "ns_per_class_p20": f"{p20:.4f}",
                "ns_per_class_median": f"{median:.4f}",
                "ns_per_class_p80": f"{p80:.4f}",
                "ratio_to_gkd_p20": f"{low:.3f}",
                "ratio_to_gkd_median": f"{ratio:.3f}",
                "ratio_to_gkd_p80": f"{high:.3f}",
                "peak_bytes": peak,
                "bytes_of_one_tensor": size * student.element_size(),
            }
            print(
                f"{shape.rows}x{shape.classes} {dtype} {Path(distribution).stem} {stage} {name}: "
                f"{median:.3f} ns/class [{p20:.3f}, {p80:.3f}], {ratio:.2f}x gkd "
                f"[{low:.2f}, {high:.2f}], peak {peak / 2**20:.1f} MiB",
                flush=True,
            )
    torch._dynamo.reset()


if __name__ == "__main__":
    main()
